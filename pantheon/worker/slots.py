"""Places: how many attempts an instance works on at once. One that waits for a task it gave out lends its place.

Without that, an agent whose tasks give out tasks which it serves itself would wait for itself: all its places are
taken by those that wait for what only a free place can bring.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable

# Each attempt that waits keeps its memory, and one of the 10,000 messages that may be unacknowledged at the agent's
# consumer. Beyond it they keep their places, and may wait for themselves until their time is over.
LENT_LIMIT = 4000


class Places:
    """Whoever wants a place back that was lent has it before anything new."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._taken = 0
        self._back: deque[asyncio.Future[None]] = deque()
        # Attempts that wait, and have no place meanwhile.
        self._lent = 0
        # Told when places came, went, or were lent.
        self.on_change: Callable[[], None] = lambda: None

    @property
    def count(self) -> int:
        return self._count

    @property
    def free(self) -> int:
        """Places that something new may take."""
        return self._count - self._taken - len(self._back)

    @property
    def lent(self) -> int:
        return self._lent

    @property
    def crowded(self) -> bool:
        """Whether there are as many attempts as places, those that wait counted."""
        return self._taken + self._lent >= self._count

    def resize(self, count: int) -> None:
        self._count = count
        self._hand_out()

    def take(self) -> "Place":
        """A place for one attempt; one too many where none is free."""
        self._taken += 1
        return Place(self)

    def leave(self, *, lent: bool) -> None:
        """The end of an attempt."""
        if lent:
            self._lent -= 1
        else:
            self._taken -= 1
        self._hand_out()

    def lend(self) -> bool:
        """False where so many wait that this attempt keeps its place."""
        if self._lent >= LENT_LIMIT:
            return False
        self._lent += 1
        self._taken -= 1
        self._hand_out()
        return True

    async def take_back(self) -> None:
        """As soon as there is one."""
        if self.free > 0:
            self.take_back_now()
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._back.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.cancelled():
                with contextlib.suppress(ValueError):
                    self._back.remove(place)
                self.take_back_now()
            raise

    def take_back_now(self) -> None:
        """One too many if need be: an attempt that is interrupted cleans up, and ends."""
        self._lent -= 1
        self._taken += 1
        self.on_change()

    def _hand_out(self) -> None:
        while self._back and self._taken < self._count:
            place = self._back.popleft()
            if not place.done():
                self._lent -= 1
                self._taken += 1
                place.set_result(None)
        self.on_change()


class Place:
    """One attempt's place."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._waits = 0
        self._lent = False

    @contextlib.asynccontextmanager
    async def lent(self) -> AsyncIterator[None]:
        """While the attempt waits for a task that it gave out; for several at once, until it has the last of them."""
        self._waits += 1
        self._lent = self._lent or self._places.lend()
        interrupted = False
        try:
            yield
        except asyncio.CancelledError:
            interrupted = True
            raise
        finally:
            self._waits -= 1
            if self._lent and not self._waits:
                self._lent = False
                if interrupted:
                    self._places.take_back_now()
                else:
                    await self._places.take_back()

    def leave(self) -> None:
        """The attempt has ended, though it may have left something behind that still waits."""
        lent, self._lent = self._lent, False
        self._places.leave(lent=lent)
