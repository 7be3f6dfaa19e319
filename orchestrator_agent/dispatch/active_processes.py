"""ActiveProcesses: how many orchestrators share the work, and which of them is the first."""

from collections.abc import Sequence
from uuid import UUID

from orchestrator_agent.store.processes import Processes


class ActiveProcesses:
    """The database's list of orchestrators, as this one read it last; without `processes`, it is alone.

    Soft knowledge: it sizes shares and saves reads. Nothing that must be right is decided by it.
    """

    def __init__(self, process_id: UUID | None = None, processes: Processes | None = None) -> None:
        self._own = process_id
        self._processes = processes
        self._first: UUID | None = None
        self.count = 1

    async def refresh(self) -> None:
        """Read the list. Raises StoreError."""
        if self._processes is not None:
            self.learn(await self._processes.ids())

    def learn(self, process_ids: Sequence[UUID]) -> None:
        """Take over the list, the oldest process first."""
        self.count = max(1, len(process_ids))
        self._first = process_ids[0] if process_ids else None

    @property
    def shared(self) -> bool:
        """Whether there are others, that may have written workflows and runs which this one does not know of."""
        return self.count > 1

    @property
    def is_first(self) -> bool:
        """Whether this process does what one of several should do; where none is known, each does."""
        return self._first in (None, self._own)
