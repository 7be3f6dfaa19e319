"""Conductor: the two loops of the orchestrator. New tasks become runs; what happens to runs becomes decisions.

Each loop takes what has arrived, writes it in one statement, publishes, acknowledges. It never waits for a batch to
fill: a lone message is a batch of one, and under load the next batch gathers while this one is written.
"""

import asyncio
import os
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any
from uuid import UUID

import structlog

from orchestrator_agent.dispatch.agent_health import AgentHealth
from orchestrator_agent.dispatch.router import Router
from orchestrator_agent.engine.decisions import Rules
from orchestrator_agent.engine.events import CancelRequested, RunEvent
from orchestrator_agent.intake.acceptance import Acceptance
from orchestrator_agent.intake.fair_intake import FairIntake
from orchestrator_agent.intake.planner import Planner
from orchestrator_agent.runtime.outbox import Outbox
from orchestrator_agent.runtime.republisher import Republisher
from orchestrator_agent.runtime.root_ownership import RootOwnership
from orchestrator_agent.runtime.run_cache import RunCache
from orchestrator_agent.runtime.settlement import Posted, Settlement
from orchestrator_agent.runtime.transitions import Transitions
from orchestrator_agent.store.reads import Reader
from orchestrator_agent.store.tasks import TaskStore
from pantheon.bus import Bus, Delivery, Objects, Publisher, Puller, hold, nak
from pantheon.runtime.background import end
from protocol import subjects
from protocol.messages import RunningTask
from protocol.names import ORCHESTRATOR
from protocol.streams import RESPONSES, TASKS, ConsumerSpec, task_consumer

log = structlog.get_logger()

INTAKE_BATCH = 256
RESPONSES_BATCH = 512
# All orchestrators share this consumer. A batch is written in milliseconds; what a dead process held should be given
# to another soon, and a process that waits for Postgres says so with in-progress acks.
RESPONSES_CONSUMER = ConsumerSpec(
    durable_name=ORCHESTRATOR,
    filter_subject=subjects.ALL_RESPONSES,
    ack_wait_seconds=10.0,
    max_deliver=-1,
    max_ack_pending=20_000,
)
HOLD_SECONDS = 3.0
# What is not written after this time is left to the broker: another orchestrator may reach the database that this one
# does not. Reading a large value may take ten seconds and more.
STUCK_SECONDS = 20.0
# One batch is decided on while another is being written. More would only make the batches smaller.
BATCHES_IN_FLIGHT = 2
# Messages that name an object are a batch of their own each, so that nobody waits for their values; together these may
# take some hundred megabytes while they are read.
LARGE_IN_FLIGHT = 2

# Of requests and of answers: with so many times as much as it asks for, this process has what it can do, and others
# keep what they would pass on to it. The broker gives nothing out while too much is not acknowledged, to nobody.
CROWDED = 4

# What a message with a large value has in it; one that has it for another reason is a batch of its own as well.
PAYLOAD_REF, RESULT_REF = b'"payload_ref"', b'"result_ref"'


class MessageLoops:
    """Runs in an AgentProcess in a Worker's place."""

    def __init__(
        self,
        bus: Bus,
        publisher: Publisher,
        objects: Objects,
        *,
        store: TaskStore,
        reader: Reader,
        runs: RunCache,
        router: Router,
        agent_health: AgentHealth,
        planner: Planner,
        outbox: Outbox,
        republisher: Republisher,
        peers: RootOwnership,
        rules: Rules,
        max_concurrency: int,
        looks_ahead: Callable[[], bool] = lambda: True,
    ) -> None:
        self._runs = runs
        self.outbox = outbox
        republisher.post = self.post
        self.max_concurrency = max_concurrency
        self._peers = peers
        peers.on_forwarded = self._on_forwarded
        peers.crowded = self._crowded
        self._requests = Puller(
            bus, TASKS.name, task_consumer(ORCHESTRATOR), capacity=2 * INTAKE_BATCH, divert=peers.forward
        )
        self._fair_intake = FairIntake(
            bus, self._requests, known=reader.known, looks_ahead=looks_ahead, shared=lambda: runs.shared
        )
        self._responses = Puller(
            bus, RESPONSES.name, RESPONSES_CONSUMER, capacity=4 * RESPONSES_BATCH, divert=peers.forward
        )
        self.acceptance = Acceptance(
            publisher,
            objects,
            store=store,
            reader=reader,
            runs=runs,
            planner=planner,
            outbox=outbox,
            republisher=republisher,
            post=self.post,
        )
        self.acceptance.perform = self.perform
        transitions = Transitions(
            store=store,
            reader=reader,
            runs=runs,
            router=router,
            rules=rules,
            outbox=outbox,
            republisher=republisher,
            acceptance=self.acceptance,
        )
        self._settlement = Settlement(publisher, objects, runs=runs, agent_health=agent_health, transitions=transitions)
        self._posted: deque[Posted] = deque()
        self._in_flight: set[asyncio.Task[None]] = set()
        self._large: set[asyncio.Task[None]] = set()
        self._large_places = asyncio.Semaphore(LARGE_IN_FLIGHT)
        self._wake = asyncio.Event()
        self._stopping = False
        self._loops: list[asyncio.Task[None]] = []
        # By identity: a delivery is not hashable.
        self._held: dict[int, Delivery] = {}
        self._emptied = asyncio.Event()
        self._paused = False
        self._stuck = False

    # -- what an AgentProcess asks of its worker -----------------------------------------------------------------------

    @property
    def active(self) -> int:
        return len(self._runs)

    @property
    def running(self) -> tuple[RunningTask, ...]:
        # Roots are many and shared between the processes: where a task is, the database says.
        return ()

    @property
    def lent(self) -> int:
        return 0

    async def start(self) -> None:
        self._responses.wake_on(self._wake)
        await self._responses.start()
        await self._requests.start()
        self._loops = [
            asyncio.create_task(self._watched(self._take_requests()), name="intake"),
            asyncio.create_task(self._watched(self._take_run_events()), name="transitions"),
            asyncio.create_task(self._hold(), name="hold"),
        ]

    async def _watched(self, loop: Any) -> None:
        try:
            await loop
        except Exception:
            # A loop that ended is an orchestrator that looks alive and does nothing: better dead, and started again.
            log.critical("conductor.died", exc_info=True)
            os._exit(70)

    async def wait_ready(self) -> None:
        await self._requests.wait_ready()
        await self._responses.wait_ready()

    def pause(self) -> None:
        self._paused = True
        self._peers.stop_accepting()
        self._fair_intake.pause()

    def resume(self) -> None:
        self._paused = False
        if not self._stuck:
            self._fair_intake.resume()
            self._peers.resume_accepting()

    def resize(self, max_concurrency: int) -> None:
        """How many tasks are open is the requesters' affair; the database holds them."""

    def cancel(self, task_id: UUID, attempt: int | None, reason: str) -> None:
        self.post(CancelRequested(task_id, reason))

    def post(self, *run_events: RunEvent) -> None:
        """Put in what did not come from NATS: what the reconciler found, what an operator wants."""
        self._posted.extend((run_event, None) for run_event in run_events)
        self._wake.set()

    async def perform(self, run_event: RunEvent) -> Any:
        """Put in a happening and wait until it is committed.

        Returns what its operation is told, or, for a task that was given out, whether it is in the tree; None where the
        root is none of ours, or has ended.
        """
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._posted.append((run_event, done))
        self._wake.set()
        return await done

    async def drain(self, grace_seconds: float) -> None:
        """Take no more, write what was taken; what was not goes back to the broker."""
        self._peers.leave()
        self._stopping = True
        left = [*await self._fair_intake.stop(), *await self._responses.stop()]
        self._wake.set()
        if self._loops:
            await asyncio.wait([*self._loops[:2], *self._large], timeout=max(0.1, min(grace_seconds, 10)))
        for delivery in left:
            await nak(delivery)
        await end([*self._loops, *self._large])
        await self.outbox.close()

    # -- what others pass on ------------------------------------------------------------------------------------------

    def _on_forwarded(self, delivery: Delivery) -> None:
        self._puller_of(delivery.subject).put(delivery)

    def _puller_of(self, subject: str) -> Puller:
        return self._requests if subject == subjects.task(ORCHESTRATOR) else self._responses

    def _crowded(self, subject: str) -> bool:
        puller = self._puller_of(subject)
        return puller.held > CROWDED * puller.capacity

    # -- new tasks -----------------------------------------------------------------------------------------------------

    async def _take_requests(self) -> None:
        while not self._stopping:
            deliveries = await self._fair_intake.take(INTAKE_BATCH)
            # What was read ahead is nobody's to hold.
            self._held.update((id(one), one) for one in deliveries if one.reply)
            small, large = _apart(deliveries, PAYLOAD_REF)
            for one in large:
                self._go_beside(self._accept_whole([one]))
            if small:
                await self._accept_whole(small)

    async def _accept_whole(self, deliveries: Sequence[Delivery], *, apart: bool = False) -> None:
        ended = deliveries
        try:
            if long := await self.acceptance.accept(deliveries, apart=apart):
                ended = [delivery for delivery in deliveries if delivery not in long]
                for delivery in long:
                    self._go_beside(self._accept_whole([delivery], apart=True))
            await self._fair_intake.accepted(ended)
        finally:
            self._let_go(ended)
            self._fair_intake.release(ended)

    def _go_beside(self, batch: Coroutine[Any, Any, None]) -> None:
        """Work on a message with a large value beside the batches of the others."""

        async def when_there_is_a_place() -> None:
            async with self._large_places:
                await batch

        # One that never had its place has not begun.
        self._watch_beside(when_there_is_a_place()).add_done_callback(lambda _: batch.close())

    def _watch_beside(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(self._watched(work), name="large")
        self._large.add(task)
        task.add_done_callback(self._large.discard)
        return task

    # -- what happens --------------------------------------------------------------------------------------------------

    async def _take_run_events(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            deliveries = self._responses.take_now(RESPONSES_BATCH)
            posted = [self._posted.popleft() for _ in range(min(len(self._posted), RESPONSES_BATCH))]
            if deliveries or posted:
                # There may be more than a batch.
                self._wake.set()
                self._held.update((id(one), one) for one in deliveries)
                small, large = _apart(deliveries, RESULT_REF)
                for one in large:
                    self._go_beside(self._settle_whole([one], []))
                if small or posted:
                    await self._settle_beside(small, posted)
            elif self._stopping:
                if self._in_flight:
                    await asyncio.wait(self._in_flight)
                return

    async def _settle_beside(self, deliveries: Sequence[Delivery], posted: Sequence[Posted]) -> None:
        """Settle a batch, beside another one: while one is being written, the next is read and decided on."""
        batch = asyncio.create_task(self._settle_whole(deliveries, posted), name="batch")
        self._in_flight.add(batch)
        batch.add_done_callback(self._landed)
        if len(self._in_flight) >= BATCHES_IN_FLIGHT:
            await asyncio.wait(self._in_flight, return_when=asyncio.FIRST_COMPLETED)
        for landed in [one for one in self._in_flight if one.done()]:
            self._in_flight.discard(landed)
            landed.result()

    def _landed(self, batch: "asyncio.Task[None]") -> None:
        if not batch.cancelled() and batch.exception() is not None:
            # The loop looks at it, and ends with it.
            self._wake.set()
            return
        self._in_flight.discard(batch)

    async def _settle_whole(self, deliveries: Sequence[Delivery], posted: Sequence[Posted]) -> None:
        try:
            if (rest := await self._settlement.settle(deliveries, posted)) is not None:
                self._watch_beside(rest)
        finally:
            self._let_go(deliveries)
            self._responses.release(len(deliveries))

    async def _hold(self) -> None:
        """In-progress acks for what waits for Postgres, so that the broker does not give it out again, and in the end
        takes it for poison; for a while."""
        loop = asyncio.get_running_loop()
        before: set[int] = set()
        since: dict[int, float] = {}
        while True:
            await asyncio.sleep(HOLD_SECONDS)
            since = {one: since.get(one, loop.time()) for one in self._held}
            if since and loop.time() - min(since.values()) > STUCK_SECONDS:
                await self._leave_to_others()
                since.clear()
            waiting = [*self._fair_intake.waiting, *self._responses.waiting]
            # Under load there is always something that has just arrived.
            still = [one for one in waiting if id(one) in before]
            before = {id(one) for one in waiting}
            for delivery in [*self._held.values(), *still]:
                await hold(delivery)

    async def _leave_to_others(self) -> None:
        """Give everything back and take nothing, until what is at work here is written after all: then it changes
        nothing that another process has written meanwhile."""
        log.warning("conductor.stuck", held=len(self._held))
        self._stuck = True
        self._peers.stop_accepting()
        self._fair_intake.pause()
        self._responses.pause()
        for delivery in self._held.values():
            await nak(delivery)
        self._emptied.clear()
        if self._held:
            await self._emptied.wait()
        self._stuck = False
        self._responses.resume()
        if not self._paused:
            self.resume()

    def _let_go(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            self._held.pop(id(delivery), None)
        if not self._held:
            self._emptied.set()


def _apart(deliveries: Sequence[Delivery], mark: bytes) -> tuple[Sequence[Delivery], Sequence[Delivery]]:
    """Messages without the mark of a large value, and those with it."""
    large = [one for one in deliveries if mark in one.data]
    return ([one for one in deliveries if mark not in one.data] if large else deliveries), large
