"""Services: the long-lived parts of a process, started in their order and stopped in the reverse of it."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

import structlog

log = structlog.get_logger()

# Longer than any part takes to end what it has begun; a part that hangs must not keep the ones below it from ending.
STOP_SECONDS = 30.0


class Service(Protocol):
    """A long-lived part of a process.

    What is passed to its constructor outlives it: a part uses others between its `start` and the end of its `stop`.
    """

    async def start(self) -> None:
        """Begin to work. Raises where it cannot; then it is stopped with the ones that were started before it."""

    async def stop(self) -> None:
        """End what was begun, and wait for the end. A part that was never started is stopped already."""


class Services:
    """`start` starts each service after those before it in the list; `stop` stops them, the last one first."""

    def __init__(self, services: Sequence[Service], *, stop_seconds: float = STOP_SECONDS) -> None:
        self._services = tuple(services)
        self._stop_seconds = stop_seconds
        self._begun: list[Service] = []

    async def start(self) -> None:
        """Raises what a service raises. `stop` is to be called then too: it ends those that were begun."""
        for service in self._services:
            self._begun.append(service)
            await service.start()

    async def stop(self) -> None:
        """Stop all that were begun. What goes wrong with one is logged, and the next one is stopped all the same."""
        while self._begun:
            service = self._begun.pop()
            try:
                async with asyncio.timeout(self._stop_seconds):
                    await service.stop()
            except Exception as error:
                log.error("service.not_stopped", service=type(service).__name__, error=repr(error), exc_info=error)
