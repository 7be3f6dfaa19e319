"""`pantheon up`, `pantheon migrate`, `pantheon orchestrator`: a mesh on this machine, or a single part of it."""

import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.status import Status
from rich.text import Text

from pantheon.cli.connection import Json, Url, find_mesh, is_set
from pantheon.cli.local_mesh import add_workflows, check_agent_count, migrate, settled, stack_environment
from pantheon.cli.render.listing import Cell, Column, print_listing
from pantheon.cli.render.output import flush_output, is_live, print_json, print_line, stderr, stdout
from pantheon.cli.render.units import clock
from pantheon.runtime.settings import MeshSettings, shown
from protocol.errors import SettingsError

if TYPE_CHECKING:
    from pantheon.stack import Endpoints, StackEvent

# Servers first, then the orchestrator; agents follow by name.
_ORDER = ("nats", "postgres", "valkey", "consul", "orchestrator_agent")


def up(
    data: Annotated[
        Path, typer.Option("--data", metavar="DIR", help="Where it keeps everything; a second 'up' goes on there.")
    ] = Path(".pantheon"),
    orchestrators: Annotated[int, typer.Option(min=1, max=64, help="How many orchestrator processes.")] = 1,
    no_agents: Annotated[bool, typer.Option("--no-agents", help="Without the five built-in agents.")] = False,
    agent: Annotated[
        list[str] | None,
        typer.Option("--agent", metavar="MODULE", help="An agent of yours to run too: a module, or a .py file."),
    ] = None,
    consul: Annotated[
        Path | None, typer.Option("--consul", metavar="PATH", help="The consul program; else the one on PATH, if any.")
    ] = None,
    workflows: Annotated[
        Path | None, typer.Option("--workflows", metavar="DIR", help="A folder of workflow files of yours.")
    ] = None,
    as_json: Json = False,
) -> None:
    from pantheon.stack import Stack, StackPlan, built_in_agents, find_consul, serve

    built_in = [] if no_agents else list(built_in_agents())
    targets = list(agent or ())
    check_agent_count([*(spec.name for spec in built_in), *targets])
    reporter = Reporter(as_json=as_json)
    plan = StackPlan(
        orchestrators=orchestrators,
        agents=built_in,
        agent_targets=targets,
        consul=find_consul(consul),
        environment=stack_environment(workflows),
    )
    stack = Stack(data, plan, migrate=migrate, settled=settled, on_event=reporter.on_event)
    try:
        asyncio.run(serve(stack, on_ready=reporter.ready))
    finally:
        reporter.close()


class Reporter:
    """Prints what happens to the parts of a stack: a spinner while it starts, a table when it is up, then events."""

    def __init__(self, *, as_json: bool, console: Console | None = None) -> None:
        self._as_json = as_json
        self._console = console or stderr()
        self._status: Status | None = None
        self._up = False
        if is_live(self._console) and not as_json:
            self._status = self._console.status("starting the mesh", spinner="dots")
            self._status.start()

    def on_event(self, event: "StackEvent") -> None:
        """Print an event of the stack."""
        from pantheon.stack import EventKind

        if self._as_json:
            self._console.print(_event_json(event), soft_wrap=True, markup=False)
            return
        if event.kind is EventKind.STARTED and not self._up:
            if self._status is not None:
                self._status.update(f"starting the mesh: {event.name} is there")
            else:
                self._line(event, "")
            return
        if event.kind is EventKind.STOPPING:
            self._up = False
        style = {
            EventKind.DIED: "red",
            EventKind.RESTART_FAILED: "red",
            EventKind.RESTARTED: "green",
            EventKind.NOTE: "yellow",
        }.get(event.kind, "bright_black")
        self._line(event, style)

    def _line(self, event: "StackEvent", style: str) -> None:
        self._console.print(Text.assemble((clock(_now()), "bright_black"), "  ", (str(event), style)), soft_wrap=True)

    def ready(self, endpoints: "Endpoints") -> None:
        """Print the table of parts on stdout: everything is up."""
        self.close()
        self._up = True
        if self._as_json:
            print_json(endpoints.model_dump(mode="json", exclude_none=True))
            flush_output()
            return
        console = stdout()
        print_listing(console, _COLUMNS, status_rows(endpoints))
        console.print(Text.assemble(("the mesh is up", "bold green"), f"   data in {endpoints.data}"))
        console.print(
            Text("try: pantheon agents, pantheon workflows, pantheon tasks; Ctrl-C ends it", style="bright_black")
        )
        flush_output()

    def close(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None


_COLUMNS = (Column("part", style="bold"), Column("pid", style="bright_black"), Column("address"))


def status_rows(endpoints: "Endpoints") -> list[list[Cell]]:
    """Each part with its process ids and address."""
    addresses = {
        "nats": endpoints.nats_url,
        "postgres": shown(endpoints.database_url).strip("'"),
        "valkey": endpoints.redis_url,
        "consul": endpoints.consul_http_addr or "",
    }
    names = sorted(endpoints.processes, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))
    return [[name, ", ".join(map(str, endpoints.processes[name])), addresses.get(name, "")] for name in names]


def _event_json(event: "StackEvent") -> str:
    import json

    row = {"at": _now().isoformat(), "kind": event.kind, "name": event.name, "message": event.message, "pid": event.pid}
    return json.dumps(row)


def _now() -> Any:
    from datetime import UTC, datetime

    return datetime.now(UTC)


def _database_url() -> str:
    """DATABASE_URL, else that of the newest `pantheon up`."""
    found = find_mesh(variable="DATABASE_URL")
    if found.endpoints is not None:
        return found.endpoints.database_url
    if found.settings.database_url is None:
        raise SettingsError("DATABASE_URL is not set")
    return found.settings.database_url.get_secret_value()


def migrate_database(
    database_url: Annotated[
        str | None,
        typer.Option("--database-url", metavar="URL", help="Else DATABASE_URL, else the newest 'pantheon up' here."),
    ] = None,
    as_json: Json = False,
) -> None:
    import migrations

    url = MeshSettings.load(database_url=database_url).database_url if database_url is not None else None
    address = url.get_secret_value() if url is not None else _database_url()

    async def upgrade() -> tuple[str | None, str]:
        return await migrations.current(address), await migrations.upgrade(address)

    before, after = asyncio.run(upgrade())
    if as_json:
        print_json({"before": before, "after": after})
    elif before == after:
        print_line(f"the schema is at {after} already")
    else:
        print_line(f"the schema went from {before or 'nothing'} to {after}")


def run_orchestrator(
    workflows: Annotated[
        Path | None, typer.Option("--workflows", metavar="DIR", help="A folder of workflow files of yours.")
    ] = None,
    url: Url = None,
) -> None:
    environment = dict(os.environ)
    if url is not None:
        environment["NATS_URL"] = url
    if not is_set(environment, "DATABASE_URL") or not is_set(environment, "NATS_URL"):
        environment |= find_mesh(url, variable="DATABASE_URL").environment()
    if workflows is not None:
        add_workflows(environment, workflows)
    os.execvpe(sys.executable, [sys.executable, "-m", "orchestrator_agent"], environment)  # noqa: S606
