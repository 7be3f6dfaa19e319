"""Conductor: the two loops of the orchestrator. New tasks become runs; what happens to runs becomes decisions.

Each loop takes what has arrived, writes it in one statement, publishes, acknowledges. It never waits for a batch to
fill: a lone message is a batch of one, and under load the next batch gathers while this one is written.
"""

import asyncio
import json
import os
from collections import deque
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import structlog
from nats.errors import Error as NatsError
from pydantic import ValidationError

from orchestrator_agent.engine.advance import Decisions, Rules, advance
from orchestrator_agent.engine.events import Answered, Broken, CancelRequested, Happening, OriginalEnded, Reattached
from orchestrator_agent.engine.state import Run, Status
from orchestrator_agent.intake import REPLAY, Planner, Replayed
from orchestrator_agent.outbox import Outbox
from orchestrator_agent.routing import Router
from orchestrator_agent.runs import Runs, bare_run
from orchestrator_agent.store.reads import Reader
from orchestrator_agent.store.rows import row_of
from orchestrator_agent.store.tasks import PoisonedBatch, TaskStore
from pantheon.bus import Bus, Delivery, Publisher, Puller
from pantheon.worker import publish_dead_letter
from protocol import subjects
from protocol.errors import ErrorCode, InvalidRequest, PantheonError, StoreError
from protocol.messages import (
    ErrorInfo,
    RunningTask,
    TaskRequest,
    TaskResponse,
    invalid_request,
    now,
    parse_request,
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
STORE_WAIT_FIRST_SECONDS = 0.1
STORE_WAIT_MAX_SECONDS = 2.0


class Conductor:
    """Runs in an AgentProcess in a Worker's place."""

    def __init__(
        self,
        bus: Bus,
        publisher: Publisher,
        *,
        store: TaskStore,
        reader: Reader,
        runs: Runs,
        router: Router,
        planner: Planner,
        outbox: Outbox,
        rules: Rules,
        max_concurrency: int,
    ) -> None:
        self._bus = bus
        self._publisher = publisher
        self._store = store
        self._reader = reader
        self._runs = runs
        self._router = router
        self._planner = planner
        self.outbox = outbox
        self._rules = rules
        self.max_concurrency = max_concurrency
        self._requests = Puller(bus, TASKS.name, task_consumer(ORCHESTRATOR), capacity=2 * INTAKE_BATCH)
        self._responses = Puller(bus, RESPONSES.name, RESPONSES_CONSUMER, capacity=4 * RESPONSES_BATCH)
        self._posted: deque[Happening] = deque()
        self._wake = asyncio.Event()
        self._stopping = False
        self._loops: list[asyncio.Task[None]] = []
        # By identity: a delivery is not hashable.
        self._held: dict[int, Delivery] = {}
        self.on_wake_at: Any = None

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

    def cancel(self, task_id: UUID, attempt: int | None, reason: str) -> None:
        self.post(CancelRequested(task_id, reason))

    def post(self, *happenings: Happening) -> None:
        """Put in what did not come from NATS: what the reconciler found, what an operator wants."""
        self._posted.extend(happenings)
        self._wake.set()

    async def drain(self, grace_seconds: float) -> None:
        """Take no more, write what was taken; what was not goes back to the broker."""
        self._stopping = True
        left = [*await self._requests.stop(), *await self._responses.stop()]
        self._wake.set()
        if self._loops:
            await asyncio.wait(self._loops[:2], timeout=max(0.1, min(grace_seconds, 10)))
        for delivery in left:
            await self._quietly(delivery.nak())
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        await self.outbox.close()

    # -- new tasks -----------------------------------------------------------------------------------------------------

    async def _take_requests(self) -> None:
        while not self._stopping:
            deliveries = await self._requests.take(INTAKE_BATCH)
            self._held.update((id(one), one) for one in deliveries)
            try:
                await self._accept(deliveries)
            finally:
                self._let_go(deliveries)
                self._requests.release(len(deliveries))

    async def _accept(self, deliveries: Sequence[Delivery]) -> None:
        fresh: dict[UUID, tuple[Run, Decisions, TaskRequest | None, Delivery]] = {}
        again: list[tuple[UUID, str | None]] = []
        for delivery in deliveries:
            try:
                request: TaskRequest | None = parse_request(delivery.data)
            except InvalidRequest as error:
                known = salvage_ids(delivery.data)
                if "task_id" not in known:
                    await publish_dead_letter(self._publisher, ORCHESTRATOR, delivery, "not a TaskRequest", str(error))
                    continue
                request = None
                run, decisions = self._planner.unreadable(known, error, now())
            else:
                assert request is not None
                if request.task_id in fresh:
                    again.append((request.task_id, request.reply_to))
                    continue
                run, decisions = await self._plan(request, delivery)
            if run.root_task_id in fresh:
                continue
            fresh[run.root_task_id] = (run, decisions, request, delivery)
        await self._accept_runs(fresh, again)
        for delivery in deliveries:
            await self._quietly(delivery.ack())

    async def _plan(self, request: TaskRequest, delivery: Delivery) -> tuple[Run, Decisions]:
        try:
            replayed = await self._replayed(request) if request.task_type == REPLAY else None
            return self._planner.plan(request, headers=delivery.headers, now=now(), replayed=replayed)
        except InvalidRequest as error:
            run, _ = self._planner.duplicate(request, request.task_id, headers=delivery.headers, now=now())
            run.facts.duplicate_of = None
            return self._planner.refuse(run, ErrorInfo.of(error), now())
        except Exception as error:
            log.exception("plan.failed", task_id=str(request.task_id))
            run, _ = self._planner.duplicate(request, request.task_id, headers=delivery.headers, now=now())
            run.facts.duplicate_of = None
            message = f"the orchestrator could not plan this task: {type(error).__name__}: {error}"
            return self._planner.refuse(run, ErrorInfo(code=ErrorCode.INTERNAL_ERROR, message=message), now())

    async def _replayed(self, request: TaskRequest) -> Replayed:
        """The old task that a `mesh.replay` names: payload `{"task_id": id, "from": step or absent}`."""
        wanted, begin = request.payload.get("task_id"), request.payload.get("from")
        try:
            task_id = UUID(str(wanted))
        except ValueError:
            raise InvalidRequest("payload.task_id: must be the id of a task", field="payload.task_id") from None
        if not isinstance(begin, str | None):
            raise InvalidRequest("payload.from: must be a step's name", field="payload.from")
        records = (await self._stored(self._store.trees, [task_id])).get(task_id)
        if not records:
            raise InvalidRequest(f"payload.task_id: there is no task {task_id}", field="payload.task_id")
        root = next(record for record in records if record["task_id"] == task_id)
        if root["workflow_version"] is not None:
            await self._stored(self._runs.learn, {root["workflow_version"]})
        plan = self._runs.plan_of(root)
        payload = json.loads(root["payload"] or "{}")
        return Replayed(
            task_id=task_id,
            task_type=root["task_type"],
            payload=payload,
            plan=plan,
            workflow_version=root["workflow_version"],
            steps=[row_of(record) for record in records if record["parent_task_id"] == task_id],
            from_step=begin,
            timeout_seconds=root["timeout_seconds"],
        )

    async def _accept_runs(
        self,
        fresh: dict[UUID, tuple[Run, Decisions, TaskRequest | None, Delivery]],
        again: list[tuple[UUID, str | None]],
    ) -> None:
        if not fresh:
            return
        try:
            new = await self._stored(self._store.accept, [(run, decisions) for run, decisions, _, _ in fresh.values()])
        except PoisonedBatch as error:
            if len(fresh) > 1:
                for task_id, one in fresh.items():
                    await self._accept_runs({task_id: one}, [pair for pair in again if pair[0] == task_id])
                return
            run, _, _, delivery = next(iter(fresh.values()))
            log.error("accept.poisoned", task_id=str(run.root_task_id), error=str(error))
            await publish_dead_letter(
                self._publisher, ORCHESTRATOR, delivery, "cannot be stored", str(error), run.root_task_id
            )
            return
        for task_id in new:
            run, decisions, _, _ = fresh[task_id]
            run.version = 1
            if not run.root.ended:
                self._runs.put(run)
            await self._announce(run)
            await self._deliver(run, decisions)
        old = [(task_id, one) for task_id, one in fresh.items() if task_id not in new]
        if old or again:
            await self._meet_again(old, again)

    async def _announce(self, run: Run) -> None:
        data: dict[str, object] = {"task_id": str(run.root_task_id), "task_type": run.root.task_type}
        if run.facts.session_id is not None:
            data["session_id"] = run.facts.session_id
        await self.outbox.say("task", "accepted", data)

    async def _meet_again(
        self,
        old: Sequence[tuple[UUID, tuple[Run, Decisions, TaskRequest | None, Delivery]]],
        again: Sequence[tuple[UUID, str | None]],
    ) -> None:
        """Tasks that are known already: announced or answered once more, or made duplicates by their key."""
        ids = [task_id for task_id, _ in old] + [task_id for task_id, _ in again]
        known = await self._stored(self._reader.known, ids)
        wants = [(task_id, one[0].facts.reply_to) for task_id, one in old] + list(again)
        for task_id, reply_to in wants:
            if (record := known.get(task_id)) is not None:
                await self._known(record, reply_to)
        for task_id, (_, _, request, delivery) in old:
            if task_id not in known and request is not None:
                await self._duplicate(request, delivery)

    async def _known(self, record: Any, reply_to: str | None) -> None:
        run = bare_run([record])
        await self._announce(run)
        if run.root.ended:
            run.facts.reply_to = reply_to or run.facts.reply_to
            await self.outbox.answer(run, again=True)
        elif reply_to is not None and reply_to != run.facts.reply_to:
            self.post(Reattached(run.root_task_id, reply_to))

    async def _duplicate(self, request: TaskRequest, delivery: Delivery) -> None:
        if request.idempotency_key is None:
            return
        original = await self._stored(self._reader.by_key, request.tenant, request.requester, request.idempotency_key)
        if original is None:
            return
        run, decisions = self._planner.duplicate(request, original, headers=delivery.headers, now=now())
        if run.root_task_id in await self._stored(self._store.accept, [(run, decisions)]):
            run.version = 1
            self._runs.put(run)
            await self._announce(run)
        await self.end_duplicates([run.root_task_id])

    async def end_duplicates(self, task_ids: Sequence[UUID]) -> None:
        """Give duplicates whose original has ended its outcome."""
        duplicates = await self._stored(self._reader.known, task_ids)
        originals = await self._stored(
            self._reader.known, list({record["duplicate_of"] for record in duplicates.values()} - {None})
        )
        for task_id, record in duplicates.items():
            original = originals.get(record["duplicate_of"])
            if original is None or record["status"] != Status.WAITING:
                continue
            row = row_of(original)
            if row.ended:
                self.post(OriginalEnded(task_id, row.status.value, row.result, row.error))  # type: ignore[arg-type]

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
                try:
                    await self._settle(deliveries, posted)
                finally:
                    self._let_go(deliveries)
                    self._responses.release(len(deliveries))
            elif self._stopping:
                return

    async def _settle(self, deliveries: Sequence[Delivery], posted: Sequence[Happening]) -> None:
        happened: dict[UUID, list[Happening]] = {}
        for delivery in deliveries:
            if delivery.subject == subjects.response(ORCHESTRATOR):
                continue
            answer = await self._read_answer(delivery)
            if answer is not None:
                happened.setdefault(answer.root_task_id, []).append(answer)
        for happening in posted:
            happened.setdefault(happening.root_task_id, []).append(happening)
        while happened:
            happened = await self._apply(happened)
        for delivery in deliveries:
            await self._quietly(delivery.ack())

    async def _read_answer(self, delivery: Delivery) -> Answered | None:
        try:
            response = TaskResponse.model_validate_json(delivery.data)
        except ValidationError as raised:
            error = invalid_request(raised)
            known = salvage_ids(delivery.data)
            await publish_dead_letter(
                self._publisher, ORCHESTRATOR, delivery, "not a TaskResponse", str(error), known.get("task_id")
            )
            if "task_id" not in known or "root_task_id" not in known:
                return None
            return Answered(
                root_task_id=known["root_task_id"],
                task_id=known["task_id"],
                attempt=known.get("attempt", 1),
                status="failed",
                error=ErrorInfo(code=ErrorCode.INVALID_RESPONSE, message=f"not a TaskResponse: {error.message}"),
            )
        instance = response.instance_id
        return Answered(
            root_task_id=response.root_task_id,
            task_id=response.task_id,
            attempt=response.attempt,
            status=response.status,
            result=response.result,
            error=response.error,
            usage=response.usage,
            instance_id=instance if instance is not None and is_instance_id(instance) else None,
        )

    async def _apply(self, happened: dict[UUID, list[Happening]]) -> dict[UUID, list[Happening]]:
        """Decide and write; returns what must be decided again because another process was faster."""
        runs, broken = await self._stored(self._runs.load, list(happened))
        moment = now()
        batch: list[tuple[Run, Decisions]] = []
        for root_task_id, run in runs.items():
            happenings = happened[root_task_id]
            if root_task_id in broken and not run.root.ended:
                happenings = [Broken(root_task_id, ErrorInfo.of(broken[root_task_id]))]
            try:
                decisions = advance(run, happenings, directory=self._router, rules=self._rules, now=moment)
            except Exception as error:
                decisions = await self._give_up(run, error)
                run = self._runs.cached(root_task_id) or run
            if decisions.empty:
                continue
            batch.append((run, decisions))
        if not batch:
            return {}
        try:
            written = await self._stored(self._store.apply, batch)
        except PoisonedBatch as error:
            for run, _ in batch:
                self._runs.drop(run.root_task_id)
            return await self._isolate({run.root_task_id: happened[run.root_task_id] for run, _ in batch}, error)
        ended: list[UUID] = []
        lost: dict[UUID, list[Happening]] = {}
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
            await self._deliver(run, decisions)
        if ended:
            await self.end_duplicates(await self._stored(self._reader.duplicates_waiting, ended))
        return lost

    async def _give_up(self, run: Run, error: Exception) -> Decisions:
        """A transition raised: the run as the database has it ends, saying so, rather than waiting for ever."""
        log.exception("advance.failed", task_id=str(run.root_task_id))
        self._runs.drop(run.root_task_id)
        runs, _ = await self._stored(self._runs.load, [run.root_task_id])
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
        self, happened: dict[UUID, list[Happening]], error: PoisonedBatch
    ) -> dict[UUID, list[Happening]]:
        """Postgres refused a batch for something in it: one root at a time, the culprit fails alone."""
        if len(happened) > 1:
            lost: dict[UUID, list[Happening]] = {}
            for root_task_id, happenings in happened.items():
                lost |= await self._apply({root_task_id: happenings})
            return lost
        (root_task_id, happenings) = next(iter(happened.items()))
        log.error("apply.poisoned", task_id=str(root_task_id), error=str(error))
        if any(isinstance(one, Broken) for one in happenings):
            return {}
        message = f"the database refused the outcome: {error}"
        return {root_task_id: [Broken(root_task_id, ErrorInfo(code=ErrorCode.INTERNAL_ERROR, message=message))]}

    async def _deliver(self, run: Run, decisions: Decisions) -> None:
        await self.outbox.deliver(run, decisions)
        if self.on_wake_at is not None:
            for moment in decisions.wake_at:
                self.on_wake_at(moment)

    # -- both ----------------------------------------------------------------------------------------------------------

    async def _stored(self, call: Any, *arguments: Any) -> Any:
        """Call the store until it answers: without Postgres nothing is taken, nothing is dropped, all of it waits."""
        wait = STORE_WAIT_FIRST_SECONDS
        while True:
            try:
                return await call(*arguments)
            except StoreError as error:
                log.warning("store.waiting", error=str(error), wait_seconds=wait)
                await asyncio.sleep(wait)
                wait = min(wait * 2, STORE_WAIT_MAX_SECONDS)

    async def _hold(self) -> None:
        """In-progress acks for what waits for Postgres, so that the broker does not give it out again."""
        while True:
            await asyncio.sleep(HOLD_SECONDS)
            for delivery in list(self._held.values()):
                await self._quietly(delivery.in_progress())

    def _let_go(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            self._held.pop(id(delivery), None)

    @staticmethod
    async def _quietly(acknowledging: Any) -> None:
        try:
            await acknowledging
        except (NatsError, OSError, PantheonError) as error:
            log.debug("ack.failed", error=str(error))
