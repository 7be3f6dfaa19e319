"""Inbox: run events that did not come off the wire as responses: from timers, people, agents that delegate.

Made before everything that posts to it; the response loop alone takes from it, and applies each event in its order.
"""

import asyncio
from collections import deque
from typing import Any, NamedTuple

from orchestrator_agent.engine.events import RunEvent


class TakesLong(Exception):
    """A run event will be applied, but a transition of its root takes long to decide before that."""


class Entry(NamedTuple):
    """A run event, and where its outcome goes once it is committed, if its sender waits for that.

    `at_once`: its sender waits for no transition that takes long.
    """

    run_event: RunEvent
    outcome: "asyncio.Future[Any] | None" = None
    at_once: bool = False


class Inbox:
    def __init__(self) -> None:
        self._entries: deque[Entry] = deque()
        # Set when something has arrived; responses off the wire set it as well, so that one loop waits for both.
        self.arrived = asyncio.Event()

    def __len__(self) -> int:
        return len(self._entries)

    def post(self, *run_events: RunEvent) -> None:
        """Have these applied; where the outcome, or the moment, matters, call `perform`."""
        self._entries.extend(Entry(run_event) for run_event in run_events)
        self.arrived.set()

    async def perform(self, run_event: RunEvent, *, at_once: bool = False) -> Any:
        """Have a run event applied, and wait until that is committed.

        Returns the outcome for its operation, or, for a delegated task, whether it is in the tree; None where the root
        is not known, or has ended. With `at_once`, raises TakesLong where others would wait too long for the sender.
        """
        outcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._entries.append(Entry(run_event, outcome, at_once))
        self.arrived.set()
        return await outcome

    def take(self, limit: int) -> list[Entry]:
        """The oldest entries, at most `limit`, without waiting."""
        return [self._entries.popleft() for _ in range(min(len(self._entries), limit))]
