"""The history: what ended moves there, is found there, is not run again, and is dropped by age."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
import pytest_asyncio

from orchestrator_agent.maintenance.history_archiver import HistoryArchiver, is_over
from orchestrator_agent.service import load_library, orchestrator
from orchestrator_agent.store.batch_statements import not_in_history, whole
from orchestrator_agent.store.columns import ACCEPTED_COLUMNS
from orchestrator_agent.store.history import HistoryStore, month_of, surely_new
from orchestrator_agent.store.pool import Database
from pantheon import Mesh
from pantheon.process.agent_process import AgentProcess
from pantheon.runtime.settings import MeshSettings
from protocol import new_id
from protocol.errors import StoreError
from tests.mesh.agents import Seen, rows, words_agent
from tests.mesh.conftest import PlainClient
from tests.waiting import PATIENCE_SECONDS, until

HOUR = 3600.0


@pytest_asyncio.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with Database(database_url) as made:
        yield made


async def fill(database: Database, count: int, *, steps: int = 1, age: timedelta, responded: bool = True) -> list[UUID]:
    ids = [new_id() for _ in range(count)]
    at = datetime.now(UTC) - age
    await database.execute(
        "insert into tasks (root_task_id, task_id, task_type, status, result, created_at, completed_at, answered_at, "
        "version) select u, u, 'w', 'completed', '{\"a\": 1}', $2, $2, $3, 1 from unnest($1::uuid[]) u",
        ids,
        at,
        at if responded else None,
    )
    await database.execute(
        "insert into tasks (root_task_id, task_id, parent_task_id, step, item, task_type, status, created_at) "
        "select u, gen_random_uuid(), u, 's', n, 'x', 'completed', $2 from unnest($1::uuid[]) u, "
        "generate_series(1, $3::int) n",
        ids,
        at,
        steps,
    )
    return ids


async def count(database: Database, table: str) -> int:
    return int((await database.fetch(f"select count(*) from {table}"))[0][0])


def history(database: Database, *, after: float = HOUR, days: float = 30) -> HistoryArchiver:
    return HistoryArchiver(HistoryStore(database), after_seconds=after, retention_days=days)


async def settle(made: HistoryArchiver) -> int:
    steps = 1
    while await made.step():
        steps += 1
    return steps


async def test_whole_trees_move_in_batches_and_what_is_young_or_has_no_response_stays(database: Database) -> None:
    await fill(database, 700, steps=3, age=timedelta(hours=2))
    young = await fill(database, 3, age=timedelta(minutes=10))
    unpublished = await fill(database, 2, age=timedelta(hours=3), responded=False)
    large = await fill(database, 1, steps=3000, age=timedelta(hours=2))
    assert await settle(history(database)) > 4
    left = await database.fetch("select distinct root_task_id from tasks")
    assert {row[0] for row in left} == {*young, *unpublished}
    assert await count(database, "tasks_history") == 700 * 4 + 3001
    moved = await database.fetch("select count(*) from tasks_history where root_task_id = $1", large[0])
    assert moved[0][0] == 3001


async def test_two_processes_that_move_at_once_move_each_tree_once(database: Database) -> None:
    await fill(database, 400, steps=4, age=timedelta(hours=2))
    made = [history(database) for _ in range(3)]
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await count(database, "tasks"):
            await asyncio.gather(*(archiver.step() for archiver in made))
    assert await count(database, "tasks_history") == 2000
    kept = await database.fetch("select count(distinct task_id) from tasks_history")
    assert kept[0][0] == 2000


async def test_a_process_that_dies_between_copy_and_delete_leaves_no_second_copy(database: Database) -> None:
    await fill(database, 5, age=timedelta(hours=2))
    assert await history(database).step()
    assert (await count(database, "tasks"), await count(database, "tasks_history")) == (10, 10)
    await settle(history(database))
    assert (await count(database, "tasks"), await count(database, "tasks_history")) == (0, 10)


async def test_months_are_dropped_when_all_of_them_is_too_old(database: Database) -> None:
    for days in (5, 40, 100):
        await fill(database, 2, age=timedelta(days=days))
    made = history(database, days=60)
    await settle(made)
    months = await database.fetch(
        "select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid "
        "where i.inhparent = 'tasks_history'::regclass"
    )
    today = datetime.now(UTC).date()
    kept = {month_of(today - timedelta(days=days))[0] for days in (5, 40)}
    assert {row[0] for row in months} == kept
    assert await count(database, "tasks_history") == 8


async def test_a_reader_of_the_history_holds_up_no_task(database: Database, database_url: str) -> None:
    await fill(database, 1, age=timedelta(hours=2))
    reader = await asyncpg.connect(database_url)
    try:
        async with reader.transaction():
            await reader.fetch("select * from tasks_history")
            with pytest.raises(StoreError, match="lock timeout"):
                await history(database).step()
            # The acceptance of a task does not wait behind the maker of a month.
            await asyncio.wait_for(database.fetch("select 1 from tasks_history"), PATIENCE_SECONDS)
    finally:
        await reader.close()
    assert await settle(history(database)) == 2


@pytest.mark.parametrize(
    ("day", "name", "first", "following"),
    [
        (date(2026, 1, 31), "tasks_history_2026_01", date(2026, 1, 1), date(2026, 2, 1)),
        (date(2026, 12, 1), "tasks_history_2026_12", date(2026, 12, 1), date(2027, 1, 1)),
    ],
)
def test_a_month_has_its_bounds(day: date, name: str, first: date, following: date) -> None:
    assert month_of(day) == (name, first, following)


def test_a_month_is_over_when_its_last_day_is_older_than_tasks_are_kept() -> None:
    assert not is_over("tasks_history_2026_01", date(2026, 3, 2), 30)
    assert is_over("tasks_history_2026_01", date(2026, 3, 3), 30)
    assert not is_over("tasks_history_mine", date(2030, 1, 1), 1)


def test_only_an_id_that_says_so_itself_is_surely_new() -> None:
    moment = datetime.now(UTC)
    assert surely_new(new_id(), moment + timedelta(minutes=1), HOUR)
    assert not surely_new(new_id(), moment + timedelta(minutes=31), HOUR)
    assert not surely_new(new_id(), moment - timedelta(minutes=1), HOUR)
    assert not surely_new(uuid4(), moment, HOUR)


async def test_what_moved_is_shown_responded_to_again_and_never_run_again(
    settings: MeshSettings, plain: PlainClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HISTORY_AFTER_SECONDS", "0.2")
    seen = Seen()
    steps = {"one": {"task": "echo", "with": {"n": 1}}, "two": {"task": "echo", "with": {"n": "${one.n}"}}}
    async with (
        orchestrator(settings, load_library([])),
        AgentProcess(words_agent(seen), settings),
        Mesh(settings.nats_url) as mesh,
    ):
        task_id = await plain.send("execute_dag", {"steps": steps}, idempotency_key="k", requester="r")
        first = await plain.response(task_id)

        async def moved() -> bool:
            return not (await rows(settings, "select count(*) from tasks"))[0][0]

        await until(moved, "that all rows have moved")
        assert (await rows(settings, "select count(*) from tasks_history"))[0][0] == 3
        calls = len(seen.calls)
        # Sent again, its response has the same bytes.
        await plain.send("execute_dag", {"steps": steps}, task_id=task_id)
        await plain.until(lambda: len(plain.responses[task_id]) == 2)
        assert plain.responses[task_id][0] == plain.responses[task_id][1]
        # Another id with the same key has the same outcome.
        other = await plain.ask("execute_dag", {"steps": steps}, idempotency_key="k", requester="r")
        assert (other["duplicate_of"], other["result"]) == (task_id, first["result"])
        assert len(seen.calls) == calls
        # It is found, and can be replayed.
        shown = await ask(plain, "task", task_id=task_id)
        assert [row.get("step") for row in shown["tasks"]] == [None, "one", "two"], shown
        child = shown["tasks"][1]["task_id"]
        assert (await ask(plain, "task", task_id=child))["tasks"] == shown["tasks"]
        listed = await ask(plain, "tasks")
        assert task_id in [row["task_id"] for row in listed["tasks"]]
        assert (await ask(plain, "response", task_id=task_id))["response"]["result"] == first["result"]
        again = await mesh.run("mesh.replay", {"task_id": task_id, "from": "two"})
        assert again == first["result"]
        assert len(seen.calls) == calls + 1


async def ask(plain: PlainClient, what: str, **arguments: Any) -> Any:
    reply = await plain.connection.request(
        f"mesh.query.{what}", json.dumps(arguments).encode(), timeout=PATIENCE_SECONDS
    )
    return json.loads(reply.data)


@pytest.mark.parametrize("analysed", [False, True])
async def test_the_check_of_the_history_at_acceptance_reads_an_index_alone(database: Database, analysed: bool) -> None:
    await fill(database, 20_000, age=timedelta(hours=2))
    await fill(database, 20_000, age=timedelta(days=31))
    await settle(history(database))
    await database.execute(
        "insert into tasks_history (root_task_id, task_id, task_type, status, ended_on) "
        "select u, u, 'w', 'completed', (now() - interval '2 hours')::date "
        "from (select gen_random_uuid() u from generate_series(1, 50000)) s"
    )
    if analysed:
        await database.execute("analyze tasks_history")
    condition = not_in_history(whole(ACCEPTED_COLUMNS)).split("where", 1)[1]
    plan = await database.fetch(
        "explain (analyze, buffers, format json) select u.* from unnest($1::uuid[], $1::uuid[], $2::text[], "
        "$2::text[], $2::text[], $1::uuid[]) "
        "as u(root_task_id, task_id, tenant, requester, idempotency_key, duplicate_of) "
        f"where {condition}",
        [new_id() for _ in range(200)],
        [None] * 200,
    )
    text = plan[0][0]
    assert "Seq Scan" not in text
    assert "tasks_history" in text
    read = json.loads(text)[0]["Plan"]
    # 200 ids, two months, a way of two or three pages down an index: nothing that grows with the history.
    assert read["Shared Hit Blocks"] + read["Shared Read Blocks"] < 2000, text
