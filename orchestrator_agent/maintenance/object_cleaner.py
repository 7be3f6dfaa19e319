"""ObjectCleaner: removes objects of large payloads and results whose task is over, or never came.

A task's objects stay as long as its rows are in `tasks`, which is `HISTORY_AFTER_SECONDS` beyond its response: that
long a requester has to read the result. A later one queries the task's response, and the object is made again.
"""

import structlog

from orchestrator_agent.store.sweeps import TaskSweeps
from pantheon.bus import Objects
from pantheon.runtime.periodic import PeriodicTask
from protocol.errors import BusError, StoreError
from protocol.large import root_of

log = structlog.get_logger()

CLEAN_SECONDS = 600.0


class ObjectCleaner:
    """Cleans now and then, in every orchestrator; to remove what another has removed does nothing."""

    def __init__(self, objects: Objects, sweeps: TaskSweeps) -> None:
        self._objects = objects
        self._sweeps = sweeps
        self._suspected: set[str] = set()
        self._cleaning = PeriodicTask("leftovers", self._clean, seconds=CLEAN_SECONDS, at_start=False)

    async def start(self) -> None:
        self._cleaning.start()

    async def stop(self) -> None:
        await self._cleaning.stop()

    async def _clean(self) -> None:
        try:
            await self.clean()
        except (BusError, StoreError) as error:
            log.warning("leftovers.waiting", error=str(error))

    async def clean(self) -> list[str]:
        """Remove what belonged to no task now and the last time; returns the names.

        Twice: a client stores its payload before it sends its request. Raises BusError, StoreError.
        """
        names = await self._objects.names()
        needed = await self._sweeps.at_work({root for name in names if (root := root_of(name)) is not None})
        suspected = {name for name in names if root_of(name) not in needed}
        removed = sorted(suspected & self._suspected)
        self._suspected = suspected - set(removed)
        for name in removed:
            await self._objects.remove(name)
        if removed:
            log.info("leftovers.removed", objects=len(removed))
        return removed
