"""Outbox: what a committed decision makes known: attempts to agents, final responses, orders to stop, events.

The rows are the outbox, this is only the hand that delivers: what dies with this process is in `dispatched_by`.
"""

import asyncio
from collections.abc import Callable, Coroutine
from datetime import datetime
from typing import Any
from uuid import UUID

import structlog

from orchestrator_agent.dispatch.agent_health import AgentHealth
from orchestrator_agent.engine.decisions import Decisions
from orchestrator_agent.engine.state import Row, Run
from orchestrator_agent.runtime.attempt_cancellation import AttemptCanceller
from orchestrator_agent.runtime.wire import attempt_id, final_response, request_headers, task_request
from orchestrator_agent.store.tasks import TaskStore
from pantheon.bus import Bus, Objects, Publisher
from pantheon.runtime.background import end
from protocol import subjects
from protocol.errors import BusError, StoreError, TooLarge
from protocol.events import event
from protocol.ids import new_id
from protocol.messages import ObjectRef, now
from protocol.names import ORCHESTRATOR

log = structlog.get_logger()

# Acknowledged answers are noted together; the note only saves a publish after a crash.
NOTE_EVERY_SECONDS = 0.05
# A large value that the object store does not take just now.
PUT_AGAIN_SECONDS = 1.0


class Outbox:
    def __init__(
        self,
        bus: Bus,
        publisher: Publisher,
        objects: Objects,
        store: TaskStore,
        agent_health: AgentHealth,
        canceller: AttemptCanceller,
        *,
        source: str,
    ) -> None:
        self._bus = bus
        self._publisher = publisher
        self._objects = objects
        self._store = store
        self._agent_health = agent_health
        self._source = source
        self._canceller = canceller
        self._answered: list[UUID] = []
        self._noting: asyncio.Task[None] | None = None
        self._beside: set[asyncio.Task[None]] = set()
        # Attempts whose large payload the object store does not take, and when they were dispatched.
        self._waiting: dict[UUID, datetime] = {}
        # Told when somebody should look again; the reconciler puts itself here.
        self.on_wake_at: Callable[[datetime], None] = lambda moment: None
        # Told of a root that ended: its task type, how many seconds it took, its error.
        self.on_ended: Callable[[str, float, str | None], None] = lambda task_type, seconds, error: None

    async def deliver(self, run: Run, decisions: Decisions) -> None:
        """Everything that one committed decision owes the world, the answer first."""
        if decisions.root_ended:
            self._count(run.root)
            await self.answer(run)
        for row in decisions.responses:
            await self._answer_delegated(run, row)
        for row in decisions.dispatched.values():
            self._agent_health.dispatched(row.agent or "")
            await self.dispatch(run, row, decisions.at)
        for agent, task_id, attempt, reason in decisions.stopped:
            self._go_beside(self._canceller.say(agent, task_id, attempt, reason), "stop-attempt")
        for entity, name, data in decisions.events:
            await self.say(entity, name, data, decisions.at)
        for moment in decisions.wake_at:
            self.on_wake_at(moment)

    def _count(self, root: Row) -> None:
        if root.created_at is not None and root.completed_at is not None:
            seconds = (root.completed_at - root.created_at).total_seconds()
            self.on_ended(root.task_type, seconds, root.error.message if root.error is not None else None)

    async def say(self, entity: str, name: str, data: dict[str, object], at: datetime | None = None) -> None:
        """Publish an event of a moment (None: now); it may be lost, it never fails."""
        await self._bus.publish_quietly(*event(entity, name, self._source, data, at=at))

    async def dispatch(self, run: Run, row: Row, at: datetime | None = None, *, again: str = "") -> None:
        """Publish a row's current attempt, at a moment (None: now); the same attempt published twice is one message.

        `again` (any text) makes it another one: the broker remembers the ids of messages that were purged.
        """
        if row.agent is None:
            return
        ref = self._objects.ref(row.root_task_id, row.payload)
        sending = self._send(
            subjects.task(row.agent),
            task_request(run, row, ref),
            row.task_id,
            message_id=f"{attempt_id(row)}:{again}" if again else attempt_id(row),
            headers=request_headers(run, row, at or now()),
        )
        await self._behind_its_value(ref, row.root_task_id, row.payload, sending, dispatched_at=row.dispatched_at)

    @property
    def waiting_since(self) -> datetime | None:
        """When the oldest attempt was dispatched that waits for the object store, for whoever adopts this process."""
        return min(self._waiting.values(), default=None)

    async def _send(self, subject: str, body: bytes, task_id: UUID, **options: Any) -> None:
        try:
            await self._publisher.send(subject, body, **options)
        except TooLarge as error:
            # What is large travels by reference; only a broker that was reconfigured comes here. An attempt's time will
            # run out and say so.
            log.error("outbox.too_large", task_id=str(task_id), error=str(error))

    async def _behind_its_value(
        self,
        ref: ObjectRef | None,
        root_task_id: UUID,
        value: bytes | None,
        sending: Coroutine[Any, Any, None],
        *,
        dispatched_at: datetime | None = None,
    ) -> None:
        """Send a message; one that names an object, in the background, when the object is there."""
        if ref is None or value is None:
            await sending
        else:
            work = self._go_beside(self._put_and_send(root_task_id, value, sending, dispatched_at), "put-and-send")
            # Where it ends before it sends (a limit, a stop), the sending never began.
            work.add_done_callback(lambda _: sending.close())

    async def _put_and_send(
        self, root_task_id: UUID, value: bytes, sending: Coroutine[Any, Any, None], dispatched_at: datetime | None
    ) -> None:
        waiting = new_id()
        try:
            while True:
                try:
                    await self._objects.put(root_task_id, value)
                    break
                except TooLarge as error:
                    # A limit that was lowered since the value was taken.
                    log.error("outbox.too_large", root_task_id=str(root_task_id), error=str(error))
                    return
                except BusError as error:
                    log.warning("object.waiting", root_task_id=str(root_task_id), error=str(error))
                    if dispatched_at is not None:
                        self._waiting[waiting] = dispatched_at
                    await asyncio.sleep(PUT_AGAIN_SECONDS)
            await sending
        finally:
            self._waiting.pop(waiting, None)

    async def answer(self, run: Run, *, again: bool = False) -> None:
        """Publish a root's final response. `again`: a requester asked for it, so no message id may swallow it."""
        root, task_id = run.root, run.root_task_id
        ref = self._objects.ref(task_id, root.result)
        sending = self._send_answer(
            final_response(root, run.facts, ref),
            task_id,
            run.facts.reply_to,
            message_id=None if again else f"{task_id}:final",
            on_ack=lambda: self._note(task_id),
        )
        await self._behind_its_value(ref, task_id, root.result, sending)

    async def _send_answer(self, body: bytes, task_id: UUID, reply_to: str | None, **options: Any) -> None:
        await self._send(subjects.response(ORCHESTRATOR), body, task_id, **options)
        if reply_to is not None:
            await self._bus.publish_quietly(reply_to, body)

    async def _answer_delegated(self, run: Run, row: Row) -> None:
        """Answer an agent that gave out a task. It asks again when the answer was lost, so nothing is noted."""
        ref = self._objects.ref(row.root_task_id, row.result)
        sending = self._send_answer(final_response(row, run.facts, ref), row.task_id, row.reply_to)
        await self._behind_its_value(ref, row.root_task_id, row.result, sending)

    def _note(self, task_id: UUID) -> None:
        self._answered.append(task_id)
        if self._noting is None or self._noting.done():
            self._noting = asyncio.create_task(self._note_soon(), name="note-answers")

    async def _note_soon(self) -> None:
        await asyncio.sleep(NOTE_EVERY_SECONDS)
        await self.flush()

    async def flush(self) -> None:
        """Note which answers were acknowledged."""
        while self._answered:
            batch, self._answered = self._answered, []
            try:
                await self._store.mark_responded(batch)
            except StoreError as error:
                # They will be answered once more after this process has gone: the same bytes.
                log.warning("answers.not_noted", count=len(batch), error=str(error))
                self._answered += batch
                await asyncio.sleep(1)

    def _go_beside(self, work: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None]":
        task = asyncio.create_task(work, name=name)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)
        return task

    async def close(self) -> None:
        await end([*self._beside, *([self._noting] if self._noting else [])])
        await self._canceller.close()
        if self._answered:
            try:
                await self._store.mark_responded(self._answered)
            except StoreError as error:
                log.debug("answers.not_noted", error=str(error))
