"""Composition: everything an orchestrator process is made of, wired here and nowhere else, package by package.

A part is passed what it uses, which therefore exists before it. Where two parts need each other, what passes between
them is an object of its own, made first: the inbox of run events, the signals of sweep and dispatch.
"""

from orchestrator_agent.dispatch.active_processes import ActiveProcesses
from orchestrator_agent.dispatch.admission import Admission
from orchestrator_agent.dispatch.agent_health import AgentHealth
from orchestrator_agent.dispatch.capacity import Capacity
from orchestrator_agent.dispatch.queue_dispatcher import QueueDispatcher
from orchestrator_agent.dispatch.rate_limits import RateLimits
from orchestrator_agent.dispatch.router import Pauses, Router
from orchestrator_agent.dispatch.shared_circuits import ProbeClaims, SharedCircuits
from orchestrator_agent.dispatch.signal import DispatchSignal
from orchestrator_agent.dispatch.window import Window
from orchestrator_agent.engine.decisions import Rules
from orchestrator_agent.inbox import Inbox
from orchestrator_agent.intake.acceptance import Acceptance
from orchestrator_agent.intake.delegations import Delegations
from orchestrator_agent.intake.fair_intake import FairIntake
from orchestrator_agent.intake.new_roots import NewRoots
from orchestrator_agent.intake.planner import Planner
from orchestrator_agent.intake.repeated_requests import RepeatedRequests
from orchestrator_agent.intake.request_loop import RequestLoop, request_puller
from orchestrator_agent.maintenance.adoption import Adoption
from orchestrator_agent.maintenance.broker_outages import BrokerOutages
from orchestrator_agent.maintenance.broker_storage import BrokerStorage
from orchestrator_agent.maintenance.broker_streams import BrokerStreams
from orchestrator_agent.maintenance.broker_watch import BrokerWatch
from orchestrator_agent.maintenance.concurrency_keys import ConcurrencyKeys, Schedules
from orchestrator_agent.maintenance.due_rows import DueRows, ExpiredAttempts
from orchestrator_agent.maintenance.history_archiver import HistoryArchiver
from orchestrator_agent.maintenance.lost_agents import LostAgents
from orchestrator_agent.maintenance.object_cleaner import ObjectCleaner
from orchestrator_agent.maintenance.operator_changes import OperatorChanges
from orchestrator_agent.maintenance.orphaned_attempts import OrphanedAttempts
from orchestrator_agent.maintenance.purges import PurgeWatch
from orchestrator_agent.maintenance.reconciler import Reconciler
from orchestrator_agent.maintenance.suspects import Suspects
from orchestrator_agent.message_loops import MessageLoops
from orchestrator_agent.operations.dead_letters import DeadLetters
from orchestrator_agent.operations.queries import Queries
from orchestrator_agent.operations.runner import OperationRunner
from orchestrator_agent.parts import (
    Configuration,
    Connections,
    Dispatch,
    Loops,
    Maintenance,
    Operations,
    Preparation,
    ProcessLife,
    Runtime,
    Stores,
)
from orchestrator_agent.runtime.attempt_cancellation import AttemptCanceller
from orchestrator_agent.runtime.duplicates import Duplicates
from orchestrator_agent.runtime.held_deliveries import HeldDeliveries
from orchestrator_agent.runtime.large_messages import LargeMessages
from orchestrator_agent.runtime.outbox import Outbox
from orchestrator_agent.runtime.peer_exchange import PeerExchange
from orchestrator_agent.runtime.quarantine import Quarantine
from orchestrator_agent.runtime.republisher import Republisher
from orchestrator_agent.runtime.response_loop import ResponseLoop, response_puller
from orchestrator_agent.runtime.responses import ResponseSettler
from orchestrator_agent.runtime.root_ownership import RootOwnership
from orchestrator_agent.runtime.run_cache import RunCache
from orchestrator_agent.runtime.sweep_signal import SweepSignal
from orchestrator_agent.runtime.transitions import Transitions
from orchestrator_agent.runtime.trials import Trials
from orchestrator_agent.runtime.workflow_catalog import WorkflowCatalog
from orchestrator_agent.store.broker_marks import BrokerMarks
from orchestrator_agent.store.concurrency import ConcurrencyStore
from orchestrator_agent.store.history import HistoryStore
from orchestrator_agent.store.pauses import PauseStore
from orchestrator_agent.store.processes import Processes
from orchestrator_agent.store.ready_queue import ReadyQueue
from orchestrator_agent.store.sweeps import TaskSweeps
from orchestrator_agent.store.task_queries import TaskQueries
from orchestrator_agent.store.task_reader import TaskReader
from orchestrator_agent.store.tasks import TaskStore
from orchestrator_agent.store.trials import TrialStore
from orchestrator_agent.store.workflows import ScheduleStore, WorkflowStore
from pantheon.runtime.services import Service
from pantheon.runtime.settings import MeshSettings

# Above it, what can wait waits.
BUSY_RESPONSES_PER_SECOND = 50.0


def rules_of(settings: MeshSettings) -> Rules:
    return Rules(
        default_max_attempts=settings.max_retries + 1,
        no_agent_wait_seconds=settings.no_agent_wait_seconds,
        max_payload_bytes=settings.max_payload_bytes,
    )


class Composition:
    """What an orchestrator process is made of. To make it starts nothing."""

    def __init__(self, connections: Connections, configuration: Configuration) -> None:
        self.connections = connections
        self.configuration = configuration
        self.dispatch = self._make_dispatch()
        self.stores = self._make_stores()
        self.runtime = self._make_runtime()
        self.queue_dispatcher = self._make_queue_dispatcher()
        self.concurrency_keys = ConcurrencyKeys(
            self.stores.concurrency, configuration.library, self.runtime.runs, self.runtime.inbox
        )
        self.operations = self._make_operations()
        self.acceptance = self._make_acceptance()
        self.loops = self._make_loops()
        self.maintenance = self._make_maintenance()

    def services(self) -> list[Service]:
        """In the order in which they are started; they are stopped in the reverse of it."""
        maintenance = self.maintenance
        return [
            ProcessLife(self.connections.lock),
            Preparation(maintenance.watch, self.dispatch.active, maintenance.operator_changes, maintenance.suspects),
            self.loops.peers,
            self.dispatch.limits,
            self.dispatch.probes,
            self.dispatch.circuits,
            self.runtime.canceller,
            self.runtime.outbox,
            self.operations.runner,
            self.concurrency_keys,
            self.operations.queries,
            self.loops.message_loops,
            # From here on: what finds work for the loops, and ends before them.
            maintenance.object_cleaner,
            maintenance.history,
            self.queue_dispatcher,
            self.operations.dead_letters,
            maintenance.adoption,
            maintenance.watch,
            maintenance.purges,
            maintenance.storage,
            maintenance.reconciler,
            maintenance.lost_agents,
        ]

    def _make_dispatch(self) -> Dispatch:
        connections, registry = self.connections, self.connections.registry
        active, signal = ActiveProcesses(connections.lock.process_id, Processes(connections.database)), DispatchSignal()
        capacity, tuning = Capacity(registry), self.configuration.tuning.dispatch
        window = Window(capacity, waiting=capacity.waiting, active=active, signal=signal, settings=tuning.window)
        limits = RateLimits(
            self.configuration.flow_control.rate_limits,
            registry,
            connections.redis,
            active=active,
            signal=signal,
            times=tuning.tokens,
        )
        registry.on_change(limits.learn)
        admission = Admission(window, ReadyQueue(connections.database), limits, signal)
        probes = ProbeClaims(connections.redis, signal, tuning.probes)
        agent_health = AgentHealth(probes=probes, open_seconds=tuning.circuit_open_seconds)
        router = Router(registry, self.configuration.library, agent_health, Pauses(), admission)
        signal.add_listener(router.slot_freed)
        return Dispatch(
            signal=signal,
            active=active,
            admission=admission,
            limits=limits,
            probes=probes,
            agent_health=agent_health,
            circuits=SharedCircuits(connections.redis, agent_health, registry),
            router=router,
        )

    def _make_stores(self) -> Stores:
        connections = self.connections
        database, process_id = connections.database, connections.lock.process_id
        history_after_seconds = self.configuration.flow_control.history_after_seconds
        return Stores(
            tasks=TaskStore(database, process_id, self.dispatch.admission, history_after_seconds),
            reader=TaskReader(database),
            sweeps=TaskSweeps(database),
            queries=TaskQueries(database),
            workflows=WorkflowStore(database),
            schedules=ScheduleStore(database),
            concurrency=ConcurrencyStore(database),
            pauses=PauseStore(database),
            processes=Processes(database),
            broker_marks=BrokerMarks(database),
            history=HistoryStore(database),
            trials=TrialStore(database, process_id),
        )

    def _make_runtime(self) -> Runtime:
        process, stores, dispatch = self.connections.process, self.stores, self.dispatch
        broker = self.connections.broker
        inbox, sweep, trials = Inbox(), SweepSignal(), Trials(stores.trials)
        sweep.follow(self.connections.registry.on_change, process.bus.on_reconnect)
        process_id, tuning = self.connections.lock.process_id, self.configuration.tuning
        ownership = RootOwnership(process.bus, process_id, alive_seconds=tuning.alive_seconds)
        catalog = WorkflowCatalog(self.configuration.library, stores.workflows)
        runs = RunCache(stores.reader, catalog, process_id=process_id, active=dispatch.active, ownership=ownership)
        canceller = AttemptCanceller(process.bus, stores.sweeps.stale, again_seconds=tuning.cancel_again_seconds)
        outbox = Outbox(
            broker,
            stores.tasks,
            window=dispatch.admission.window,
            canceller=canceller,
            sweep=sweep,
            source=process.source,
            record_ended=process.micro.record,
        )
        return Runtime(
            inbox=inbox,
            sweep=sweep,
            ownership=ownership,
            runs=runs,
            canceller=canceller,
            outbox=outbox,
            republisher=Republisher(
                process.publisher,
                process_id=process_id,
                reader=stores.reader,
                runs=runs,
                outbox=outbox,
                inbox=inbox,
                trials=trials,
            ),
            duplicates=Duplicates(stores.reader, inbox),
            trials=trials,
        )

    def _make_queue_dispatcher(self) -> QueueDispatcher:
        dispatch = self.dispatch
        return QueueDispatcher(
            dispatch.admission,
            dispatch.router,
            dispatch.signal,
            active=dispatch.active,
            pauses=dispatch.router.pauses,
            inbox=self.runtime.inbox,
            runs=self.runtime.runs,
            bus=self.connections.process.bus,
        )

    def _make_operations(self) -> Operations:
        process, stores, dispatch, runtime = self.connections.process, self.stores, self.dispatch, self.runtime
        library = self.configuration.library
        dead_letters = DeadLetters(process.bus, process.publisher, runtime.inbox)
        return Operations(
            runner=OperationRunner(
                process.bus,
                tasks=stores.queries,
                catalog=runtime.runs.catalog,
                dead_letters=dead_letters,
                pauses=dispatch.router.pauses,
                pause_store=stores.pauses,
                inbox=runtime.inbox,
                sweep=runtime.sweep,
            ),
            dead_letters=dead_letters,
            queries=Queries(
                self.connections.broker,
                tasks=stores.queries,
                runs=runtime.runs,
                router=dispatch.router,
                library=library,
                dead_letters=dead_letters,
                pause_store=stores.pauses,
                ready_queue=dispatch.admission.ready_queue,
            ),
        )

    def _make_acceptance(self) -> Acceptance:
        settings, stores, runtime = self.configuration.settings, self.stores, self.runtime
        planner = Planner(
            self.configuration.library, self.dispatch.router, rules_of(settings), settings.agent_timeout_seconds
        )
        return Acceptance(
            self.connections.broker,
            stores.tasks,
            stores.reader,
            runtime.runs,
            planner=planner,
            delegations=Delegations(runtime.inbox, stores.reader, runtime.outbox),
            new_roots=NewRoots(
                runtime.runs,
                runtime.outbox,
                operations=self.operations.runner,
                concurrency_keys=self.concurrency_keys,
            ),
            repeated=RepeatedRequests(
                stores.tasks,
                stores.reader,
                runtime.runs,
                planner=planner,
                outbox=runtime.outbox,
                inbox=runtime.inbox,
                duplicates=runtime.duplicates,
                republisher=runtime.republisher,
            ),
        )

    def _make_loops(self) -> Loops:
        bus, dispatch, runtime = self.connections.process.bus, self.dispatch, self.runtime
        tuning = self.configuration.tuning
        requests = request_puller(bus, runtime.ownership)
        responses = response_puller(bus, runtime.ownership, runtime.inbox)
        fair_intake = FairIntake(
            bus, requests, known=self.stores.reader.roots, active=dispatch.active, many=tuning.many_requests
        )
        peers = PeerExchange(bus, runtime.ownership, requests=requests, responses=responses)
        held, large = HeldDeliveries(), LargeMessages()
        settler = ResponseSettler(
            self.connections.broker,
            runs=runtime.runs,
            agent_health=dispatch.agent_health,
            window=dispatch.admission.window,
            trials=runtime.trials,
            transitions=Transitions(
                store=self.stores.tasks,
                runs=runtime.runs,
                router=dispatch.router,
                rules=rules_of(self.configuration.settings),
                outbox=runtime.outbox,
                republisher=runtime.republisher,
                duplicates=runtime.duplicates,
                concurrency_keys=self.concurrency_keys,
            ),
        )
        message_loops = MessageLoops(
            RequestLoop(requests, fair_intake, self.acceptance, held=held, large=large, trials=runtime.trials),
            ResponseLoop(responses, runtime.inbox, settler, held=held, large=large),
            fair_intake=fair_intake,
            responses=responses,
            peers=peers,
            held=held,
            large=large,
            times=tuning.holding,
        )
        return Loops(peers, settler, message_loops)

    def _make_maintenance(self) -> Maintenance:
        connections, settings = self.connections, self.configuration.settings
        flow_control = self.configuration.flow_control
        process, stores, runtime = connections.process, self.stores, self.runtime
        window = self.dispatch.admission.window
        outages = BrokerOutages(lambda: (process.bus.connected, process.bus.generation))
        operator_changes = OperatorChanges(
            self.dispatch.router.pauses, stores.pauses, runtime.runs.catalog, runtime.sweep
        )
        suspects = Suspects(
            runtime.trials,
            Quarantine(
                stores.tasks,
                stores.reader,
                runtime.runs,
                router=self.dispatch.router,
                rules=rules_of(settings),
                outbox=runtime.outbox,
            ),
            lock=connections.lock,
            processes=stores.processes,
        )
        adoption = Adoption(
            connections.broker,
            lock=connections.lock,
            processes=stores.processes,
            republisher=runtime.republisher,
            outbox=runtime.outbox,
            canceller=runtime.canceller,
            suspects=suspects,
            times=self.configuration.tuning.adoption,
        )
        return Maintenance(
            outages=outages,
            watch=BrokerWatch(
                process.bus,
                process.publisher,
                marks=stores.broker_marks,
                streams=BrokerStreams.of(process.bus, settings),
                on_lost=adoption.broker_lost,
                outages=outages,
            ),
            storage=BrokerStorage(process.bus, replicas=settings.stream_replicas),
            purges=PurgeWatch(
                process.bus,
                process_id=connections.lock.process_id,
                processes=stores.processes,
                republisher=runtime.republisher,
            ),
            suspects=suspects,
            adoption=adoption,
            lost_agents=LostAgents(
                process.bus,
                registry=connections.registry,
                router=self.dispatch.router,
                admission=self.dispatch.admission,
                orphans=OrphanedAttempts(process.bus, runtime.inbox, stores.sweeps),
                outages=outages,
                source=process.source,
                times=self.configuration.tuning.liveness,
            ),
            history=HistoryArchiver(
                stores.history,
                after_seconds=flow_control.history_after_seconds,
                retention_days=flow_control.retention_days,
                busy=lambda: window.responses_per_second > BUSY_RESPONSES_PER_SECOND,
            ),
            object_cleaner=ObjectCleaner(process.objects, stores.sweeps),
            operator_changes=operator_changes,
            reconciler=self._make_reconciler(outages, operator_changes),
        )

    def _make_reconciler(self, outages: BrokerOutages, operator_changes: OperatorChanges) -> Reconciler:
        stores, dispatch, runtime = self.stores, self.dispatch, self.runtime
        return Reconciler(
            runtime.sweep,
            DueRows(
                stores.sweeps,
                self.connections.registry,
                dispatch.router.pauses,
                inbox=runtime.inbox,
                expired=ExpiredAttempts(dispatch.agent_health, dispatch.admission.window, outages),
                operations=self.operations.runner,
                duplicates=runtime.duplicates,
            ),
            circuits=dispatch.circuits,
            queue_dispatcher=self.queue_dispatcher,
            operator_changes=operator_changes,
            concurrency_keys=self.concurrency_keys,
            schedules=Schedules(stores.schedules, self.configuration.library, self.acceptance.accept_own),
            runs=runtime.runs,
        )
