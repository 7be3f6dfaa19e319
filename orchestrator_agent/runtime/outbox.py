"""Outbox: publishes what a committed decision makes known: attempts to agents, final responses, cancels, events.

The rows are the outbox: `dispatched_by` says what a process that died may not have published.
"""

import asyncio
from collections.abc import Callable, Collection, Coroutine
from datetime import datetime
from typing import Any
from uuid import UUID

import structlog

from orchestrator_agent.dispatch.window import Window
from orchestrator_agent.engine.decisions import Decisions
from orchestrator_agent.engine.state import Row, Run
from orchestrator_agent.runtime.attempt_cancellation import AttemptCanceller
from orchestrator_agent.runtime.broker import Broker
from orchestrator_agent.runtime.sweep_signal import SweepSignal
from orchestrator_agent.runtime.wire import attempt_id, final_response, request_headers, task_request
from orchestrator_agent.store.tasks import TaskStore
from pantheon.runtime.background import BackgroundTasks, end
from protocol import subjects
from protocol.errors import BusError, StoreError, TooLarge
from protocol.events import event
from protocol.ids import new_id
from protocol.messages import ObjectRef, now
from protocol.names import ORCHESTRATOR

log = structlog.get_logger()

# Acknowledged responses are noted together; the note only saves a publish after a crash.
NOTE_EVERY_SECONDS = 0.05
# Between two tries to put a large value into an object store that refuses it.
PUT_AGAIN_SECONDS = 1.0
# Of a decision that dispatches more attempts, those to the same agent are published one after the other.
GROUPED_ATTEMPTS = 8

# Records that a root ended: its task type, how many seconds it took, its error.
RecordEnded = Callable[[str, float, str | None], None]


def _agent_of(row: Row) -> str:
    return row.agent or ""


class Outbox:
    """`sweep` is set to the moments at which attempts expire; `source` is the CloudEvents source of this process."""

    def __init__(
        self,
        broker: Broker,
        store: TaskStore,
        *,
        window: Window,
        canceller: AttemptCanceller,
        sweep: SweepSignal,
        source: str,
        record_ended: RecordEnded,
    ) -> None:
        self._bus = broker.bus
        self._publisher = broker.publisher
        self._objects = broker.objects
        self._store = store
        self._window = window
        self._canceller = canceller
        self._sweep = sweep
        self._source = source
        self._record_ended = record_ended
        self._acknowledged: list[UUID] = []
        self._noting: asyncio.Task[None] | None = None
        self._background = BackgroundTasks()
        # Attempts whose large payload the object store refuses for now, and when they were dispatched.
        self._without_payload: dict[UUID, datetime] = {}

    async def start(self) -> None:
        """Nothing to start: it delivers when it is called."""

    async def stop(self) -> None:
        await end([*self._background, *([self._noting] if self._noting else [])])
        if self._acknowledged:
            try:
                await self._store.mark_responded(self._acknowledged)
            except StoreError as error:
                log.debug("responses.not_noted", error=str(error))

    async def deliver(self, run: Run, decisions: Decisions) -> None:
        """Publish all that one committed decision makes known, the final response first."""
        if decisions.root_ended:
            self._count(run.root)
            await self.respond(run)
        for row in decisions.responses:
            await self._respond_to_agent(run, row)
        dispatched: Collection[Row] = decisions.dispatched.values()
        if len(dispatched) > GROUPED_ATTEMPTS:
            # An agent's one after the other: the broker wakes its consumer once for several, which is most of what a
            # message to one of very many agents costs it.
            dispatched = sorted(dispatched, key=_agent_of)
        for row in dispatched:
            self._window.sent(row.agent or "")
            await self.dispatch(run, row, decisions.at)
        for agent, task_id, attempt, reason in decisions.stopped:
            self._background.spawn(self._canceller.cancel(agent, task_id, attempt, reason), "cancel-attempt")
        for entity, name, data in decisions.events:
            await self.publish_event(entity, name, data, decisions.at)
        for moment in decisions.wake_at:
            self._sweep.wake_at(moment)

    def _count(self, root: Row) -> None:
        if root.created_at is not None and root.completed_at is not None:
            seconds = (root.completed_at - root.created_at).total_seconds()
            self._record_ended(root.task_type, seconds, root.error.message if root.error is not None else None)

    # -- events -------------------------------------------------------------------------------------------------------

    async def publish_event(self, entity: str, name: str, data: dict[str, object], at: datetime | None = None) -> None:
        """Publish an event of a moment (None: now); it may be lost, it never fails."""
        await self._bus.publish_quietly(*event(entity, name, self._source, data, at=at))

    async def announce(self, run: Run) -> None:
        """Publish that a root has been accepted."""
        data: dict[str, object] = {"task_id": str(run.root_task_id), "task_type": run.root.task_type}
        if run.facts.session_id is not None:
            data["session_id"] = run.facts.session_id
        await self.publish_event("task", "accepted", data)

    # -- attempts -----------------------------------------------------------------------------------------------------

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
    def unpublished_since(self) -> datetime | None:
        """When the oldest attempt was dispatched whose payload the object store has not taken, for an orchestrator that
        adopts this one."""
        return min(self._without_payload.values(), default=None)

    async def _send(self, subject: str, body: bytes, task_id: UUID, **options: Any) -> None:
        try:
            await self._publisher.send(subject, body, **options)
        except TooLarge as error:
            # What is large travels by reference; only a broker that was reconfigured refuses a message. The attempt
            # expires, and its task fails with that.
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
            work = self._background.spawn(
                self._put_and_send(root_task_id, value, sending, dispatched_at), "put-and-send"
            )
            # Where it ends before it sends (a limit, a stop), the sending never began.
            work.add_done_callback(lambda _: sending.close())

    async def _put_and_send(
        self, root_task_id: UUID, value: bytes, sending: Coroutine[Any, Any, None], dispatched_at: datetime | None
    ) -> None:
        attempt = new_id()
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
                        self._without_payload[attempt] = dispatched_at
                    await asyncio.sleep(PUT_AGAIN_SECONDS)
            await sending
        finally:
            self._without_payload.pop(attempt, None)

    # -- responses ----------------------------------------------------------------------------------------------------

    async def respond(self, run: Run, *, again: bool = False) -> None:
        """Publish a root's final response. `again`: a requester asked for it, so no message id may swallow it."""
        root, task_id = run.root, run.root_task_id
        ref = self._objects.ref(task_id, root.result)
        sending = self._send_response(
            final_response(root, run.facts, ref),
            task_id,
            run.facts.reply_to,
            message_id=None if again else f"{task_id}:final",
            on_ack=lambda: self._note(task_id),
        )
        await self._behind_its_value(ref, task_id, root.result, sending)

    async def _send_response(self, body: bytes, task_id: UUID, reply_to: str | None, **options: Any) -> None:
        await self._send(subjects.response(ORCHESTRATOR), body, task_id, **options)
        if reply_to is not None:
            await self._bus.publish_quietly(reply_to, body)

    async def _respond_to_agent(self, run: Run, row: Row) -> None:
        """Publish the response of a delegated task. Its agent asks again when that was lost, so nothing is noted."""
        ref = self._objects.ref(row.root_task_id, row.result)
        sending = self._send_response(final_response(row, run.facts, ref), row.task_id, row.reply_to)
        await self._behind_its_value(ref, row.root_task_id, row.result, sending)

    def _note(self, task_id: UUID) -> None:
        self._acknowledged.append(task_id)
        if self._noting is None or self._noting.done():
            self._noting = asyncio.create_task(self._note_soon(), name="note-responses")

    async def _note_soon(self) -> None:
        await asyncio.sleep(NOTE_EVERY_SECONDS)
        await self.flush()

    async def flush(self) -> None:
        """Note which responses were acknowledged."""
        while self._acknowledged:
            batch, self._acknowledged = self._acknowledged, []
            try:
                await self._store.mark_responded(batch)
            except StoreError as error:
                # They are published once more after this process has gone: the same bytes.
                log.warning("responses.not_noted", count=len(batch), error=str(error))
                self._acknowledged += batch
                await asyncio.sleep(1)
