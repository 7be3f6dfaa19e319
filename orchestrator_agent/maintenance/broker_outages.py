"""Outages: when this process did not reach the broker, so that what nobody could say then is held against nobody.

While the broker is away no attempt can end but by its own clock, and for a moment afterwards everybody says what could
not be said. So an attempt whose time ran out meanwhile is not given up before that; and if it had no answer, it is
tried again as one that was lost, not as one that failed.
"""

from collections import deque
from collections.abc import Callable
from datetime import datetime, timedelta

from protocol.messages import now

# The broker is asked every two seconds or so; one that says nothing for so long is away, even if the connection stands.
SILENCE = timedelta(seconds=10)
# After this, agents have connected again and said what they had to say. The same at start: what was answered while no
# orchestrator was there is read first.
SETTLING = timedelta(seconds=5)
# Attempts may last for hours; of more outages than these the oldest are forgotten.
REMEMBERED = 1000


class BrokerOutages:
    """`connected` says whether there is a connection, and how many there have been; `clock` is for tests."""

    def __init__(self, connected: Callable[[], tuple[bool, int]], clock: Callable[[], datetime] = now) -> None:
        self._connected = connected
        self._clock = clock
        self._heard: datetime | None = None
        self._connection = 0
        self._settled_at = clock() + SETTLING
        self._outages: deque[tuple[datetime, datetime]] = deque(maxlen=REMEMBERED)

    def heard(self) -> None:
        """The broker has answered."""
        moment, (_, connection) = self._clock(), self._connected()
        if self._heard is not None and (connection != self._connection or moment - self._heard > SILENCE):
            self._outages.append((self._heard, moment))
            self._settled_at = moment + SETTLING
        self._heard, self._connection = moment, connection

    @property
    def settled(self) -> bool:
        """Whether the broker is there, and was long enough for what could not be said before."""
        moment, (connected, connection) = self._clock(), self._connected()
        if not connected or connection != self._connection or self._heard is None:
            return False
        return moment - self._heard <= SILENCE and moment >= self._settled_at

    def touched(self, since: datetime, until: datetime) -> bool:
        """Whether the broker was away in some of this time."""
        return any(began <= until and ended >= since for began, ended in self._outages)
