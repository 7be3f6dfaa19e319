"""Backlog: many requests that wait to be accepted, known by whose they are, so that requesters take turns.

Fair queueing by hash (McKenney, Stochastic Fairness Queueing, 1990): a flow is what one requester of a tenant has sent
with one priority. Within a flow the order is that of arrival. Pure: `fair_intake` reads and takes.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from pydantic_core import from_json

from pantheon.bus import Delivery
from protocol.messages import DEFAULT_PRIORITY, DEFAULT_TENANT

# Two flows share a turn where their hashes do: by chance, one pair in so many.
FLOWS = 65_536
# What is noted of those that wait: a number each.
MAX_AHEAD = 1_000_000


def flow_key(body: bytes) -> int:
    """Whose a request is. One that cannot be read is nobody's in particular."""
    try:
        request = from_json(body)
        whose = (
            request.get("tenant") or DEFAULT_TENANT,
            request.get("requester"),
            request.get("priority", DEFAULT_PRIORITY),
        )
        return hash(whose) % FLOWS
    except (ValueError, AttributeError, TypeError):
        return 0


@dataclass(slots=True)
class Flow:
    """`here`: what the broker has given out to this process, by its number in the stream; `ahead`: the numbers of what
    is behind that in the stream."""

    here: deque[tuple[int, Delivery]] = field(default_factory=deque)
    ahead: deque[int] = field(default_factory=deque)

    @property
    def empty(self) -> bool:
        return not self.here and not self.ahead


class Backlog:
    """`position` is the stream's number up to which all was dealt with before."""

    def __init__(self, position: int, pending: int) -> None:
        # Up to where the stream is known, and up to where the broker has given it out.
        self.seen = position
        self.head = position
        # How many the broker has not given out to anybody.
        self.pending = pending
        self.ahead = 0
        self._flows: dict[int, Flow] = {}
        self._ring: deque[int] = deque()

    def arrived(self, delivery: Delivery) -> None:
        """The broker gave a request out."""
        metadata = delivery.metadata
        sequence = int(metadata.sequence.stream)
        self.pending = int(metadata.num_pending)
        self.head = max(self.head, sequence)
        self.seen = max(self.seen, sequence)
        flow = self._flow(flow_key(delivery.data))
        self._forget_given_out(flow)
        flow.here.append((sequence, delivery))

    def found(self, sequence: int, body: bytes) -> None:
        """A request stands in the stream, behind what is known of it."""
        if sequence > self.seen:
            self.seen = sequence
            self._flow(flow_key(body)).ahead.append(sequence)
            self.ahead += 1

    @property
    def full(self) -> bool:
        return self.ahead >= MAX_AHEAD

    @property
    def here(self) -> Iterator[tuple[int, Delivery]]:
        """All that was given out and not taken."""
        for flow in self._flows.values():
            yield from flow.here

    def is_oldest(self, sequence: int) -> bool:
        """Whether everything that came before has been taken."""
        return all(flow.here[0][0] >= sequence for flow in self._flows.values() if flow.here)

    def turns(self, limit: int) -> list[tuple[Flow, int]]:
        """Whose turn it is, and how many each may have: `limit` together, one each at least."""
        share = max(1, limit // max(1, len(self._ring)))
        found: list[tuple[Flow, int]] = []
        for _ in range(len(self._ring)):
            if len(found) * share >= limit:
                break
            key = self._ring.popleft()
            flow = self._flows[key]
            self._forget_given_out(flow)
            if flow.empty:
                del self._flows[key]
                continue
            self._ring.append(key)
            found.append((flow, share))
        return found

    def next_ahead(self, flow: Flow, count: int) -> list[int]:
        return list(islice(flow.ahead, count))

    def taken_ahead(self, flow: Flow, up_to: int) -> None:
        """What a flow had in the stream up to that number has been taken, or is not there any more."""
        while flow.ahead and flow.ahead[0] <= up_to:
            flow.ahead.popleft()
            self.ahead -= 1

    def _flow(self, key: int) -> Flow:
        flow = self._flows.get(key)
        if flow is None:
            flow = self._flows[key] = Flow()
            self._ring.append(key)
        return flow

    def _forget_given_out(self, flow: Flow) -> None:
        # The broker gives out in order: what it has passed is here, or another orchestrator's.
        self.taken_ahead(flow, self.head)
