"""Reader: what is asked of the database beside the engine's own: what is due, who is dead, whose turn it is, what
people want to know. Where the answer is to be one for all processes (who adopts, who is admitted), asking settles it.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from orchestrator_agent.engine.concurrency import Open, decide_concurrency
from orchestrator_agent.store.columns import column_list
from orchestrator_agent.store.pool import Database
from protocol.messages import now

# By the clock of who asks, which is the one that decides: what another clock took for due would be found at every look.
# Everything that is at work is found through the open roots (index tasks_open), never by a walk over the history.
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

# Where a task is: at work, or ended and moved away.
_BOTH = ("tasks", "tasks_history")
# One process at a time looks for what is due; it is no leader, whoever comes next may be another.
SWEEP_LOCK_KEY = 0x73776565

# Of some roots, what a process has to publish.
UNPUBLISHED_OF = """
select t.root_task_id, t.task_id
from tasks t where t.root_task_id = any($1::uuid[]) and t.dispatched_by = $2 and t.answered_at is null
  and (t.status = 'dispatched'
    or (t.task_id = t.root_task_id and t.status in ('completed', 'failed', 'cancelled')))
"""


# Of attempts that agents have at work: those that are given up, and why.
STALE = """
select u.b as task_id, u.attempt, t.reason
from unnest($1::uuid[], $2::uuid[], $3::int[]) as u(a, b, attempt), lateral (
    select t.status, t.attempt, t.error ->> 'message' as reason
    from {table} t where t.root_task_id = u.a and t.task_id = u.b limit 1
) t
where t.status <> 'dispatched' or t.attempt <> u.attempt
"""


class Reader:
    """Statements; each raises StoreError when Postgres is away."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def due(
        self, limit: int, served: Collection[str], paused: Collection[str], *, expired: bool = True
    ) -> Sequence[asyncpg.Record]:
        """Rows whose time has come (attempts only with `expired`), and ready ones that are in no line though somebody
        serves their task type and their workflow is not among the `paused`; none while another process is looking."""
        async with self._database.connection() as connection, connection.transaction():
            if not await connection.fetchval("select pg_try_advisory_xact_lock($1)", SWEEP_LOCK_KEY):
                return []
            rows: list[asyncpg.Record] = await connection.fetch(DUE, limit, list(served), list(paused), now(), expired)
            return rows

    async def unpublished_of(self, root_task_ids: Collection[UUID], process_id: UUID) -> Sequence[asyncpg.Record]:
        """Every attempt and final response of these roots that a process has to publish."""
        return await self._database.fetch(UNPUBLISHED_OF, list(root_task_ids), process_id)

    async def stale(self, attempts: Collection[tuple[UUID, UUID, int]]) -> dict[tuple[UUID, int], str | None]:
        """Of attempts (root, task, number): those that are not wanted any more, and what their tasks say of it. What is
        not known is none of the orchestrator's."""
        found: dict[tuple[UUID, int], str | None] = {}
        columns = [list(column) for column in zip(*attempts, strict=True)]
        for table in _BOTH if columns else ():
            for record in await self._database.fetch(STALE.format(table=table), *columns):
                found[(record["task_id"], record["attempt"])] = record["reason"]
        return found

    async def note_streams(self, marks: Mapping[str, tuple[str, int]]) -> None:
        """Keep where the broker's streams stand, so that a loss is seen even when nobody was there."""
        for name, (created, last_sequence) in marks.items():
            await self._database.execute(
                "insert into broker_streams (name, created, last_sequence) values ($1, $2, $3) "
                "on conflict (name) do update set created = excluded.created, last_sequence = excluded.last_sequence",
                name,
                created,
                last_sequence,
            )

    async def noted_streams(self) -> dict[str, tuple[str, int]]:
        records = await self._database.fetch("select name, created, last_sequence from broker_streams")
        return {record["name"]: (record["created"], record["last_sequence"]) for record in records}

    async def known(self, task_ids: Sequence[UUID]) -> dict[UUID, asyncpg.Record]:
        """The root rows of these ids, at work or in the history."""
        found: dict[UUID, asyncpg.Record] = {}
        for table in _BOTH:
            missing = [task_id for task_id in task_ids if task_id not in found]
            if not missing:
                break
            records = await self._database.fetch(
                f"select {column_list()} from {table} where (root_task_id, task_id) in "
                "(select u.a, u.b from unnest($1::uuid[], $2::uuid[]) u(a, b))",
                missing,
                missing,
            )
            found |= {record["task_id"]: record for record in records}
        return found

    async def versions(self, root_task_ids: Sequence[UUID]) -> dict[UUID, int]:
        """The versions of these roots."""
        records = await self._database.fetch(
            "select task_id, version from tasks "
            "where (root_task_id, task_id) in (select u.a, u.b from unnest($1::uuid[], $2::uuid[]) u(a, b))",
            list(root_task_ids),
            list(root_task_ids),
        )
        return {record["task_id"]: record["version"] for record in records}

    async def open_of(self, root_task_ids: Sequence[UUID]) -> set[UUID]:
        """Those of these roots that are at work."""
        records = await self._database.fetch(
            "select u.a as task_id from unnest($1::uuid[], $2::uuid[]) as u(a, b), lateral ("
            "select t.status from tasks t where t.root_task_id = u.a and t.task_id = u.b limit 1) t "
            "where t.status not in ('completed', 'failed', 'cancelled', 'skipped')",
            root_task_ids,
            root_task_ids,
        )
        return {record["task_id"] for record in records}

    async def last_writers(self, root_task_ids: Sequence[UUID]) -> dict[UUID, tuple[int, UUID | None]]:
        """The version of each of these roots that has not ended, and the process that wrote it."""
        records = await self._database.fetch(
            "select task_id, version, dispatched_by from tasks "
            "where (root_task_id, task_id) in (select u.a, u.b from unnest($1::uuid[], $2::uuid[]) u(a, b)) "
            "and completed_at is null",
            list(root_task_ids),
            list(root_task_ids),
        )
        return {record["task_id"]: (record["version"], record["dispatched_by"]) for record in records}

    async def by_key(self, tenant: str, requester: str | None, key: str) -> UUID | None:
        """The first task with an idempotency key, at work or in the history."""
        for table in _BOTH:
            records = await self._database.fetch(
                f"select task_id from {table} where tenant = $1 and coalesce(requester, '') = $2 "
                "and idempotency_key = $3 and duplicate_of is null",
                tenant,
                requester or "",
                key,
            )
            if records:
                found: UUID = records[0]["task_id"]
                return found
        return None

    async def duplicates_waiting(self, task_ids: Sequence[UUID]) -> list[UUID]:
        """Duplicates, still waiting, of these originals."""
        records = await self._database.fetch(
            "select task_id from tasks where duplicate_of = any($1::uuid[]) and duplicate_of is not null "
            "and status = 'waiting'",
            list(task_ids),
        )
        return [record["task_id"] for record in records]

    async def save_workflow(self, version: str, name: str, definition: Mapping[str, Any]) -> None:
        await self._database.execute(
            "insert into workflows (version, name, definition) values ($1, $2, $3::json) on conflict do nothing",
            version,
            name,
            json.dumps(definition),
        )

    async def publish_workflow(self, version: str) -> None:
        """Make a version the newest of its name, for all orchestrators."""
        await self._database.execute("update workflows set published_at = now() where version = $1", version)

    async def published_workflows(self) -> dict[str, str]:
        """The newest published version of each workflow, by name."""
        records = await self._database.fetch(
            "select distinct on (name) name, version from workflows where published_at is not null "
            "order by name, published_at desc"
        )
        return {record["name"]: record["version"] for record in records}

    async def schedules(self) -> dict[str, tuple[datetime, str]]:
        """When each scheduled workflow was last started for, and on which definition of its schedule."""
        records = await self._database.fetch("select workflow, fired_at, definition from schedules")
        return {record["workflow"]: (record["fired_at"], record["definition"]) for record in records}

    async def schedule_fired(self, workflow: str, at: datetime, definition: str) -> None:
        await self._database.execute(
            "insert into schedules (workflow, fired_at, definition) values ($1, $2, $3) "
            "on conflict (workflow) do update "
            "set fired_at = greatest(schedules.fired_at, excluded.fired_at), definition = excluded.definition",
            workflow,
            at,
            definition,
        )

    async def keys_waiting(self) -> list[str]:
        """Concurrency keys of roots that wait for their turn."""
        records = await self._database.fetch(
            "select distinct concurrency_key from tasks where concurrency_key is not null and status = 'waiting'"
        )
        return [record["concurrency_key"] for record in records]

    async def admit(self, key: str, bound: int, cancel_older: bool) -> tuple[list[UUID], list[UUID]]:
        """Let waiting roots of a key run, as many as may; returns those, and those that are to be cancelled for them.

        One transaction under a lock of the key's own: however many ask, no more than `bound` run.
        """
        async with self._database.connection() as connection, connection.transaction():
            await connection.execute("select pg_advisory_xact_lock(hashtextextended($1, 0))", key)
            rows = await connection.fetch(
                "select task_id, status, priority from tasks "
                "where concurrency_key = $1 and concurrency_key is not null "
                "and status in ('waiting', 'running', 'paused', 'compensating') order by created_at, task_id",
                key,
            )
            roots = [Open(row["task_id"], row["status"] == "waiting", row["priority"]) for row in rows]
            admitted, older = decide_concurrency(roots, bound=bound, cancel_older=cancel_older)
            if admitted:
                await connection.execute(
                    "update tasks set status = 'running', version = version + 1 "
                    "where (root_task_id, task_id) in (select u, u from unnest($1::uuid[]) u) and status = 'waiting'",
                    admitted,
                )
            return admitted, older

    async def workflow(self, version: str) -> tuple[str, dict[str, Any]] | None:
        """The name and definition of a version."""
        records = await self._database.fetch("select name, definition from workflows where version = $1", version)
        return (records[0]["name"], json.loads(records[0]["definition"])) if records else None

    async def tree(self, task_id: UUID) -> Sequence[asyncpg.Record]:
        """All rows of the tree that a task belongs to, by the root's id or by any sub-task's."""
        for table in _BOTH:
            records = await self._database.fetch(
                f"select {column_list()} from {table} where root_task_id = $1 "
                "order by created_at, step nulls first, iteration",
                task_id,
            )
            if records:
                return records
        # People paste ids of sub-tasks too; there is no index for that, and it need not be fast.
        for table in _BOTH:
            async with self._database.connection() as connection, connection.transaction():
                await connection.execute("set local enable_seqscan = on")
                root = await connection.fetchval(
                    f"select root_task_id from {table} where task_id = $1 limit 1", task_id
                )
            if root is not None:
                return await self.tree(root)
        return []

    async def roots(
        self,
        *,
        statuses: Sequence[str] | None,
        task_type: str | None,
        requester: str | None,
        session_id: str | None,
        limit: int,
    ) -> Sequence[asyncpg.Record]:
        """Root tasks, newest first, without payloads and results."""
        found: list[asyncpg.Record] = []
        for table in _BOTH:
            found += await self._database.fetch(
                f"""
                select task_id, task_type, status, tenant, requester, session_id, priority, created_at, completed_at,
                       deadline_at, answered_at, error, usage, duplicate_of, replay_of, attempt
                from {table}
                where task_id = root_task_id
                  and ($1::text[] is null or status = any($1)) and ($2::text is null or task_type = $2)
                  and ($3::text is null or requester = $3) and ($4::text is null or session_id = $4)
                order by created_at desc limit $5
                """,
                list(statuses) if statuses else None,
                task_type,
                requester,
                session_id,
                limit,
            )
        # One that is just being moved is in both.
        once = {record["task_id"]: record for record in reversed(found)}
        return sorted(once.values(), key=lambda record: record["created_at"], reverse=True)[:limit]
