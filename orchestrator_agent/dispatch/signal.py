"""DispatchSignal: wakes the queue dispatcher, because a queued row may get a slot now."""

import asyncio
from collections.abc import Callable


class DispatchSignal:
    """Made before everything that sets it: windows, limits, circuits, and admission when rows join a queue."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        # Agents whose slots queued rows may take: a free slot of any other one wakes nothing.
        self.awaited: frozenset[str] = frozenset()
        self._listeners: list[Callable[[str], None]] = []

    def add_listener(self, slot_freed: Callable[[str], None]) -> None:
        """Have `slot_freed` called with an agent's name when a slot of it is free."""
        self._listeners.append(slot_freed)

    def slot_freed(self, agent: str) -> None:
        for listener in self._listeners:
            listener(agent)
        if agent in self.awaited:
            self._event.set()

    def set(self) -> None:
        """Rows have joined, tokens are back, an agent may be tried."""
        self._event.set()

    @property
    def is_set(self) -> bool:
        return self._event.is_set()

    async def wait(self) -> None:
        """Until it is set; then it is not set any more."""
        await self._event.wait()
        self._event.clear()
