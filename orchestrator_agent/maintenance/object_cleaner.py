"""Leftovers: objects of large payloads and results whose task is over, or never came, leave the object store.

A task's objects stay as long as its rows are in `tasks`, which is `HISTORY_AFTER_SECONDS` beyond its answer: that long
a requester has to read the result. Who comes later asks for the task's response, and the object is made again.
"""

import structlog

from orchestrator_agent.store.sweeps import TaskSweeps
from pantheon.bus import Objects
from pantheon.runtime.periodic import PeriodicTask
from protocol.errors import BusError, StoreError
from protocol.large import root_of

log = structlog.get_logger()

LOOK_SECONDS = 600.0


class ObjectCleaner:
    """Looks now and then, in every orchestrator; to remove what another has removed does nothing."""

    def __init__(self, objects: Objects, sweeps: TaskSweeps) -> None:
        self._objects = objects
        self._sweeps = sweeps
        self._suspected: set[str] = set()
        self._looking = PeriodicTask("leftovers", self._look, seconds=LOOK_SECONDS, at_start=False)

    async def start(self) -> None:
        self._looking.start()

    async def stop(self) -> None:
        await self._looking.stop()

    async def _look(self) -> None:
        try:
            await self.look()
        except (BusError, StoreError) as error:
            log.warning("leftovers.waiting", error=str(error))

    async def look(self) -> list[str]:
        """Remove what belonged to no task at this look and at the one before; returns the names.

        Twice: a client puts its payload there before its request is sent. Raises BusError, StoreError.
        """
        names = await self._objects.names()
        wanted = await self._sweeps.at_work({root for name in names if (root := root_of(name)) is not None})
        suspected = {name for name in names if root_of(name) not in wanted}
        removed = sorted(suspected & self._suspected)
        self._suspected = suspected - set(removed)
        for name in removed:
            await self._objects.remove(name)
        if removed:
            log.info("leftovers.removed", objects=len(removed))
        return removed
