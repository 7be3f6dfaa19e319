"""`pantheon workflows`, its `check` and `put`: what the mesh can run, whether a file is right, one more workflow."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pantheon.cli.commands.control import each, operation
from pantheon.cli.connection import Json, Url, open_mesh
from pantheon.cli.exit_codes import CommandError, ExitCode
from pantheon.cli.render.listing import Column, print_listing
from pantheon.cli.render.output import note, print_json, print_line, stderr, stdout
from pantheon.cli.running import run_async

_COLUMNS = (
    Column("workflow", style="bold"),
    Column("version", weight=2, style="bright_black"),
    Column("steps", weight=4),
    Column("input (* must be given)", weight=1),
    Column("description", weight=5, flexible=True),
)
# The kit does not import the orchestrator; who checks files asks it in a process of its own.
CHECK_COMMAND = (sys.executable, "-m", "orchestrator_agent.check")


def workflows(context: typer.Context, url: Url = None, as_json: Json = False) -> None:
    if context.invoked_subcommand is not None:
        return
    found = run_async(_list(url))
    if as_json:
        print_json(found)
        return
    if not found:
        note("the mesh has no workflows but execute_dag")
        return
    rows = [
        [
            str(one["name"]),
            str(one.get("version") or "")[:8],
            ", ".join(one.get("steps") or ()),
            _input(one.get("input")),
            " ".join(str(one.get("description") or "").split()),
        ]
        for one in found
    ]
    print_listing(stdout(), _COLUMNS, rows)


def _input(schema: Any) -> str:
    """The names of a workflow's input; those that must be given first, marked."""
    if not isinstance(schema, dict):
        return ""
    declared = schema.get("properties")
    properties: dict[str, Any] = declared if isinstance(declared, dict) else {}
    required = [str(one) for one in schema.get("required") or ()]
    return ", ".join([*(f"{one}*" for one in required), *(one for one in properties if one not in required)])


async def _list(url: str | None) -> list[dict[str, Any]]:
    async with open_mesh(url) as mesh:
        found: list[dict[str, Any]] = (await mesh.query("workflows"))["workflows"]
        return found


def check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Workflow files, or folders of them.")],
    as_json: Json = False,
) -> None:
    results = check_files(files)
    if as_json:
        print_json(results)
    mistakes = [one for one in results if one.get("error")]
    for one in results:
        if one.get("error"):
            stderr().print(one["error"]["message"], soft_wrap=True, markup=False)
        elif not as_json:
            print_line(f"{one['file']}: workflow '{one['name']}' is right ({', '.join(one['steps'])})")
    if mistakes:
        count = len(mistakes)
        raise CommandError(f"{count} of {len(results)} file{'s' if len(results) != 1 else ''} wrong", ExitCode.FAILED)


def check_files(files: list[Path]) -> list[dict[str, Any]]:
    """What the orchestrator says of each file: `name` and `steps`, or `error` with `message`, `line`, `column`.

    Raises CommandError when there is nothing to check.
    """
    for path in files:
        if not path.exists():
            raise CommandError(f"{path}: there is no such file", ExitCode.NOT_FOUND)
    done = subprocess.run([*CHECK_COMMAND, *map(str, files)], capture_output=True, text=True, check=False)
    try:
        results: list[dict[str, Any]] = json.loads(done.stdout)
    except ValueError:
        said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise CommandError(f"the check did not run: {said}", ExitCode.INTERNAL) from None
    if not results:
        raise CommandError(f"{files[0]}: there are no workflow files in it", ExitCode.NOT_FOUND)
    return results


def put(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Workflow files.")],
    url: Url = None,
    as_json: Json = False,
) -> None:
    definitions = {str(path): _definition(path) for path in files}

    async def run() -> tuple[list[Any], ExitCode]:
        async with open_mesh(url) as mesh:

            async def one(file: str) -> Any:
                try:
                    told = await operation(mesh.put_workflow(definitions[file]))
                except CommandError as error:
                    # Mistakes are told with the file that they are in.
                    message = error.message
                    if message.startswith("definition:"):
                        message = file + message.removeprefix("definition")
                    raise CommandError(message, error.exit_code) from None
                if not as_json:
                    print_line(f"workflow {told['workflow']} is version {told['version']}")
                return told

            return await each(list(definitions), one)

    told, status = run_async(run())
    if as_json:
        print_json(told)
    if status:
        raise typer.Exit(status)


def _definition(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise CommandError(f"{path} is not UTF-8 text", ExitCode.USAGE) from None
    except OSError as error:
        raise CommandError(f"cannot read {path} ({error.strerror})", ExitCode.NOT_FOUND) from None
