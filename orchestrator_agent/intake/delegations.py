"""Delegations: requests that agents sent while they worked on a task are attached to its tree (see `delegation`)."""

import structlog

from orchestrator_agent.engine.decisions import Decisions
from orchestrator_agent.engine.events import Delegated
from orchestrator_agent.engine.state import Run
from orchestrator_agent.inbox import Inbox
from orchestrator_agent.intake.delegation import known_child
from orchestrator_agent.runtime.outbox import Outbox
from orchestrator_agent.store.availability import retry_until_available
from orchestrator_agent.store.run_builder import bare_run
from orchestrator_agent.store.task_reader import TaskReader

log = structlog.get_logger()


class Delegations:
    def __init__(self, inbox: Inbox, reader: TaskReader, outbox: Outbox) -> None:
        self._inbox = inbox
        self._reader = reader
        self._outbox = outbox

    async def attach(self, delegated: Delegated, *, at_once: bool) -> bool:
        """Make a request a child of the task that delegates it; False where there is no such tree, so that the request
        is a root of its own.

        Raises InvalidRequest where it can never be in the tree that it names; with `at_once`, TakesLong where it is to
        be attached again, beside other requests.
        """
        if await self._inbox.perform(delegated, at_once=at_once):
            data: dict[str, object] = {"task_id": str(delegated.task_id), "task_type": delegated.task_type}
            await self._outbox.publish_event("task", "accepted", data)
            return True
        root = delegated.root_task_id
        records = (await retry_until_available(self._reader.trees, [root])).get(root)
        if records is None:
            return False
        await self._not_taken(delegated, bare_run(records))
        return True

    async def _not_taken(self, delegated: Delegated, tree: Run) -> None:
        known = known_child(delegated, tree)
        if known is None:
            log.info("delegation.dropped", task_id=str(delegated.task_id), root_task_id=str(tree.root_task_id))
        elif known.ended:
            known.reply_to = delegated.reply_to or known.reply_to
            await self._outbox.deliver(tree, Decisions(responses=[known]))
