"""Duplicates: tasks that came with the idempotency key of another one, and end as that one does."""

from collections.abc import Sequence
from uuid import UUID

from orchestrator_agent.engine.events import OriginalEnded
from orchestrator_agent.engine.state import Status
from orchestrator_agent.inbox import Inbox
from orchestrator_agent.store.availability import retry_until_available
from orchestrator_agent.store.records import row_of
from orchestrator_agent.store.task_reader import TaskReader


class Duplicates:
    def __init__(self, reader: TaskReader, inbox: Inbox) -> None:
        self._reader = reader
        self._inbox = inbox

    async def end_those_of(self, originals: Sequence[UUID]) -> None:
        """Give the duplicates of these tasks, which have ended, their outcome."""
        await self.end(await retry_until_available(self._reader.open_duplicates, originals))

    async def end(self, task_ids: Sequence[UUID]) -> None:
        """Give these duplicates the outcome of their originals, where these have ended."""
        duplicates = await retry_until_available(self._reader.roots, task_ids)
        originals = await retry_until_available(
            self._reader.roots, list({record["duplicate_of"] for record in duplicates.values()} - {None})
        )
        for task_id, record in duplicates.items():
            original = originals.get(record["duplicate_of"])
            if original is None or record["status"] != Status.WAITING:
                continue
            row = row_of(original)
            if row.ended:
                status = row.status.value
                self._inbox.post(OriginalEnded(task_id, status, row.result, row.error))  # type: ignore[arg-type]
