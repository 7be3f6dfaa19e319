"""Debts: what the rows say is owed (attempts to agents, final responses) is published again.

The same message ids and the same bytes: what the broker has already, it drops.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable
from typing import Any
from uuid import UUID

import structlog

from orchestrator_agent.engine.events import Due, RunEvent
from orchestrator_agent.engine.state import ENDED, Status
from orchestrator_agent.runtime.outbox import Outbox
from orchestrator_agent.runtime.run_cache import RunCache
from orchestrator_agent.store.availability import retry_until_available
from orchestrator_agent.store.reads import Reader
from orchestrator_agent.store.tasks import TaskStore
from pantheon.bus import Publisher
from protocol.errors import PantheonError, StoreError

log = structlog.get_logger()

# Trees are read so many at a time.
TREES = 256
# What is acknowledged at all is acknowledged by then.
SETTLE_SECONDS = 10.0


class Republisher:
    """`republish` publishes; `settled` waits for the broker's acknowledgements."""

    def __init__(
        self, publisher: Publisher, *, store: TaskStore, reader: Reader, runs: RunCache, outbox: Outbox
    ) -> None:
        self._publisher = publisher
        self._store = store
        self._reader = reader
        self._runs = runs
        self._outbox = outbox
        # Set by the conductor: where a run that cannot be built is told that it is broken.
        self.post: Callable[[RunEvent], None] = lambda run_event: None

    async def republish(self, records: Iterable[Any], *, again: str = "") -> None:
        """Publish the attempts and final responses of these rows, as they are now. Raises StoreError.

        With `again` (any text), attempts have message ids of their own: for a broker that remembers the old ones.
        """
        wanted: dict[UUID, set[UUID]] = {}
        for record in records:
            wanted.setdefault(record["root_task_id"], set()).add(record["task_id"])
        roots = list(wanted)
        for first in range(0, len(roots), TREES):
            for root_task_id, tree in (await self._reader.trees(roots[first : first + TREES])).items():
                try:
                    run = await self._runs.build(tree)
                except StoreError:
                    raise
                except PantheonError as error:
                    log.error("recovery.broken", task_id=str(root_task_id), error=str(error))
                    self.post(Due(root_task_id, root_task_id))
                    continue
                for task_id in wanted[root_task_id]:
                    row = run.rows.get(task_id)
                    if row is None:
                        continue
                    if row.status is Status.DISPATCHED:
                        await self._outbox.dispatch(run, row, again=again)
                    elif row is run.root and row.status in ENDED:
                        await self._outbox.answer(run)

    async def of_roots(self, root_task_ids: Collection[UUID]) -> None:
        """Publish what this process owes of these roots: it wrote them, and was not told that it had."""

        async def say() -> None:
            await self.republish(await self._reader.unpublished_of(root_task_ids, self._store.process_id))

        log.info("commit.unheard", roots=len(root_task_ids))
        await retry_until_available(say)

    async def settled(self, since: int) -> bool:
        """Whether all that was published since then has been acknowledged; waits for it, not for long."""
        try:
            async with asyncio.timeout(SETTLE_SECONDS):
                await self._publisher.settled(since)
        except TimeoutError:
            return False
        return True
