"""DueRows: rows whose time has come, as run events: attempts that expired, retries and waits that are over, deadlines.

Also what a dead process has left: operations that it had begun, duplicates that it had not ended.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from orchestrator_agent.dispatch.agent_health import AgentHealth
from orchestrator_agent.dispatch.router import Pauses
from orchestrator_agent.dispatch.window import Window
from orchestrator_agent.engine.due import due_event
from orchestrator_agent.engine.events import DeadlinePassed, Expired
from orchestrator_agent.engine.state import Status
from orchestrator_agent.inbox import Inbox
from orchestrator_agent.maintenance.broker_outages import BrokerOutages
from orchestrator_agent.operations.runner import OperationRunner
from orchestrator_agent.runtime.duplicates import Duplicates
from orchestrator_agent.store.ready_queue import QueueEntry
from orchestrator_agent.store.sweeps import TaskSweeps
from pantheon.discovery import Registry

SWEEP_LIMIT = 1000


@dataclass
class Found:
    """`full`: there may be more than one statement reads. `unparked`: rows to queue again, their pause being over."""

    full: bool
    unparked: list[tuple[UUID, UUID, QueueEntry]] = field(default_factory=list)


class ExpiredAttempts:
    """What an expired attempt shows of its agent: noted once for each, and not where the broker was down."""

    def __init__(self, agent_health: AgentHealth, window: Window, outages: BrokerOutages) -> None:
        self._agent_health = agent_health
        self._window = window
        self._outages = outages
        self._judged: set[tuple[UUID, int]] = set()
        self._before: set[tuple[UUID, int]] = set()

    @property
    def settled(self) -> bool:
        """Whether the broker has been up for long enough that attempts may be called expired."""
        return self._outages.settled

    def begin_sweep(self) -> None:
        self._before, self._judged = self._judged, set()

    def judge(self, expired: Expired, row: Any) -> Expired:
        """The event of a row, with what is known of the broker."""
        broker_was_down = self._outages.touched(row["dispatched_at"], row["expires_at"])
        key = (row["task_id"], row["attempt"])
        self._judged.add(key)
        # A row that was found before is found once more until its end is written.
        if key not in self._before:
            self._window.responded(row["agent"])
            if not broker_was_down:
                self._agent_health.responded(row["agent"], row["task_type"], None, failed=True)
        return replace(expired, broker_was_down=broker_was_down)


class DueRows:
    """One process at a time reads them; the versions of the roots settle it where two do."""

    def __init__(
        self,
        sweeps: TaskSweeps,
        registry: Registry,
        pauses: Pauses,
        *,
        inbox: Inbox,
        expired: ExpiredAttempts,
        operations: OperationRunner,
        duplicates: Duplicates,
    ) -> None:
        self._sweeps = sweeps
        self._registry = registry
        self._pauses = pauses
        self._inbox = inbox
        self._expired = expired
        self._operations = operations
        self._duplicates = duplicates

    async def post(self) -> Found:
        """Post what is due. Raises StoreError."""
        rows: Sequence[Any] = await self._sweeps.due(
            SWEEP_LIMIT, self._registry.task_types(), self._pauses.workflows, expired=self._expired.settled
        )
        self._expired.begin_sweep()
        found = Found(full=len(rows) >= SWEEP_LIMIT)
        duplicates: list[UUID] = []
        for row in rows:
            root_task_id, task_id, late = row["root_task_id"], row["task_id"], bool(row["late"])
            event = due_event(root_task_id, task_id, status=row["status"], attempt=row["attempt"], late=late)
            if row["operation"] is not None and row["is_root"]:
                self._operations.begin_again(task_id, row["task_type"], row["operation"].encode(), row["requester"])
            elif isinstance(event, DeadlinePassed):
                self._inbox.post(event)
            elif row["duplicate_of"] is not None:
                duplicates.append(task_id)
            elif row["status"] == Status.READY and row["queue"] is not None and not row["over"]:
                found.unparked.append((root_task_id, task_id, QueueEntry(row["queue"], row["priority"], row["flow"])))
            elif isinstance(event, Expired):
                self._inbox.post(self._expired.judge(event, row))
            else:
                self._inbox.post(event)
        if duplicates:
            await self._duplicates.end(duplicates)
        return found
