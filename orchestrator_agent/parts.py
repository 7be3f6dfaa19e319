"""Parts: what an orchestrator process is made of, in groups of what is made together (see `composition`)."""

from dataclasses import dataclass, field

from orchestrator_agent.dispatch.active_processes import ActiveProcesses
from orchestrator_agent.dispatch.admission import Admission
from orchestrator_agent.dispatch.agent_health import AgentHealth
from orchestrator_agent.dispatch.rate_limits import RateLimits
from orchestrator_agent.dispatch.redis_state import RedisState
from orchestrator_agent.dispatch.router import Router
from orchestrator_agent.dispatch.settings import FlowSettings
from orchestrator_agent.dispatch.shared_circuits import ProbeClaims, SharedCircuits
from orchestrator_agent.dispatch.signal import DispatchSignal
from orchestrator_agent.dispatch.tuning import DispatchTuning
from orchestrator_agent.inbox import Inbox
from orchestrator_agent.intake.fair_intake import MANY
from orchestrator_agent.maintenance.adoption import Adoption, AdoptionTimes
from orchestrator_agent.maintenance.broker_outages import BrokerOutages
from orchestrator_agent.maintenance.broker_storage import BrokerStorage
from orchestrator_agent.maintenance.broker_watch import BrokerWatch
from orchestrator_agent.maintenance.history_archiver import HistoryArchiver
from orchestrator_agent.maintenance.lost_agents import LivenessTimes, LostAgents
from orchestrator_agent.maintenance.object_cleaner import ObjectCleaner
from orchestrator_agent.maintenance.operator_changes import OperatorChanges
from orchestrator_agent.maintenance.purges import PurgeWatch
from orchestrator_agent.maintenance.reconciler import Reconciler
from orchestrator_agent.maintenance.suspects import Suspects
from orchestrator_agent.message_loops import HoldTimes, MessageLoops
from orchestrator_agent.operations.dead_letters import DeadLetters
from orchestrator_agent.operations.queries import Queries
from orchestrator_agent.operations.runner import OperationRunner
from orchestrator_agent.runtime.attempt_cancellation import AGAIN_SECONDS, AttemptCanceller
from orchestrator_agent.runtime.broker import Broker
from orchestrator_agent.runtime.duplicates import Duplicates
from orchestrator_agent.runtime.outbox import Outbox
from orchestrator_agent.runtime.peer_exchange import PeerExchange
from orchestrator_agent.runtime.republisher import Republisher
from orchestrator_agent.runtime.responses import ResponseSettler
from orchestrator_agent.runtime.root_ownership import ALIVE_SECONDS, RootOwnership
from orchestrator_agent.runtime.run_cache import RunCache
from orchestrator_agent.runtime.sweep_signal import SweepSignal
from orchestrator_agent.runtime.trials import Trials
from orchestrator_agent.store.broker_marks import BrokerMarks
from orchestrator_agent.store.concurrency import ConcurrencyStore
from orchestrator_agent.store.history import HistoryStore
from orchestrator_agent.store.pauses import PauseStore
from orchestrator_agent.store.pool import Database
from orchestrator_agent.store.process_lock import ProcessLock
from orchestrator_agent.store.processes import Processes
from orchestrator_agent.store.sweeps import TaskSweeps
from orchestrator_agent.store.task_queries import TaskQueries
from orchestrator_agent.store.task_reader import TaskReader
from orchestrator_agent.store.tasks import TaskStore
from orchestrator_agent.store.trials import TrialStore
from orchestrator_agent.store.workflows import ScheduleStore, WorkflowStore
from orchestrator_agent.workflows.library import Library
from pantheon.discovery import Registry
from pantheon.process.agent_process import AgentProcess
from pantheon.runtime.settings import MeshSettings


@dataclass(frozen=True)
class Connections:
    """What is open before anything is wired: the process on NATS, Postgres, Redis, and the lock that says that the
    process lives."""

    process: AgentProcess
    database: Database
    redis: RedisState
    registry: Registry
    lock: ProcessLock

    @property
    def broker(self) -> Broker:
        return Broker(self.process.bus, self.process.publisher, self.process.objects)


@dataclass(frozen=True)
class Tuning:
    """Times and amounts that are no settings: the defaults are right, and a test needs others to see them at work."""

    dispatch: DispatchTuning = field(default_factory=DispatchTuning)
    holding: HoldTimes = field(default_factory=HoldTimes)
    adoption: AdoptionTimes = field(default_factory=AdoptionTimes)
    liveness: LivenessTimes = field(default_factory=LivenessTimes)
    # After so long without a beat an orchestrator owns no roots.
    alive_seconds: float = ALIVE_SECONDS
    # When a cancel is sent again, whatever heartbeats list.
    cancel_again_seconds: tuple[float, ...] = AGAIN_SECONDS
    # From so many pending requests on they are accepted in fair rounds.
    many_requests: int = MANY


DEFAULT_TUNING = Tuning()


@dataclass(frozen=True)
class Configuration:
    settings: MeshSettings
    flow_control: FlowSettings
    library: Library
    tuning: Tuning


@dataclass(frozen=True)
class Stores:
    """What is kept in Postgres, by what it is about."""

    tasks: TaskStore
    reader: TaskReader
    sweeps: TaskSweeps
    queries: TaskQueries
    workflows: WorkflowStore
    schedules: ScheduleStore
    concurrency: ConcurrencyStore
    pauses: PauseStore
    processes: Processes
    broker_marks: BrokerMarks
    history: HistoryStore
    trials: TrialStore


@dataclass(frozen=True)
class Dispatch:
    """Which agent gets an attempt, and when. The router has the pauses, admission the window and the ready queue."""

    signal: DispatchSignal
    active: ActiveProcesses
    admission: Admission
    limits: RateLimits
    probes: ProbeClaims
    agent_health: AgentHealth
    circuits: SharedCircuits
    router: Router


@dataclass(frozen=True)
class Runtime:
    """What happens to runs, up to what is published of it."""

    inbox: Inbox
    sweep: SweepSignal
    ownership: RootOwnership
    runs: RunCache
    canceller: AttemptCanceller
    outbox: Outbox
    republisher: Republisher
    duplicates: Duplicates
    trials: Trials


@dataclass(frozen=True)
class Operations:
    """What people do and ask."""

    runner: OperationRunner
    dead_letters: DeadLetters
    queries: Queries


@dataclass(frozen=True)
class Loops:
    """The way of a message through the process."""

    peers: PeerExchange
    settler: ResponseSettler
    message_loops: MessageLoops


@dataclass(frozen=True)
class Maintenance:
    """What goes on by itself. `outages` is when the broker was down."""

    outages: BrokerOutages
    watch: BrokerWatch
    storage: BrokerStorage
    purges: PurgeWatch
    suspects: Suspects
    adoption: Adoption
    lost_agents: LostAgents
    history: HistoryArchiver
    object_cleaner: ObjectCleaner
    operator_changes: OperatorChanges
    reconciler: Reconciler


@dataclass(frozen=True)
class ProcessLife:
    """The lock that says that this process lives. When it is released, rows that this process dispatched stay its own
    until another one adopts them: the row of the process stays too."""

    lock: ProcessLock

    async def start(self) -> None:
        await self.lock.take()

    async def stop(self) -> None:
        await self.lock.release()


@dataclass(frozen=True)
class Preparation:
    """What must be known before anything is taken: whether the broker lost its store while no orchestrator was there,
    how many orchestrators there are, what is paused, what others died on."""

    watch: BrokerWatch
    active: ActiveProcesses
    operator_changes: OperatorChanges
    suspects: Suspects

    async def start(self) -> None:
        await self.suspects.check_before()
        await self.watch.check_store()
        await self.active.refresh()
        await self.operator_changes.learn()

    async def stop(self) -> None:
        """Nothing to stop: it is known."""
