"""BrokerOutages: when this process did not reach the broker, so that no agent is blamed for what it could not publish.

While the broker is away no attempt can end but by its own timeout, and for a moment afterwards all agents publish what
they could not. So an attempt whose time ran out meanwhile is not given up before that; and if it had no response, it is
tried again as one that was lost, not as one that failed.
"""

from collections import deque
from collections.abc import Callable
from datetime import datetime, timedelta

from protocol.messages import now

# The broker is asked every two seconds or so. If it does not respond for this long it is away, even if the connection
# stands.
SILENCE = timedelta(seconds=10)
# After this, agents have connected again and published what they could not. The same at start: responses that came
# while no orchestrator was there are read first.
SETTLING = timedelta(seconds=5)
# Attempts may last for hours; of more outages than these the oldest are forgotten.
REMEMBERED = 1000


class BrokerOutages:
    """`connected` returns whether there is a connection, and how many there have been; `clock` is for tests."""

    def __init__(self, connected: Callable[[], tuple[bool, int]], clock: Callable[[], datetime] = now) -> None:
        self._connected = connected
        self._clock = clock
        self._responded_at: datetime | None = None
        self._connection = 0
        self._settled_at = clock() + SETTLING
        self._outages: deque[tuple[datetime, datetime]] = deque(maxlen=REMEMBERED)

    def broker_responded(self) -> None:
        """The broker has responded."""
        moment, (_, connection) = self._clock(), self._connected()
        if self._responded_at is not None and (connection != self._connection or moment - self._responded_at > SILENCE):
            self._outages.append((self._responded_at, moment))
            self._settled_at = moment + SETTLING
        self._responded_at, self._connection = moment, connection

    @property
    def settled(self) -> bool:
        """Whether the broker is there, and was long enough for all that could not be published before."""
        moment, (connected, connection) = self._clock(), self._connected()
        if not connected or connection != self._connection or self._responded_at is None:
            return False
        return moment - self._responded_at <= SILENCE and moment >= self._settled_at

    def touched(self, since: datetime, until: datetime) -> bool:
        """Whether the broker was away during some of this time."""
        return any(began <= until and ended >= since for began, ended in self._outages)
