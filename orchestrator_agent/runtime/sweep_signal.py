"""SweepSignal: wakes the reconciler, now or at a moment that is known to come."""

import asyncio
import heapq
from collections.abc import Callable
from datetime import datetime

from protocol.messages import now


class SweepSignal:
    """Made before everything that sets it: the outbox knows when attempts expire, operations what people have changed.

    In memory only: the reconciler's slow sweep finds what nothing woke it for.
    """

    def __init__(self) -> None:
        # Set when there may be something to find; the first sweep comes at once.
        self.woken = asyncio.Event()
        self.woken.set()
        self._moments: list[float] = []
        self._known: set[float] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._unfollow: list[Callable[[], None]] = []

    def follow(self, *sources: Callable[[Callable[[], None]], Callable[[], None]]) -> None:
        """Wake whenever one of these calls back (`Registry.on_change`, `Bus.on_reconnect`), until `cancel`."""
        self._unfollow += [source(self.wake) for source in sources]

    def wake(self) -> None:
        """Sweep at once: something has changed that no moment announced."""
        self.woken.set()

    def wake_at(self, moment: datetime) -> None:
        """Sweep at this moment, if nothing wakes the reconciler before."""
        # To the tenth of a second upwards, and each tenth once: a thousand timeouts are one sweep.
        stamp = round(moment.timestamp() + 0.06, 1)
        if stamp in self._known:
            return
        self._known.add(stamp)
        heapq.heappush(self._moments, stamp)
        if self._moments[0] == stamp:
            self._set_timer()

    def cancel(self) -> None:
        """Forget the moments, follow nothing any more."""
        while self._unfollow:
            self._unfollow.pop()()
        self._moments.clear()
        self._known.clear()
        self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._moments:
            left = max(0.0, self._moments[0] - now().timestamp())
            self._timer = asyncio.get_running_loop().call_later(left, self._on_moment)

    def _on_moment(self) -> None:
        wall = now().timestamp()
        while self._moments and self._moments[0] <= wall:
            self._known.discard(heapq.heappop(self._moments))
            self.woken.set()
        self._timer = None
        self._set_timer()
