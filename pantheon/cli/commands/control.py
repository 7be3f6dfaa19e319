"""`pantheon task cancel | pause | resume | signal | approve`, and pause and resume of workflows and agents."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from pantheon.cli.connection import REQUESTER, Json, Url, find_mesh, open_bus, open_mesh
from pantheon.cli.exit_codes import CommandError, ExitCode
from pantheon.cli.input.arguments import parse, payload_of, read_input
from pantheon.cli.input.task_ids import TaskId, TaskIds, resolve_root
from pantheon.cli.operations import each, operation
from pantheon.cli.render.output import note, print_json, print_line
from pantheon.cli.running import run_async

if TYPE_CHECKING:
    from pantheon.client.mesh import Mesh

Requester = Annotated[str, typer.Option(help="Who gives it: a workflow may name who may.")]
Waiting = Annotated[
    UUID | None,
    typer.Option("--waiting", metavar="ROW", help="Only for the step with this row id, while it waits."),
]
Names = Annotated[list[str], typer.Argument(metavar="NAME")]


# -- tasks -------------------------------------------------------------------------------------------------------------


def cancel(
    task_ids: TaskIds,
    reason: Annotated[str | None, typer.Option("--reason", "-r", help="Why, for its final response.")] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    async def on_one(mesh: "Mesh", task_id: UUID) -> Any:
        return await operation(mesh.cancel(task_id, reason=reason))

    def words(result: dict[str, Any]) -> str:
        if not result["changed"]:
            compensating = result["status"] == "compensating"
            return "is being undone already" if compensating else f"had ended already: {result['status']}"
        return "is cancelled" if result["status"] == "cancelled" else "is being cancelled: what it did is undone first"

    _on_tasks(task_ids, on_one, words, url=url, as_json=as_json)


def pause(task_ids: TaskIds, url: Url = None, as_json: Json = False) -> None:
    async def on_one(mesh: "Mesh", task_id: UUID) -> Any:
        result = await operation(mesh.pause(task_id))
        _expect(result, "paused", "only a running task can be paused")
        return result

    def words(result: dict[str, Any]) -> str:
        return "is paused: what agents have at work goes on, nothing new begins" if result["changed"] else "was paused"

    _on_tasks(task_ids, on_one, words, url=url, as_json=as_json)


def resume(task_ids: TaskIds, url: Url = None, as_json: Json = False) -> None:
    async def on_one(mesh: "Mesh", task_id: UUID) -> Any:
        result = await operation(mesh.resume(task_id))
        _expect(result, "running", "only a paused task can be resumed")
        return result

    def words(result: dict[str, Any]) -> str:
        return "goes on" if result["changed"] else "was not paused"

    _on_tasks(task_ids, on_one, words, url=url, as_json=as_json)


def _expect(result: dict[str, Any], status: str, otherwise: str) -> None:
    if result["status"] != status:
        raise CommandError(f"task {result['task_id']} is {result['status']}: {otherwise}", ExitCode.FAILED)


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

            async def control(part: str) -> Any:
                result = await on_one(mesh, await resolve_root(mesh, part))
                if not as_json:
                    print_line(f"{result['task_id']} {words(result)}")
                return result

            return await each(parts, control)

    results, status = run_async(run())
    if as_json:
        print_json(results)
    if status:
        raise typer.Exit(status)


def signal(
    task_id: TaskId,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The signal's name.")],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Its payload.")] = None,
    input_file: Annotated[
        str | None, typer.Option("--input", "-i", metavar="FILE", help="Its payload as JSON or YAML; arguments win.")
    ] = None,
    waiting: Waiting = None,
    requester: Requester = REQUESTER,
    url: Url = None,
    as_json: Json = False,
) -> None:
    base = read_input(input_file) if input_file is not None else {}
    payload = payload_of([parse(argument) for argument in arguments or ()], base=base)

    async def run() -> Any:
        async with open_mesh(url, requester=requester) as mesh:
            root = await resolve_root(mesh, task_id)
            return await operation(mesh.signal(root, name, payload, waiting_id=waiting))

    _print_signal(run_async(run()), as_json)


def approve(
    task_id: TaskId,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="The approval's name; else the one that it waits for.")
    ] = None,
    reject: Annotated[bool, typer.Option("--reject", help="Give `approved: false`.")] = False,
    comment: Annotated[str | None, typer.Option("--comment", "-c", help="What goes into the step's result.")] = None,
    waiting: Waiting = None,
    requester: Requester = REQUESTER,
    url: Url = None,
    as_json: Json = False,
) -> None:
    async def run() -> Any:
        async with open_mesh(url, requester=requester) as mesh:
            root = await resolve_root(mesh, task_id)
            approval, waiting_id = (name, waiting) if name is not None else await _awaited_approval(mesh, root, waiting)
            return await operation(mesh.approve(root, approval, not reject, comment=comment, waiting_id=waiting_id))

    _print_signal(run_async(run()), as_json)


async def _awaited_approval(mesh: "Mesh", root: UUID, waiting: UUID | None) -> tuple[str, UUID | None]:
    """The name of the only approval that a task waits for, and the row that does, if it is one. Raises CommandError."""
    rows = (await mesh.query("task", {"task_id": str(root)}))["tasks"]
    found: dict[str, list[UUID]] = {}
    for row in rows:
        payload = row.get("payload") or {}
        if row["status"] == "waiting" and not row.get("role") and isinstance(payload, dict) and "approval" in payload:
            row_id = UUID(row["task_id"])
            if waiting in (None, row_id):
                found.setdefault(str(payload["approval"]), []).append(row_id)
    if not found:
        which = f"step {waiting} of task {root}" if waiting is not None else f"task {root}"
        raise CommandError(f"{which} waits for no approval; name the one that it will", ExitCode.USAGE)
    if len(found) > 1:
        raise CommandError(
            f"task {root} waits for several approvals: {', '.join(sorted(found))}; name one", ExitCode.USAGE
        )
    name, row_ids = found.popitem()
    return name, row_ids[0] if len(row_ids) == 1 else None


def _print_signal(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(result)
        return
    became = "taken by the step that waited for it" if result["taken"] else "kept until a step waits for it"
    print_line(f"{result['task_id']} '{result['signal']}' is {became}")


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

            async def switch(name: str) -> Any:
                if name not in known:
                    # A pause may precede the workflow or agent it is for; more often the name is mistyped.
                    note(f"the mesh has no {kind} '{name}' now")
                change = mesh.pause if paused else mesh.resume
                result = await operation(change(workflow=name) if kind == "workflow" else change(agent=name))
                if not as_json:
                    print_line(f"{kind} {name} {'is paused' if paused else 'goes on'}")
                return result

            return await each(names, switch)

    results, status = run_async(run())
    if as_json:
        print_json(results)
    if status:
        raise typer.Exit(status)


async def _workflows(mesh: "Mesh") -> set[str]:
    return {str(workflow.get("name")) for workflow in (await mesh.query("workflows"))["workflows"]}


async def _agents(url: str | None) -> set[str]:
    from pantheon.discovery import make_discovery

    found = find_mesh(url)
    async with open_bus(found) as bus, make_discovery(found.settings, bus.client) as discovery:
        return {record.name for record in (await discovery.registry()).instances()}
