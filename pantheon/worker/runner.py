"""Runner: runs the handler of one attempt within its time, and says what came of it as a TaskResponse."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, Protocol
from uuid import UUID

import structlog
from pydantic import ValidationError

from pantheon.bus import Bus, Delivery, Objects
from pantheon.config.agent_config import AgentConfig
from pantheon.worker.attempt_timeout import Timer
from pantheon.worker.context import TaskContext, sayable
from pantheon.worker.declaration import Declaration
from pantheon.worker.slots import Place
from protocol import subjects
from protocol.errors import ErrorCode, InvalidRequest, PantheonError, TaskFailure
from protocol.large import parse_value
from protocol.messages import ErrorInfo, TaskProgress, TaskRequest, TaskResponse, Usage, now, to_bytes

log = structlog.get_logger()


class Observer(Protocol):
    """Whoever counts the work: the `$SRV.STATS` answers, metrics."""

    def record(self, task_type: str, seconds: float, error: str | None = None) -> None: ...


@dataclass
class Running:
    """An attempt at work, and all deliveries of it: its end serves them all."""

    deliveries: list[Delivery]
    work: "asyncio.Task[None]"
    place: Place
    root_task_id: UUID
    # Its cancellation overtook it in the queue.
    cancelled: bool = False
    context: TaskContext | None = None
    stop_reason: str | None = None
    answering: bool = False
    answered: bool = False


class Completed(NamedTuple):
    """An attempt that ended well, where nobody looks at its TaskResponse before it goes out (`answers.spliced`)."""

    result: Any
    usage: Usage | None
    started_at: datetime
    completed_at: datetime


class HandBack(Exception):
    """The attempt was stopped to be given to another instance: there is no answer."""


class Runner:
    def __init__(
        self,
        agent: Declaration,
        bus: Bus,
        objects: Objects,
        *,
        instance_id: str,
        config: Callable[[], AgentConfig],
        observer: Observer | None,
        delegate: Callable[[TaskContext, TaskRequest], Awaitable[Any]] | None,
    ) -> None:
        self._agent = agent
        self._bus = bus
        self._objects = objects
        self._instance_id = instance_id
        self._config = config
        self._observer = observer
        self._delegate = delegate

    async def run(self, request: TaskRequest, running: Running) -> TaskResponse | Completed:
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
            if running.cancelled:
                raise TaskFailure(ErrorCode.CANCELLED, "cancelled before it started")
            result = await self._call(request, context, started_at)
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if running.stop_reason is None or current is None:
                raise
            current.uncancel()
            if running.stop_reason == "hand back":
                raise HandBack from None
            status, error = "cancelled", ErrorInfo(code=ErrorCode.CANCELLED, message=running.stop_reason)
        except Exception as raised:
            running.answering = True
            if not isinstance(raised, PantheonError):
                log.warning(
                    "task.raised",
                    task_id=str(request.task_id),
                    task_type=request.task_type,
                    attempt=request.attempt,
                    exc_info=raised,
                )
            error = error_of(raised)
            status = "cancelled" if error.code == ErrorCode.CANCELLED else "failed"
            await self._call_hooks("error", context, raised)
        running.answering = True
        usage = context.usage if context.usage.model_fields_set else None
        if error is None and not self._agent.has_hooks("after_task"):
            if self._observer is not None:
                self._observer.record(request.task_type, loop.time() - start)
            return Completed(result, usage, started_at, now())
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
            usage=usage,
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
        timer = Timer(limit)
        try:
            with timer:
                if request.payload_ref is not None:
                    request = context.request = await self._whole(request)
                payload = handler.validate(request.payload)
                if self._agent.has_hooks("before_task"):
                    await self._agent.call_hooks("before_task", context)
                return await handler.call(payload, context)
        except TimeoutError as raised:
            if not timer.expired:
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
        return await self._delegate(context, request)

    async def _progress(self, progress: TaskProgress) -> None:
        await self._bus.publish_quietly(subjects.progress(self._agent.name, progress.root_task_id), to_bytes(progress))


def error_of(raised: Exception) -> ErrorInfo:
    """What an exception of a handler is on the wire."""
    if isinstance(raised, PantheonError):
        try:
            return ErrorInfo.of(raised)
        except ValidationError as error:
            log.warning("task.error_invalid", error=str(error))
            return ErrorInfo(
                code=ErrorCode.INTERNAL_ERROR,
                message=sayable(f"{raised.code}: {raised.message}"),
                retryable=bool(raised.retryable),
            )
    message = sayable(f"{type(raised).__name__}: {raised}".strip(": "))
    return ErrorInfo(code=ErrorCode.INTERNAL_ERROR, message=message, retryable=True)
