"""Conductor: the two loops of the orchestrator. New tasks become runs; what happens to runs becomes decisions.

Each loop takes what has arrived, writes it in one statement, publishes, acknowledges. It never waits for a batch to
fill: a lone message is a batch of one, and under load the next batch gathers while this one is written.
"""

import asyncio
import os
from collections import deque
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any, NamedTuple
from uuid import UUID

import structlog

from orchestrator_agent.acceptance import Acceptance
from orchestrator_agent.debts import Debts
from orchestrator_agent.engine.advance import advance
from orchestrator_agent.engine.decisions import Decisions, Rules
from orchestrator_agent.engine.events import Answered, Broken, CancelRequested, Delegated, Happening
from orchestrator_agent.engine.state import Run
from orchestrator_agent.intake import Planner
from orchestrator_agent.outbox import Outbox
from orchestrator_agent.patience import insistently, patiently, read_object
from orchestrator_agent.routing import Router
from orchestrator_agent.runs import Runs
from orchestrator_agent.standing import Standings
from orchestrator_agent.store.reads import Reader
from orchestrator_agent.store.tasks import PoisonedBatch, TaskStore
from pantheon.background import end
from pantheon.bus import Bus, Delivery, Objects, Publisher, Puller, acknowledge, hand_back, hold, times_delivered
from pantheon.worker import publish_dead_letter
from protocol import subjects
from protocol.errors import ErrorCode, InvalidRequest, PantheonError
from protocol.messages import (
    ErrorInfo,
    RunningTask,
    TaskResponse,
    now,
    parse_response,
    salvage_ids,
)
from protocol.names import ORCHESTRATOR, is_instance_id
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
# One batch is decided on while another is being written. More would only make the batches smaller.
BATCHES_IN_FLIGHT = 2
# Messages that name an object are a batch of their own each, so that nobody waits for their values; together these may
# take some hundred megabytes while they are read.
LARGE_IN_FLIGHT = 2

# An answer of a large tree that another process has in mind is handed back, for the first time after this time, then so
# much later each time; whoever has had it so often works on it all the same: the other one may be frozen.
HAND_BACK_SECONDS = 0.005
HAND_BACK_LIMIT = 60

# What a message with a large value has in it; one that has it for another reason is a batch of its own as well.
PAYLOAD_REF, RESULT_REF = b'"payload_ref"', b'"result_ref"'

# A happening, and who waits for it to be committed.
Posted = tuple[Happening, "asyncio.Future[Any] | None"]


class _Arrived(NamedTuple):
    """An answer off the wire. `response` is None where it could not be read."""

    delivery: Delivery
    answer: Answered
    response: TaskResponse | None


class Conductor:
    """Runs in an AgentProcess in a Worker's place."""

    def __init__(
        self,
        bus: Bus,
        publisher: Publisher,
        objects: Objects,
        *,
        store: TaskStore,
        reader: Reader,
        runs: Runs,
        router: Router,
        standings: Standings,
        planner: Planner,
        outbox: Outbox,
        debts: Debts,
        rules: Rules,
        max_concurrency: int,
    ) -> None:
        self._bus = bus
        self._publisher = publisher
        self._objects = objects
        self._store = store
        self._reader = reader
        self._runs = runs
        self._router = router
        self._standings = standings
        self.outbox = outbox
        self._debts = debts
        debts.post = self.post
        self._rules = rules
        self.max_concurrency = max_concurrency
        self._requests = Puller(bus, TASKS.name, task_consumer(ORCHESTRATOR), capacity=2 * INTAKE_BATCH)
        self._responses = Puller(bus, RESPONSES.name, RESPONSES_CONSUMER, capacity=4 * RESPONSES_BATCH)
        self.acceptance = Acceptance(
            publisher,
            objects,
            store=store,
            reader=reader,
            runs=runs,
            planner=planner,
            outbox=outbox,
            debts=debts,
            post=self.post,
        )
        self.acceptance.perform = self.perform
        self._posted: deque[Posted] = deque()
        self._in_flight: set[asyncio.Task[None]] = set()
        self._large: set[asyncio.Task[None]] = set()
        self._large_places = asyncio.Semaphore(LARGE_IN_FLIGHT)
        self._begun: dict[object, set[UUID]] = {}
        self._freed = asyncio.Event()
        self._wake = asyncio.Event()
        self._stopping = False
        self._loops: list[asyncio.Task[None]] = []
        # By identity: a delivery is not hashable.
        self._held: dict[int, Delivery] = {}

    # -- what an AgentProcess asks of its worker -----------------------------------------------------------------------

    @property
    def active(self) -> int:
        return len(self._runs)

    @property
    def running(self) -> tuple[RunningTask, ...]:
        # Roots are many and shared between the processes: where a task is, the database says.
        return ()

    async def start(self) -> None:
        self._responses.wake_on(self._wake)
        await self._responses.start()
        await self._requests.start()
        self._loops = [
            asyncio.create_task(self._watched(self._take_requests()), name="intake"),
            asyncio.create_task(self._watched(self._take_happenings()), name="transitions"),
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
        self._requests.pause()

    def resume(self) -> None:
        self._requests.resume()

    def resize(self, max_concurrency: int) -> None:
        """How many tasks are open is the requesters' affair; the database holds them."""

    def cancel(self, task_id: UUID, attempt: int | None, reason: str) -> None:
        self.post(CancelRequested(task_id, reason))

    def post(self, *happenings: Happening) -> None:
        """Put in what did not come from NATS: what the reconciler found, what an operator wants."""
        self._posted.extend((happening, None) for happening in happenings)
        self._wake.set()

    async def perform(self, happening: Happening) -> Any:
        """Put in a happening and wait until it is committed.

        Returns what its operation is told, or, for a task that was given out, whether it is in the tree; None where the
        root is none of ours, or has ended.
        """
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._posted.append((happening, done))
        self._wake.set()
        return await done

    async def drain(self, grace_seconds: float) -> None:
        """Take no more, write what was taken; what was not goes back to the broker."""
        self._stopping = True
        left = [*await self._requests.stop(), *await self._responses.stop()]
        self._wake.set()
        if self._loops:
            await asyncio.wait([*self._loops[:2], *self._large], timeout=max(0.1, min(grace_seconds, 10)))
        for delivery in left:
            await hand_back(delivery)
        await end([*self._loops, *self._large])
        await self.outbox.close()

    # -- new tasks -----------------------------------------------------------------------------------------------------

    async def _take_requests(self) -> None:
        while not self._stopping:
            deliveries = await self._requests.take(INTAKE_BATCH)
            self._held.update((id(one), one) for one in deliveries)
            small, large = _apart(deliveries, PAYLOAD_REF)
            for one in large:
                self._go_beside(self._accept_whole([one]))
            if small:
                await self._accept_whole(small)

    async def _accept_whole(self, deliveries: Sequence[Delivery]) -> None:
        try:
            await self.acceptance.accept(deliveries)
        finally:
            self._let_go(deliveries)
            self._requests.release(len(deliveries))

    def _go_beside(self, batch: Coroutine[Any, Any, None]) -> None:
        """Work on a message with a large value beside the batches of the others."""

        async def when_there_is_a_place() -> None:
            async with self._large_places:
                await batch

        task = asyncio.create_task(self._watched(when_there_is_a_place()), name="large")
        self._large.add(task)
        task.add_done_callback(self._large.discard)

    # -- what happens --------------------------------------------------------------------------------------------------

    async def _take_happenings(self) -> None:
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
            await self._settle(deliveries, posted)
        finally:
            self._let_go(deliveries)
            self._responses.release(len(deliveries))

    async def _settle(self, deliveries: Sequence[Delivery], posted: Sequence[Posted]) -> None:
        arrived: dict[UUID, list[_Arrived]] = {}
        unread: list[tuple[Delivery, InvalidRequest]] = []
        for delivery in deliveries:
            if delivery.subject == subjects.response(ORCHESTRATOR):
                continue
            try:
                one = await self._read_answer(delivery)
            except InvalidRequest as wrong:
                unread.append((delivery, wrong))
                answer = _unread_answer(delivery, wrong)
                if answer is None:
                    continue
                one = _Arrived(delivery, answer, None)
            arrived.setdefault(one.answer.root_task_id, []).append(one)
        asked: dict[UUID, list[Posted]] = {}
        for one_posted in posted:
            asked.setdefault(one_posted[0].root_task_id, []).append(one_posted)
        roots = list(dict.fromkeys([*arrived, *asked]))
        # A run is in one batch's hands at a time; what comes for it meanwhile waits, with its batch, in the order in
        # which it came: of two answers to one attempt the first one counts.
        mine = object()
        self._begun[mine] = left = set(roots)
        handed_back: set[int] = set()
        try:
            for group in self._groups(roots):
                while not self._next(mine, group):
                    self._freed.clear()
                    await self._freed.wait()
                handed_back |= await self._settle_roots(group, arrived, asked)
                left.difference_update(group)
                self._freed.set()
        finally:
            del self._begun[mine]
            self._freed.set()
        for delivery, error in unread:
            if id(delivery) not in handed_back:
                known = salvage_ids(delivery.data)
                await publish_dead_letter(
                    self._publisher, ORCHESTRATOR, delivery, "not a TaskResponse", str(error), known.get("task_id")
                )
        for delivery in deliveries:
            if id(delivery) not in handed_back:
                await acknowledge(delivery)

    def _groups(self, roots: Sequence[UUID]) -> Iterator[Sequence[UUID]]:
        """What is decided and written together. A large tree comes last and by itself: what is decided on it takes its
        time, and nobody else should wait for that."""
        large = [root for root in roots if self._runs.has_many_rows(root)]
        small = [root for root in roots if root not in large] if large else roots
        if small:
            yield small
        for root in large:
            yield [root]

    def _next(self, batch: object, roots: Sequence[UUID]) -> bool:
        """Whether nobody who began before has one of these of a batch's runs."""
        earlier = takewhile(lambda one: one is not batch, self._begun)
        return all(self._begun[one].isdisjoint(roots) for one in earlier)

    async def _settle_roots(
        self, roots: Sequence[UUID], arrived: Mapping[UUID, list[_Arrived]], asked: Mapping[UUID, list[Posted]]
    ) -> set[int]:
        """Decide and write what happened to some roots; returns the identities of deliveries that were handed back."""
        outcomes: dict[UUID, Any] = {}
        handed_back: set[int] = set()
        happened = {root: self._happenings(root, arrived, asked) for root in roots}
        first = True
        while happened:
            for root in await self._elsewhere([one for one in happened if one not in asked], arrived):
                del happened[root]
                for one in arrived[root]:
                    await hand_back(one.delivery, after_seconds=HAND_BACK_SECONDS * times_delivered(one.delivery))
                    handed_back.add(id(one.delivery))
            if first:
                first = False
                for root in happened:
                    for one in arrived.get(root, ()):
                        self._judge(one.response)
            happened = await self._apply(happened, outcomes)
        for root in roots:
            for happening, done in asked.get(root, ()):
                if done is not None and not done.done():
                    key = _asked_for(happening)
                    done.set_result(outcomes.get(key) if key is not None else None)
        return handed_back

    @staticmethod
    def _happenings(
        root: UUID, arrived: Mapping[UUID, list[_Arrived]], asked: Mapping[UUID, list[Posted]]
    ) -> list[Happening]:
        return [*(one.answer for one in arrived.get(root, ())), *(happening for happening, _ in asked.get(root, ()))]

    async def _elsewhere(self, roots: Sequence[UUID], arrived: Mapping[UUID, list[_Arrived]]) -> list[UUID]:
        """Of roots to which nothing happened but answers: those of large trees that another process has in mind as they
        are now. It has their answers when they are handed back; here each would cost a reading of the whole tree."""
        many = [
            root
            for root in roots
            if self._runs.has_many_rows(root)
            and all(times_delivered(one.delivery) <= HAND_BACK_LIMIT for one in arrived[root])
        ]
        return await patiently(self._runs.elsewhere, many) if many else []

    async def _read_answer(self, delivery: Delivery) -> _Arrived:
        """Raises InvalidRequest. It waits for nothing unless the result is by reference, and those come alone."""
        response = parse_response(delivery.data)
        result, failure = response.result, response.error
        if response.result_ref is not None and response.status == "completed":
            try:
                result = await read_object(self._objects, response.result_ref, "result")
            except PantheonError as error:
                code = ErrorCode.INVALID_RESPONSE if isinstance(error, InvalidRequest) else error.code
                failure = ErrorInfo(code=code, message=error.message, retryable=error.retryable)
        instance = response.instance_id
        answer = Answered(
            root_task_id=response.root_task_id,
            task_id=response.task_id,
            attempt=response.attempt,
            status="failed" if failure is not None and response.status == "completed" else response.status,
            result=result,
            error=failure,
            usage=response.usage,
            instance_id=instance if instance is not None and is_instance_id(instance) else None,
        )
        return _Arrived(delivery, answer, response)

    def _judge(self, response: TaskResponse | None) -> None:
        """Note what an answer says of its agent; a payload that was refused says nothing against it."""
        if response is None:
            return
        took = None
        if response.started_at is not None and response.completed_at is not None:
            took = (response.completed_at - response.started_at).total_seconds() * 1000
        failed = response.status == "failed" and response.error is not None and response.error.retryable
        self._standings.answered(response.agent, response.task_type, took, failed=failed)

    async def _apply(
        self, happened: dict[UUID, list[Happening]], outcomes: dict[UUID, Any]
    ) -> dict[UUID, list[Happening]]:
        """Decide and write; returns what must be decided again because another process was faster."""
        runs, broken = await patiently(self._runs.load, list(happened))
        moment = now()
        batch: list[tuple[Run, Decisions]] = []
        unmoved: list[Run] = []
        for root_task_id, run in runs.items():
            happenings = happened[root_task_id]
            if root_task_id in broken and not run.root.ended:
                happenings = [Broken(root_task_id, ErrorInfo.of(broken[root_task_id]))]
            try:
                decisions = advance(run, happenings, directory=self._router, rules=self._rules, now=moment)
            except Exception as error:
                decisions = await self._give_up(run, error)
                run = self._runs.cached(root_task_id) or run
            outcomes.update(decisions.outcomes)
            for one in happenings:
                if isinstance(one, Delegated):
                    outcomes[one.task_id] = one.task_id in run.rows
            if decisions.empty:
                unmoved.append(run)
                # Asked for again: an answer that was given is given once more.
                for row in decisions.answers:
                    await self.outbox.deliver(run, Decisions(answers=[row]))
            else:
                batch.append((run, decisions))
        behind = await self._behind(unmoved)
        lost: dict[UUID, list[Happening]] = {root_task_id: happened[root_task_id] for root_task_id in behind}
        if not batch:
            return lost
        try:
            written, doubtful = await insistently(self._store.apply, batch)
        except PoisonedBatch as error:
            for run, _ in batch:
                self._runs.drop(run.root_task_id)
            return lost | await self._isolate(
                {run.root_task_id: happened[run.root_task_id] for run, _ in batch}, error, outcomes
            )
        ended: list[UUID] = []
        for run, decisions in batch:
            if run.root_task_id not in written:
                self._runs.drop(run.root_task_id)
                lost[run.root_task_id] = happened[run.root_task_id]
                continue
            run.version += 1
            if run.root.ended:
                self._runs.drop(run.root_task_id)
                if run.facts.idempotency_key is not None:
                    ended.append(run.root_task_id)
                if run.facts.concurrency_key is not None:
                    self.acceptance.on_turn(run.facts.concurrency_key)
            else:
                self._runs.weigh(run, (*decisions.made, *decisions.changed.values()))
            await self.outbox.deliver(run, decisions)
        if doubtful and (unheard := [run.root_task_id for run, _ in batch if run.root_task_id not in written]):
            # Moved on by another process, or by the try whose answer was lost: then nobody else publishes it.
            await self._debts.of_roots(unheard)
        if ended:
            await self.acceptance.end_duplicates(await patiently(self._reader.duplicates_waiting, ended))
        return lost

    async def _behind(self, runs: Sequence[Run]) -> list[UUID]:
        """Of runs that nothing happened to: those which another process has moved on, so that it may have."""
        if not runs:
            return []
        versions = await patiently(self._reader.versions, [run.root_task_id for run in runs])
        behind = [run.root_task_id for run in runs if versions.get(run.root_task_id) != run.version]
        for root_task_id in behind:
            self._runs.drop(root_task_id)
        return behind

    async def _give_up(self, run: Run, error: Exception) -> Decisions:
        """A transition raised: the run as the database has it ends, saying so, rather than waiting for ever."""
        log.exception("advance.failed", task_id=str(run.root_task_id))
        self._runs.drop(run.root_task_id)
        runs, _ = await patiently(self._runs.load, [run.root_task_id])
        message = f"the orchestrator could not go on with this task: {type(error).__name__}: {error}"
        reason = ErrorInfo(code=ErrorCode.INTERNAL_ERROR, message=message)
        fresh = runs[run.root_task_id]
        return advance(
            fresh,
            [Broken(run.root_task_id, reason)],
            directory=self._router,
            rules=self._rules,
            now=now(),
        )

    async def _isolate(
        self, happened: dict[UUID, list[Happening]], error: PoisonedBatch, outcomes: dict[UUID, Any]
    ) -> dict[UUID, list[Happening]]:
        """Postgres refused a batch for something in it: one root at a time, the culprit fails alone."""
        if len(happened) > 1:
            lost: dict[UUID, list[Happening]] = {}
            for root_task_id, happenings in happened.items():
                lost |= await self._apply({root_task_id: happenings}, outcomes)
            return lost
        (root_task_id, happenings) = next(iter(happened.items()))
        log.error("apply.poisoned", task_id=str(root_task_id), error=str(error))
        if any(isinstance(one, Broken) for one in happenings):
            return {}
        message = f"the database refused the outcome: {error}"
        return {root_task_id: [Broken(root_task_id, ErrorInfo(code=ErrorCode.INTERNAL_ERROR, message=message))]}

    async def _hold(self) -> None:
        """In-progress acks for what waits for Postgres, so that the broker does not give it out again, and in the end
        takes it for poison."""
        before: set[int] = set()
        while True:
            await asyncio.sleep(HOLD_SECONDS)
            waiting = [*self._requests.waiting, *self._responses.waiting]
            # Under load there is always something that has just arrived.
            still = [one for one in waiting if id(one) in before]
            before = {id(one) for one in waiting}
            for delivery in [*self._held.values(), *still]:
                await hold(delivery)

    def _let_go(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            self._held.pop(id(delivery), None)


def _asked_for(happening: Happening) -> UUID | None:
    """What the outcome of a happening that somebody waits for is found by."""
    if isinstance(happening, Delegated):
        return happening.task_id
    return getattr(happening, "operation", None)


def _unread_answer(delivery: Delivery, error: InvalidRequest) -> Answered | None:
    """The end of an attempt whose answer cannot be read, where it can be told which."""
    known = salvage_ids(delivery.data)
    if "task_id" not in known or "root_task_id" not in known:
        return None
    return Answered(
        root_task_id=known["root_task_id"],
        task_id=known["task_id"],
        attempt=known.get("attempt", 1),
        status="failed",
        error=ErrorInfo(code=ErrorCode.INVALID_RESPONSE, message=f"not a TaskResponse: {error.message}"),
    )


def _apart(deliveries: Sequence[Delivery], mark: bytes) -> tuple[Sequence[Delivery], Sequence[Delivery]]:
    """Messages without the mark of a large value, and those with it."""
    large = [one for one in deliveries if mark in one.data]
    return ([one for one in deliveries if mark not in one.data] if large else deliveries), large
