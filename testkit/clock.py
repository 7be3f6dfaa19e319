"""Clock: the time of a test's mesh. It stands still until it is moved; what sleeps by it wakes when it is."""

import asyncio
import contextvars
import heapq
import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from protocol.workflow import seconds_of

T = TypeVar("T")

START = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


class MeshWaits:
    """Counts what an attempt waits for that only the mesh can bring: the time, the response of a delegated task."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self.count = 0
        self.on_change = on_change

    def add(self, future: "asyncio.Future[Any]") -> None:
        self.count += 1
        future.add_done_callback(self._over)
        self.on_change()

    def _over(self, _: "asyncio.Future[Any]") -> None:
        self.count -= 1
        self.on_change()


# Of the attempt that the running code belongs to; tasks that a handler starts inherit it.
MESH_WAITS: contextvars.ContextVar[MeshWaits | None] = contextvars.ContextVar("mesh_waits", default=None)


async def await_mesh(future: "asyncio.Future[T]") -> T:
    """Await what only the mesh can bring: the clock moves without waiting for an attempt that does so."""
    waits = MESH_WAITS.get()
    if waits is not None:
        waits.add(future)
    return await future


class Clock:
    def __init__(self, start: datetime) -> None:
        if start.tzinfo is None:
            raise ValueError("a clock starts at a time with a zone: datetime(2026, 1, 31, tzinfo=UTC)")
        self.now = start.astimezone(UTC)
        self._sleepers: list[tuple[datetime, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def seconds(self) -> float:
        """In the manner of `time.monotonic`."""
        return self.now.timestamp()

    async def sleep(self, duration: float | str) -> None:
        await await_mesh(self.alarm(self.now + timedelta(seconds=seconds_of(duration))))

    def alarm(self, moment: datetime) -> "asyncio.Future[None]":
        """A future that is done when the clock is moved to `moment`."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (moment, next(self._order), future))
        return future

    def next_wake(self) -> datetime | None:
        """When the next sleeper wakes."""
        while self._sleepers and self._sleepers[0][2].done():
            heapq.heappop(self._sleepers)
        return self._sleepers[0][0] if self._sleepers else None

    def move_to(self, moment: datetime) -> None:
        """Make it `moment`, never earlier than it is, and wake what sleeps until then."""
        self.now = max(self.now, moment)
        while (wake := self.next_wake()) is not None and wake <= self.now:
            heapq.heappop(self._sleepers)[2].set_result(None)


def moment_of(clock: Clock, duration: "timedelta | float | str") -> datetime:
    if isinstance(duration, timedelta):
        return clock.now + duration
    return clock.now + timedelta(seconds=seconds_of(duration))
