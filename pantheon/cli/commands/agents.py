"""`pantheon agents`, `pantheon agent run`, `pantheon agent new`: list the instances, run an agent, begin an agent."""

import asyncio
import contextlib
import json
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from pantheon.cli.connection import FoundMesh, Json, Url, find_mesh, open_bus
from pantheon.cli.exit_codes import CommandError, ExitCode
from pantheon.cli.render.listing import Cell, Column, print_listing
from pantheon.cli.render.output import note, print_json, print_line, stdout
from pantheon.cli.render.units import duration, parse_time, size
from pantheon.cli.running import run_async
from protocol import subjects
from protocol.names import ORCHESTRATOR, is_agent_name

if TYPE_CHECKING:
    from pantheon.bus import Delivery

# Instances respond to $SRV.STATS within milliseconds; what has not by then is away, or built without the kit.
STATS_SECONDS = 0.3
# A heartbeat comes every 5 s.
HEARTBEAT_WAIT_SECONDS = 5.5

TEMPLATE = '''"""{title}: an agent of the mesh. Run it with: pantheon agent run {name}.py"""

from pantheon import Agent, TaskContext, TaskFailure
from pydantic import BaseModel

agent = Agent("{name}", version="0.1.0", description="Says what it does.")


class Text(BaseModel):
    text: str


@agent.task("{task_type}")
async def {task_type}(task: Text, ctx: TaskContext) -> Text:
    if not task.text.strip():
        raise TaskFailure("empty_text", "there is nothing in 'text': send a word or more")
    await ctx.progress(50, "half way")
    return Text(text=task.text.upper())


if __name__ == "__main__":
    agent.run()
'''


def agents(
    context: typer.Context,
    load: Annotated[
        bool, typer.Option("--load", help="Wait for a heartbeat of each (about 5 s) and show the load.")
    ] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    if context.invoked_subcommand is not None:
        return
    found = find_mesh(url)
    instances, stale = run_async(_instances(found, with_load=load))
    if stale:
        note(f"the registry cannot be read just now ({stale})")
    if as_json:
        print_json(instances)
        return
    if not instances:
        note("no agents are there")
        return
    columns = (*_COLUMNS, *(_LOAD_COLUMNS if load else ()), _TASK_TYPES)
    now = datetime.now(UTC)
    print_listing(stdout(), columns, [_row(instance, now, with_load=load) for instance in instances])


async def _instances(found: FoundMesh, *, with_load: bool) -> tuple[list[dict[str, Any]], str | None]:
    """Every instance in discovery, with what it has done, and its load where that is asked for."""
    from pantheon.discovery import make_discovery

    async with open_bus(found) as bus:
        beats: dict[tuple[str, str], Mapping[str, Any]] = {}
        beaten = asyncio.Event()

        async def on_beat(delivery: "Delivery") -> None:
            beat = _object(delivery.data)
            beats[str(beat.get("agent")), str(beat.get("instance_id"))] = beat
            beaten.set()

        if with_load:
            await bus.subscribe(subjects.ALL_HEARTBEATS, on_beat)
        async with make_discovery(found.settings, bus.client) as discovery:
            registry = await discovery.registry()
            stats = await _stats(bus)
            keys = {(record.name, record.instance_id) for record in registry.instances()}
            if with_load:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(HEARTBEAT_WAIT_SECONDS):
                        while keys - beats.keys():
                            beaten.clear()
                            await beaten.wait()
            shown = []
            for record in registry.instances():
                key = (record.name, record.instance_id)
                instance = record.model_dump(mode="json", exclude={"protocol"})
                instance |= stats.get(key, {})
                if with_load:
                    instance["heartbeat"] = beats.get(key)
                shown.append(instance)
            return shown, registry.degraded_reason


async def _stats(bus: Any) -> dict[tuple[str, str], dict[str, Any]]:
    """The tasks that each instance reports to have done since its start, by the micro-service protocol."""
    reports: dict[tuple[str, str], dict[str, Any]] = {}

    async def on_report(delivery: "Delivery") -> None:
        stats = _object(delivery.data)
        endpoints = [endpoint for endpoint in stats.get("endpoints") or () if isinstance(endpoint, dict)]
        reports[str(stats.get("name")), str(stats.get("id"))] = {
            "started": stats.get("started"),
            "tasks_done": sum(int(endpoint.get("num_requests") or 0) for endpoint in endpoints),
            "tasks_failed": sum(int(endpoint.get("num_errors") or 0) for endpoint in endpoints),
        }

    inbox = bus.new_inbox()
    subscription = await bus.subscribe(inbox, on_report)
    await bus.publish("$SRV.STATS", b"", reply=inbox)
    await asyncio.sleep(STATS_SECONDS)
    await subscription.unsubscribe()
    return reports


def _object(data: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(data)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


_COLUMNS = (
    Column("agent", style="bold"),
    Column("instance", weight=4),
    Column("status"),
    Column("version", weight=6),
    Column("up", weight=5),
    Column("slots", weight=7, right=True),
    Column("done", weight=7, right=True),
    Column("failed", weight=7, right=True),
)
_LOAD_COLUMNS = (
    Column("at work", weight=9, right=True),
    Column("cpu", weight=8, right=True),
    Column("memory", weight=8, right=True),
)
_TASK_TYPES = Column("task types", weight=3, flexible=True)


def _row(instance: Mapping[str, Any], now: datetime, *, with_load: bool) -> list[Cell]:
    started = parse_time(instance.get("started"))
    # What the orchestrator accepts is bounded by the database: it has no slots.
    is_orchestrator = instance["name"] == ORCHESTRATOR
    return [
        instance["name"],
        instance["instance_id"],
        Text(instance["status"], style="green" if instance["status"] == "ready" else "yellow"),
        instance["version"],
        duration((now - started).total_seconds()) if started else "?",
        "" if is_orchestrator else str(instance["max_concurrency"]),
        "" if is_orchestrator else str(instance.get("tasks_done", "?")),
        "" if is_orchestrator else str(instance.get("tasks_failed", "?")),
        *(_load_cells(instance.get("heartbeat")) if with_load else ()),
        ", ".join(instance["task_types"]),
    ]


def _load_cells(beat: Any) -> list[str]:
    if not isinstance(beat, dict):
        return ["?", "?", "?"]
    cpu, memory = beat.get("cpu_percent"), beat.get("memory_bytes")
    blocked = beat.get("blocked_seconds")
    return [
        str(beat.get("active", "?")) + (f", blocked for {duration(blocked)}" if blocked else ""),
        f"{cpu:.0f}%" if isinstance(cpu, int | float) else "?",
        size(memory) if isinstance(memory, int) else "?",
    ]


def run_agent(
    target: Annotated[
        str, typer.Argument(metavar="MODULE", help="package.module, module:attribute, or the path of a .py file.")
    ],
    url: Url = None,
) -> None:
    from pantheon.process.loading import AgentNotLoaded, load_agent

    os.environ.update(find_mesh(url).environment())
    try:
        agent = load_agent(target)
    except AgentNotLoaded as error:
        raise CommandError(error.message, ExitCode.NOT_FOUND) from error
    from pantheon.process.run import run_agent as run

    raise typer.Exit(run(agent))


def new_agent(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name on the wire, such as translation_agent.")],
    folder: Annotated[Path, typer.Option("--in", metavar="DIR", help="Where to write it.")] = Path(),
) -> None:
    if not is_agent_name(name):
        raise CommandError(
            f"'{name}' is not an agent's name: a lower-case letter, then letters, digits and '_', 63 at most",
            ExitCode.USAGE,
        )
    path = folder / f"{name}.py"
    task_type = re.sub(r"_agent$", "", name) + "_text"
    text = TEMPLATE.format(name=name, title=name.replace("_", " ").capitalize(), task_type=task_type[:63])
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise CommandError(f"{path} is there already", ExitCode.USAGE) from None
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror}", ExitCode.USAGE) from None
    print_line(str(path))
    note(f"run it:  pantheon agent run {path}")
    note(f"ask it:  pantheon run {task_type[:63]} text=hello")
