"""Checks workflow files by the orchestrator's own reader, in a process of its own: the kit does not import it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from pantheon.cli.exit_codes import CommandError, ExitCode

CHECK_COMMAND = (sys.executable, "-m", "orchestrator_agent.check")


def check_files(files: list[Path]) -> list[dict[str, Any]]:
    """The orchestrator's result for each file: `name` and `steps`, or `error` with `message`, `line`, `column`.

    Raises CommandError when there is nothing to check.
    """
    for path in files:
        if not path.exists():
            raise CommandError(f"{path}: there is no such file", ExitCode.NOT_FOUND)
    done = subprocess.run([*CHECK_COMMAND, *map(str, files)], capture_output=True, text=True, check=False)
    try:
        results: list[dict[str, Any]] = json.loads(done.stdout)
    except ValueError:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise CommandError(f"the check did not run: {reason}", ExitCode.INTERNAL) from None
    if not results:
        raise CommandError(f"{files[0]}: there are no workflow files in it", ExitCode.NOT_FOUND)
    return results
