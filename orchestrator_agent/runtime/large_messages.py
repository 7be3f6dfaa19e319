"""Large messages: each that names an object is a batch of its own, so that no other one waits for its value; and what
takes long to decide goes on beside the others in the same way."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from pantheon.bus import Delivery
from pantheon.runtime.background import BackgroundTasks, or_exit

# Together these may take some hundred megabytes while their values are read.
LARGE_IN_FLIGHT = 2
# Called to begin the work: a coroutine that was made before, and never awaited, is a warning where the process stops.
Work = Callable[[], Coroutine[Any, Any, None]]
# What a message with a large value has in it; one that has it for another reason is a batch of its own as well.
PAYLOAD_REF, RESULT_REF = b'"payload_ref"', b'"result_ref"'


def set_apart(deliveries: Sequence[Delivery], mark: bytes) -> tuple[Sequence[Delivery], Sequence[Delivery]]:
    """Messages without the mark of a large value, and those with it."""
    large = [delivery for delivery in deliveries if mark in delivery.data]
    return ([delivery for delivery in deliveries if mark not in delivery.data] if large else deliveries), large


class LargeMessages:
    """Works on them beside the loops that took them: requests and responses together, a few at a time."""

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(LARGE_IN_FLIGHT)
        self._tasks = BackgroundTasks()

    @property
    def tasks(self) -> list["asyncio.Task[None]"]:
        return list(self._tasks)

    def work_on(self, work: Work) -> None:
        """A few at a time."""
        self._tasks.spawn(self._in_slot(work), "large")

    def go_on(self, work: Work) -> None:
        """Work that has begun, or that only waits for such work: it needs no slot."""
        self._tasks.spawn(_at_once(work), "large")

    async def _in_slot(self, work: Work) -> None:
        async with self._slots:
            await _at_once(work)


async def _at_once(work: Work) -> None:
    await or_exit(work(), "large message")
