"""Due: what time alone brings to a row that has not ended: when, and as which run event.

The statement `DUE` of the store selects the rows of all trees that have something due, by the same rule and by what
only the database knows (rows that no queue holds, admitted roots, operations that were begun); tests/store/test_due.py
compares the two. The event of a selected row comes from here, as it does in the test kit, which has its rows in memory.
"""

from datetime import datetime
from uuid import UUID

from orchestrator_agent.engine.events import DeadlinePassed, Due, Expired
from orchestrator_agent.engine.state import Row, Run, Status


def due_at(run: Run, row: Row) -> datetime | None:
    """When something will be due in a row that has not ended; None where time alone brings nothing."""
    if row is run.root:
        # The deadline bounds the work of a task, not what it compensates.
        return run.facts.deadline_at if row.status in (Status.RUNNING, Status.PAUSED, Status.WAITING) else None
    match row.status:
        case Status.DISPATCHED:
            return row.expires_at
        case Status.WAITING:
            # For the next attempt, for a time, for a signal that may not come.
            return row.run_after
        case Status.READY:
            # The end of its wait for an agent. Steps of a paused task do not wait for one.
            return row.expires_at if run.at_work else None
        case _:
            return None


def due_event(
    root_task_id: UUID, task_id: UUID, *, status: str, attempt: int, late: bool
) -> DeadlinePassed | Expired | Due:
    """What has happened to a row that has something due. `late`: the deadline of its task has passed."""
    if late and task_id == root_task_id:
        return DeadlinePassed(root_task_id)
    if status == Status.DISPATCHED:
        return Expired(root_task_id, task_id, attempt)
    return Due(root_task_id, task_id)
