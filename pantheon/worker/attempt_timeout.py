"""AttemptTimeout: bounds how long the current task may take; `asyncio.timeout` in a third of its time."""

import asyncio
from types import TracebackType
from typing import Self


class AttemptTimeout:
    """`with AttemptTimeout(seconds) as limit:` cancels what is awaited inside when the time is over, and raises
    TimeoutError instead. A cancellation by another task stays one, as with `asyncio.timeout`; the limit cannot be
    moved. `expired_at` is by the loop's clock."""

    __slots__ = ("_before", "_handle", "_task", "expired", "expired_at")

    def __init__(self, seconds: float) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._before = task.cancelling()
        self.expired = False
        self.expired_at: float | None = None
        self._handle = asyncio.get_running_loop().call_later(seconds, self._expire)

    def _expire(self) -> None:
        self.expired = True
        self.expired_at = asyncio.get_running_loop().time()
        self._task.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._handle.cancel()
        if self.expired and self._task.uncancel() <= self._before and isinstance(error, asyncio.CancelledError):
            raise TimeoutError from error
