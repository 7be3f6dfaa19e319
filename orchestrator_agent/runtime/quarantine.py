"""Quarantine: roots that orchestrators died on are ended by their rows alone: nothing of their workflows is read."""

from collections.abc import Collection
from random import Random
from uuid import UUID

import structlog

from orchestrator_agent.dispatch.router import Router
from orchestrator_agent.engine.advance import advance
from orchestrator_agent.engine.decisions import Rules
from orchestrator_agent.engine.events import Broken
from orchestrator_agent.runtime.outbox import Outbox
from orchestrator_agent.runtime.run_cache import RunCache
from orchestrator_agent.runtime.trials import WHY
from orchestrator_agent.store.run_builder import bare_run
from orchestrator_agent.store.task_reader import TaskReader
from orchestrator_agent.store.tasks import TaskStore
from protocol.messages import now

log = structlog.get_logger()

# Another process may write a root meanwhile, a few times; it has the same list soon.
TRIES = 10


class Quarantine:
    def __init__(
        self, store: TaskStore, reader: TaskReader, runs: RunCache, *, router: Router, rules: Rules, outbox: Outbox
    ) -> None:
        self._store = store
        self._reader = reader
        self._runs = runs
        self._router = router
        self._rules = rules
        self._outbox = outbox

    async def end(self, root_task_ids: Collection[UUID]) -> None:
        """End these `failed`, those that are at work. Raises StoreError."""
        for root_task_id in root_task_ids:
            log.error("root.quarantined", task_id=str(root_task_id), hint=WHY.message)
            for _ in range(TRIES):
                if await self._end(root_task_id):
                    break

    async def _end(self, root_task_id: UUID) -> bool:
        self._runs.drop(root_task_id)
        records = (await self._reader.trees([root_task_id])).get(root_task_id)
        if not records:
            # It died on the request, before there was a task: that is refused when it is delivered again.
            return True
        run = bare_run(records)
        if run.root.ended:
            return True
        decisions = advance(
            run,
            [Broken(root_task_id, WHY)],
            directory=self._router,
            rules=self._rules,
            now=now(),
            random=Random(),
        )
        if root_task_id not in await self._store.apply([(run, decisions)]):
            return False
        await self._outbox.deliver(run, decisions)
        return True
