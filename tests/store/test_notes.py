"""Notes that a crash may take back are committed without waiting for the disk, and nothing else is."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from uuid import UUID

import pytest
import pytest_asyncio

from orchestrator_agent.store.pool import Database
from orchestrator_agent.store.ready_queue import CLAIM
from orchestrator_agent.store.tasks import RESPONDED
from protocol import new_id

INSERT = """
insert into tasks (root_task_id, task_id, tenant, step, role, task_type, status, iteration, item, attempt, failures,
                   priority, timeout_seconds, created_at, queue, flow, position)
values ($1, $1, 'default', '', '', 'work', 'ready', 0, -1, 1, 0, 5, 60, $2, 'work', 1, 1)
"""


@pytest_asyncio.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with Database(database_url) as made:
        yield made


@pytest.mark.parametrize("statement", [RESPONDED, CLAIM], ids=["responded", "claimed"])
async def test_a_note_does_not_wait_for_the_disk_and_the_next_does(database: Database, statement: str) -> None:
    task_id = new_id()
    await database.execute(INSERT, task_id, datetime.now(UTC))
    none: list[UUID] = []
    arguments = ([task_id], [task_id]) if statement is RESPONDED else (["work"], 10, none, none, none)
    async with database.connection() as connection:
        # As users have it; the tests' own servers need not survive anything.
        await connection.execute("set synchronous_commit = on")
        async with connection.transaction():
            await connection.fetch(statement, *arguments)
            assert await connection.fetchval("show synchronous_commit") == "off"
            noted = await connection.fetchval("select coalesce(answered_at, claimed_until) from tasks")
            assert noted is not None
        assert await connection.fetchval("show synchronous_commit") == "on"
