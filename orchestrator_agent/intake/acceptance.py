"""Acceptance: requests off the wire become rows, once each; those that are known are announced or answered again."""

import json
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any
from uuid import UUID

import structlog

from orchestrator_agent.engine.decisions import Decisions
from orchestrator_agent.engine.events import Delegated, OriginalEnded, Reattached, RunEvent
from orchestrator_agent.engine.state import Run, Status
from orchestrator_agent.intake.planner import (
    AGAIN,
    OPERATIONS,
    RETRY,
    Planner,
    Replayed,
    input_of,
    lay_over,
    refuse_to_run_again,
)
from orchestrator_agent.runtime.outbox import Outbox
from orchestrator_agent.runtime.republisher import Republisher
from orchestrator_agent.runtime.run_cache import RunCache, bare_run
from orchestrator_agent.store.availability import read_object, retry_until_available, retry_write
from orchestrator_agent.store.reads import Reader
from orchestrator_agent.store.rows import row_of
from orchestrator_agent.store.tasks import PoisonedBatch, TaskStore
from orchestrator_agent.workflows.evaluation import LongEvaluation, apart_from_the_loop, bounded, evaluated
from pantheon.bus import Delivery, Objects, Publisher, acknowledge
from pantheon.bus.dead_letter import publish_dead_letter
from protocol.errors import ErrorCode, InvalidRequest, PantheonError
from protocol.messages import ErrorInfo, TaskRequest, now, parse_request, salvage_ids
from protocol.names import EXECUTE_DAG, MESH_PREFIX, ORCHESTRATOR

log = structlog.get_logger()

# Of an agent's task: it may be given out again, and so may what it gave out.
_BETWEEN_ATTEMPTS = (Status.READY, Status.DISPATCHED, Status.WAITING)


class Acceptance:
    """Accepted means committed: nothing is announced, and no request acknowledged, before its row is in Postgres.

    `post` hands happenings to the conductor's other loop.
    """

    def __init__(
        self,
        publisher: Publisher,
        objects: Objects,
        *,
        store: TaskStore,
        reader: Reader,
        runs: RunCache,
        planner: Planner,
        outbox: Outbox,
        republisher: Republisher,
        post: Callable[[RunEvent], None],
    ) -> None:
        self._publisher = publisher
        self._objects = objects
        self._store = store
        self._reader = reader
        self._runs = runs
        self._planner = planner
        self._outbox = outbox
        self._republisher = republisher
        self._post = post
        # Tasks whose planning takes long, and is being done beside the others.
        self._long: set[UUID] = set()
        # Set by who puts the orchestrator together: operations, turns of concurrency keys, happenings that are
        # waited for until they are committed (the answer: their outcome, or whether the run knows the task).
        self.on_operation: Callable[[Run], None] = lambda run: None
        self.on_turn: Callable[[str], None] = lambda key: None
        self.perform: Callable[[RunEvent], Awaitable[Any]]

    async def accept(self, deliveries: Sequence[Delivery], *, apart: bool = False) -> Sequence[Delivery]:
        """Accept what can be accepted at once. Returns what takes long to plan, to be accepted beside the others.

        With `apart`, that is planned too, apart from the event loop.
        """
        learned = not self._runs.shared
        fresh: dict[UUID, tuple[Run, Decisions, TaskRequest | None, Delivery]] = {}
        again: list[tuple[UUID, str | None]] = []
        long: list[Delivery] = []
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
                try:
                    if request.payload_ref is not None:
                        request = await self._whole(request)
                except PantheonError as error:
                    run, decisions = self._planner.unreadable(request.model_dump(), error, now())
                else:
                    if not learned and self._in_database(request.task_type):
                        # Another orchestrator may have answered a moment ago that it has put the workflow in.
                        await retry_until_available(self._runs.learn_newest)
                        learned = True
                    try:
                        if await self._delegated(request):
                            continue
                    except InvalidRequest as error:
                        refusal = ErrorInfo.of(error)
                        run, decisions = self._planner.refused(request, refusal, headers=delivery.headers, now=now())
                    else:
                        if request.task_id in self._long and not apart:
                            # A copy, of a requester who asks again: the first one is being planned.
                            continue
                        try:
                            run, decisions = await self._plan(request, delivery, apart)
                        except LongEvaluation:
                            self._long.add(request.task_id)
                            long.append(delivery)
                            continue
                        finally:
                            if apart:
                                self._long.discard(request.task_id)
            if run.root_task_id in fresh:
                continue
            fresh[run.root_task_id] = (run, decisions, request, delivery)
        await self._accept_runs(fresh, again)
        for delivery in deliveries:
            if delivery not in long:
                await acknowledge(delivery)
        return long

    def _in_database(self, task_type: str) -> bool:
        """Whether the database may say what a task of this type is, or the sub-workflows of an inline one."""
        library = self._planner.library
        return not task_type.startswith(MESH_PREFIX) and not library.from_file(task_type)

    async def _whole(self, request: TaskRequest) -> TaskRequest:
        """A request with the payload that its reference stands for. Raises InvalidRequest, TooLarge, ObjectMissing."""
        assert request.payload_ref is not None
        if request.payload:
            raise InvalidRequest("payload: must be absent beside payload_ref", field="payload")
        if await retry_until_available(self._reader.known, [request.task_id]):
            # Sent again: what it was is in its row, and its object may be gone.
            return request
        payload = await read_object(self._objects, request.payload_ref, "payload")
        if not isinstance(payload, dict):
            raise InvalidRequest("payload: must be an object", field="payload")
        return request.model_copy(update={"payload": payload, "payload_ref": None})

    async def _plan(self, request: TaskRequest, delivery: Delivery, apart: bool) -> tuple[Run, Decisions]:
        """Raises LongEvaluation, unless `apart`."""
        try:
            replayed = await self._replayed(request) if request.task_type in AGAIN else None
            plan = partial(self._planner.plan, request, headers=delivery.headers, now=now(), replayed=replayed)
            if apart:
                return await apart_from_the_loop(plan)
            with bounded():
                return plan()
        except LongEvaluation:
            raise
        except PantheonError as error:
            wrong = ErrorInfo.of(error)
        except Exception as error:
            log.exception("plan.failed", task_id=str(request.task_id))
            message = f"the orchestrator could not plan this task: {type(error).__name__}: {error}"
            wrong = ErrorInfo(code=ErrorCode.INTERNAL_ERROR, message=message)
        return self._planner.refused(request, wrong, headers=delivery.headers, now=now())

    async def _replayed(self, request: TaskRequest) -> Replayed:
        """The old task that a `mesh.replay` or `mesh.retry` names: `{"task_id": id, "from": step, "input": {…}}`.

        Without `from`, everything runs again; `input` (a fork) is laid over the old one.
        """
        wanted, begin = request.payload.get("task_id"), request.payload.get("from")
        try:
            task_id = UUID(str(wanted))
        except ValueError:
            raise InvalidRequest("payload.task_id: must be the id of a task", field="payload.task_id") from None
        if not isinstance(begin, str | None):
            raise InvalidRequest("payload.from: must be a step's name", field="payload.from")
        records = (await retry_until_available(self._store.trees, [task_id])).get(task_id)
        if not records:
            raise InvalidRequest(f"payload.task_id: there is no task {task_id}", field="payload.task_id")
        root = next(record for record in records if record["task_id"] == task_id)
        if root["task_type"].startswith(MESH_PREFIX):
            raise InvalidRequest(
                f"payload.task_id: {task_id} is a {root['task_type']}, which is not run again: send it as a new task",
                field="payload.task_id",
            )
        refuse_to_run_again(root)
        if root["workflow_version"] is not None:
            await retry_until_available(self._runs.learn, {root["workflow_version"]})
        plan = self._runs.plan_of(root)
        payload = json.loads(root["payload"])
        retry = request.task_type == RETRY
        if retry and root["status"] not in (Status.FAILED, Status.CANCELLED):
            raise InvalidRequest(
                f"payload.task_id: task {task_id} is {root['status']}: only a failed or cancelled one can be retried",
                field="payload.task_id",
            )
        given = input_of(payload, root["task_type"])
        lay_over(payload, request.payload.get("input"), root["task_type"])
        return Replayed(
            task_id=task_id,
            task_type=root["task_type"],
            payload=payload,
            plan=plan,
            workflow_version=root["workflow_version"],
            rows=[row_of(record) for record in records],
            given=given,
            from_step=begin,
            timeout_seconds=root["timeout_seconds"],
            keep_completed=retry,
        )

    async def _accept_runs(
        self,
        fresh: dict[UUID, tuple[Run, Decisions, TaskRequest | None, Delivery]],
        again: list[tuple[UUID, str | None]],
        *,
        refused: bool = False,
    ) -> None:
        """`refused`: it is the refusal of a request that could not be stored."""
        if not fresh:
            return
        try:
            new, doubtful = await retry_write(
                self._store.accept, [(run, decisions) for run, decisions, _, _ in fresh.values()]
            )
        except PoisonedBatch as error:
            if len(fresh) > 1:
                for task_id, one in fresh.items():
                    await self._accept_runs({task_id: one}, [pair for pair in again if pair[0] == task_id])
                return
            run, _, request, delivery = next(iter(fresh.values()))
            log.error("accept.poisoned", task_id=str(run.root_task_id), error=str(error))
            if not refused:
                # Its ids alone can be: it is answered, as whoever sent it would else send it for ever.
                wrong = PantheonError(f"the database refused this task: {error}")
                refusal = self._planner.unreadable(
                    {"task_id": run.root_task_id, **salvage_ids(delivery.data)}, wrong, now()
                )
                await self._accept_runs({run.root_task_id: (*refusal, request, delivery)}, again, refused=True)
                return
            await publish_dead_letter(
                self._publisher, ORCHESTRATOR, delivery, "cannot be stored", str(error), run.root_task_id
            )
            return
        for task_id in new:
            await self._begin(*fresh[task_id][:2])
        keys = {run.facts.concurrency_key for task_id in new if (run := fresh[task_id][0]).facts.concurrency_key}
        for key in keys:
            if key is not None:
                self.on_turn(key)
        old = [(task_id, one) for task_id, one in fresh.items() if task_id not in new]
        if doubtful and old:
            # Known from before, or accepted by the try whose answer was lost: then nobody else dispatches its steps.
            await self._republisher.of_roots([task_id for task_id, _ in old])
        if old or again:
            await self._meet_again(old, again)

    async def accept_own(self, request: TaskRequest) -> bool:
        """Accept a task that the orchestrator itself wants (a schedule's); whether it was new. It needs no broker."""
        run, decisions = await evaluated(partial(self._planner.plan, request, headers=None, now=now()))
        try:
            new = await retry_until_available(self._store.accept, [(run, decisions)])
        except PoisonedBatch as error:
            log.error("accept.poisoned", task_id=str(run.root_task_id), error=str(error))
            return False
        if not new:
            return False
        await self._begin(run, decisions)
        if run.facts.concurrency_key is not None:
            self.on_turn(run.facts.concurrency_key)
        return True

    async def _begin(self, run: Run, decisions: Decisions) -> None:
        """A new root has been committed."""
        run.version = 1
        if not run.root.ended:
            self._runs.put(run)
            self._runs.weigh(run, (run.root, *decisions.made))
        await self._announce(run)
        await self._outbox.deliver(run, decisions)
        if not run.root.ended and run.root.task_type in OPERATIONS:
            self.on_operation(run)

    async def _delegated(self, request: TaskRequest) -> bool:
        """Whether a request is a task that an agent of ours gave out, and is in its tree now, or is not wanted there.

        Raises InvalidRequest where it can never be in the tree that it names.
        """
        root, parent = request.root_task_id, request.parent_task_id
        if root is None or parent is None or root == request.task_id or request.task_type in OPERATIONS:
            return False
        try:
            plan = self._planner.library.newest(request.task_type) or self._planner.library.single(request.task_type)
            payload = request.payload
            if request.task_type == EXECUTE_DAG:
                plan, payload = self._planner.library.inline(request.payload)
        except PantheonError:
            # Planned as a root of its own, it is answered with what is wrong.
            return False
        taken = await self.perform(
            Delegated(
                root_task_id=root,
                parent_task_id=parent,
                task_id=request.task_id,
                task_type=request.task_type,
                payload=payload,
                plan=plan,
                reply_to=request.reply_to,
                timeout_seconds=request.timeout_seconds if "timeout_seconds" in request.model_fields_set else None,
            )
        )
        if not taken:
            tree = (await retry_until_available(self._store.trees, [root])).get(root)
            if tree is not None:
                await self._not_taken(request, bare_run(tree))
            return tree is not None
        data: dict[str, object] = {"task_id": str(request.task_id), "task_type": request.task_type}
        await self._outbox.say("task", "accepted", data)
        return True

    async def _not_taken(self, request: TaskRequest, tree: Run) -> None:
        """A request that the tree it names did not take."""
        if (known := tree.rows.get(request.task_id)) is not None:
            # It was a child there, and the tree has ended since.
            if known.ended:
                known.reply_to = request.reply_to or known.reply_to
                await self._outbox.deliver(tree, Decisions(answers=[known]))
            return
        parent = tree.rows.get(request.parent_task_id) if request.parent_task_id is not None else None
        if parent is not None and not tree.root.ended and parent.status in _BETWEEN_ATTEMPTS:
            # The attempt that gave it out is over. With an outcome of its own it could be no child when the next
            # attempt gives it out again.
            log.info("delegation.dropped", task_id=str(request.task_id), root_task_id=str(tree.root_task_id))
            return
        raise InvalidRequest(
            f"parent_task_id: task {request.parent_task_id} of the tree {tree.root_task_id} is with no agent, so it "
            "gives out nothing: a task of its own names no root_task_id",
            field="parent_task_id",
        )

    async def _announce(self, run: Run) -> None:
        data: dict[str, object] = {"task_id": str(run.root_task_id), "task_type": run.root.task_type}
        if run.facts.session_id is not None:
            data["session_id"] = run.facts.session_id
        await self._outbox.say("task", "accepted", data)

    async def _meet_again(
        self,
        old: Sequence[tuple[UUID, tuple[Run, Decisions, TaskRequest | None, Delivery]]],
        again: Sequence[tuple[UUID, str | None]],
    ) -> None:
        """Tasks that are known already: announced or answered once more, or made duplicates by their key."""
        ids = [task_id for task_id, _ in old] + [task_id for task_id, _ in again]
        known = await retry_until_available(self._reader.known, ids)
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
            await self._outbox.answer(run, again=True)
        elif reply_to is not None and reply_to != run.facts.reply_to:
            self._post(Reattached(run.root_task_id, reply_to))

    async def _duplicate(self, request: TaskRequest, delivery: Delivery) -> None:
        if request.idempotency_key is None:
            return
        original = await retry_until_available(
            self._reader.by_key, request.tenant, request.requester, request.idempotency_key
        )
        if original is None:
            return
        run, decisions = self._planner.duplicate(request, original, headers=delivery.headers, now=now())
        if run.root_task_id in await retry_until_available(self._store.accept, [(run, decisions)]):
            run.version = 1
            self._runs.put(run)
            await self._announce(run)
        await self.end_duplicates([run.root_task_id])

    async def end_duplicates(self, task_ids: Sequence[UUID]) -> None:
        """Give duplicates whose original has ended its outcome."""
        duplicates = await retry_until_available(self._reader.known, task_ids)
        originals = await retry_until_available(
            self._reader.known, list({record["duplicate_of"] for record in duplicates.values()} - {None})
        )
        for task_id, record in duplicates.items():
            original = originals.get(record["duplicate_of"])
            if original is None or record["status"] != Status.WAITING:
                continue
            row = row_of(original)
            if row.ended:
                self._post(OriginalEnded(task_id, row.status.value, row.result, row.error))  # type: ignore[arg-type]
