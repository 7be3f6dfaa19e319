"""`pantheon task cancel | pause | resume | signal | approve`, and pauses of workflows and agents."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from uuid import UUID

import typer

from pantheon.cli.connection import REQUESTER, Json, Url, find_mesh, open_bus, open_mesh
from pantheon.cli.exit_codes import CommandError, ExitCode, exit_code_of, exit_code_of_code
from pantheon.cli.input.arguments import parse, payload_of, read_input
from pantheon.cli.input.task_ids import TaskId, TaskIds, resolve_root
from pantheon.cli.render.output import note, print_json, print_line, problem
from pantheon.cli.running import run_async
from protocol.errors import PantheonError, TaskFailed

if TYPE_CHECKING:
    from pantheon.client.mesh import Mesh

T = TypeVar("T")

# Operations are done within milliseconds; one that is not waits for Postgres or the broker.
OPERATION_SECONDS = 60.0

Requester = Annotated[str, typer.Option(help="Who gives it: a workflow may name who may.")]
Names = Annotated[list[str], typer.Argument(metavar="NAME")]


async def operation(doing: Awaitable[T]) -> T:
    """What an operation came to. Raises CommandError with the refusal's own words and the status for its code."""
    try:
        async with asyncio.timeout(OPERATION_SECONDS):
            return await doing
    except TaskFailed as error:
        raise CommandError(error.message.removeprefix("payload.task_id: "), exit_code_of_code(error.code)) from None
    except TimeoutError:
        raise CommandError(
            f"accepted, but not done within {OPERATION_SECONDS:g} s; it will be: see pantheon tasks", ExitCode.TIMEOUT
        ) from None


def each(things: Sequence[str], doing: Callable[[str], Awaitable[T]]) -> Awaitable[tuple[list[T], ExitCode]]:
    """Do it to one after the other; what cannot be done to one of several is said, and the others are not spared it."""

    async def all_of_them() -> tuple[list[T], ExitCode]:
        done: list[T] = []
        status = ExitCode.OK
        for thing in things:
            try:
                done.append(await doing(thing))
            except PantheonError as error:
                if len(things) == 1:
                    raise
                problem(error.message)
                status = status or exit_code_of(error)
        return done, status

    return all_of_them()


# -- tasks -------------------------------------------------------------------------------------------------------------


def cancel(
    task_ids: TaskIds,
    reason: Annotated[str | None, typer.Option("--reason", "-r", help="Why, for its final response.")] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    async def on_one(mesh: "Mesh", task_id: UUID) -> Any:
        return await operation(mesh.cancel(task_id, reason=reason))

    def words(told: dict[str, Any]) -> str:
        if not told["changed"]:
            undoing = told["status"] == "compensating"
            return "is being undone already" if undoing else f"had ended already: {told['status']}"
        return "is cancelled" if told["status"] == "cancelled" else "is being cancelled: what it did is undone first"

    _on_tasks(task_ids, on_one, words, url=url, as_json=as_json)


def pause(task_ids: TaskIds, url: Url = None, as_json: Json = False) -> None:
    async def on_one(mesh: "Mesh", task_id: UUID) -> Any:
        told = await operation(mesh.pause(task_id))
        _expect(told, "paused", "only a running task can be paused")
        return told

    def words(told: dict[str, Any]) -> str:
        return "is paused: what agents have at work goes on, nothing new begins" if told["changed"] else "was paused"

    _on_tasks(task_ids, on_one, words, url=url, as_json=as_json)


def resume(task_ids: TaskIds, url: Url = None, as_json: Json = False) -> None:
    async def on_one(mesh: "Mesh", task_id: UUID) -> Any:
        told = await operation(mesh.resume(task_id))
        _expect(told, "running", "only a paused task can be resumed")
        return told

    def words(told: dict[str, Any]) -> str:
        return "goes on" if told["changed"] else "was not paused"

    _on_tasks(task_ids, on_one, words, url=url, as_json=as_json)


def _expect(told: dict[str, Any], status: str, otherwise: str) -> None:
    if told["status"] != status:
        raise CommandError(f"task {told['task_id']} is {told['status']}: {otherwise}", ExitCode.FAILED)


def _on_tasks(
    parts: Sequence[str],
    on_one: Callable[["Mesh", UUID], Awaitable[Any]],
    words: Callable[[dict[str, Any]], str],
    *,
    url: str | None,
    as_json: bool,
) -> None:
    async def run() -> tuple[list[dict[str, Any]], ExitCode]:
        async with open_mesh(url) as mesh:

            async def one(part: str) -> Any:
                told = await on_one(mesh, await resolve_root(mesh, part))
                if not as_json:
                    print_line(f"{told['task_id']} {words(told)}")
                return told

            return await each(parts, one)

    told, status = run_async(run())
    if as_json:
        print_json(told)
    if status:
        raise typer.Exit(status)


def signal(
    task_id: TaskId,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The signal's name.")],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Its payload.")] = None,
    input_file: Annotated[
        str | None, typer.Option("--input", "-i", metavar="FILE", help="Its payload as JSON or YAML; arguments win.")
    ] = None,
    requester: Requester = REQUESTER,
    url: Url = None,
    as_json: Json = False,
) -> None:
    base = read_input(input_file) if input_file is not None else {}
    payload = payload_of([parse(one) for one in arguments or ()], base=base)

    async def run() -> Any:
        async with open_mesh(url, requester=requester) as mesh:
            return await operation(mesh.signal(await resolve_root(mesh, task_id), name, payload))

    _say_given(run_async(run()), as_json)


def approve(
    task_id: TaskId,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="The approval's name; else the one that it waits for.")
    ] = None,
    reject: Annotated[bool, typer.Option("--reject", help="Give `approved: false`.")] = False,
    comment: Annotated[str | None, typer.Option("--comment", "-c", help="What goes into the step's result.")] = None,
    requester: Requester = REQUESTER,
    url: Url = None,
    as_json: Json = False,
) -> None:
    async def run() -> Any:
        async with open_mesh(url, requester=requester) as mesh:
            root = await resolve_root(mesh, task_id)
            wanted = name or await _awaited_approval(mesh, root)
            return await operation(mesh.approve(root, wanted, not reject, comment=comment))

    _say_given(run_async(run()), as_json)


async def _awaited_approval(mesh: "Mesh", root: UUID) -> str:
    """The name of the only approval that a task waits for. Raises CommandError."""
    rows = (await mesh.query("task", {"task_id": str(root)}))["tasks"]
    payloads = [row.get("payload") or {} for row in rows if row["status"] == "waiting" and not row.get("role")]
    names = sorted({str(one["approval"]) for one in payloads if isinstance(one, dict) and "approval" in one})
    if not names:
        raise CommandError(f"task {root} waits for no approval; name the one that it will", ExitCode.USAGE)
    if len(names) > 1:
        raise CommandError(f"task {root} waits for several approvals: {', '.join(names)}; name one", ExitCode.USAGE)
    return names[0]


def _say_given(told: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(told)
        return
    became = "taken by the step that waited for it" if told["taken"] else "kept until a step waits for it"
    print_line(f"{told['task_id']} '{told['signal']}' is {became}")


# -- workflows and agents ----------------------------------------------------------------------------------------------


def pause_workflows(names: Names, url: Url = None, as_json: Json = False) -> None:
    _switch("workflow", names, True, url=url, as_json=as_json)


def resume_workflows(names: Names, url: Url = None, as_json: Json = False) -> None:
    _switch("workflow", names, False, url=url, as_json=as_json)


def pause_agents(names: Names, url: Url = None, as_json: Json = False) -> None:
    _switch("agent", names, True, url=url, as_json=as_json)


def resume_agents(names: Names, url: Url = None, as_json: Json = False) -> None:
    _switch("agent", names, False, url=url, as_json=as_json)


def _switch(kind: str, names: Sequence[str], paused: bool, *, url: str | None, as_json: bool) -> None:
    async def run() -> tuple[list[Any], ExitCode]:
        async with open_mesh(url) as mesh:
            known = await (_workflows(mesh) if kind == "workflow" else _agents(url))

            async def one(name: str) -> Any:
                if name not in known:
                    # A pause may come before what it is for; more often it is a slip of the pen.
                    note(f"the mesh has no {kind} '{name}' now")
                switch = mesh.pause if paused else mesh.resume
                told = await operation(switch(workflow=name) if kind == "workflow" else switch(agent=name))
                if not as_json:
                    print_line(f"{kind} {name} {'is paused' if paused else 'goes on'}")
                return told

            return await each(names, one)

    told, status = run_async(run())
    if as_json:
        print_json(told)
    if status:
        raise typer.Exit(status)


async def _workflows(mesh: "Mesh") -> set[str]:
    return {str(one.get("name")) for one in (await mesh.query("workflows"))["workflows"]}


async def _agents(url: str | None) -> set[str]:
    from pantheon.discovery import make_discovery

    found = find_mesh(url)
    async with open_bus(found) as bus, make_discovery(found.settings, bus.client) as discovery:
        return {record.name for record in (await discovery.registry()).instances()}
