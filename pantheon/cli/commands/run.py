"""`pantheon run`: send a task, watch it, print its result."""

import asyncio
import contextlib
import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console

from pantheon.cli.connection import REQUESTER, Json, Url, open_mesh
from pantheon.cli.exit_codes import CommandError, ExitCode
from pantheon.cli.input.arguments import Given, parse, payload_of, read_input, usage
from pantheon.cli.progress.follow import display_on, follow, read_rows
from pantheon.cli.progress.tree import TaskTree
from pantheon.cli.render.output import is_live, note, print_json, print_line, stderr, stdout
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

# Where there is no --out: a folder whose every task gets one of its own in it, by its id. For containers.
OUT_VARIABLE = "PANTHEON_OUT"


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for, beside the payload."""

    task_type: str
    url: str | None
    timeout_seconds: float | None
    deadline_seconds: float | None
    detach: bool
    out: Path | None
    as_json: bool
    quiet: bool
    options: dict[str, Any]


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
    given = [parse(one) for one in arguments or ()]
    base = read_input(input_file) if input_file is not None else {}
    options = {
        "priority": priority,
        "session_id": session,
        "idempotency_key": idempotency_key,
        "requester": requester,
    }
    wanted = Wanted(workflow, url, timeout, deadline, detach, out, as_json, quiet, options)
    tracker = Tracker()
    run_async(_run(wanted, given, base, tracker), on_interrupt=tracker.after_interrupt)


@dataclass
class Tracker:
    """How far a run has come, for what is said when it is interrupted."""

    task_id: str | None = None
    accepted: bool = False

    def after_interrupt(self) -> str:
        if self.task_id is None:
            return "interrupted: nothing was sent"
        if not self.accepted:
            return f"interrupted before task {self.task_id} was accepted; see whether it was: {_look(self.task_id)}"
        return f"interrupted; the task goes on: {_look(self.task_id)}"


def _look(task_id: str) -> str:
    return f"pantheon task show {task_id}"


async def _run(wanted: Wanted, given: list[Given], base: dict[str, Any], tracker: Tracker) -> None:
    requester = wanted.options["requester"]
    async with open_mesh(wanted.url, requester=requester) as mesh:
        workflow = await _workflow(mesh, wanted)
        schema = workflow.get("input") if workflow else None
        payload = payload_of(given, base=base, schema=schema)
        request = _request(mesh, wanted, payload)
        tracker.task_id = str(request.task_id)
        start = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(wanted.timeout_seconds):
                await mesh.submit(request)
                tracker.accepted = True
                if wanted.detach:
                    _print_detached(request, wanted)
                    return
                response = await watched(
                    mesh, request, steps=list((workflow or {}).get("steps") or ()), quiet=wanted.quiet
                )
        except TimeoutError:
            seconds = asyncio.get_running_loop().time() - start
            state = "the task goes on" if tracker.accepted else "the task may still be accepted"
            raise CommandError(
                f"no outcome within {seconds:.1f} s; {state}: {_look(str(request.task_id))}", ExitCode.TIMEOUT
            ) from None
    _finish(response, wanted)


async def _workflow(mesh: "Mesh", wanted: Wanted) -> dict[str, Any] | None:
    """The workflow's own description. Without it (an agent's task type; no orchestrator just now) things work too."""
    try:
        answer = await mesh.query("workflows")
    except BusError as error:
        note(f"no orchestrator answers ({error.message}); the task waits for one")
        return None
    workflows: list[dict[str, Any]] = answer.get("workflows", [])
    for one in workflows:
        if one.get("name") == wanted.task_type:
            return one
    close = get_close_matches(wanted.task_type, [str(one.get("name")) for one in workflows], n=1)
    if close and not wanted.quiet:
        note(f"'{wanted.task_type}' is no workflow (did you mean '{close[0]}'?); asking the agents for it")
    return None


def _request(mesh: "Mesh", wanted: Wanted, payload: dict[str, Any]) -> "TaskRequest":
    options = {name: value for name, value in wanted.options.items() if name != "requester"}
    if wanted.deadline_seconds is not None:
        options["deadline"] = datetime.now(UTC) + timedelta(seconds=wanted.deadline_seconds)
    try:
        return mesh.request(wanted.task_type, payload, **options)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise usage(f"{field}: {str(first['msg']).removeprefix('Value error, ')}") from None


def _print_detached(request: "TaskRequest", wanted: Wanted) -> None:
    if wanted.as_json:
        print_json({"task_id": str(request.task_id), "task_type": request.task_type, "status": "accepted"})
    else:
        print_line(str(request.task_id))


async def watched(
    mesh: "Mesh", request: "TaskRequest", *, steps: list[str], quiet: bool = False, console: Console | None = None
) -> "TaskResponse":
    """The response of a submitted task, its progress shown meanwhile, on stderr unless told otherwise."""
    if quiet:
        return await mesh.wait(request.task_id)
    tree = TaskTree(str(request.task_id), request.task_type, planned=steps)
    tree.root.started_at = datetime.now(UTC)
    console = console or stderr()
    if not is_live(console):
        console.print(f"{datetime.now().astimezone():%H:%M:%S} {request.task_type} accepted as {tree.task_id}")
    with display_on(console, tree) as display:
        following = asyncio.create_task(follow(mesh, tree, display), name="follow")
        try:
            response = await mesh.wait(request.task_id)
            # What is still on its way of the last events; then the rows say what was lost.
            await asyncio.wait({following}, timeout=0.5)
            await read_rows(mesh, tree, display)
        finally:
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await following
        if not tree.root.ended:
            data = response.model_dump(mode="json", exclude_none=True)
            display.changed(tree.see(f"task.{response.status}", data, datetime.now(UTC)))
    return response


def _finish(response: "TaskResponse", wanted: Wanted) -> None:
    """Write files, print the result or the error."""
    result = response.result
    paths: list[Path] = []
    folder = wanted.out
    if folder is None and (every := os.environ.get(OUT_VARIABLE)):
        folder = Path(every) / str(response.task_id)
    if folder is not None and result is not None:
        result, paths = write_files(result, folder)
        for path in paths:
            note(f"wrote {path}")
    if wanted.as_json:
        shown = response.model_dump(mode="json", exclude_none=True)
        if result is not None:
            shown["result"] = result
        print_json(shown)
    elif response.status == "completed":
        print_json(shortened(result) if stdout().is_terminal else result)
    raise_failure(response)


def raise_failure(response: "TaskResponse") -> None:
    """Nothing for a completed task; else CommandError with its error in a line and the way to more."""
    if response.status == "completed":
        return
    error = response.error
    text = f"{error.message} ({error.code})" if error is not None else f"the task ended {response.status}"
    code = ExitCode.CANCELLED if response.status == "cancelled" else ExitCode.FAILED
    raise CommandError(f"{text}; more: {_look(str(response.task_id))}", code)
