"""What is due: the statement that selects rows in a real Postgres, and the engine's rule, find the same."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import product
from uuid import UUID

from orchestrator_agent.engine.decisions import Decisions
from orchestrator_agent.engine.due import due_at
from orchestrator_agent.engine.state import ENDED, RootFacts, Row, Run, Status
from orchestrator_agent.store.pool import Database
from orchestrator_agent.store.sweeps import TaskSweeps
from orchestrator_agent.store.tasks import TaskStore
from protocol import new_id

NOW = datetime.now(UTC)
PAST, FUTURE = NOW - timedelta(hours=1), NOW + timedelta(hours=1)
TIMES = (None, PAST, FUTURE)
ROOTS = (Status.RUNNING, Status.PAUSED, Status.WAITING, Status.COMPENSATING)


def trees() -> Iterator[Run]:
    """Every status of a root and of a step in it, with every time at which something may be due in them."""
    for root_status, status, deadline_at in product(ROOTS, Status, TIMES):
        for expires_at, run_after in product(TIMES, TIMES):
            root_task_id = new_id()
            root = Row(root_task_id, root_task_id, None, None, "chain", root_status, created_at=NOW)
            step = Row(root_task_id, new_id(), root_task_id, "s", "echo", status, created_at=NOW)
            step.expires_at, step.run_after = expires_at, run_after
            facts = RootFacts("default", None, None, None, 5, deadline_at, {})
            yield Run(root=root, facts=facts, rows={root.task_id: root, step.task_id: step})


def due_in(run: Run) -> set[UUID]:
    moments = {row.task_id: due_at(run, row) for row in run.rows.values() if row.status not in ENDED}
    return {task_id for task_id, moment in moments.items() if moment is not None and moment <= NOW}


async def test_the_statement_selects_what_the_engine_calls_due(database_url: str) -> None:
    runs = list(trees())
    async with Database(database_url) as database:
        store = TaskStore(database, new_id())
        await store.accept(
            [(run, Decisions(made=[row for row in run.rows.values() if row is not run.root])) for run in runs]
        )
        selected = await TaskSweeps(database).due(len(runs) * 2, served=(), paused=())
    expected = set().union(*map(due_in, runs))
    assert {row["task_id"] for row in selected} == expected
    assert 0 < len(expected) < len(runs)
