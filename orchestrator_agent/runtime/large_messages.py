"""Large messages: each that names an object is a batch of its own, so that no other one waits for its value; and what
takes long to decide goes on beside the others in the same way."""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

from pantheon.bus import Delivery
from pantheon.runtime.background import BackgroundTasks, or_exit

# Together these may take some hundred megabytes while their values are read.
LARGE_IN_FLIGHT = 2
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

    def work_on(self, batch: Coroutine[Any, Any, None]) -> None:
        """A few at a time."""
        # One that never had its slot has not begun.
        self._spawn(self._in_slot(batch)).add_done_callback(lambda _: batch.close())

    def go_on(self, work: Coroutine[Any, Any, None]) -> None:
        """Work that has begun, or that waits for nothing."""
        self._spawn(work).add_done_callback(lambda _: work.close())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        return self._tasks.spawn(or_exit(work, "large message"), "large")

    async def _in_slot(self, batch: Coroutine[Any, Any, None]) -> None:
        async with self._slots:
            await batch
