"""HeldDeliveries: the messages at work in this process, which it has not acknowledged."""

import asyncio
from collections.abc import Iterable, Iterator

from pantheon.bus import Delivery


class HeldDeliveries:
    """Both loops add and release; `MessageLoops` holds them with in-progress acks."""

    def __init__(self) -> None:
        # By identity: a delivery is not hashable.
        self._held: dict[int, Delivery] = {}
        self._since: dict[int, float] = {}
        self._emptied = asyncio.Event()

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Delivery]:
        return iter(list(self._held.values()))

    def add(self, deliveries: Iterable[Delivery]) -> None:
        self._held.update((id(delivery), delivery) for delivery in deliveries)

    def release(self, deliveries: Iterable[Delivery]) -> None:
        for delivery in deliveries:
            self._held.pop(id(delivery), None)
        if not self._held:
            self._emptied.set()

    def longest_seconds(self, now: float) -> float:
        """How long the oldest of them has been here, counted from the first call that found it. `now` is the loop's."""
        self._since = {key: self._since.get(key, now) for key in self._held}
        return now - min(self._since.values(), default=now)

    async def until_empty(self) -> None:
        self._emptied.clear()
        if self._held:
            await self._emptied.wait()
        self._since.clear()
