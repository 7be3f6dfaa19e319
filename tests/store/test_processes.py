"""What a process that died has left unpublished, and its takeover; a cancelled statement is no mistake of ours."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio

from orchestrator_agent.store.pool import Database
from orchestrator_agent.store.process_lock import ProcessLock
from orchestrator_agent.store.processes import DeadProcess, Processes
from protocol import new_id
from protocol.errors import StoreError

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def at(seconds: float, status: str = "dispatched") -> dict[str, Any]:
    return {"status": status, "dispatched_at": NOON + timedelta(seconds=seconds), "id": seconds}


@pytest.mark.parametrize(
    ("noted", "unpublished"),
    [
        # Acknowledged long before the last one was dispatched.
        (DeadProcess(new_id(), 0), [90, 100]),
        # It had noted that publishing did not work, or that it waited for the object store.
        (DeadProcess(new_id(), 0, unpublished_since=NOON + timedelta(seconds=40)), [30, 90, 100]),
        # The broker lost what it had published.
        (DeadProcess(new_id(), 0, lost_everything=True), [0, 30, 90, 100]),
    ],
    ids=["fresh attempts", "since it could not publish", "everything"],
)
def test_what_a_dead_process_may_not_have_published(noted: DeadProcess, unpublished: list[float]) -> None:
    assert [row["id"] for row in noted.unsure_of([at(0), at(30), at(90), at(100)])] == unpublished


def test_a_final_response_that_was_not_noted_may_always_be_unpublished() -> None:
    ended = {"status": "completed", "dispatched_at": None, "id": "root"}
    assert [row["id"] for row in DeadProcess(new_id(), 0).unsure_of([at(0), at(100), ended])] == [100, "root"]


@pytest_asyncio.fixture
async def database(database_url: str) -> Any:
    async with Database(database_url) as database:
        yield database


async def dispatched(database: Database, process_id: UUID) -> UUID:
    root = new_id()
    await database.execute(
        "insert into tasks "
        "(root_task_id, task_id, step, task_type, status, timeout_seconds, created_at, dispatched_by) "
        "values ($1, $1, null, 'execute_dag', 'running', 300, now(), $3), "
        "($1, $2, 'one', 'echo', 'dispatched', 300, now(), $3)",
        root,
        new_id(),
        process_id,
    )
    return root


async def test_a_loss_that_is_noted_while_a_process_is_adopted_is_not_forgotten_with_it(
    database: Database, database_url: str
) -> None:
    processes, dead, heir = Processes(database), ProcessLock(database_url, new_id(), "dead"), new_id()
    await dead.take()
    await dead.release()
    await dispatched(database, dead.process_id)
    (found,) = await processes.others(heir)
    assert not found.lost_everything
    await processes.note_loss()
    assert await processes.take_over(found, heir) is None
    (found,) = await processes.others(heir)
    assert found.lost_everything
    assert await processes.take_over(found, heir) == 2
    assert await processes.others(heir) == []
    assert len(await processes.unpublished(heir)) == 1


async def test_a_loss_holds_for_every_process_until_it_has_published_all_again(
    database: Database, database_url: str
) -> None:
    processes, lock = Processes(database), ProcessLock(database_url, new_id(), "alive")
    await lock.take()
    try:
        assert not await processes.lost_everything(lock.process_id)
        await processes.note_loss()
        # A note of the broker's absence does not hide it.
        await lock.note_unpublished(NOON)
        await lock.note_unpublished(None)
        assert await processes.lost_everything(lock.process_id)
        await processes.note_published_again(lock.process_id)
        assert not await processes.lost_everything(lock.process_id)
    finally:
        await lock.release()


async def test_rows_of_a_process_that_the_database_does_not_know_are_found(database: Database) -> None:
    """It came back from a pause after another had adopted it, worked, and died before it was entered again."""
    processes, unknown, heir = Processes(database), new_id(), new_id()
    await dispatched(database, unknown)
    (stray,) = await processes.strays()
    assert stray.process_id == unknown
    assert await processes.take_over(stray, heir) == 2
    assert len(await processes.unpublished(heir)) == 1


async def test_a_statement_that_an_administrator_cancels_is_tried_again(database: Database) -> None:
    with pytest.raises(StoreError, match="canceling statement"):
        await database.fetch("select pg_cancel_backend(pg_backend_pid()), pg_sleep(60)")
