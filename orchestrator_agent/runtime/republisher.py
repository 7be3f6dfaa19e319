"""Republisher: publishes again what is unpublished by the rows: attempts to agents, and final responses.

The same message ids and the same bytes: what the broker has already, it drops.
"""

import asyncio
from collections.abc import Collection, Iterable
from typing import Any
from uuid import UUID

import structlog

from orchestrator_agent.engine.events import Due
from orchestrator_agent.engine.state import ENDED, Status
from orchestrator_agent.inbox import Inbox
from orchestrator_agent.runtime.outbox import Outbox
from orchestrator_agent.runtime.run_cache import RunCache
from orchestrator_agent.runtime.trials import Trials
from orchestrator_agent.store.availability import retry_until_available
from orchestrator_agent.store.task_reader import TaskReader
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
        self,
        publisher: Publisher,
        *,
        process_id: UUID,
        reader: TaskReader,
        runs: RunCache,
        outbox: Outbox,
        inbox: Inbox,
        trials: Trials,
    ) -> None:
        self._publisher = publisher
        self._process_id = process_id
        self._reader = reader
        self._runs = runs
        self._outbox = outbox
        self._inbox = inbox
        self._trials = trials

    async def republish(self, records: Iterable[Any], *, again: str = "") -> None:
        """Publish the attempts and final responses of these rows, as they are now. Raises StoreError.

        With `again` (any text), attempts have message ids of their own: for a broker that remembers the old ones.
        """
        tasks: dict[UUID, set[UUID]] = {}
        for record in records:
            tasks.setdefault(record["root_task_id"], set()).add(record["task_id"])
        # Those that a process died on are read alone.
        alone = [[root] for root in tasks if self._trials.is_suspect(root)]
        others = [root for root in tasks if not self._trials.is_suspect(root)]
        groups = [others[first : first + TREES] for first in range(0, len(others), TREES)]
        for roots in (*groups, *alone):
            roots = [root for root in roots if not self._trials.in_quarantine(root)]
            trees = await self._reader.trees(roots)
            async with self._trials.on(roots):
                for root_task_id, tree in trees.items():
                    await self._republish_of(root_task_id, tree, tasks[root_task_id], again)

    async def _republish_of(self, root_task_id: UUID, tree: list[Any], task_ids: set[UUID], again: str) -> None:
        try:
            run = await self._runs.build(tree)
        except StoreError:
            raise
        except PantheonError as error:
            log.error("recovery.broken", task_id=str(root_task_id), error=str(error))
            # The next transition finds the same, and ends the task with the reason.
            self._inbox.post(Due(root_task_id, root_task_id))
            return
        for task_id in task_ids:
            row = run.rows.get(task_id)
            if row is None:
                continue
            if row.status is Status.DISPATCHED:
                await self._outbox.dispatch(run, row, again=again)
            elif row is run.root and row.status in ENDED:
                await self._outbox.respond(run)

    async def republish_roots(self, root_task_ids: Collection[UUID]) -> None:
        """Publish what this process has written of these roots, and not published: its commit was not confirmed."""

        async def republish() -> None:
            await self.republish(await self._reader.unpublished_of(root_task_ids, self._process_id))

        log.info("commit.unheard", roots=len(root_task_ids))
        await retry_until_available(republish)

    async def settled(self, since: int) -> bool:
        """Whether all that was published since then has been acknowledged; waits for it, not for long."""
        try:
            async with asyncio.timeout(SETTLE_SECONDS):
                await self._publisher.settled(since)
        except TimeoutError:
            return False
        return True
