"""`pantheon tasks`, `pantheon task show`, `pantheon replay`: what tasks there are, what became of one, once more."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer
from rich.text import Text

from pantheon.cli.connection import Json, Url, open_mesh
from pantheon.cli.exit_codes import CommandError, ExitCode
from pantheon.cli.files import shortened, write_files
from pantheon.cli.listing import Cell, Column, print_listing
from pantheon.cli.output import note, print_json, print_line, stdout
from pantheon.cli.run import raise_failure, watched
from pantheon.cli.running import run_async
from pantheon.cli.tree import TaskTree
from pantheon.cli.units import clock, duration, parse_time
from pantheon.cli.view import draw, look_of
from pantheon.settings import one_line
from protocol.errors import PantheonError

if TYPE_CHECKING:
    from pantheon.client import Mesh
    from protocol.messages import TaskResponse

REPLAY = "mesh.replay"
REPLAY_HELP = """Run a task again from the database, as a new task that names the old one; prints the new id.

With --from, completed steps before that step are reused. With --wait, it is watched and its result printed.
"""
# Ids are made of the time: their beginnings are alike, so a part must be long enough to tell them apart.
ID_PART_MIN_CHARS = 4
ID_PART_AMONG = 1000

TaskId = Annotated[str, typer.Argument(metavar="ID", help="A task's id, or a beginning or end of it that is unique.")]


def tasks(
    status: Annotated[
        list[str] | None, typer.Option("--status", "-s", help="Only with this status; may be given again.")
    ] = None,
    task_type: Annotated[str | None, typer.Option("--type", help="Only of this workflow or task type.")] = None,
    requester: Annotated[str | None, typer.Option(help="Only of this requester.")] = None,
    session: Annotated[str | None, typer.Option(help="Only of this session.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="How many, newest first.")] = 20,
    url: Url = None,
    as_json: Json = False,
) -> None:
    arguments: dict[str, Any] = {
        "status": status or None,
        "task_type": task_type,
        "requester": requester,
        "session_id": session,
        "limit": limit,
    }
    rows = run_async(_list(url, {name: value for name, value in arguments.items() if value is not None}))
    if as_json:
        print_json(rows)
        return
    if not rows:
        note("no tasks" + (" match" if len(arguments) > 1 and any((status, task_type, requester, session)) else ""))
        return
    now = datetime.now(UTC)
    print_listing(stdout(), _COLUMNS, [_row(row, now) for row in rows])


async def _list(url: str | None, arguments: dict[str, Any]) -> list[dict[str, Any]]:
    async with open_mesh(url) as mesh:
        found: list[dict[str, Any]] = (await mesh.query("tasks", arguments))["tasks"]
        return found


_COLUMNS = (
    Column("id"),
    Column("type", weight=8),
    Column("status"),
    Column("created", weight=5),
    Column("took", weight=4, right=True),
    Column("by", weight=2),
    Column("error", weight=3, flexible=True, style="bright_black"),
)


def _row(row: Mapping[str, Any], now: datetime) -> list[Cell]:
    created, ended = parse_time(row.get("created_at")), parse_time(row.get("completed_at"))
    symbol, style = look_of(str(row.get("status")))
    error = row.get("error")
    return [
        str(row["task_id"]),
        str(row.get("task_type")),
        Text(f"{symbol} {row.get('status')}", style=style),
        clock(created, today=now),
        duration(((ended or now) - created).total_seconds()) if created else "",
        str(row.get("requester") or ""),
        one_line(str(error.get("message", ""))) if isinstance(error, dict) else "",
    ]


def show(
    task_id: TaskId,
    full: Annotated[bool, typer.Option("--full", help="The payload and the result too.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Write the files found in the result here.")
    ] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    rows, response = run_async(_show(url, task_id, full=full or as_json, result=full or out is not None))
    result = response.get("result") if response else None
    if out is not None and result is not None:
        result, paths = write_files(result, out)
        for path in paths:
            note(f"wrote {path}")
    if as_json:
        print_json({"task_id": _root(rows)["task_id"], "tasks": rows})
        return
    _print_task(rows)
    if full:
        _print_json_part("payload", _root(rows).get("payload"))
        if result is not None:
            _print_json_part("result", result)


async def _show(
    url: str | None, task_id: str, *, full: bool, result: bool
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    async with open_mesh(url) as mesh:
        full_id = await resolve(mesh, task_id)
        try:
            rows = (await mesh.query("task", {"task_id": full_id, "brief": not full}))["tasks"]
        except PantheonError as error:
            if error.code != "too_large" or not full:
                raise
            note(f"{error.message}; payloads and results are left out")
            rows = (await mesh.query("task", {"task_id": full_id, "brief": True}))["tasks"]
        response = None
        if result:
            answer = await mesh.query("response", {"task_id": _root(rows)["task_id"]})
            response = answer.get("response")
        return rows, response


def _root(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return next(row for row in rows if row["task_id"] == row["root_task_id"])


def _print_task(rows: list[dict[str, Any]]) -> None:
    root = _root(rows)
    tree = TaskTree(str(root["task_id"]))
    tree.read(rows)
    console = stdout()
    now = datetime.now(UTC)
    console.print(draw(tree, now, live=False, width=console.width))
    facts = [
        ("created", clock(parse_time(root.get("created_at")), today=now)),
        ("ended", clock(parse_time(root.get("completed_at")), today=now)),
        ("deadline", clock(parse_time(root.get("deadline_at")), today=now)),
        ("requester", root.get("requester")),
        ("session", root.get("session_id")),
        ("key", root.get("idempotency_key")),
        ("replay of", root.get("replay_of")),
        ("duplicate of", root.get("duplicate_of")),
        ("usage", _usage(root.get("usage"))),
    ]
    for name, value in facts:
        if value:
            console.print(Text.assemble((f"{name:>12}  ", "bright_black"), str(value)))


def _usage(usage: Any) -> str:
    if not isinstance(usage, dict):
        return ""
    tokens = f"{usage.get('input_tokens', 0):,} tokens in, {usage.get('output_tokens', 0):,} out"
    cost = usage.get("cost_usd")
    return tokens + (f", ${cost:.4f}" if cost else "")


def _print_json_part(name: str, value: Any) -> None:
    console = stdout()
    console.print(Text(f"{name}:", style="bright_black"))
    console.print(Text(json.dumps(shortened(value), indent=2, ensure_ascii=False)), soft_wrap=True)


def replay(
    task_id: TaskId,
    begin: Annotated[
        str | None, typer.Option("--from", metavar="STEP", help="Begin here; completed steps before it are reused.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Watch it and print its result.")] = False,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", "-t", min=0, metavar="SECONDS", help="With --wait: no longer than this."),
    ] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    started: list[str] = []

    def after_interrupt() -> str:
        return f"interrupted; the task goes on: pantheon task show {started[0]}" if started else "interrupted"

    new_id, response = run_async(
        _replay(url, task_id, begin, wait=wait, timeout=timeout, started=started), on_interrupt=after_interrupt
    )
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


async def _replay(
    url: str | None, task_id: str, begin: str | None, *, wait: bool, timeout: float | None, started: list[str]
) -> tuple[str, "TaskResponse | None"]:
    import asyncio

    async with open_mesh(url) as mesh:
        full_id = await resolve(mesh, task_id)
        # An id that is nobody's is "not found" here, before a task is made of it.
        rows = (await mesh.query("task", {"task_id": full_id, "brief": True}))["tasks"]
        root_id = str(_root(rows)["task_id"])
        payload = {"task_id": root_id, **({"from": begin} if begin is not None else {})}
        request = mesh.request(REPLAY, payload)
        try:
            async with asyncio.timeout(timeout if wait else None):
                await mesh.submit(request)
                started.append(str(request.task_id))
                if wait:
                    response = await watched(mesh, request, steps=[])
                    return str(request.task_id), response
        except TimeoutError:
            raise CommandError(
                f"no outcome within {timeout:g} s; the task goes on: pantheon task show {request.task_id}",
                ExitCode.TIMEOUT,
            ) from None
        # One that was refused (no such step) has ended with its acceptance.
        answer = await mesh.query("response", {"task_id": str(request.task_id)})
        refused = answer.get("response")
        if refused is not None and refused["status"] == "failed" and refused["error"]["code"] == "invalid_request":
            raise CommandError(refused["error"]["message"], ExitCode.USAGE)
        return str(request.task_id), None


async def resolve(mesh: "Mesh", part: str) -> str:
    """A task's whole id from the beginning or end of one of the newest tasks'. Raises CommandError."""
    wanted = part.strip().lower()
    try:
        return str(UUID(wanted))
    except ValueError:
        pass
    if not wanted or set(wanted) - set("0123456789abcdef-"):
        raise CommandError(f"'{part}' is no task's id, nor a part of one", ExitCode.USAGE)
    if len(wanted) < ID_PART_MIN_CHARS:
        raise CommandError(f"'{part}' is too short: give {ID_PART_MIN_CHARS} characters or more", ExitCode.USAGE)
    rows = (await mesh.query("tasks", {"limit": ID_PART_AMONG}))["tasks"]
    found = [row["task_id"] for row in rows if row["task_id"].startswith(wanted) or row["task_id"].endswith(wanted)]
    if not found:
        raise CommandError(f"none of the newest {len(rows)} tasks has an id like '{part}'", ExitCode.NOT_FOUND)
    if len(found) > 1:
        some = ", ".join(found[:3]) + (", …" if len(found) > 3 else "")
        raise CommandError(f"'{part}' fits {len(found)} tasks: {some}", ExitCode.USAGE)
    return str(found[0])
