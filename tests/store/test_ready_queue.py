"""The ready queue in a real Postgres: fair positions, priorities, aging, claims, and its cost with 100,000 rows."""

import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio

from orchestrator_agent.dispatch.queues import fairness_key
from orchestrator_agent.store.pool import Database
from orchestrator_agent.store.ready_queue import AGING_SECONDS, CLAIM, TAKE, QueueEntry, ReadyQueue
from protocol import new_id


class Rows:
    """Queued rows, inserted as the store would, each the only step of its task."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.queue = ReadyQueue(database)
        self.requester_of: dict[UUID, str] = {}

    async def add(
        self, requester: str, count: int = 1, *, queue: str = "x", priority: int = 5, since: float = 0.0
    ) -> list[UUID]:
        key = fairness_key("default", requester)
        positions = await self.queue.positions([QueueEntry(queue, priority, key)] * count)
        ids = [new_id() for _ in range(count)]
        await self.database.execute(
            "insert into tasks (root_task_id, task_id, task_type, status, version) "
            "select u, u, 'w', 'running', 1 from unnest($1::uuid[]) u",
            ids,
        )
        made = [new_id() for _ in range(count)]
        await self.database.execute(
            "insert into tasks (root_task_id, task_id, parent_task_id, step, task_type, status, priority, queue, flow, "
            "position, created_at) select a, b, a, 's', 'x', 'ready', $3, $4, $5, p, now() - make_interval(secs => $7) "
            "from unnest($1::uuid[], $2::uuid[], $6::bigint[]) as u(a, b, p)",
            ids,
            made,
            priority,
            queue,
            key,
            positions,
            since,
        )
        self.requester_of |= dict.fromkeys(made, requester)
        return made

    async def take(self, count: int, *queues: str, claim: bool = False, **options: Any) -> list[UUID]:
        taken = await self.queue.take(
            queues or ("x",),
            count,
            left_out=options.get("left_out", ()),
            paused=options.get("paused", ()),
            claim=claim,
            held_by_other=options.get("held_by_other", ()),
        )
        return [row.task_id for row in taken]

    async def serve(self, count: int, *queues: str) -> list[str]:
        """Take and dispatch; the requesters of the rows, in order."""
        taken = await self.take(count, *queues)
        await self.leave(taken)
        return [self.requester_of[task_id] for task_id in taken]

    async def leave(self, rows: Sequence[UUID]) -> None:
        await self.database.execute(
            "update tasks set status = 'dispatched', position = null where task_id = any($1::uuid[])", list(rows)
        )


@pytest_asyncio.fixture
async def rows(database_url: str) -> AsyncIterator[Rows]:
    async with Database(database_url) as database:
        yield Rows(database)


async def test_one_row_of_a_requester_is_next_however_many_another_has(rows: Rows) -> None:
    await rows.add("many", 2000)
    assert await rows.serve(10) == ["many"] * 10
    await rows.add("one")
    assert "one" in await rows.serve(2)


async def test_requesters_take_rounds_whenever_they_came(rows: Rows) -> None:
    await rows.add("a", 60)
    await rows.add("b", 60)
    assert Counter(await rows.serve(40)) == {"a": 20, "b": 20}
    await rows.add("c", 60)
    served = Counter(await rows.serve(30))
    assert set(served.values()) <= {9, 10, 11}
    assert set(served) == {"a", "b", "c"}
    # A requester that sends again is behind its own last row.
    await rows.add("a", 60)
    assert set(Counter(await rows.serve(30)).values()) <= {9, 10, 11}


async def test_the_same_name_in_another_tenant_is_another_requester() -> None:
    assert fairness_key("t1", "a") != fairness_key("t2", "a")
    assert fairness_key("t", None) == fairness_key("t", "")


async def test_the_higher_priority_goes_first_and_fairness_holds_within_one(rows: Rows) -> None:
    await rows.add("low", 5, priority=1)
    await rows.add("a", 5, priority=8)
    await rows.add("b", 5, priority=8)
    await rows.add("top", 1, priority=9)
    assert (await rows.serve(1)) == ["top"]
    assert Counter(await rows.serve(10)) == {"a": 5, "b": 5}
    assert await rows.serve(10) == ["low"] * 5


async def test_a_row_that_was_queued_long_ago_comes_before_a_higher_priority(rows: Rows) -> None:
    await rows.add("patient", 1, priority=0, since=AGING_SECONDS * 6 + 1)
    await rows.add("urgent", 10, priority=5)
    await rows.add("top", 1, priority=9)
    assert (await rows.serve(2)) == ["top", "patient"]


async def test_queues_of_one_agent_are_taken_from_as_if_they_were_one(rows: Rows) -> None:
    await rows.add("many", 50, queue="x")
    await rows.serve(20, "x")
    await rows.add("other", 3, queue="y")
    await rows.add("urgent", 1, queue="y@a", priority=7)
    served = await rows.serve(8, "x", "y", "y@a")
    assert served[0] == "urgent"
    assert Counter(served) == {"urgent": 1, "other": 3, "many": 4}


async def test_what_one_orchestrator_has_claimed_the_others_leave_out(rows: Rows) -> None:
    await rows.add("a", 10)
    first, second = await rows.take(6, claim=True), await rows.take(6, claim=True)
    assert (len(first), len(second)) == (6, 4)
    assert not set(first) & set(second)
    assert await rows.take(6, claim=True) == []
    # A claim that was not used expires.
    await rows.database.execute("update tasks set claimed_until = now() - interval '1 s' where claimed_until > now()")
    assert len(await rows.take(20, claim=True)) == 10


async def test_rows_of_paused_tasks_and_workflows_leave_the_queue_and_come_back_behind(rows: Rows) -> None:
    held = (await rows.add("held", 2))[0]
    await rows.add("a", 2)
    await rows.database.execute(
        "update tasks set status = 'paused' where task_id = (select root_task_id from tasks where task_id = $1)", held
    )
    taken = await rows.queue.take(["x"], 10, left_out=(), paused=(), claim=False)
    assert [row.task_id for row in taken if row.parked] == [held]
    assert all(row.parked for row in await rows.queue.take(["x"], 10, left_out=(), paused=["w"], claim=False))
    await rows.queue.park([row for row in taken if row.parked])
    assert len(await rows.take(10)) == 3
    root = next(row.root_task_id for row in taken if row.parked)
    await rows.queue.requeue([(root, held, QueueEntry("x", 5, fairness_key("default", "held")))])
    assert len(await rows.take(10)) == 4


async def test_rows_that_are_held_back_are_left_out(rows: Rows) -> None:
    ids = await rows.add("a", 4)
    assert await rows.take(2, left_out=ids[:2]) == ids[2:]


async def test_rows_of_trees_that_another_process_has_in_memory_are_left_to_it(rows: Rows) -> None:
    ids = await rows.add("a", 4)
    roots = await rows.database.fetch("select root_task_id as root from tasks where task_id = any($1::uuid[])", ids[:2])
    held_by_other = [record["root"] for record in roots]
    for claim in (False, True):
        assert await rows.take(2, held_by_other=held_by_other, claim=claim) == ids[2:]


async def test_the_queues_that_have_rows_are_known_without_reading_these(rows: Rows) -> None:
    assert await rows.queue.queues() == []
    await rows.add("a", 30, queue="x")
    (unserved,) = await rows.add("a", 1, queue="x@b")
    assert await rows.queue.queues() == ["x", "x@b"]
    assert [task_id for _, task_id in await rows.queue.unserved(["x@b"], 10)] == [unserved]


# The statistics that the planner has: none, of rows that are not queued, of a queue of a few rows or of a few hundred
# before it grew, or of how things are.
@pytest.mark.parametrize("analysed_after", [None, (0, 20_000), (20, 20), (400, 2000), (100_000, 0)])
async def test_a_take_from_100000_queued_rows_reads_only_the_head_of_the_queue(
    rows: Rows, analysed_after: tuple[int, int] | None
) -> None:
    queued, roots = analysed_after or (0, 0)
    await rows.database.execute(
        "insert into tasks (root_task_id, task_id, task_type, status, version) "
        "select u, u, 'w', 'running', 1 from (select gen_random_uuid() u from generate_series(1, $1)) as made",
        roots,
    )
    await rows.add("many", queued)
    if analysed_after is not None:
        await rows.database.execute("analyze tasks")
    await rows.add("many", 100_000 - queued)
    await rows.add("one", 1)
    assert "one" in [rows.requester_of[task_id] for task_id in await rows.take(2)]
    for statement in (TAKE, CLAIM):
        plan = await rows.database.fetch(f"explain (analyze, buffers, format json) {statement}", ["x"], 100, [], [], [])
        buffers = _buffers(plan[0][0])
        # 100 rows, their roots, and the index's way to ten priorities: nothing that grows with the queue.
        assert buffers < 2500, plan[0][0]
        assert "tasks_roots_by_time" not in plan[0][0]
    plan = await rows.database.fetch(
        "explain (analyze, buffers, format json) select max(position) from tasks "
        "where queue = 'x' and flow = $1 and priority = 5 and position is not null",
        fairness_key("default", "many"),
    )
    assert _buffers(plan[0][0]) < 60


def _buffers(plan: str) -> int:
    read = json.loads(plan)[0]["Plan"]
    return int(read["Shared Hit Blocks"] + read["Shared Read Blocks"])
