"""Worker: takes an agent's tasks from its queue, runs the handlers, answers, then acknowledges (PROTOCOL.md).

The order is the guarantee: pull, work (with in-progress acks), publish the TaskResponse and have its ack, ack the task.
A process that dies anywhere in it leaves the task to another instance.
"""

import asyncio
import base64
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Protocol
from uuid import UUID

import structlog
from pydantic import ValidationError

from pantheon.background import end
from pantheon.bus import Bus, Delivery, Objects, Publisher, Puller, acknowledge, hand_back, hold, times_delivered
from pantheon.config.agent_config import AgentConfig
from pantheon.context import TaskContext, sayable
from pantheon.declaration import Declaration
from pantheon.places import Place, Places
from protocol import subjects
from protocol.errors import BusError, ErrorCode, InvalidRequest, PantheonError, TaskFailure, TooLarge
from protocol.ids import new_id
from protocol.large import parse_value
from protocol.messages import (
    DeadLetter,
    ErrorInfo,
    RunningTask,
    TaskProgress,
    TaskRequest,
    TaskResponse,
    json_bytes,
    now,
    parse_request,
    salvage_ids,
    to_bytes,
)
from protocol.streams import IN_PROGRESS_SECONDS, TASKS, task_consumer

log = structlog.get_logger()

# Answers of attempts that were delivered again after they were given: a broker that lost an ack, a redispatch. That
# comes after AckWait, in which an agent of short tasks gives thousands; bounded by bytes, as most are small.
REMEMBERED_ANSWERS = 20_000
REMEMBERED_ANSWER_BYTES = 64 * 1024
REMEMBERED_BYTES = 16 * 1024 * 1024
# A result that the object store does not take just now is kept, and its task, until it does.
STORE_AGAIN_SECONDS = 1.0
# A cancel may overtake its task in the queue; it is remembered this long.
CANCEL_MEMORY_SECONDS = 300.0

Key = tuple[UUID, int]


class Observer(Protocol):
    """Whoever counts the work: the `$SRV.STATS` answers, metrics."""

    def record(self, task_type: str, seconds: float, error: str | None = None) -> None: ...


@dataclass
class _Running:
    """An attempt at work, and all deliveries of it: its end serves them all."""

    deliveries: list[Delivery]
    work: "asyncio.Task[None]"
    place: Place
    root_task_id: UUID
    context: TaskContext | None = None
    stop_reason: str | None = None
    answering: bool = False
    answered: bool = False


class _HandBack(Exception):
    pass


class Worker:
    """Runs up to `max_concurrency` attempts at once; `drain` ends it, finishing or handing back what it holds."""

    def __init__(
        self,
        agent: Declaration,
        bus: Bus,
        publisher: Publisher,
        *,
        instance_id: str,
        max_concurrency: int,
        objects: Objects | None = None,
        config: Callable[[], AgentConfig] | None = None,
        observer: Observer | None = None,
        delegate: Callable[[TaskContext, TaskRequest], Awaitable[Any]] | None = None,
    ) -> None:
        self._agent = agent
        self._bus = bus
        self._publisher = publisher
        self._objects = objects or Objects(bus)
        self._instance_id = instance_id
        self._config = config or (lambda: AgentConfig.of(agent.name, instance_id))
        self._places = Places(max_concurrency)
        self._places.on_change = self._places_changed
        # Told when attempts wait for tasks that they gave out, and there are as many attempts as places.
        self.on_lent: Callable[[], None] = lambda: None
        self._observer = observer
        self._delegate = delegate
        self._puller = Puller(bus, TASKS.name, task_consumer(agent.name), capacity=max_concurrency)
        self._capacity = max_concurrency
        self._running: dict[Key, _Running] = {}
        self._works: set[asyncio.Task[None]] = set()
        self._answers: OrderedDict[Key, bytes] = OrderedDict()
        self._answers_bytes = 0
        self._cancelled: dict[tuple[UUID, int | None], float] = {}
        self._loops: list[asyncio.Task[None]] = []
        # Places came, or messages.
        self._wake = asyncio.Event()
        self._draining = False

    @property
    def max_concurrency(self) -> int:
        return self._places.count

    @property
    def active(self) -> int:
        return len(self._running)

    @property
    def lent(self) -> int:
        """How many attempts wait for tasks that they gave out, where there are as many attempts as places."""
        return self._places.lent if self._places.crowded else 0

    @property
    def running(self) -> tuple[RunningTask, ...]:
        return tuple(
            RunningTask(task_id=task_id, attempt=attempt, root_task_id=running.root_task_id)
            for (task_id, attempt), running in self._running.items()
        )

    async def start(self) -> None:
        self._puller.wake_on(self._wake)
        await self._puller.start()
        self._loops = [
            asyncio.create_task(self._take(), name=f"{self._agent.name}-take"),
            asyncio.create_task(self._hold(), name=f"{self._agent.name}-hold"),
        ]

    async def wait_ready(self) -> None:
        """Until the consumer exists: from then on no task can be missed."""
        await self._puller.wait_ready()

    async def missing(self) -> list[str]:
        """What it lacks to take tasks, for a probe."""
        return [] if self._puller.ready else ["there is no stream to take tasks from yet"]

    def resize(self, max_concurrency: int) -> None:
        """Work on more or fewer attempts at once from now on; what runs goes on."""
        self._places.resize(max_concurrency)

    def _places_changed(self) -> None:
        # At every end of an attempt, and seldom news: the puller wakes by it.
        if (capacity := self._places.count + self._places.lent) != self._capacity:
            self._capacity = capacity
            self._puller.set_capacity(capacity)
        self._wake.set()

    def pause(self) -> None:
        self._puller.pause()

    def resume(self) -> None:
        self._puller.resume()

    def cancel(self, task_id: UUID, attempt: int | None, reason: str) -> None:
        """Stop one task, running or still to come; one that is answering already is left to it."""
        loop = asyncio.get_running_loop()
        self._cancelled[(task_id, attempt)] = loop.time() + CANCEL_MEMORY_SECONDS
        for (running_id, running_attempt), running in self._running.items():
            if running_id == task_id and attempt in (None, running_attempt) and not running.answering:
                if running.stop_reason is not None:
                    # The order is sent more than once; another interruption would hit the handler's cleaning up.
                    continue
                running.stop_reason = reason or "cancelled"
                if running.context is not None:
                    running.context.cancelled = True
                running.work.cancel()

    def _is_cancelled(self, key: Key) -> bool:
        if not self._cancelled:
            return False
        clock = asyncio.get_running_loop().time()
        self._cancelled = {name: until for name, until in self._cancelled.items() if until > clock}
        return key in self._cancelled or (key[0], None) in self._cancelled

    async def drain(self, grace_seconds: float) -> None:
        """Take no more; let what runs finish within the grace, hand the rest back to the queue."""
        self._draining = True
        for delivery in await self._puller.stop():
            await hand_back(delivery)
        for loop_task in self._loops[:1]:
            loop_task.cancel()
        if self._works:
            await asyncio.wait(self._works, timeout=grace_seconds)
        for running in list(self._running.values()):
            if not running.answering:
                running.stop_reason = "hand back"
                if running.context is not None:
                    running.context.cancelled = True
                running.work.cancel()
        if self._works:
            await asyncio.wait(self._works, timeout=5)
        await end(self._loops)

    async def _take(self) -> None:
        while not self._draining:
            # As many as there are places at this moment: the server may send more than was asked for last, where
            # requests overlap (after a reconnect, say), and an attempt that had lent its place may have it back.
            self._wake.clear()
            deliveries = self._puller.take_now(self._places.free)
            if not deliveries:
                await self._wake.wait()
            for delivery in deliveries:
                place = self._places.take()
                work = asyncio.create_task(self._work(delivery, place), name=f"{self._agent.name}-work")
                self._works.add(work)
                work.add_done_callback(partial(self._finished, place))

    def _finished(self, place: Place, work: "asyncio.Task[None]") -> None:
        self._works.discard(work)
        self._puller.release()
        place.leave()
        if not work.cancelled() and (error := work.exception()) is not None:
            log.error("worker.failed", error=repr(error), exc_info=error)

    async def _hold(self) -> None:
        """In-progress acks for all that runs, so that a long task is not given to another instance."""
        while True:
            await asyncio.sleep(IN_PROGRESS_SECONDS)
            running = [delivery for one in self._running.values() for delivery in one.deliveries]
            for delivery in [*running, *self._puller.waiting]:
                await hold(delivery)

    async def _work(self, delivery: Delivery, place: Place) -> None:
        try:
            request = parse_request(delivery.data)
        except InvalidRequest as error:
            await self._refuse(delivery, error)
            return
        key = (request.task_id, request.attempt)
        if (twin := self._running.get(key)) is not None:
            # The same attempt delivered again while it runs. It may be a message of its own (said again after a loss),
            # which nothing but its own in-progress acks keeps from being given out until it counts as poison.
            twin.deliveries.append(delivery)
            await asyncio.wait({twin.work})
            await (acknowledge if twin.answered else hand_back)(delivery)
            return
        if (answer := self._answers.get(key)) is not None:
            await self._answer(request, answer, message_id=None)
            await acknowledge(delivery)
            return
        current = asyncio.current_task()
        assert current is not None
        running = self._running[key] = _Running([delivery], current, place, request.root_task_id or request.task_id)
        try:
            response = await self._respond(request, running)
            body = await self._body(request, response)
            try:
                await self._answer(request, body, message_id=f"{request.task_id}:{request.attempt}:response")
            except TooLarge as error:
                body = to_bytes(self._failed(request, error))
                await self._answer(request, body, message_id=f"{request.task_id}:{request.attempt}:response")
            self._remember(key, body)
            running.answered = True
            await acknowledge(delivery)
        except _HandBack:
            await hand_back(delivery)
        finally:
            del self._running[key]

    async def _respond(self, request: TaskRequest, running: _Running) -> TaskResponse:
        """Run the handler to its end, whatever that is. From here on nothing interrupts the answer."""
        loop = asyncio.get_running_loop()
        started_at, start = now(), loop.time()
        context = running.context = TaskContext(
            request,
            agent=self._agent.name,
            publish_progress=self._progress,
            config=self._config(),
            delegate=self._delegated,
        )
        result: Any = None
        error: ErrorInfo | None = None
        status = "completed"
        try:
            if self._is_cancelled((request.task_id, request.attempt)):
                raise TaskFailure(ErrorCode.CANCELLED, "cancelled before it started")
            result = await self._call(request, context, started_at)
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if running.stop_reason is None or current is None:
                raise
            current.uncancel()
            if running.stop_reason == "hand back":
                raise _HandBack from None
            status, error = "cancelled", ErrorInfo(code=ErrorCode.CANCELLED, message=running.stop_reason)
        except Exception as raised:
            running.answering = True
            error = self._error_of(request, raised)
            status = "cancelled" if error.code == ErrorCode.CANCELLED else "failed"
            await self._call_hooks("error", context, raised)
        running.answering = True
        response = TaskResponse(
            task_id=request.task_id,
            root_task_id=context.root_task_id,
            task_type=request.task_type,
            agent=self._agent.name,
            attempt=request.attempt,
            status=status,  # type: ignore[arg-type]
            result=result,
            error=error,
            instance_id=self._instance_id,
            usage=context.usage if context.usage.model_fields_set else None,
            started_at=started_at,
            completed_at=now(),
        )
        await self._call_hooks("after_task", context, response)
        if self._observer is not None:
            self._observer.record(request.task_type, loop.time() - start, error.message if error else None)
        return response

    async def _call(self, request: TaskRequest, context: TaskContext, started_at: datetime) -> Any:
        handler = self._agent.handlers.get(request.task_type)
        if handler is None:
            known = ", ".join(self._agent.task_types) or "nothing"
            raise TaskFailure(
                ErrorCode.UNKNOWN_TASK_TYPE,
                f"{self._agent.name} does not serve '{request.task_type}'; it serves {known}",
                # Another version of the agent, in the middle of a rolling update, may.
                retryable=True,
            )
        named = "timeout_seconds" in request.model_fields_set
        limit = request.timeout_seconds if named else context.config.task_timeout_seconds
        limit = min(limit, handler.timeout_seconds or limit)
        if request.deadline is not None:
            limit = min(limit, (request.deadline - started_at).total_seconds())
            if limit <= 0:
                raise TaskFailure(ErrorCode.DEADLINE_EXCEEDED, f"the deadline {request.deadline} has passed")
        timer = asyncio.timeout(limit)
        try:
            async with timer:
                if request.payload_ref is not None:
                    request = context.request = await self._whole(request)
                payload = handler.validate(request.payload)
                if self._agent.has_hooks("before_task"):
                    await self._agent.call_hooks("before_task", context)
                return await handler.call(payload, context)
        except TimeoutError as raised:
            if not timer.expired():
                raise
            context.cancelled = True
            raise TaskFailure(
                ErrorCode.TIMEOUT, f"'{request.task_type}' did not end within {limit:g} s", retryable=True
            ) from raised

    async def _whole(self, request: TaskRequest) -> TaskRequest:
        """A request with the payload that its reference stands for. Raises InvalidRequest, BusError."""
        assert request.payload_ref is not None
        body = await self._objects.get(request.payload_ref)
        payload = parse_value(body, request.payload_ref, "payload")
        if not isinstance(payload, dict):
            raise InvalidRequest("payload: must be an object", field="payload")
        return request.model_copy(update={"payload": payload, "payload_ref": None})

    def _error_of(self, request: TaskRequest, raised: Exception) -> ErrorInfo:
        if isinstance(raised, PantheonError):
            try:
                return ErrorInfo.of(raised)
            except ValidationError as error:
                log.warning("task.error_invalid", task_type=request.task_type, error=str(error))
                return ErrorInfo(
                    code=ErrorCode.INTERNAL_ERROR,
                    message=sayable(f"{raised.code}: {raised.message}"),
                    retryable=bool(raised.retryable),
                )
        log.warning(
            "task.raised",
            task_id=str(request.task_id),
            task_type=request.task_type,
            attempt=request.attempt,
            exc_info=raised,
        )
        return ErrorInfo(
            code=ErrorCode.INTERNAL_ERROR,
            message=sayable(f"{type(raised).__name__}: {raised}".strip(": ")),
            retryable=True,
        )

    async def _call_hooks(self, moment: str, *arguments: Any) -> None:
        """Hooks that look on must not change the outcome."""
        if not self._agent.has_hooks(moment):
            return
        try:
            await self._agent.call_hooks(moment, *arguments)
        except Exception as error:
            log.warning("hook.raised", hook=moment, agent=self._agent.name, exc_info=error)

    async def _delegated(self, context: TaskContext, request: TaskRequest) -> Any:
        if self._delegate is None:
            raise PantheonError("this process has no mesh to delegate to")
        if self._agent.has_hooks("delegation"):
            await self._agent.call_hooks("delegation", context, request)
        running = self._running.get((context.task_id, context.attempt))
        if running is None:
            raise PantheonError("the attempt that this context is of has ended")
        async with running.place.lent():
            if self.lent:
                self.on_lent()
            return await self._delegate(context, request)

    async def _progress(self, progress: TaskProgress) -> None:
        await self._bus.publish_quietly(subjects.progress(self._agent.name, progress.root_task_id), to_bytes(progress))

    async def _answer(self, request: TaskRequest, body: bytes, *, message_id: str | None) -> None:
        await self._publisher.publish(subjects.response(self._agent.name), body, message_id=message_id)
        if request.reply_to is not None:
            await self._bus.publish_quietly(request.reply_to, body)

    async def _body(self, request: TaskRequest, response: TaskResponse) -> bytes:
        """A response as JSON, a large result by reference; what JSON cannot carry (a lone surrogate, an object in
        details) is an error of its own, because a task that is not answered is run again and again."""
        try:
            body = to_bytes(response)
            if not self._objects.is_large(body):
                return body
            return await self._by_reference(request, response, body)
        except (ValueError, TypeError) as error:
            log.warning("task.unsayable", task_id=str(request.task_id), task_type=request.task_type, error=str(error))
            what = "result" if response.error is None else f"error {sayable(response.error.code)}"
            message = f"the {what} of '{request.task_type}' cannot be written as JSON: {sayable(error)}"
            return to_bytes(self._failed(request, PantheonError(message)))

    async def _by_reference(self, request: TaskRequest, response: TaskResponse, body: bytes) -> bytes:
        result = json_bytes(response.result)
        while True:
            try:
                ref = await self._objects.put_large(response.root_task_id, result)
            except TooLarge as error:
                message = f"the result of '{request.task_type}': {error}"
                return to_bytes(self._failed(request, TooLarge(message)))
            except BusError as error:
                log.warning("result.waiting", task_id=str(request.task_id), error=str(error))
                await asyncio.sleep(STORE_AGAIN_SECONDS)
            else:
                if ref is None:
                    return body
                return to_bytes(response.model_copy(update={"result": None, "result_ref": ref}))

    def _failed(self, request: TaskRequest, error: PantheonError) -> TaskResponse:
        return TaskResponse(
            task_id=request.task_id,
            root_task_id=request.root_task_id or request.task_id,
            task_type=request.task_type,
            agent=self._agent.name,
            attempt=request.attempt,
            status="failed",
            error=ErrorInfo.of(error),
            instance_id=self._instance_id,
            completed_at=now(),
        )

    def _remember(self, key: Key, body: bytes) -> None:
        if len(body) > REMEMBERED_ANSWER_BYTES:
            return
        self._answers_bytes += len(body) - len(self._answers.pop(key, b""))
        self._answers[key] = body
        while len(self._answers) > REMEMBERED_ANSWERS or self._answers_bytes > REMEMBERED_BYTES:
            self._answers_bytes -= len(self._answers.popitem(last=False)[1])

    async def _refuse(self, delivery: Delivery, error: InvalidRequest) -> None:
        """Answer what has an id, keep the rest as a dead letter; either way the queue moves on."""
        known = salvage_ids(delivery.data)
        if "task_id" in known:
            response = TaskResponse(
                task_id=known["task_id"],
                root_task_id=known.get("root_task_id", known["task_id"]),
                task_type=known.get("task_type", ""),
                agent=self._agent.name,
                attempt=known.get("attempt", 1),
                status="failed",
                error=ErrorInfo.of(error),
                instance_id=self._instance_id,
                completed_at=now(),
            )
            body = to_bytes(response)
            await self._publisher.publish(subjects.response(self._agent.name), body)
            if "reply_to" in known:
                await self._bus.publish_quietly(known["reply_to"], body)
        else:
            await publish_dead_letter(self._publisher, self._agent.name, delivery, "not a TaskRequest", str(error))
        await acknowledge(delivery)


async def publish_dead_letter(
    publisher: Publisher,
    name: str,
    delivery: Delivery,
    reason: str,
    error: str,
    task_id: UUID | None = None,
    *,
    deliveries: int | None = None,
) -> None:
    """Keep a message that nobody can use, whole, on `mesh.deadletter.<name>`."""
    if deliveries is None:
        deliveries = times_delivered(delivery)
    letter = DeadLetter(
        id=new_id(),
        subject=delivery.subject,
        reason=reason,
        error=error,
        body_base64=base64.b64encode(delivery.data).decode(),
        headers={name: str(value) for name, value in (delivery.headers or {}).items()},
        task_id=task_id,
        deliveries=deliveries,
        at=now(),
    )
    log.warning("deadletter", subject=delivery.subject, reason=reason, error=error)
    try:
        await publisher.publish(subjects.dead_letter(name), to_bytes(letter), message_id=str(letter.id))
    except TooLarge:
        # A message nearly as large as the broker's limit does not fit once encoded: keep what can be kept of it.
        body = base64.b64encode(delivery.data[: len(delivery.data) // 2]).decode()
        cut = letter.model_copy(update={"body_base64": body, "error": f"{error} (body cut to its first half)"})
        await publisher.publish(subjects.dead_letter(name), to_bytes(cut), message_id=str(letter.id))
