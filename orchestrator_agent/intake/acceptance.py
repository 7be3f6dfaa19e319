"""Acceptance: requests off the wire become rows, once each.

The stages, for each request: parse, deduplicate, fetch (a large payload), attach (to the tree of the task that
delegates it), plan; then, for the batch: commit, announce. A request that fails in a stage is planned as a task that
has failed, so that its requester gets one response, whatever it sends again.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple
from uuid import UUID

import structlog

from orchestrator_agent.engine.decisions import Decisions
from orchestrator_agent.engine.state import Run
from orchestrator_agent.inbox import TakesLong
from orchestrator_agent.intake.delegation import delegation_of
from orchestrator_agent.intake.delegations import Delegations
from orchestrator_agent.intake.new_roots import NewRoots
from orchestrator_agent.intake.planner import Planner
from orchestrator_agent.intake.repeated_requests import Repeated, RepeatedRequests
from orchestrator_agent.intake.replay import RUN_AGAIN, Replayed, make_replay, read_replay_request, root_to_replay
from orchestrator_agent.runtime.broker import Broker
from orchestrator_agent.runtime.evaluations import LongEvaluation, apart_from_the_loop, bounded, evaluated
from orchestrator_agent.runtime.run_cache import RunCache
from orchestrator_agent.store.availability import read_object, retry_until_available, retry_write
from orchestrator_agent.store.task_reader import TaskReader
from orchestrator_agent.store.tasks import PoisonedBatch, TaskStore
from pantheon.bus import Delivery, acknowledge, stream_sequence
from pantheon.bus.dead_letter import publish_dead_letter
from protocol.errors import ErrorCode, InvalidRequest, PantheonError
from protocol.messages import ErrorInfo, TaskRequest, now, parse_request, salvage_ids
from protocol.names import MESH_PREFIX, ORCHESTRATOR

log = structlog.get_logger()


class Planned(NamedTuple):
    """A request as it is to be committed. `request` is None where it could not be read."""

    run: Run
    decisions: Decisions
    request: TaskRequest | None
    delivery: Delivery


class Later(NamedTuple):
    """Requests that the others do not wait for: to be accepted `apart`, beside them."""

    # They take long to plan.
    long: Sequence[Delivery]
    # A tree takes long to decide on, and they are to be attached to it.
    waiting: Sequence[Delivery]


class _Batch:
    """Requests that were delivered together. `learned`: what other processes published has been read for them.
    `apart`: they are planned apart from the event loop."""

    def __init__(self, *, learned: bool, apart: bool) -> None:
        self.planned: dict[UUID, Planned] = {}
        # Sent again before the first one was committed.
        self.repeated: list[Repeated] = []
        self.learned = learned
        self.apart = apart
        # What takes long to plan, and what is for a tree that takes long to decide on.
        self.long: list[Delivery] = []
        self.waiting: list[Delivery] = []


class Acceptance:
    """Accepted means committed: nothing is announced, and no request acknowledged, before its row is in Postgres."""

    def __init__(
        self,
        broker: Broker,
        store: TaskStore,
        reader: TaskReader,
        runs: RunCache,
        *,
        planner: Planner,
        delegations: Delegations,
        new_roots: NewRoots,
        repeated: RepeatedRequests,
    ) -> None:
        self._publisher = broker.publisher
        self._objects = broker.objects
        self._store = store
        self._reader = reader
        self._runs = runs
        self._planner = planner
        self._delegations = delegations
        self._new_roots = new_roots
        self._repeated = repeated
        # Tasks whose planning takes long, and goes on beside the others.
        self._long: set[UUID] = set()

    async def accept(self, deliveries: Sequence[Delivery], *, apart: bool = False) -> Later:
        """Accept what can be accepted at once; returns the others.

        With `apart`, there are none: what takes long is planned too, apart from the event loop.
        """
        batch = _Batch(learned=not self._runs.shared, apart=apart)
        for delivery in deliveries:
            planned = await self._prepare(batch, delivery)
            if planned is not None:
                planned.run.facts.request_sequence = stream_sequence(delivery)
                batch.planned.setdefault(planned.run.root_task_id, planned)
        await self._commit(batch.planned, batch.repeated)
        left = {id(delivery) for delivery in (*batch.long, *batch.waiting)}
        for delivery in deliveries:
            if id(delivery) not in left:
                await acknowledge(delivery)
        return Later(batch.long, batch.waiting)

    async def refuse(self, delivery: Delivery, error: ErrorInfo) -> None:
        """Accept a request as a task that has failed, by its ids alone: what is in it is not read."""
        known = salvage_ids(delivery.data)
        if "task_id" in known:
            run, decisions = self._planner.unreadable(known, PantheonError(error.message), now())
            await self._commit({known["task_id"]: Planned(run, decisions, None, delivery)}, [])
        await acknowledge(delivery)

    async def accept_own(self, request: TaskRequest) -> bool:
        """Accept a task that the orchestrator itself starts (a schedule's); whether it was new. It needs no broker."""
        run, decisions = await evaluated(partial(self._planner.plan, request, headers=None, now=now()))
        try:
            new = await retry_until_available(self._store.accept, [(run, decisions)])
        except PoisonedBatch as error:
            log.error("accept.poisoned", task_id=str(run.root_task_id), error=str(error))
            return False
        if not new:
            return False
        await self._new_roots.begin([(run, decisions)])
        return True

    # -- each request --------------------------------------------------------------------------------------------------

    async def _prepare(self, batch: _Batch, delivery: Delivery) -> Planned | None:
        """What is to be committed of a request; None where nothing is."""
        try:
            request = parse_request(delivery.data)
        except InvalidRequest as error:
            return await self._unreadable(delivery, error)
        if request.task_id in batch.planned:
            batch.repeated.append(Repeated(request.task_id, request.reply_to))
            return None
        if request.payload_ref is not None:
            try:
                request = await self._fetch(request)
            except PantheonError as error:
                return Planned(*self._planner.unreadable(request.model_dump(), error, now()), request, delivery)
        if not batch.learned and self._may_be_unknown(request.task_type):
            # Another orchestrator may have responded a moment ago that it has published the workflow.
            await retry_until_available(self._runs.catalog.learn_newest)
            batch.learned = True
        delegated = delegation_of(request, self._planner.library)
        if delegated is not None:
            try:
                if await self._delegations.attach(delegated, at_once=not batch.apart):
                    return None
            except TakesLong:
                batch.waiting.append(delivery)
                return None
            except InvalidRequest as error:
                return self._refused(request, delivery, ErrorInfo.of(error))
        if request.task_id in self._long and not batch.apart:
            # A copy, of a requester who sends again: the first one is being planned.
            return None
        try:
            return await self._plan(request, delivery, apart=batch.apart)
        except LongEvaluation:
            self._long.add(request.task_id)
            batch.long.append(delivery)
            return None
        finally:
            if batch.apart:
                self._long.discard(request.task_id)

    async def _unreadable(self, delivery: Delivery, error: InvalidRequest) -> Planned | None:
        """A message that is no TaskRequest: a failed task where it has an id, else a dead letter."""
        known = salvage_ids(delivery.data)
        if "task_id" not in known:
            await publish_dead_letter(self._publisher, ORCHESTRATOR, delivery, "not a TaskRequest", str(error))
            return None
        return Planned(*self._planner.unreadable(known, error, now()), None, delivery)

    async def _fetch(self, request: TaskRequest) -> TaskRequest:
        """A request with the payload that its reference names. Raises InvalidRequest, TooLarge, ObjectMissing."""
        assert request.payload_ref is not None
        if request.payload:
            raise InvalidRequest("payload: must be absent beside payload_ref", field="payload")
        if await retry_until_available(self._reader.roots, [request.task_id]):
            # Sent again: what it was is in its row, and its object may be gone.
            return request
        payload = await read_object(self._objects, request.payload_ref, "payload")
        if not isinstance(payload, dict):
            raise InvalidRequest("payload: must be an object", field="payload")
        return request.model_copy(update={"payload": payload, "payload_ref": None})

    def _may_be_unknown(self, task_type: str) -> bool:
        """Whether the database may define what a task of this type is, or the sub-workflows of an inline one."""
        return not task_type.startswith(MESH_PREFIX) and not self._planner.library.from_file(task_type)

    async def _plan(self, request: TaskRequest, delivery: Delivery, *, apart: bool) -> Planned:
        """Raises LongEvaluation, unless `apart`."""
        try:
            replayed = await self._replayed(request) if request.task_type in RUN_AGAIN else None
            plan = partial(self._planner.plan, request, headers=delivery.headers, now=now(), replayed=replayed)
            if apart:
                run, decisions = await apart_from_the_loop(plan)
            else:
                with bounded():
                    run, decisions = plan()
        except LongEvaluation:
            raise
        except PantheonError as error:
            return self._refused(request, delivery, ErrorInfo.of(error))
        except Exception as error:
            log.exception("plan.failed", task_id=str(request.task_id))
            message = f"the orchestrator could not plan this task: {type(error).__name__}: {error}"
            return self._refused(request, delivery, ErrorInfo(code=ErrorCode.INTERNAL_ERROR, message=message))
        return Planned(run, decisions, request, delivery)

    async def _replayed(self, request: TaskRequest) -> Replayed:
        """The old task that a `mesh.replay` or `mesh.retry` names. Raises PantheonError."""
        replay_request = read_replay_request(request)
        records = (await retry_until_available(self._reader.trees, [replay_request.task_id])).get(
            replay_request.task_id, []
        )
        version = root_to_replay(replay_request.task_id, records)["workflow_version"]
        if version is not None:
            await retry_until_available(self._runs.catalog.learn, {version})
        return make_replay(replay_request, records, self._planner.library)

    def _refused(self, request: TaskRequest, delivery: Delivery, error: ErrorInfo) -> Planned:
        run, decisions = self._planner.refused(request, error, headers=delivery.headers, now=now())
        return Planned(run, decisions, request, delivery)

    # -- the batch -----------------------------------------------------------------------------------------------------

    async def _commit(self, planned: dict[UUID, Planned], repeated: Sequence[Repeated]) -> None:
        if not planned:
            return
        try:
            new, doubtful = await retry_write(
                self._store.accept, [(each.run, each.decisions) for each in planned.values()]
            )
        except PoisonedBatch as error:
            await self._isolate(planned, repeated, error)
            return
        await self._announce(planned, repeated, new, doubtful=doubtful)

    async def _announce(
        self, planned: dict[UUID, Planned], repeated: Sequence[Repeated], new: set[UUID], *, doubtful: bool
    ) -> None:
        await self._new_roots.begin((planned[task_id].run, planned[task_id].decisions) for task_id in new)
        known = [
            Repeated(task_id, run.facts.reply_to, request, delivery)
            for task_id, (run, _, request, delivery) in planned.items()
            if task_id not in new
        ]
        if doubtful and known:
            await self._repeated.republish([each.task_id for each in known])
        if known or repeated:
            await self._repeated.respond([*known, *repeated])

    async def _isolate(self, planned: dict[UUID, Planned], repeated: Sequence[Repeated], error: PoisonedBatch) -> None:
        """Postgres refused a batch for something in it: one request at a time, the culprit fails alone."""
        if len(planned) > 1:
            for task_id, each in planned.items():
                await self._commit({task_id: each}, [again for again in repeated if again.task_id == task_id])
            return
        culprit = next(iter(planned.values()))
        task_id = culprit.run.root_task_id
        log.error("accept.poisoned", task_id=str(task_id), error=str(error))
        refused = PantheonError(f"the database refused this task: {error}")
        # Its ids alone can be stored: it gets a response, as its requester would else send it for ever.
        ids = {"task_id": task_id, **salvage_ids(culprit.delivery.data)}
        run, decisions = self._planner.unreadable(ids, refused, now())
        try:
            new, doubtful = await retry_write(self._store.accept, [(run, decisions)])
        except PoisonedBatch as again:
            log.error("accept.poisoned", task_id=str(task_id), error=str(again))
            await publish_dead_letter(
                self._publisher, ORCHESTRATOR, culprit.delivery, "cannot be stored", str(again), task_id
            )
            return
        replaced = {task_id: Planned(run, decisions, culprit.request, culprit.delivery)}
        await self._announce(replaced, repeated, new, doubtful=doubtful)
