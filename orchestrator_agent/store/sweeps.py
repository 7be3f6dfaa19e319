"""TaskSweeps: what no message announces: rows that are due, attempts that were given up, objects without a task."""

from collections.abc import Collection, Sequence
from uuid import UUID

import asyncpg

from orchestrator_agent.store.columns import in_each_table
from orchestrator_agent.store.pool import Database
from protocol.messages import now

# One process at a time sweeps; it is no leader, the next sweep may be another's.
SWEEP_LOCK_KEY = 0x73776565
LOCK = "select pg_try_advisory_xact_lock($1)"

# Rows whose time has come, and rows that nothing else would move on ($1: at most so many; $2: task types that an agent
# serves; $3: paused workflows; $4: the time; $5: whether attempts may expire). In this order: attempts that expired;
# retries, timers and waits that are due; duplicates whose original has ended; ready rows whose wait for an agent is
# over, or which are in no queue though an agent serves them; operations that were begun; roots that were admitted by
# their concurrency key and have not begun; deadlines.
# By the clock of the process that asks, which is the one that decides: what another clock took for due would be found
# by every sweep. Everything that is at work is found through the open roots (tasks_open), and their rows by the primary
# key, never by a walk over the tasks that have ended.
DUE = """
select t.root_task_id, t.task_id, t.status, t.attempt, t.task_id = t.root_task_id as is_root, t.duplicate_of,
       t.agent, t.task_type, t.requester, t.deadline_at <= $4 as late,
       t.queue, t.flow, t.priority, t.expires_at <= $4 as over, t.dispatched_at, t.expires_at,
       case when t.task_type like 'mesh.%' then t.payload end as operation
from tasks r join tasks t on t.root_task_id = r.root_task_id
where r.task_id = r.root_task_id and r.answered_at is null
  and ((t.status = 'dispatched' and t.expires_at <= $4 and $5)
    or (t.status = 'waiting' and t.run_after <= $4)
    or (t.status = 'waiting' and t.duplicate_of is not null
        and not exists (select 1 from tasks o where o.root_task_id = t.duplicate_of and o.task_id = t.duplicate_of
                        and o.status not in ('completed', 'failed', 'cancelled')))
    or (t.status = 'ready' and r.status in ('running', 'compensating')
        and (t.expires_at <= $4
          or (t.position is null and t.task_type = any($2::text[])
              and (r.task_type <> all($3::text[]) or r.status = 'compensating'))))
    or (t.task_id = t.root_task_id and t.status = 'running' and t.task_type like 'mesh.%')
    or (t.task_id = t.root_task_id and t.status = 'running' and t.concurrency_key is not null
        and not exists (select 1 from tasks c where c.root_task_id = t.root_task_id and c.parent_task_id = t.task_id
                        and c.role <> 'signal'
                        -- What it took over from an earlier run is older than it.
                        and (t.replay_of is null or c.completed_at is null or c.created_at >= t.created_at)))
    or (t.task_id = t.root_task_id and t.status in ('running', 'paused', 'waiting') and t.deadline_at <= $4))
limit $1
"""

# Of attempts that agents have at work, those that were given up, and why. By the primary key, or by tasks_history_tree,
# each by itself (the lateral's limit).
STALE = in_each_table("""
select u.b as task_id, u.attempt, t.reason
from unnest($1::uuid[], $2::uuid[], $3::int[]) as u(a, b, attempt), lateral (
    select t.status, t.attempt, t.error ->> 'message' as reason
    from {table} t where t.root_task_id = u.a and t.task_id = u.b limit 1
) t
where t.status <> 'dispatched' or t.attempt <> u.attempt
""")

# How many processes died on some tasks, those with none left out. By the primary key.
DEATHS = """
select u.b as task_id, t.deaths
from unnest($1::uuid[], $2::uuid[]) as u(a, b), lateral (
    select t.deaths from tasks t where t.root_task_id = u.a and t.task_id = u.b limit 1
) t
where t.deaths > 0
"""

# Of some roots those that have not moved to the history. By the primary key.
AT_WORK = """
select u.a as root_task_id from unnest($1::uuid[], $2::uuid[]) as u(a, b)
where (select t.task_id from tasks t where t.root_task_id = u.a and t.task_id = u.b limit 1) is not null
"""


class TaskSweeps:
    """Reads of the loops that search for what was missed; each raises StoreError when Postgres is away."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def due(
        self, limit: int, served: Collection[str], paused: Collection[str], *, expired: bool = True
    ) -> Sequence[asyncpg.Record]:
        """Rows whose time has come (attempts only with `expired`), and ready ones that are in no queue though an agent
        serves their task type and their workflow is not among the `paused`; none while another process is sweeping."""
        async with self._database.connection() as connection, connection.transaction():
            if not await connection.fetchval(LOCK, SWEEP_LOCK_KEY):
                return []
            rows: list[asyncpg.Record] = await connection.fetch(DUE, limit, list(served), list(paused), now(), expired)
            return rows

    async def stale(self, attempts: Collection[tuple[UUID, UUID, int]]) -> dict[tuple[UUID, int], str | None]:
        """Of attempts (root, task, number): those that were given up, and the error of their tasks. An attempt whose
        task is not known is none of the orchestrator's."""
        found: dict[tuple[UUID, int], str | None] = {}
        arrays = [list(array) for array in zip(*attempts, strict=True)]
        for statement in STALE if arrays else ():
            for record in await self._database.fetch(statement, *arrays):
                found[(record["task_id"], record["attempt"])] = record["reason"]
        return found

    async def deaths(self, tasks: Collection[tuple[UUID, UUID]]) -> dict[UUID, int]:
        """Of tasks (root, task): those that processes of agents died on, and how many."""
        arrays = [list(array) for array in zip(*tasks, strict=True)]
        found = await self._database.fetch(DEATHS, *arrays) if arrays else ()
        return {record["task_id"]: record["deaths"] for record in found}

    async def at_work(self, root_task_ids: Collection[UUID]) -> set[UUID]:
        """Those of these roots whose rows have not moved to the history, ended or not."""
        ids = list(root_task_ids)
        return {record["root_task_id"] for record in await self._database.fetch(AT_WORK, ids, ids)}
