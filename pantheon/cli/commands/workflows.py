"""`pantheon workflows`, with `check` and `put`: list the mesh's workflows, check files, store files as new versions."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pantheon.cli.connection import Json, Url, open_mesh
from pantheon.cli.exit_codes import CommandError, ExitCode
from pantheon.cli.operations import each, operation
from pantheon.cli.render.listing import Column, print_listing
from pantheon.cli.render.output import note, print_json, print_line, stderr, stdout
from pantheon.cli.running import run_async
from pantheon.cli.workflow_check import check_files

_COLUMNS = (
    Column("workflow", style="bold"),
    Column("version", weight=2, style="bright_black"),
    Column("steps", weight=4),
    Column("input (* must be given)", weight=1),
    Column("description", weight=5, flexible=True),
)


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
            str(workflow["name"]),
            str(workflow.get("version") or "")[:8],
            ", ".join(workflow.get("steps") or ()),
            _input(workflow.get("input")),
            " ".join(str(workflow.get("description") or "").split()),
        ]
        for workflow in found
    ]
    print_listing(stdout(), _COLUMNS, rows)


def _input(schema: Any) -> str:
    """The names of a workflow's input; required ones first, marked."""
    if not isinstance(schema, dict):
        return ""
    declared = schema.get("properties")
    properties: dict[str, Any] = declared if isinstance(declared, dict) else {}
    required = [str(name) for name in schema.get("required") or ()]
    return ", ".join([*(f"{name}*" for name in required), *(name for name in properties if name not in required)])


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
    mistakes = [result for result in results if result.get("error")]
    for result in results:
        if result.get("error"):
            stderr().print(result["error"]["message"], soft_wrap=True, markup=False)
        elif not as_json:
            print_line(f"{result['file']}: workflow '{result['name']}' is right ({', '.join(result['steps'])})")
    if mistakes:
        count = len(mistakes)
        raise CommandError(f"{count} of {len(results)} file{'s' if len(results) != 1 else ''} wrong", ExitCode.FAILED)


def put(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Workflow files.")],
    url: Url = None,
    as_json: Json = False,
) -> None:
    definitions = {str(path): _definition(path) for path in files}

    async def run() -> tuple[list[Any], ExitCode]:
        async with open_mesh(url) as mesh:

            async def put_file(file: str) -> Any:
                try:
                    result = await operation(mesh.put_workflow(definitions[file]))
                except CommandError as error:
                    # A mistake is reported with its file.
                    message = error.message
                    if message.startswith("definition:"):
                        message = file + message.removeprefix("definition")
                    raise CommandError(message, error.exit_code) from None
                if not as_json:
                    print_line(f"workflow {result['workflow']} is version {result['version']}")
                return result

            return await each(list(definitions), put_file)

    results, status = run_async(run())
    if as_json:
        print_json(results)
    if status:
        raise typer.Exit(status)


def _definition(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise CommandError(f"{path} is not UTF-8 text", ExitCode.USAGE) from None
    except OSError as error:
        raise CommandError(f"cannot read {path} ({error.strerror})", ExitCode.NOT_FOUND) from None
