"""Starting a mesh from the command line: what `pantheon up` and `pantheon demo` share."""

import asyncio
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pantheon.cli.commands.workflows import check_files
from pantheon.cli.exit_codes import CommandError, ExitCode
from pantheon.runtime.settings import MeshSettings
from protocol import subjects
from protocol.errors import BusError, SettingsError

if TYPE_CHECKING:
    from pantheon.bus import Bus
    from pantheon.stack import Endpoints

# Addresses and credentials of another mesh, and an id that only one process can have: the stack gives its own.
_FOREIGN = re.compile(r"^(NATS_.*|DATABASE_URL|REDIS_URL|CONSUL_.*|INSTANCE_ID)(_FILE)?$")
_SERVERS = frozenset({"nats", "postgres", "valkey", "consul"})
ASK_AGAIN_SECONDS = 0.05
WORKFLOWS_VARIABLE = "WORKFLOWS_PATH"


def stack_environment(workflows: Path | None = None, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for the processes of a new mesh. Raises CommandError for a folder of workflows that is wrong."""
    environment = {name: value for name, value in os.environ.items() if not _FOREIGN.match(name)}
    if workflows is not None:
        _check_workflows(workflows)
        folders = [os.environ.get(WORKFLOWS_VARIABLE, ""), str(workflows.absolute())]
        environment[WORKFLOWS_VARIABLE] = os.pathsep.join(one for one in folders if one)
    return environment | dict(extra or {})


def _check_workflows(folder: Path) -> None:
    # An orchestrator that finds a mistake ends; it would be started again and again, with the reason in its log.
    if not folder.is_dir():
        raise CommandError(f"--workflows {folder}: there is no such folder", ExitCode.NOT_FOUND)
    for one in check_files([folder]):
        if one.get("error"):
            raise CommandError(one["error"]["message"], ExitCode.USAGE)


def check_agent_count(names: Sequence[str]) -> None:
    """Raises SettingsError when more agent processes are asked for than MAX_AGENTS allows."""
    limit = MeshSettings.load().max_agents
    if len(names) > limit:
        raise SettingsError(
            f"MAX_AGENTS={limit} allows {limit} agent process{'es' if limit != 1 else ''}, and {len(names)} were asked "
            f"for ({', '.join(names)}): raise it, or start fewer (--no-agents leaves out the built-in ones)"
        )


async def migrate(database_url: str) -> None:
    """Bring a database to the newest schema. Raises StoreError."""
    from migrations import upgrade

    await upgrade(database_url)


async def settled(endpoints: "Endpoints") -> None:
    """Return when every process of the mesh has made itself known: from then on a task finds all of them."""
    from pantheon.bus import Bus
    from pantheon.discovery import make_discovery

    wanted = {name: len(pids) for name, pids in endpoints.processes.items() if name not in _SERVERS}
    settings = MeshSettings.load(nats_url=endpoints.nats_url)
    settings = settings.model_copy(update={"consul_http_addr": endpoints.consul_http_addr})
    async with await Bus.connect(endpoints.nats_url, name="pantheon-up") as bus:
        # First the orchestrator: it makes what discovery looks into.
        await _answering(bus)
        async with make_discovery(settings, bus.client) as discovery:
            registry = await discovery.registry()
            while True:
                version = registry.version
                there = Counter(one.name for one in registry.instances() if one.status == "ready")
                if all(there[name] >= count for name, count in wanted.items()):
                    return
                await registry.changed(version)


async def _answering(bus: "Bus") -> None:
    """Return when an orchestrator answers questions."""
    while True:
        try:
            await bus.request(subjects.query("workflows"), b"{}", timeout_seconds=2)
        except BusError:
            await asyncio.sleep(ASK_AGAIN_SECONDS)
        else:
            return
