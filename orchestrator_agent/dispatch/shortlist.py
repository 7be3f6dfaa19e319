"""Shortlist: of very many agents that serve a task type, those that may have a slot, a few of which are scored.

Scoring all of a thousand agents at each decision would cost more than the rest of the orchestrator. A few drawn at
random and the best of these come near to the best of all: with two the longest queue grows with log log n instead of
log n (Mitzenmacher, The Power of Two Choices in Randomized Load Balancing, 2001).
"""

import time
from collections.abc import Callable, Sequence
from random import Random
from typing import Generic, Protocol, TypeVar

# So many are scored; where few more serve the type, it is all of them.
SAMPLE = 4
ALL = 6
# An agent that was found barred is not drawn for this time, unless a slot of it is freed before.
SHUT_SECONDS = 0.25


class Judged(Protocol):
    @property
    def barred(self) -> bool: ...


J = TypeVar("J", bound=Judged)


class Shortlist(Generic[J]):
    """`names` as the registry has them: another tuple makes another shortlist."""

    def __init__(
        self, names: Sequence[str], random: Random, clock: Callable[[], float] = time.monotonic, size: int = SAMPLE
    ) -> None:
        self.names = names
        self._random = random
        self._clock = clock
        self._size = size
        self._open = list(names)
        # When each is drawn again; all are shut for the same time, so the first one is the next.
        self._shut: dict[str, float] = {}

    def draw(self, judge: Callable[[str], J]) -> list[J]:
        """Some agents that are not barred, as many as are scored; fewer where there are no more. Amortized O(1)."""
        self._reopen()
        drawn: list[J] = []
        left = self._open
        while len(drawn) < self._size and len(drawn) < len(left):
            at = len(drawn)
            other = at + int(self._random.random() * (len(left) - at))
            left[at], left[other] = left[other], left[at]
            judged = judge(left[at])
            if judged.barred:
                self._shut_at(at)
            else:
                drawn.append(judged)
        return drawn

    def room(self, room_of: Callable[[str], int], limit: int) -> int:
        """The slots of the agents together, as far as `limit`."""
        self._reopen()
        room = at = 0
        while room < limit and at < len(self._open):
            slots = room_of(self._open[at])
            if slots > 0:
                room += slots
                at += 1
            else:
                self._shut_at(at)
        return room

    def slot_freed(self, agent: str) -> None:
        if self._shut.pop(agent, None) is not None:
            self._open.append(agent)

    def _shut_at(self, at: int) -> None:
        left = self._open
        self._shut[left[at]] = self._clock() + SHUT_SECONDS
        left[at] = left[-1]
        left.pop()

    def _reopen(self) -> None:
        if self._shut:
            now = self._clock()
            again = []
            for name, until in self._shut.items():
                if until > now:
                    break
                again.append(name)
            for name in again:
                del self._shut[name]
            self._open += again
