"""What `pantheon up` and `pantheon demo` share to start a mesh: environment, limits, migration, readiness."""

import asyncio
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pantheon.cli.exit_codes import CommandError, ExitCode
from pantheon.cli.workflow_check import check_files
from pantheon.runtime.settings import MeshSettings
from protocol import subjects
from protocol.errors import BusError, SettingsError

if TYPE_CHECKING:
    from pantheon.bus import Bus
    from pantheon.stack import Endpoints

# Addresses and credentials of another mesh, and an id that only one process can have: the stack sets its own.
_FOREIGN = re.compile(r"^(NATS_.*|DATABASE_URL|REDIS_URL|CONSUL_.*|INSTANCE_ID)(_FILE)?$")
_SERVERS = frozenset({"nats", "postgres", "valkey", "consul"})
QUERY_INTERVAL_SECONDS = 0.05
WORKFLOWS_VARIABLE = "WORKFLOWS_PATH"


def stack_environment(workflows: Path | None = None, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for the processes of a new mesh. Raises CommandError for a folder of workflows that is wrong."""
    environment = {name: value for name, value in os.environ.items() if not _FOREIGN.match(name)}
    if workflows is not None:
        add_workflows(environment, workflows)
        _check_workflows(workflows)
    return environment | dict(extra or {})


def add_workflows(environment: dict[str, str], folder: Path) -> None:
    """Append a folder of workflow files to those of an environment. Raises CommandError when it does not exist."""
    if not folder.is_dir():
        raise CommandError(f"--workflows {folder}: there is no such folder", ExitCode.NOT_FOUND)
    folders = [environment.get(WORKFLOWS_VARIABLE, ""), str(folder.absolute())]
    environment[WORKFLOWS_VARIABLE] = os.pathsep.join(path for path in folders if path)


def _check_workflows(folder: Path) -> None:
    # An orchestrator that finds a mistake ends: the supervisor would restart it for ever, with the reason in its log.
    for result in check_files([folder]):
        if result.get("error"):
            raise CommandError(result["error"]["message"], ExitCode.USAGE)


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
    """Return when every process of the mesh is registered as ready: from then on a task can be routed to each."""
    from pantheon.bus import Bus
    from pantheon.discovery import make_discovery

    expected = {name: len(pids) for name, pids in endpoints.processes.items() if name not in _SERVERS}
    settings = MeshSettings.load(nats_url=endpoints.nats_url)
    settings = settings.model_copy(update={"consul_http_addr": endpoints.consul_http_addr})
    async with await Bus.connect(endpoints.nats_url, name="pantheon-up") as bus:
        # First the orchestrator: it makes the bucket that discovery reads.
        await _until_orchestrator_responds(bus)
        async with make_discovery(settings, bus.client) as discovery:
            registry = await discovery.registry()
            while True:
                version = registry.version
                ready = Counter(record.name for record in registry.instances() if record.status == "ready")
                if all(ready[name] >= count for name, count in expected.items()):
                    return
                await registry.changed(version)


async def _until_orchestrator_responds(bus: "Bus") -> None:
    """Return when an orchestrator responds to a query."""
    while True:
        try:
            await bus.request(subjects.query("workflows"), b"{}", timeout_seconds=2)
        except BusError:
            await asyncio.sleep(QUERY_INTERVAL_SECONDS)
        else:
            return
