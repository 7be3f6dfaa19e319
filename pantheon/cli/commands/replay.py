"""`pantheon replay`, `pantheon task retry`: run a task again, as a new task that names the old one."""

import asyncio
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from pantheon.cli.connection import Json, Url, open_mesh
from pantheon.cli.exit_codes import CommandError, ExitCode, exit_code_of_code
from pantheon.cli.input.arguments import Argument, parse, payload_of
from pantheon.cli.input.task_ids import TaskId, TaskIds, resolve_root
from pantheon.cli.operations import each
from pantheon.cli.outcome import more_about, raise_failure
from pantheon.cli.progress.follow import wait_with_progress
from pantheon.cli.render.output import print_json, print_line, stdout
from pantheon.cli.render.result_files import shortened
from pantheon.cli.running import run_async

if TYPE_CHECKING:
    from pantheon.client.mesh import Mesh
    from protocol.messages import TaskRequest, TaskResponse

REPLAY = "mesh.replay"
RETRY = "mesh.retry"
REPLAY_HELP = """Run a task again from the database, as a new task that names the old one; prints the new id.

With --from, completed steps that do not depend on that step are reused. With --input, the new task has another input
than the old one: a fork. With --wait, it is watched and its result printed.

Example: pantheon replay 01a1f752 --from publish --input title="A better one" --wait
"""
RETRY_HELP = """Run a failed or cancelled task again from what did not complete, as a new task; prints the new id.

What completed is reused, on the same version of the workflow. With --wait, it is watched and its result printed.
"""

Wait = Annotated[bool, typer.Option("--wait", "-w", help="Watch it and print its result.")]
Timeout = Annotated[
    float | None,
    typer.Option("--timeout", "-t", min=0, metavar="SECONDS", help="With --wait: no longer than this."),
]


def replay(
    task_id: TaskId,
    begin: Annotated[
        str | None, typer.Option("--from", metavar="STEP", help="Begin here; completed steps before it are reused.")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--input", "-i", metavar="KEY=VALUE", help="Another input, as in 'run'; may be given again."),
    ] = None,
    wait: Wait = False,
    timeout: Timeout = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    arguments = [parse(change) for change in changes or ()]

    async def request_for(mesh: "Mesh", root: UUID) -> "TaskRequest":
        payload: dict[str, Any] = {"task_id": str(root)}
        if begin is not None:
            payload["from"] = begin
        if arguments:
            payload["input"] = await _fork(mesh, root, arguments)
        return mesh.request(REPLAY, payload)

    watcher = _Watcher(wait, timeout)

    async def run() -> tuple[str, "TaskResponse | None"]:
        async with open_mesh(url) as mesh:
            root = await resolve_root(mesh, task_id)
            return await watcher.start(mesh, await request_for(mesh, root))

    new_id, response = run_async(run(), on_interrupt=watcher.after_interrupt)
    _print_new_task(new_id, response, as_json)


async def _fork(mesh: "Mesh", root: UUID, arguments: list[Argument]) -> dict[str, Any]:
    """The keys of the input that change; the workflow's schema decides what the grammar leaves open."""
    rows = (await mesh.query("task", {"task_id": str(root), "brief": True}))["tasks"]
    task_type = next(row["task_type"] for row in rows if row["task_id"] == str(root))
    workflows = (await mesh.query("workflows"))["workflows"]
    schema = next((workflow.get("input") for workflow in workflows if workflow.get("name") == task_type), None)
    return payload_of(arguments, schema=schema)


def retry(
    task_ids: TaskIds, wait: Wait = False, timeout: Timeout = None, url: Url = None, as_json: Json = False
) -> None:
    if wait and len(task_ids) > 1:
        raise CommandError("--wait is for one task", ExitCode.USAGE)
    watcher = _Watcher(wait, timeout)

    async def run() -> tuple[list[tuple[str, "TaskResponse | None"]], ExitCode]:
        async with open_mesh(url) as mesh:

            async def retry_one(part: str) -> tuple[str, "TaskResponse | None"]:
                request = mesh.request(RETRY, {"task_id": str(await resolve_root(mesh, part))})
                started = await watcher.start(mesh, request)
                if not wait and not as_json:
                    print_line(started[0])
                return started

            return await each(task_ids, retry_one)

    started, status = run_async(run(), on_interrupt=watcher.after_interrupt)
    if wait:
        _print_new_task(*started[0], as_json)
    elif as_json:
        print_json([{"task_id": new_id, "status": "accepted"} for new_id, _ in started])
    if status:
        raise typer.Exit(status)


class _Watcher:
    """Submits a request, and watches it where `--wait` is set."""

    def __init__(self, wait: bool, timeout_seconds: float | None) -> None:
        self._wait = wait
        self._timeout_seconds = timeout_seconds
        self._started: str | None = None

    def after_interrupt(self) -> str:
        if self._started is None:
            return "interrupted"
        return f"interrupted; the task goes on: {more_about(self._started)}"

    async def start(self, mesh: "Mesh", request: "TaskRequest") -> tuple[str, "TaskResponse | None"]:
        """The new task's id, and with `--wait` its response. Raises CommandError where the request was refused."""
        task_id = str(request.task_id)
        try:
            async with asyncio.timeout(self._timeout_seconds if self._wait else None):
                await mesh.submit(request)
                self._started = task_id
                if self._wait:
                    return task_id, await wait_with_progress(mesh, request, steps=[])
        except TimeoutError:
            raise CommandError(
                f"no outcome within {self._timeout_seconds:g} s; the task goes on: {more_about(task_id)}",
                ExitCode.TIMEOUT,
            ) from None
        # A refused replay (no such step, nothing to retry) has failed at its acceptance.
        refused = (await mesh.query("response", {"task_id": task_id})).get("response")
        if refused is not None and refused["status"] == "failed" and refused["error"]["code"] == "invalid_request":
            message = str(refused["error"]["message"]).removeprefix("payload.task_id: ")
            raise CommandError(message, exit_code_of_code("invalid_request"))
        return task_id, None


def _print_new_task(new_id: str, response: "TaskResponse | None", as_json: bool) -> None:
    if response is None:
        if as_json:
            print_json({"task_id": new_id, "status": "accepted"})
        else:
            print_line(new_id)
        return
    if as_json:
        print_json(response.model_dump(mode="json", exclude_none=True))
    elif response.status == "completed":
        print_json(shortened(response.result) if stdout().is_terminal else response.result)
    raise_failure(response)
