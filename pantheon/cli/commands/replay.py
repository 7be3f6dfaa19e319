"""`pantheon replay`, `pantheon task retry`: a task once more, as a new one that names the old one."""

import asyncio
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from pantheon.cli.commands.control import each
from pantheon.cli.commands.run import raise_failure, watched
from pantheon.cli.connection import Json, Url, open_mesh
from pantheon.cli.exit_codes import CommandError, ExitCode, exit_code_of_code
from pantheon.cli.input.arguments import Given, parse, payload_of
from pantheon.cli.input.task_ids import TaskId, TaskIds, resolve_root
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
    given = [parse(one) for one in changes or ()]

    async def request_for(mesh: "Mesh", root: UUID) -> "TaskRequest":
        payload: dict[str, Any] = {"task_id": str(root)}
        if begin is not None:
            payload["from"] = begin
        if given:
            payload["input"] = await _fork(mesh, root, given)
        return mesh.request(REPLAY, payload)

    watcher = _Watcher(wait, timeout)

    async def run() -> tuple[str, "TaskResponse | None"]:
        async with open_mesh(url) as mesh:
            root = await resolve_root(mesh, task_id)
            return await watcher.start(mesh, await request_for(mesh, root))

    new_id, response = run_async(run(), on_interrupt=watcher.after_interrupt)
    _say(new_id, response, as_json)


async def _fork(mesh: "Mesh", root: UUID, given: list[Given]) -> dict[str, Any]:
    """The keys of the input that are to be others; the workflow's schema decides what the grammar leaves open."""
    rows = (await mesh.query("task", {"task_id": str(root), "brief": True}))["tasks"]
    task_type = next(row["task_type"] for row in rows if row["task_id"] == str(root))
    workflows = (await mesh.query("workflows"))["workflows"]
    schema = next((one.get("input") for one in workflows if one.get("name") == task_type), None)
    return payload_of(given, schema=schema)


def retry(
    task_ids: TaskIds, wait: Wait = False, timeout: Timeout = None, url: Url = None, as_json: Json = False
) -> None:
    if wait and len(task_ids) > 1:
        raise CommandError("--wait is for one task", ExitCode.USAGE)
    watcher = _Watcher(wait, timeout)

    async def run() -> tuple[list[tuple[str, "TaskResponse | None"]], ExitCode]:
        async with open_mesh(url) as mesh:

            async def one(part: str) -> tuple[str, "TaskResponse | None"]:
                request = mesh.request(RETRY, {"task_id": str(await resolve_root(mesh, part))})
                started = await watcher.start(mesh, request)
                if not wait and not as_json:
                    print_line(started[0])
                return started

            return await each(task_ids, one)

    started, status = run_async(run(), on_interrupt=watcher.after_interrupt)
    if wait:
        _say(*started[0], as_json)
    elif as_json:
        print_json([{"task_id": new_id, "status": "accepted"} for new_id, _ in started])
    if status:
        raise typer.Exit(status)


class _Watcher:
    """Submits a request, and watches it where that is asked for."""

    def __init__(self, wait: bool, timeout_seconds: float | None) -> None:
        self._wait = wait
        self._timeout_seconds = timeout_seconds
        self._started: str | None = None

    def after_interrupt(self) -> str:
        if self._started is None:
            return "interrupted"
        return f"interrupted; the task goes on: pantheon task show {self._started}"

    async def start(self, mesh: "Mesh", request: "TaskRequest") -> tuple[str, "TaskResponse | None"]:
        """The new task's id, and its response where it was waited for. Raises CommandError where it was refused."""
        task_id = str(request.task_id)
        try:
            async with asyncio.timeout(self._timeout_seconds if self._wait else None):
                await mesh.submit(request)
                self._started = task_id
                if self._wait:
                    return task_id, await watched(mesh, request, steps=[])
        except TimeoutError:
            raise CommandError(
                f"no outcome within {self._timeout_seconds:g} s; the task goes on: pantheon task show {task_id}",
                ExitCode.TIMEOUT,
            ) from None
        # One that was refused (no such step, nothing to retry) has ended with its acceptance.
        refused = (await mesh.query("response", {"task_id": task_id})).get("response")
        if refused is not None and refused["status"] == "failed" and refused["error"]["code"] == "invalid_request":
            message = str(refused["error"]["message"]).removeprefix("payload.task_id: ")
            raise CommandError(message, exit_code_of_code("invalid_request"))
        return task_id, None


def _say(new_id: str, response: "TaskResponse | None", as_json: bool) -> None:
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
