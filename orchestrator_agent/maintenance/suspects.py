"""Suspects: what to make of the death of a process for the roots that it was deciding on."""

from collections.abc import Collection
from uuid import UUID

from orchestrator_agent.runtime.quarantine import Quarantine
from orchestrator_agent.runtime.trials import Trials
from orchestrator_agent.store.process_lock import ProcessLock
from orchestrator_agent.store.processes import DeadProcess, Processes


class Suspects:
    def __init__(self, trials: Trials, quarantine: Quarantine, *, lock: ProcessLock, processes: Processes) -> None:
        self._trials = trials
        self._quarantine = quarantine
        self._lock = lock
        self._processes = processes
        # Others that have not ended cleanly, as they were seen last.
        self._others: set[UUID] = set()

    async def died(self, process_id: UUID) -> None:
        """Be careful for a while, and end what is known to have ended two processes. Raises StoreError."""
        await self._trials.be_careful()
        await self._quarantine.end(await self._trials.convict(process_id))

    async def notice(self, others: Collection[DeadProcess]) -> None:
        """Of the other processes, as they are now, one that is gone without a clean end has died and was adopted by
        another. Raises StoreError."""
        there = {other.process_id for other in others}
        gone, self._others = self._others - there, {other.process_id for other in others if not other.left}
        if gone:
            await self._trials.be_careful()
        elif self._trials.careful:
            await self._trials.learn()

    async def check_before(self) -> None:
        """At start, before anything is decided: which processes died before this one. Raises StoreError."""
        await self._trials.learn()
        for dead in await self._processes.others(self._lock.process_id):
            if not dead.left and await self._lock.try_other(dead.lock_key):
                try:
                    await self.died(dead.process_id)
                finally:
                    await self._lock.leave_other(dead.lock_key)
