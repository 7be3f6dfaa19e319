"""Backlog: many requests that are not accepted yet, by fairness key, so that they are accepted in fair rounds.

Fair queueing by hash (McKenney, Stochastic Fairness Queueing, 1990): a key is what one requester of a tenant has sent
with one priority. Within a key the order is that of arrival. Pure: `fair_intake` reads and takes.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from pydantic_core import from_json

from pantheon.bus import Delivery
from protocol.messages import DEFAULT_PRIORITY, DEFAULT_TENANT

# Two keys share their part of a round where their hashes are equal: by chance, one pair in so many.
KEYS = 65_536
# What is noted of requests ahead in the stream: a number each.
MAX_AHEAD = 1_000_000


def fairness_key(body: bytes) -> int:
    """The key of a request. Those that cannot be read share one."""
    try:
        request = from_json(body)
        key = (
            request.get("tenant") or DEFAULT_TENANT,
            request.get("requester"),
            request.get("priority", DEFAULT_PRIORITY),
        )
        return hash(key) % KEYS
    except (ValueError, AttributeError, TypeError):
        return 0


@dataclass(slots=True)
class KeyBacklog:
    """Of one key: `delivered` is what the broker has delivered to this process, by its number in the stream; `ahead`
    the numbers of what comes after that in the stream."""

    delivered: deque[tuple[int, Delivery]] = field(default_factory=deque)
    ahead: deque[int] = field(default_factory=deque)

    @property
    def empty(self) -> bool:
        return not self.delivered and not self.ahead


class Backlog:
    """`position` is the stream's number up to which all was dealt with before."""

    def __init__(self, position: int, pending: int) -> None:
        # Up to where the stream is known, and up to where the broker has delivered it.
        self.seen = position
        self.head = position
        # How many the broker has not delivered to any orchestrator.
        self.pending = pending
        self.ahead = 0
        self._keys: dict[int, KeyBacklog] = {}
        self._ring: deque[int] = deque()

    def arrived(self, delivery: Delivery) -> None:
        """The broker has delivered a request."""
        metadata = delivery.metadata
        sequence = int(metadata.sequence.stream)
        self.pending = int(metadata.num_pending)
        self.head = max(self.head, sequence)
        self.seen = max(self.seen, sequence)
        key = self._key(fairness_key(delivery.data))
        self._forget_delivered(key)
        key.delivered.append((sequence, delivery))

    def found(self, sequence: int, body: bytes) -> None:
        """A request is in the stream, after what is known of it."""
        if sequence > self.seen:
            self.seen = sequence
            self._key(fairness_key(body)).ahead.append(sequence)
            self.ahead += 1

    @property
    def full(self) -> bool:
        return self.ahead >= MAX_AHEAD

    @property
    def delivered(self) -> Iterator[tuple[int, Delivery]]:
        """All that was delivered and not taken."""
        for key in self._keys.values():
            yield from key.delivered

    def is_oldest(self, sequence: int) -> bool:
        """Whether everything that came before has been taken."""
        return all(key.delivered[0][0] >= sequence for key in self._keys.values() if key.delivered)

    def next_round(self, limit: int) -> list[tuple[KeyBacklog, int]]:
        """The keys that are next, and how many requests of each: `limit` together, one each at least."""
        share = max(1, limit // max(1, len(self._ring)))
        found: list[tuple[KeyBacklog, int]] = []
        for _ in range(len(self._ring)):
            if len(found) * share >= limit:
                break
            number = self._ring.popleft()
            key = self._keys[number]
            self._forget_delivered(key)
            if key.empty:
                del self._keys[number]
                continue
            self._ring.append(number)
            found.append((key, share))
        return found

    def next_ahead(self, key: KeyBacklog, count: int) -> list[int]:
        return list(islice(key.ahead, count))

    def taken_ahead(self, key: KeyBacklog, up_to: int) -> None:
        """What a key had in the stream up to that number has been taken, or is not there any more."""
        while key.ahead and key.ahead[0] <= up_to:
            key.ahead.popleft()
            self.ahead -= 1

    def _key(self, number: int) -> KeyBacklog:
        key = self._keys.get(number)
        if key is None:
            key = self._keys[number] = KeyBacklog()
            self._ring.append(number)
        return key

    def _forget_delivered(self, key: KeyBacklog) -> None:
        # The broker delivers in order: what it has passed was delivered here, or to another orchestrator.
        self.taken_ahead(key, self.head)
