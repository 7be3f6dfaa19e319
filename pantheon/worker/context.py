"""TaskContext: what a handler can read, report and delegate while it works on one attempt of one task."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any
from uuid import UUID

import structlog

from protocol.errors import PantheonError
from protocol.ids import new_id, step_task_id
from protocol.messages import TaskProgress, TaskRequest, Usage, now

if TYPE_CHECKING:
    from pantheon.config.agent_config import AgentConfig

# Handlers report as often as they like; a person who watches sees no more than this many messages a second.
PROGRESS_MIN_INTERVAL_SECONDS = 0.05
# Of streamed text in one message. With four bytes each at worst, six escaped, they stay far below a broker's limit.
STREAM_CHARS = 50_000


def as_unicode(text: object) -> str:
    """Any text as Unicode that JSON can carry: halves of surrogate pairs, as file names may hold, are replaced. An
    object whose `__str__` raises is named by its type."""
    try:
        shown = str(text)
    except BaseException:
        shown = f"<{type(text).__name__} without a text>"
    return shown.encode("utf-8", "replace").decode()


class TaskContext:
    """The argument of a handler for its parameter that is annotated with it.

    `idempotency_key` is the same over all attempts of one task: pass it to every service whose effect must not happen
    twice.
    """

    def __init__(
        self,
        request: TaskRequest,
        *,
        agent: str,
        publish_progress: Callable[[TaskProgress], Awaitable[None]],
        config: "AgentConfig | None" = None,
        delegate: Callable[["TaskContext", TaskRequest], Awaitable[Any]] | None = None,
    ) -> None:
        self.request = request
        self.agent = agent
        self._config = config
        self.usage = Usage()
        self.cancelled = False
        self._publish_progress = publish_progress
        self._delegate = delegate
        self._delegations = 0
        self._last_progress_at = 0.0

    @property
    def config(self) -> "AgentConfig":
        """The agent's configuration when the attempt began; `ctx.config.option("tone")` for settings of one's own."""
        if self._config is None:
            # Late: declaring an agent should not import NATS's client library.
            from pantheon.config.agent_config import AgentConfig

            self._config = AgentConfig.of(self.agent, "local")
        return self._config

    @cached_property
    def log(self) -> structlog.stdlib.BoundLogger:
        """A logger that names the task; made at its first use, since most attempts log nothing."""
        bound: structlog.stdlib.BoundLogger = structlog.get_logger().bind(
            task_id=str(self.request.task_id), task_type=self.request.task_type, attempt=self.request.attempt
        )
        return bound

    @property
    def task_id(self) -> UUID:
        return self.request.task_id

    @property
    def root_task_id(self) -> UUID:
        return self.request.root_task_id or self.request.task_id

    @property
    def task_type(self) -> str:
        return self.request.task_type

    @property
    def attempt(self) -> int:
        return self.request.attempt

    @property
    def session_id(self) -> str | None:
        return self.request.session_id

    @property
    def deadline(self) -> datetime | None:
        return self.request.deadline

    @property
    def metadata(self) -> dict[str, str]:
        return self.request.metadata

    @property
    def idempotency_key(self) -> str:
        return self.request.idempotency_key or f"{self.root_task_id}:{self.task_id}"

    async def progress(self, percent: float | None = None, message: str = "") -> None:
        """Report how far the task is, 0 to 100; may be lost, never fails. Very frequent calls are thinned out."""
        clock = asyncio.get_running_loop().time()
        final = percent is not None and percent >= 100
        if clock - self._last_progress_at < PROGRESS_MIN_INTERVAL_SECONDS and not final and not message:
            return
        self._last_progress_at = clock
        if percent is not None:
            percent = None if math.isnan(percent) else min(100.0, max(0.0, float(percent)))
        await self._publish_progress(self._progress(percent=percent, message=as_unicode(message)))

    async def stream(self, text: str) -> None:
        """Stream a piece of output, which watchers append to the one before; the result must still hold the whole."""
        for start in range(0, len(text), STREAM_CHARS):
            await self._publish_progress(self._progress(text=as_unicode(text[start : start + STREAM_CHARS])))

    def _progress(self, *, percent: float | None = None, message: str = "", text: str = "") -> TaskProgress:
        return TaskProgress(
            task_id=self.task_id,
            root_task_id=self.root_task_id,
            step=self.metadata.get("step"),
            agent=self.agent,
            percent=percent,
            message=message,
            text=text,
            at=now(),
        )

    def report_usage(self, input_tokens: int = 0, output_tokens: int = 0, cost_usd: float = 0.0) -> None:
        """Add to what this attempt has consumed; the sum travels in the TaskResponse, failed ones included."""
        self.usage = self.usage + Usage(input_tokens=input_tokens, output_tokens=output_tokens, cost_usd=cost_usd)

    def raise_if_cancelled(self) -> None:
        """For handlers that run in a thread, which cannot be interrupted: raises asyncio.CancelledError."""
        if self.cancelled:
            raise asyncio.CancelledError(f"task {self.task_id} was cancelled")

    async def run(
        self, task_type: str, payload: dict[str, Any] | None = None, *, timeout_seconds: float | None = None
    ) -> Any:
        """Delegate a task to an agent, or a workflow, that serves `task_type`; returns its result.

        The n-th delegation of every attempt of this task has the same id, so a retried attempt gets the first one's
        outcome instead of running it twice. Raises TaskFailed.
        """
        if self._delegate is None:
            raise PantheonError("this context has no mesh to delegate to")
        self._delegations += 1
        options: dict[str, Any] = {} if timeout_seconds is None else {"timeout_seconds": timeout_seconds}
        request = TaskRequest(
            task_id=step_task_id(self.task_id, f"run:{task_type}", 0, self._delegations),
            task_type=task_type,
            payload=payload or {},
            requester=self.agent,
            tenant=self.request.tenant,
            parent_task_id=self.task_id,
            root_task_id=self.root_task_id,
            session_id=self.session_id,
            priority=self.request.priority,
            deadline=self.deadline,
            **options,
        )
        return await self._delegate(self, request)


class LocalTaskContext(TaskContext):
    """A context without a mesh, for tests of handlers: it records progress and streamed text."""

    def __init__(self, task_type: str = "test", **fields: Any) -> None:
        self.progress_messages: list[TaskProgress] = []
        self.streamed = ""
        request = TaskRequest(task_id=fields.pop("task_id", new_id()), task_type=task_type, **fields)
        super().__init__(request, agent="test_agent", publish_progress=self._record)

    async def _record(self, progress: TaskProgress) -> None:
        if progress.text:
            self.streamed += progress.text
        else:
            self.progress_messages.append(progress)
