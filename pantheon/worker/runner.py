"""Runner: runs the handler of one attempt within its time, and returns how it ended."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

import structlog

from pantheon.bus import Transport
from pantheon.config.agent_config import AgentConfig
from pantheon.worker.attempt import AttemptObserver, AttemptReturned, Completed, RunningAttempt
from pantheon.worker.attempt_timeout import AttemptTimeout
from pantheon.worker.context import TaskContext, as_unicode
from pantheon.worker.declaration import Declaration
from pantheon.worker.response_form import ResponseForm
from protocol import subjects
from protocol.errors import ErrorCode, InvalidRequest, PantheonError, TaskFailure
from protocol.large import parse_value
from protocol.messages import ErrorInfo, TaskProgress, TaskRequest, TaskResponse, now, to_bytes

log = structlog.get_logger()

Delegate = Callable[[TaskContext, TaskRequest], Awaitable[Any]]


class Runner:
    """Runs handlers and the agent's hooks around them. `config` is read at the start of each attempt."""

    def __init__(
        self,
        agent: Declaration,
        transport: Transport,
        form: ResponseForm,
        *,
        config: Callable[[], AgentConfig],
        observer: AttemptObserver | None,
        delegate: Delegate | None,
    ) -> None:
        self._agent = agent
        self._bus = transport.bus
        self._objects = transport.objects
        self._form = form
        self._config = config
        self._observer = observer
        self._delegate = delegate

    async def run(self, request: TaskRequest, running: RunningAttempt) -> TaskResponse | Completed:
        """Run the handler to its end, whatever that is; from then on nothing interrupts the response.

        A cancellation without a `stop_reason` is the handler's own: it cancelled itself, or awaited what was cancelled.
        Raises AttemptReturned when the attempt was stopped to be run by another instance.
        """
        loop = asyncio.get_running_loop()
        started_at, start = now(), loop.time()
        context = running.context = TaskContext(
            request,
            agent=self._agent.name,
            publish_progress=self._publish_progress,
            config=self._config(),
            delegate=self._delegate_checked,
        )
        result: Any = None
        error: ErrorInfo | None = None
        status = "completed"
        try:
            if running.cancelled:
                raise TaskFailure(ErrorCode.CANCELLED, "cancelled before it started")
            result = await self._call(request, running, context, started_at)
        except BaseException as raised:
            if isinstance(raised, asyncio.CancelledError) and running.stop_reason is not None:
                running.work.uncancel()
                if running.returning:
                    raise AttemptReturned from None
                status, error = "cancelled", ErrorInfo(code=ErrorCode.CANCELLED, message=running.stop_reason)
            elif isinstance(raised, GeneratorExit) and not running.is_running:
                raise
            else:
                running.responding = True
                status, error = await self._failed(request, running, context, raised)
        running.responding = True
        if running.work.cancelling():
            await running.forget_cancellations()
        usage = context.usage if context.usage.model_fields_set else None
        if error is None and not self._agent.has_hooks("after_task"):
            if self._observer is not None:
                self._observer.record(request.task_type, loop.time() - start)
            return Completed(result, usage, started_at, now())
        response = self._form.of(
            request,
            status=status,
            result=result,
            error=error,
            usage=usage,
            started_at=started_at,
            completed_at=now(),
        )
        await self._call_hooks("after_task", context, response)
        if running.work.cancelling():
            await running.forget_cancellations()
        if self._observer is not None:
            self._observer.record(request.task_type, loop.time() - start, error.message if error else None)
        return response

    async def _failed(
        self, request: TaskRequest, running: RunningAttempt, context: TaskContext, raised: BaseException
    ) -> tuple[str, ErrorInfo]:
        if not isinstance(raised, PantheonError):
            log.warning(
                "task.raised",
                task_id=str(request.task_id),
                task_type=request.task_type,
                attempt=request.attempt,
                exc_info=raised,
            )
        error = error_of(raised)
        if running.work.cancelling():
            await running.forget_cancellations()
        await self._call_hooks("error", context, raised)
        return "cancelled" if error.code == ErrorCode.CANCELLED else "failed", error

    async def _call(
        self, request: TaskRequest, running: RunningAttempt, context: TaskContext, started_at: datetime
    ) -> Any:
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
        seconds = request.timeout_seconds if named else context.config.task_timeout_seconds
        seconds = min(seconds, handler.timeout_seconds or seconds)
        if request.deadline is not None:
            seconds = min(seconds, (request.deadline - started_at).total_seconds())
            if seconds <= 0:
                raise TaskFailure(ErrorCode.DEADLINE_EXCEEDED, f"the deadline {request.deadline} has passed")
        timeout = running.timeout = AttemptTimeout(seconds)
        try:
            with timeout:
                if request.payload_ref is not None:
                    request = context.request = await self._with_payload(request)
                payload = handler.validate(request.payload)
                if self._agent.has_hooks("before_task"):
                    await self._agent.call_hooks("before_task", context)
                return await handler.call(payload, context)
        except TimeoutError as raised:
            if not timeout.expired:
                raise
            context.cancelled = True
            raise TaskFailure(
                ErrorCode.TIMEOUT, f"'{request.task_type}' did not end within {seconds:g} s", retryable=True
            ) from raised

    async def _with_payload(self, request: TaskRequest) -> TaskRequest:
        """A request with the payload that its reference stands for. Raises InvalidRequest, BusError."""
        assert request.payload_ref is not None
        body = await self._objects.get(request.payload_ref)
        payload = parse_value(body, request.payload_ref, "payload")
        if not isinstance(payload, dict):
            raise InvalidRequest("payload: must be an object", field="payload")
        return request.model_copy(update={"payload": payload, "payload_ref": None})

    async def _call_hooks(self, moment: str, *arguments: Any) -> None:
        """Call hooks that only observe: an error in one must not change the outcome."""
        if not self._agent.has_hooks(moment):
            return
        try:
            await self._agent.call_hooks(moment, *arguments)
        except GeneratorExit:
            raise
        except BaseException as error:
            # Also a CancelledError: nothing interrupts an attempt whose handler has ended.
            log.warning("hook.raised", hook=moment, agent=self._agent.name, exc_info=error)

    async def _delegate_checked(self, context: TaskContext, request: TaskRequest) -> Any:
        if self._delegate is None:
            raise PantheonError("this process has no mesh to delegate to")
        if self._agent.has_hooks("delegation"):
            await self._agent.call_hooks("delegation", context, request)
        return await self._delegate(context, request)

    async def _publish_progress(self, progress: TaskProgress) -> None:
        await self._bus.publish_quietly(subjects.progress(self._agent.name, progress.root_task_id), to_bytes(progress))


def error_of(raised: BaseException) -> ErrorInfo:
    """What a handler raised, of whatever kind, as the error of its response."""
    if isinstance(raised, PantheonError):
        try:
            return ErrorInfo.of(raised)
        except (ValueError, AttributeError) as error:
            log.warning("task.error_invalid", error=as_unicode(error))
            return ErrorInfo(
                code=ErrorCode.INTERNAL_ERROR,
                message=f"{as_unicode(raised.code)}: {as_unicode(getattr(raised, 'message', raised))}",
                retryable=bool(raised.retryable),
            )
    text = as_unicode(raised)
    if isinstance(raised, asyncio.CancelledError):
        text = text or "the handler cancelled itself, or awaited a task that was cancelled"
    message = f"{type(raised).__name__}: {text}".strip(": ")
    return ErrorInfo(code=ErrorCode.INTERNAL_ERROR, message=as_unicode(message), retryable=True)
