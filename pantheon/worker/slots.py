"""Slots: how many attempts an instance works on at once; an attempt that waits for a delegated task releases its slot.

Without that, an agent whose tasks delegate tasks which it serves itself would wait for itself: all its slots would be
taken by attempts that wait for what only a free slot can bring.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable

# Each attempt that waits keeps its memory, and one of the 10,000 messages that may be unacknowledged at the agent's
# consumer. Attempts beyond this many keep their slots, and may wait for themselves until their time is over.
RELEASED_LIMIT = 4000


class Slots:
    """The slots of one instance. An attempt that needs its released slot again has it before anything new.

    `on_change` is called whenever slots were taken, freed or released.
    """

    def __init__(self, count: int, on_change: Callable[[], None], *, released_limit: int = RELEASED_LIMIT) -> None:
        self._count = count
        self._on_change = on_change
        self._released_limit = released_limit
        self._taken = 0
        self._released = 0
        # Attempts that need their slots again, the first one first.
        self._returning: deque[asyncio.Future[None]] = deque()

    @property
    def count(self) -> int:
        return self._count

    @property
    def free(self) -> int:
        """Slots that a new attempt may take."""
        return self._count - self._taken - len(self._returning)

    @property
    def released(self) -> int:
        """Attempts that wait for a task they delegated, and have no slot meanwhile."""
        return self._released

    @property
    def crowded(self) -> bool:
        """Whether there are as many attempts as slots, counting those that released theirs."""
        return self._taken + self._released >= self._count

    def resize(self, count: int) -> None:
        self._count = count
        self._assign()

    def take(self) -> "Slot":
        """Take a slot for one attempt, also where none is free."""
        self._taken += 1
        return Slot(self)

    def end(self, *, released: bool) -> None:
        """Free the slot of an attempt that has ended, whether or not it had released it."""
        if released:
            self._released -= 1
        else:
            self._taken -= 1
        self._assign()

    def release(self) -> bool:
        """Free the slot of an attempt that waits. False where so many wait that the attempt keeps its slot."""
        if self._released >= self._released_limit:
            return False
        self._released += 1
        self._taken -= 1
        self._assign()
        return True

    async def reacquire(self) -> None:
        """Take a slot again for an attempt that goes on, as soon as there is one."""
        if self.free > 0:
            self.reacquire_now()
            return
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._returning.append(granted)
        try:
            await granted
        except asyncio.CancelledError:
            if granted.cancelled():
                with contextlib.suppress(ValueError):
                    self._returning.remove(granted)
                self.reacquire_now()
            raise

    def reacquire_now(self) -> None:
        """Take a slot again, also where none is free: an attempt that is interrupted cleans up, and ends."""
        self._released -= 1
        self._taken += 1
        self._on_change()

    def _assign(self) -> None:
        while self._returning and self._taken < self._count:
            granted = self._returning.popleft()
            if not granted.done():
                self._released -= 1
                self._taken += 1
                granted.set_result(None)
        self._on_change()


class Slot:
    """One attempt's slot."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._waits = 0
        self._is_released = False

    @contextlib.asynccontextmanager
    async def released(self) -> AsyncIterator[None]:
        """Release the slot while the attempt waits for a task that it delegated; of several at once, until the last."""
        self._waits += 1
        self._is_released = self._is_released or self._slots.release()
        interrupted = False
        try:
            yield
        except asyncio.CancelledError:
            interrupted = True
            raise
        finally:
            self._waits -= 1
            if self._is_released and not self._waits:
                self._is_released = False
                if interrupted:
                    self._slots.reacquire_now()
                else:
                    await self._slots.reacquire()

    def end(self) -> None:
        """Free the slot: the attempt has ended, though a part of it may still wait."""
        released, self._is_released = self._is_released, False
        self._slots.end(released=released)
