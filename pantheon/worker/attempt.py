"""Attempt: one attempt at work, the ways it may end, and the observer that counts it."""

import asyncio
import contextlib
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from pantheon.bus import Delivery
from pantheon.worker.attempt_timeout import AttemptTimeout
from pantheon.worker.context import TaskContext
from pantheon.worker.slots import Slot
from protocol.messages import Usage

# A task and the number of its attempt.
Key = tuple[UUID, int]


class AttemptObserver(Protocol):
    """Counts attempts, for `$SRV.STATS` and metrics."""

    def record(self, task_type: str, seconds: float, error: str | None = None) -> None: ...


class Completed(NamedTuple):
    """An attempt that completed, where no hook needs its TaskResponse: it is written without making the model."""

    result: Any
    usage: Usage | None
    started_at: datetime
    completed_at: datetime


class AttemptReturned(Exception):
    """The attempt was stopped so that another instance can run it: there is no response."""


@dataclass
class RunningAttempt:
    """An attempt at work, with all its deliveries: its end serves them all."""

    deliveries: list[Delivery]
    work: "asyncio.Task[None]"
    slot: Slot
    root_task_id: UUID
    # Its cancellation overtook it in the queue.
    cancelled: bool
    context: TaskContext | None = field(default=None, init=False)
    # Other deliveries of the same attempt wait for its end.
    twins: "list[asyncio.Future[None]]" = field(default_factory=list, init=False)
    timeout: AttemptTimeout | None = field(default=None, init=False)
    stopped_at: float | None = field(default=None, init=False)
    stop_reason: str | None = field(default=None, init=False)
    # It is stopped so that another instance can run it.
    returning: bool = field(default=False, init=False)
    # The handler has ended: nothing interrupts the response.
    responding: bool = field(default=False, init=False)
    responded: bool = field(default=False, init=False)
    # The handler is not waited for any more: its deliveries are in the queue again, or were responded to without it.
    returned: bool = field(default=False, init=False)

    @property
    def is_running(self) -> bool:
        """Whether the caller is the attempt's own work: not so where the interpreter closes a coroutine that was left
        behind, and raises GeneratorExit in it."""
        try:
            return asyncio.current_task() is self.work
        except RuntimeError:
            return False

    async def wait_ended(self) -> None:
        """Until it has responded, or was returned."""
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.twins.append(ended)
        await ended

    def end(self) -> None:
        for ended in self.twins:
            if not ended.done():
                ended.set_result(None)

    @property
    def interrupted_at(self) -> float | None:
        """When the handler was cancelled, by an order or as its time was over; by the loop's clock."""
        return self.stopped_at or (self.timeout.expired_at if self.timeout is not None else None)

    async def forget_cancellations(self) -> None:
        """Take back what a handler or a hook has cancelled of its own work, lest it hits the response."""
        while self.work.cancelling():
            self.work.uncancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0)

    def stop(self, reason: str) -> None:
        """Interrupt the handler."""
        self.stop_reason = reason
        self.stopped_at = asyncio.get_running_loop().time()
        if self.context is not None:
            self.context.cancelled = True
        self.work.cancel()
