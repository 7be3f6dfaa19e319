"""`pantheon tasks`, `pantheon task show`: the list of tasks, and a task with its steps, times, errors and reasons."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from pantheon.cli.connection import Json, Url, open_mesh
from pantheon.cli.input.task_ids import TaskId, resolve
from pantheon.cli.progress.task_rows import is_wait, root_of
from pantheon.cli.progress.tree import TaskTree
from pantheon.cli.progress.view import draw, symbol_of
from pantheon.cli.progress.why import lines_of, waits_of
from pantheon.cli.render.listing import Cell, Column, print_listing
from pantheon.cli.render.output import note, print_json, stdout
from pantheon.cli.render.result_files import shortened, write_files
from pantheon.cli.render.units import clock, duration, parse_time
from pantheon.cli.running import run_async
from pantheon.runtime.settings import one_line
from protocol.errors import PantheonError

if TYPE_CHECKING:
    from pantheon.client.mesh import Mesh


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
    symbol, style = symbol_of(str(row.get("status")))
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
    full: Annotated[bool, typer.Option("--full", help="The payload, the result and the --why too.")] = False,
    why: Annotated[bool, typer.Option("--why", help="For each step, why its agent was chosen.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Write the files found in the result here.")
    ] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    rows, waiting, response = run_async(_show(url, task_id, full=full or as_json, result=full or out is not None))
    result = response.get("result") if response else None
    if out is not None and result is not None:
        result, paths = write_files(result, out)
        for path in paths:
            note(f"wrote {path}")
    if as_json:
        print_json({"task_id": root_of(rows)["task_id"], "tasks": rows, "waiting": waiting})
        return
    _print_task(rows, waiting)
    if why or full:
        _print_why(rows)
    if full:
        _print_json_part("payload", root_of(rows).get("payload"))
        if result is not None:
            _print_json_part("result", result)


async def _show(
    url: str | None, task_id: str, *, full: bool, result: bool
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any] | None]:
    async with open_mesh(url) as mesh:
        full_id = await resolve(mesh, task_id)
        tree = await _tree(mesh, full_id, brief=not full)
        if not full and any(is_wait(row) for row in tree["tasks"]):
            # What a step waits for is in its payload.
            tree = await _tree(mesh, full_id, brief=False, silent=True)
        rows, waiting = tree["tasks"], tree.get("waiting") or []
        response = None
        if result:
            found = await mesh.query("response", {"task_id": root_of(rows)["task_id"]})
            response = found.get("response")
        return rows, waiting, response


async def _tree(mesh: "Mesh", task_id: str, *, brief: bool, silent: bool = False) -> dict[str, Any]:
    """All rows of a tree, without payloads and results where a message cannot carry them, and the reasons for which
    ready rows wait."""
    try:
        return await mesh.query("task", {"task_id": task_id, "brief": brief, "waiting": True})
    except PantheonError as error:
        if error.code != "too_large" or brief:
            raise
        if not silent:
            note(f"{error.message}; payloads and results are left out")
        return await _tree(mesh, task_id, brief=True)


def _print_task(rows: list[dict[str, Any]], waiting: list[dict[str, Any]]) -> None:
    root = root_of(rows)
    tree = TaskTree(str(root["task_id"]))
    tree.apply_rows(rows)
    console = stdout()
    now = datetime.now(UTC)
    console.print(draw(tree, now, live=False, width=console.width))
    for line in waits_of(rows, waiting):
        console.print(line, soft_wrap=True)
    facts = [
        ("created", clock(parse_time(root.get("created_at")), today=now)),
        ("waits for", "its turn" if _is_queued_by_key(root) else ""),
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


def _is_queued_by_key(root: Mapping[str, Any]) -> bool:
    """Whether it waits for other tasks of its concurrency key."""
    return root.get("status") == "waiting" and root.get("concurrency_key") is not None


def _print_why(rows: list[dict[str, Any]]) -> None:
    console = stdout()
    console.print(Text("why:", style="bright_black"))
    for line in lines_of(rows):
        console.print(Text("  ").append_text(line), soft_wrap=True)


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
