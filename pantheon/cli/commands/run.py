"""`pantheon run`: send a task, watch it, print its result."""

import asyncio
import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from pantheon.cli.connection import REQUESTER, Json, Url, open_mesh
from pantheon.cli.exit_codes import CommandError, ExitCode
from pantheon.cli.input.arguments import Argument, parse, payload_of, read_input, usage
from pantheon.cli.outcome import more_about, raise_failure
from pantheon.cli.progress.follow import wait_with_progress
from pantheon.cli.render.output import note, print_json, print_line, stdout
from pantheon.cli.render.result_files import shortened, write_files
from pantheon.cli.running import run_async
from protocol.errors import BusError

if TYPE_CHECKING:
    from pantheon.client.mesh import Mesh
    from protocol.messages import TaskRequest, TaskResponse

HELP = """Run a workflow, or one task of an agent, and print its result as JSON.

The payload is given as arguments:

    key=value       JSON where it is a number, true, false, null, a list or an object; else text
    key:=json       JSON
    key=@file       the file's text; of a folder, a list of its files' texts; @- is standard input
    key:=@file      the file as JSON or YAML
    key[]=...       a list, also of one; the same key again makes a list too

Example: pantheon run create_blog_post topic="AI ethics" sources=@notes.md length_words=900 --out article/

Progress goes to stderr, the result to stdout. Ctrl-C stops watching, the task goes on.
"""

# Without --out: a folder in which each task gets a folder of its own, named by its id. For containers.
OUT_VARIABLE = "PANTHEON_OUT"


@dataclass(frozen=True)
class RunOptions:
    """What the command line asks for, beside the payload. `request_options` go into the TaskRequest."""

    task_type: str
    url: str | None
    timeout_seconds: float | None
    deadline_seconds: float | None
    detach: bool
    out: Path | None
    as_json: bool
    quiet: bool
    request_options: dict[str, Any]


def run(
    workflow: Annotated[str, typer.Argument(metavar="WORKFLOW", help="A workflow's name, or a task type.")],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="The payload.")] = None,
    input_file: Annotated[
        str | None,
        typer.Option("--input", "-i", metavar="FILE", help="Payload as JSON or YAML (- is stdin); arguments win."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Write the files found in the result here.")
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", "-t", min=0, metavar="SECONDS", help="Stop waiting after this; the task goes on."),
    ] = None,
    deadline: Annotated[
        float | None, typer.Option("--deadline", min=0, metavar="SECONDS", help="The task fails when this has passed.")
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Print the task's id once it is accepted, and return.")
    ] = False,
    priority: Annotated[int | None, typer.Option(min=0, max=9, help="0 to 9, higher first; 5 is usual.")] = None,
    session: Annotated[str | None, typer.Option(help="The session that the task belongs to.")] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="A second task with this key gets the first one's outcome.")
    ] = None,
    requester: Annotated[str, typer.Option(help="Who asks, as the list of tasks shows it.")] = REQUESTER,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    parsed = [parse(argument) for argument in arguments or ()]
    base = read_input(input_file) if input_file is not None else {}
    request_options = {
        "priority": priority,
        "session_id": session,
        "idempotency_key": idempotency_key,
        "requester": requester,
    }
    options = RunOptions(workflow, url, timeout, deadline, detach, out, as_json, quiet, request_options)
    tracker = Tracker()
    run_async(_run(options, parsed, base, tracker), on_interrupt=tracker.after_interrupt)


@dataclass
class Tracker:
    """How far a run has come, for the message of an interrupt."""

    task_id: str | None = None
    accepted: bool = False

    def after_interrupt(self) -> str:
        if self.task_id is None:
            return "interrupted: nothing was sent"
        if not self.accepted:
            more = more_about(self.task_id)
            return f"interrupted before task {self.task_id} was accepted; see whether it was: {more}"
        return f"interrupted; the task goes on: {more_about(self.task_id)}"


async def _run(options: RunOptions, arguments: list[Argument], base: dict[str, Any], tracker: Tracker) -> None:
    requester = options.request_options["requester"]
    async with open_mesh(options.url, requester=requester) as mesh:
        workflow = await _workflow(mesh, options)
        schema = workflow.get("input") if workflow else None
        payload = payload_of(arguments, base=base, schema=schema)
        request = _request(mesh, options, payload)
        tracker.task_id = str(request.task_id)
        start = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(options.timeout_seconds):
                await mesh.submit(request)
                tracker.accepted = True
                if options.detach:
                    _print_detached(request, options)
                    return
                response = await wait_with_progress(
                    mesh, request, steps=list((workflow or {}).get("steps") or ()), quiet=options.quiet
                )
        except TimeoutError:
            seconds = asyncio.get_running_loop().time() - start
            state = "the task goes on" if tracker.accepted else "the task may still be accepted"
            raise CommandError(
                f"no outcome within {seconds:.1f} s; {state}: {more_about(str(request.task_id))}", ExitCode.TIMEOUT
            ) from None
    _finish(response, options)


async def _workflow(mesh: "Mesh", options: RunOptions) -> dict[str, Any] | None:
    """The workflow's description; None for an agent's task type, or while no orchestrator responds."""
    try:
        description = await mesh.query("workflows")
    except BusError as error:
        note(f"no orchestrator answers ({error.message}); the task waits for one")
        return None
    workflows: list[dict[str, Any]] = description.get("workflows", [])
    for workflow in workflows:
        if workflow.get("name") == options.task_type:
            return workflow
    close = get_close_matches(options.task_type, [str(workflow.get("name")) for workflow in workflows], n=1)
    if close and not options.quiet:
        note(f"'{options.task_type}' is no workflow (did you mean '{close[0]}'?); asking the agents for it")
    return None


def _request(mesh: "Mesh", options: RunOptions, payload: dict[str, Any]) -> "TaskRequest":
    fields = {name: value for name, value in options.request_options.items() if name != "requester"}
    if options.deadline_seconds is not None:
        fields["deadline"] = datetime.now(UTC) + timedelta(seconds=options.deadline_seconds)
    try:
        return mesh.request(options.task_type, payload, **fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise usage(f"{field}: {str(first['msg']).removeprefix('Value error, ')}") from None


def _print_detached(request: "TaskRequest", options: RunOptions) -> None:
    if options.as_json:
        print_json({"task_id": str(request.task_id), "task_type": request.task_type, "status": "accepted"})
    else:
        print_line(str(request.task_id))


def _finish(response: "TaskResponse", options: RunOptions) -> None:
    """Write files, print the result or the error."""
    result = response.result
    paths: list[Path] = []
    folder = options.out
    if folder is None and (parent := os.environ.get(OUT_VARIABLE)):
        folder = Path(parent) / str(response.task_id)
    if folder is not None and result is not None:
        result, paths = write_files(result, folder)
        for path in paths:
            note(f"wrote {path}")
    if options.as_json:
        shown = response.model_dump(mode="json", exclude_none=True)
        if result is not None:
            shown["result"] = result
        print_json(shown)
    elif response.status == "completed":
        print_json(shortened(result) if stdout().is_terminal else result)
    raise_failure(response)
