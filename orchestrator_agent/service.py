"""Service: the orchestrator as a process of the mesh: its connections opened, its parts started, drained and closed."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any
from uuid import UUID

import structlog

from orchestrator_agent.composition import Composition
from orchestrator_agent.dispatch.redis_state import RedisState
from orchestrator_agent.dispatch.settings import FlowSettings
from orchestrator_agent.engine.events import CancelRequested
from orchestrator_agent.maintenance.broker_streams import BrokerStreams
from orchestrator_agent.parts import DEFAULT_TUNING, Configuration, Connections, Tuning
from orchestrator_agent.store.pool import Database, use_postgres_ids
from orchestrator_agent.store.process_lock import ProcessLock
from orchestrator_agent.store.schema import check_schema
from orchestrator_agent.store.workflows import WorkflowStore
from orchestrator_agent.workflows.files import BUILTIN_FOLDER, load_folder
from orchestrator_agent.workflows.library import Library
from pantheon.agent import Agent
from pantheon.process.agent_process import AgentProcess
from pantheon.runtime.services import Services
from pantheon.runtime.settings import MeshSettings
from protocol.documents import documents
from protocol.errors import PantheonError, SettingsError, StoreError
from protocol.ids import new_id
from protocol.names import EXECUTE_DAG, ORCHESTRATOR

log = structlog.get_logger()

use_postgres_ids()

VERSION = "0.1.0"
ORCHESTRATOR_CONCURRENCY = 10_000
# A probe that waits longer counts as failed with the system that sends it.
ASK_POSTGRES_SECONDS = 2.0
STREAMS_RETRY_FIRST_SECONDS = 0.1
STREAMS_RETRY_MAX_SECONDS = 2.0


@cache
def inline_schema() -> Mapping[str, Any]:
    """The JSON Schema of what `execute_dag` takes; made once, which takes a while."""
    return documents()["execute-dag.schema.json"]


class OrchestratorAgent(Agent):
    """The orchestrator as an agent of the mesh; its task types are the workflows that it knows."""

    def __init__(self, library: Library) -> None:
        super().__init__(
            ORCHESTRATOR,
            version=VERSION,
            description="Plans requests into graphs of steps, delegates them by capability, answers once.",
            max_concurrency=ORCHESTRATOR_CONCURRENCY,
        )
        self._library = library

    @property
    def task_types(self) -> tuple[str, ...]:
        return (EXECUTE_DAG, *self._library.names)

    @property
    def schemas(self) -> Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any] | None]]:
        found: dict[str, tuple[Mapping[str, Any], Mapping[str, Any] | None]] = {EXECUTE_DAG: (inline_schema(), None)}
        for plan in self._library.plans:
            found[plan.name] = (plan.input_schema or {"type": "object"}, None)
        return found


def load_library(folders: list[Path]) -> Library:
    """The built-in workflows, and those of `folders`, which win. Raises InvalidWorkflow."""
    return Library(plan for folder in (BUILTIN_FOLDER, *folders) for plan in load_folder(folder))


class Orchestrator:
    """Makes what an AgentProcess runs instead of a Worker."""

    def __init__(self, settings: MeshSettings, library: Library, tuning: Tuning = DEFAULT_TUNING) -> None:
        self._settings = settings
        self._library = library
        self._tuning = tuning

    async def make_worker(self, process: AgentProcess) -> "OrchestratorWorker":
        """Open what the parts stand on, and wire them. Raises SettingsError, StoreError."""
        settings = self._settings
        if settings.database_url is None:
            raise SettingsError(
                "DATABASE_URL is not set: the orchestrator keeps its state in Postgres (postgresql://user:password@host/db)"
            )
        url = settings.database_url.get_secret_value()
        flow_control = FlowSettings.load()
        await self._make_streams(process)
        async with contextlib.AsyncExitStack() as opened:
            database = await opened.enter_async_context(Database(url))
            await check_schema(database)
            await self._save_workflows(database)
            registry = await process.discovery.registry()
            redis_url = settings.redis_url
            redis = RedisState(
                redis_url.get_secret_value() if redis_url is not None else None, self._tuning.dispatch.redis
            )
            opened.push_async_callback(redis.close)
            lock = ProcessLock(url, new_id(), process.instance_id)
            connections = Connections(process, database, redis, registry, lock)
            parts = Composition(connections, Configuration(settings, flow_control, self._library, self._tuning))
            return OrchestratorWorker(parts, opened.pop_all())

    async def _make_streams(self, process: AgentProcess) -> None:
        wait = STREAMS_RETRY_FIRST_SECONDS
        while True:
            try:
                await BrokerStreams.of(process.bus, self._settings).ensure()
                return
            except PantheonError as error:
                log.warning("streams.waiting", error=str(error))
                await asyncio.sleep(wait)
                wait = min(wait * 2, STREAMS_RETRY_MAX_SECONDS)

    async def _save_workflows(self, database: Database) -> None:
        """Keep the versions that tasks may be started on, for orchestrators that have other files."""
        store = WorkflowStore(database)
        for plan in self._library.plans:
            if plan.version is not None and plan.definition is not None:
                await store.save(plan.version, plan.name, plan.definition)


class OrchestratorWorker:
    """The orchestrator instead of a Worker: its parts, started and drained as one."""

    def __init__(self, parts: Composition, opened: contextlib.AsyncExitStack) -> None:
        self.parts = parts
        self._opened = opened
        self._services = Services(parts.services())

    async def start(self) -> None:
        await self._services.start()

    async def drain(self, grace_seconds: float) -> None:
        # First of all: what others still forward is nacked at once.
        self.parts.loops.message_loops.begin_drain(grace_seconds)
        await self._services.stop()
        await self._opened.aclose()

    async def wait_ready(self) -> None:
        await self.parts.loops.message_loops.wait_ready()

    async def missing(self) -> list[str]:
        """What it lacks to work on tasks, for a probe: Postgres, or the lock that says this process lives."""
        connections = self.parts.connections
        try:
            async with asyncio.timeout(ASK_POSTGRES_SECONDS):
                await connections.database.ping()
        except (StoreError, TimeoutError) as error:
            return [f"Postgres does not answer: {error or 'in time'}"]
        return [] if connections.lock.held else ["the process's lock is not held"]

    @property
    def max_concurrency(self) -> int:
        return ORCHESTRATOR_CONCURRENCY

    @property
    def active(self) -> int:
        return len(self.parts.runtime.runs)

    @property
    def running(self) -> tuple[()]:
        # Roots are many and shared between the processes: where a task is, the database says.
        return ()

    def resize(self, max_concurrency: int) -> None:
        """How many tasks are open is the requesters' decision; the database holds them."""

    def cancel(self, task_id: UUID, attempt: int | None, reason: str) -> None:
        self.parts.runtime.inbox.post(CancelRequested(task_id, reason))

    def pause(self) -> None:
        self.parts.loops.message_loops.pause()

    def resume(self) -> None:
        self.parts.loops.message_loops.resume()


@contextlib.asynccontextmanager
async def orchestrator(
    settings: MeshSettings, library: Library, *, tuning: Tuning = DEFAULT_TUNING
) -> AsyncIterator[AgentProcess]:
    """A whole orchestrator in this process, for tests and for programs that embed one."""
    made = Orchestrator(settings, library, tuning)
    async with AgentProcess(OrchestratorAgent(library), settings, make_worker=made.make_worker) as process:
        yield process
