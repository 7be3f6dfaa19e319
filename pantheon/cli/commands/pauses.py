"""`pantheon pauses`: what is paused, since when, by whom, and how much waits for it."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pantheon.cli.connection import Json, Url, open_mesh
from pantheon.cli.render.listing import Cell, Column, print_listing
from pantheon.cli.render.output import note, print_json, stdout
from pantheon.cli.render.units import clock, parse_time
from pantheon.cli.running import run_async

if TYPE_CHECKING:
    from pantheon.client.operations import Paused

# The mesh counts no further.
COUNTED = 10_000

_COLUMNS = (
    Column("paused"),
    Column("name", style="bold"),
    Column("type", weight=4),
    Column("since", weight=7),
    Column("by", weight=6),
    Column("waiting", weight=8, right=True),
)


def pauses(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="How many, newest first.")] = 50,
    url: Url = None,
    as_json: Json = False,
) -> None:
    async def run() -> "list[Paused]":
        async with open_mesh(url) as mesh:
            return await mesh.pauses(limit=limit)

    found = run_async(run())
    if as_json:
        print_json(found)
        return
    if not found:
        note("nothing is paused")
        return
    now = datetime.now(UTC)
    print_listing(stdout(), _COLUMNS, [_row(pause, now) for pause in found])


def _row(pause: Mapping[str, Any], now: datetime) -> list[Cell]:
    waiting = int(pause.get("waiting") or 0)
    return [
        str(pause["kind"]),
        str(pause["name"]),
        str(pause.get("task_type") or ""),
        clock(parse_time(pause.get("paused_at")), today=now),
        str(pause.get("requester") or ""),
        f"{waiting}+" if waiting >= COUNTED else str(waiting),
    ]
