"""`python -m orchestrator_agent.check FILE…`: workflow files read as the orchestrator would, with their mistakes."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from orchestrator_agent.workflows.files import SUFFIXES, load_file
from protocol.errors import InvalidWorkflow


def check(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """A row for each file: `file` with `name` and `steps`, or with `error` (`message`, `line`, `column`, `step`)."""
    rows: list[dict[str, Any]] = []
    names: dict[tuple[Path, str], Path] = {}
    files = list(_files(paths))
    workflows = _names(files)
    for path in files:
        try:
            plan = load_file(path, workflows=workflows)
            # A folder's files are loaded together: two of one name would stop the orchestrator.
            first = names.setdefault((path.parent, plan.name), path)
            if first != path:
                message = f"{path}:1:1: the workflow '{plan.name}' is also in {first.name}"
                raise InvalidWorkflow(message, line=1, column=1)
        except InvalidWorkflow as error:
            rows.append({"file": str(path), "error": {"message": error.message, **error.details}})
        else:
            rows.append({"file": str(path), "name": plan.name, "steps": list(plan.steps)})
    return rows


def _names(paths: Sequence[Path]) -> frozenset[str]:
    """The workflows that these files define, as far as they can be read."""
    names: set[str] = set()
    for path in paths:
        with suppress(InvalidWorkflow):
            names.add(load_file(path).name)
    return frozenset(names)


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
        else:
            yield path


def main(arguments: Sequence[str]) -> int:
    """Print the rows as JSON; 1 when there is a mistake among them."""
    rows = check([Path(argument) for argument in arguments])
    sys.stdout.write(json.dumps(rows) + "\n")
    return 1 if any("error" in row for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
