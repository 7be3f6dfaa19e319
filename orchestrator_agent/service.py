"""The composition root: everything an orchestrator process is made of, wired here and nowhere else."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import structlog

from orchestrator_agent.dispatch.admission import Admission
from orchestrator_agent.dispatch.agent_health import AgentHealth
from orchestrator_agent.dispatch.capacity import Capacity
from orchestrator_agent.dispatch.queue_dispatcher import QueueDispatcher
from orchestrator_agent.dispatch.rate_limits import RateLimits
from orchestrator_agent.dispatch.redis_state import RedisState
from orchestrator_agent.dispatch.router import Pauses, Router
from orchestrator_agent.dispatch.settings import FlowSettings
from orchestrator_agent.dispatch.shared_circuits import SharedCircuits
from orchestrator_agent.dispatch.window import Window
from orchestrator_agent.engine.decisions import Rules
from orchestrator_agent.engine.events import ResponseReceived
from orchestrator_agent.intake.planner import Planner
from orchestrator_agent.maintenance.adoption import Adoption
from orchestrator_agent.maintenance.broker_outages import BrokerOutages
from orchestrator_agent.maintenance.broker_watch import BrokerWatch
from orchestrator_agent.maintenance.concurrency_keys import ConcurrencyKeys, Schedules
from orchestrator_agent.maintenance.history_archiver import HistoryArchiver
from orchestrator_agent.maintenance.object_cleaner import ObjectCleaner
from orchestrator_agent.maintenance.purges import PurgeWatch
from orchestrator_agent.maintenance.reconciler import Reconciler
from orchestrator_agent.message_loops import MessageLoops
from orchestrator_agent.operations.dead_letters import DeadLetters
from orchestrator_agent.operations.operations import Operations
from orchestrator_agent.operations.queries import Queries
from orchestrator_agent.runtime.attempt_cancellation import AttemptCanceller
from orchestrator_agent.runtime.outbox import Outbox
from orchestrator_agent.runtime.republisher import Republisher
from orchestrator_agent.runtime.root_ownership import RootOwnership
from orchestrator_agent.runtime.run_cache import RunCache
from orchestrator_agent.store.history import HistoryStore
from orchestrator_agent.store.pauses import PauseStore
from orchestrator_agent.store.pool import Database, use_postgres_ids
from orchestrator_agent.store.process_lock import ProcessLock
from orchestrator_agent.store.processes import Processes
from orchestrator_agent.store.reads import Reader
from orchestrator_agent.store.ready_queue import ReadyQueue
from orchestrator_agent.store.schema import check_schema
from orchestrator_agent.store.tasks import TaskStore
from orchestrator_agent.workflows.files import BUILTIN_FOLDER, load_folder
from orchestrator_agent.workflows.library import Library
from pantheon.agent import Agent
from pantheon.bus import before_consumer, ensure_streams
from pantheon.discovery import ensure_bucket
from pantheon.runtime.process import AgentProcess
from pantheon.runtime.settings import MeshSettings
from protocol.documents import documents
from protocol.errors import PantheonError, SettingsError, StoreError
from protocol.ids import new_id
from protocol.names import EXECUTE_DAG, ORCHESTRATOR
from protocol.streams import TASKS

log = structlog.get_logger()

use_postgres_ids()

VERSION = "0.1.0"
ORCHESTRATOR_CONCURRENCY = 10_000
# Above it, what can wait waits.
BUSY_RESPONSES_PER_SECOND = 50.0
# A probe that waits longer counts as failed with whoever asks.
ASK_POSTGRES_SECONDS = 2.0


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


def rules_of(settings: MeshSettings) -> Rules:
    return Rules(
        default_max_attempts=settings.max_retries + 1,
        no_agent_wait_seconds=settings.no_agent_wait_seconds,
        max_payload_bytes=settings.max_payload_bytes,
    )


class Orchestrator:
    """Makes the Conductor of an AgentProcess and what surrounds it; `close` ends it in the reverse order."""

    def __init__(self, settings: MeshSettings, library: Library) -> None:
        self._settings = settings
        self._library = library
        self._stack = contextlib.AsyncExitStack()

    async def make_worker(self, process: AgentProcess) -> "OrchestratorWorker":
        if self._settings.database_url is None:
            raise SettingsError(
                "DATABASE_URL is not set: the orchestrator keeps its state in Postgres (postgresql://user:password@host/db)"
            )
        url = self._settings.database_url.get_secret_value()
        flow = FlowSettings.load()
        await self._make_streams(process)
        database = Database(url)
        await database.open()
        self._stack.push_async_callback(database.close)
        await check_schema(database)
        lock = ProcessLock(url, new_id(), process.instance_id)
        reader, pause_store = Reader(database), PauseStore(database)
        for plan in self._library.plans:
            if plan.version is not None and plan.definition is not None:
                await reader.save_workflow(plan.version, plan.name, plan.definition)
        registry = await process.discovery.registry()
        agent_health, pauses = AgentHealth(), Pauses()
        redis_url = self._settings.redis_url
        shared = RedisState(redis_url.get_secret_value() if redis_url is not None else None)
        self._stack.push_async_callback(shared.close)
        circuits = SharedCircuits(shared, agent_health, lambda: {one.name for one in registry.instances()})
        self._stack.push_async_callback(circuits.close)
        # flow control: what may go to agents now, and the line of what waits
        capacity = Capacity(registry)
        window = Window(capacity, waiting=capacity.waiting)
        limits = RateLimits(flow.rate_limits, registry, shared, processes=lambda: window.processes)
        registry.on_change(limits.learn)
        self._stack.push_async_callback(limits.close)
        line = ReadyQueue(database)
        gate = Admission(window, line, limits)
        agent_health.on_response = gate.window.answered
        agent_health.on_dispatch = gate.window.sent
        store = TaskStore(database, lock.process_id, gate, flow.history_after_seconds)
        history = HistoryArchiver(
            HistoryStore(database),
            after_seconds=flow.history_after_seconds,
            retention_days=flow.retention_days,
            busy=lambda: window.responses_per_second > BUSY_RESPONSES_PER_SECOND,
        )
        leftovers = ObjectCleaner(process.objects, reader)
        router = Router(registry, self._library, agent_health, pauses, gate)
        rules = rules_of(self._settings)
        peers = RootOwnership(process.bus, lock.process_id)
        runs = RunCache(
            store,
            reader,
            self._library,
            shared=lambda: window.processes > 1,
            mine=peers.owns,
        )
        canceller = AttemptCanceller(process.bus, reader.stale)
        outbox = Outbox(
            process.bus, process.publisher, process.objects, store, agent_health, canceller, source=process.source
        )
        outbox.on_ended = process.micro.record
        republisher = Republisher(process.publisher, store=store, reader=reader, runs=runs, outbox=outbox)
        planner = Planner(self._library, router, rules, self._settings.agent_timeout_seconds)
        message_loops = MessageLoops(
            process.bus,
            process.publisher,
            process.objects,
            store=store,
            reader=reader,
            runs=runs,
            router=router,
            agent_health=agent_health,
            planner=planner,
            outbox=outbox,
            republisher=republisher,
            peers=peers,
            rules=rules,
            max_concurrency=ORCHESTRATOR_CONCURRENCY,
            # One of several is enough; where it is away, requests are accepted in the order of their arrival.
            looks_ahead=lambda: queue_dispatcher.first_process in (None, lock.process_id),
        )
        queue_dispatcher = QueueDispatcher(
            gate,
            router,
            perform=message_loops.perform,
            post=message_loops.post,
            cached=runs.cached,
            in_broker=lambda agent: before_consumer(process.bus, TASKS.name, agent),
            paused_workflows=lambda: pauses.workflows,
            held_by_other=runs.held_by_other,
        )
        limits.on_tokens = circuits.on_claim = queue_dispatcher.wake
        turns = ConcurrencyKeys(reader, self._library, runs, message_loops.post)
        message_loops.acceptance.on_turn = turns.ask
        dead_letters = DeadLetters(process.bus, process.publisher)
        dead_letters.on_poison = lambda root, task_id, attempt, error: message_loops.post(
            ResponseReceived(root, task_id, attempt, "failed", error=error)
        )
        operations = Operations(
            process.bus,
            reader=reader,
            library=self._library,
            dead_letters=dead_letters,
            pauses=pauses,
            pause_store=pause_store,
            perform=message_loops.perform,
            post=message_loops.post,
            look_now=lambda: reconciler.look_now(),
        )
        message_loops.acceptance.on_operation = operations.begin
        outages = BrokerOutages(lambda: (process.bus.connected, process.bus.generation))
        reconciler = Reconciler(
            process.bus,
            message_loops=message_loops,
            reader=reader,
            runs=runs,
            registry=registry,
            agent_health=agent_health,
            pauses=pauses,
            pause_store=pause_store,
            operations=operations,
            turns=turns,
            schedules=Schedules(reader, self._library, message_loops.acceptance.accept_own),
            queue_dispatcher=queue_dispatcher,
            circuits=circuits,
            outages=outages,
        )
        processes = Processes(database)
        adoption = Adoption(
            process.bus,
            process.publisher,
            lock=lock,
            processes=processes,
            republisher=republisher,
            outbox=outbox,
            canceller=canceller,
        )
        watch = BrokerWatch(
            process.bus,
            process.publisher,
            reader=reader,
            replicas=self._settings.stream_replicas,
            uses_kv=not self._settings.uses_consul,
            on_lost=adoption.broker_lost,
            outages=outages,
        )
        purges = PurgeWatch(process.bus, process_id=lock.process_id, processes=processes, republisher=republisher)
        queries = Queries(
            process.bus,
            process.objects,
            reader=reader,
            runs=runs,
            router=router,
            library=self._library,
            dead_letters=dead_letters,
            pause_store=pause_store,
            line=line,
        )
        parts = Parts(
            message_loops,
            peers,
            reconciler,
            adoption,
            watch,
            purges,
            queries,
            operations,
            turns,
            dead_letters,
            queue_dispatcher,
            history,
            leftovers,
            lock,
            database,
        )
        return OrchestratorWorker(parts, self._stack)

    async def _make_streams(self, process: AgentProcess) -> None:
        wait = 0.1
        while True:
            try:
                await ensure_streams(process.bus, replicas=self._settings.stream_replicas)
                if not self._settings.uses_consul:
                    await ensure_bucket(process.bus.js, self._settings.stream_replicas)
                return
            except PantheonError as error:
                log.warning("streams.waiting", error=str(error))
                await asyncio.sleep(wait)
                wait = min(wait * 2, 2)


@dataclass(frozen=True)
class Parts:
    """What an orchestrator process is made of, beside its connections."""

    message_loops: MessageLoops
    peers: RootOwnership
    reconciler: Reconciler
    adoption: Adoption
    watch: BrokerWatch
    purges: PurgeWatch
    queries: Queries
    operations: Operations
    turns: ConcurrencyKeys
    dead_letters: DeadLetters
    queue_dispatcher: QueueDispatcher
    history: HistoryArchiver
    leftovers: ObjectCleaner
    lock: ProcessLock
    database: Database


class OrchestratorWorker:
    """The Conductor and what surrounds it, started and drained as one."""

    def __init__(self, parts: Parts, stack: contextlib.AsyncExitStack) -> None:
        self.parts = parts
        self._stack = stack
        message_loops = parts.message_loops
        self.max_concurrency = message_loops.max_concurrency
        self.cancel = message_loops.cancel
        self.pause = message_loops.pause
        self.resume = message_loops.resume
        self.wait_ready = message_loops.wait_ready
        self.resize = message_loops.resize

    @property
    def active(self) -> int:
        return self.parts.message_loops.active

    @property
    def running(self) -> tuple[()]:
        return ()

    @property
    def lent(self) -> int:
        return 0

    async def missing(self) -> list[str]:
        """What it lacks to settle tasks, for a probe: Postgres, or the lock that says this process lives."""
        try:
            async with asyncio.timeout(ASK_POSTGRES_SECONDS):
                await self.parts.database.ping()
        except (StoreError, TimeoutError) as error:
            return [f"Postgres does not answer: {error or 'in time'}"]
        return [] if self.parts.lock.held else ["the process's lock is not held"]

    async def start(self) -> None:
        await self.parts.lock.take()
        await self.parts.watch.check_store()
        await self.parts.queue_dispatcher.count_processes()
        await self.parts.reconciler.learn()
        await self.parts.peers.start()
        await self.parts.message_loops.start()
        self.parts.queue_dispatcher.start()
        self.parts.history.start()
        self.parts.leftovers.start()
        await self.parts.reconciler.start()
        self.parts.adoption.start()
        self.parts.watch.start()
        await self.parts.purges.start()
        await self.parts.dead_letters.start()
        await self.parts.queries.start()

    async def drain(self, grace_seconds: float) -> None:
        # First of all: what others still pass on goes back to the broker at once.
        self.parts.peers.leave()
        await self.parts.reconciler.close()
        await self.parts.purges.close()
        await self.parts.watch.close()
        await self.parts.adoption.close()
        await self.parts.dead_letters.close()
        await self.parts.queue_dispatcher.close()
        await self.parts.history.close()
        await self.parts.leftovers.close()
        await self.parts.message_loops.drain(grace_seconds)
        await self.parts.operations.close()
        await self.parts.turns.close()
        await self.parts.peers.close()
        # Rows that this process dispatched stay its own until somebody adopts them: the row of the process stays too.
        await self.parts.lock.release()
        await self._stack.aclose()


@contextlib.asynccontextmanager
async def orchestrator(settings: MeshSettings, library: Library) -> AsyncIterator[AgentProcess]:
    """A whole orchestrator in this process, for tests and for whoever embeds one."""
    made = Orchestrator(settings, library)
    async with AgentProcess(OrchestratorAgent(library), settings, make_worker=made.make_worker) as process:
        yield process
