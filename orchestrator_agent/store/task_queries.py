"""TaskQueries: what people ask of tasks: a tree by any of its ids, and root tasks by what they have in common."""

from collections.abc import Sequence
from uuid import UUID

import asyncpg

from orchestrator_agent.store.columns import column_list, in_each_table
from orchestrator_agent.store.pool import Database
from orchestrator_agent.store.task_reader import ROOTS

# All rows of a tree, in the order in which people read it. By the primary key, or by tasks_history_tree.
TREE = in_each_table(
    f"select {column_list()} from {{table}} where root_task_id = $1 order by created_at, step nulls first, iteration"
)

# The root of a sub-task. No index: people paste ids of sub-tasks, seldom, and it need not be fast. The table is read
# from its beginning, which the sessions' settings would not do.
ALLOW_SCAN = "set local enable_seqscan = on"
ROOT_OF = in_each_table("select root_task_id from {table} where task_id = $1 limit 1")

# Root tasks, the newest first, without payloads and results. By tasks_roots_by_time, or by tasks_history_roots_by_time.
LIST_ROOTS = in_each_table("""
select task_id, task_type, status, tenant, requester, session_id, priority, created_at, completed_at,
       deadline_at, answered_at, error, usage, duplicate_of, replay_of, attempt
from {table}
where task_id = root_task_id
  and ($1::text[] is null or status = any($1)) and ($2::text is null or task_type = $2)
  and ($3::text is null or requester = $3) and ($4::text is null or session_id = $4)
order by created_at desc limit $5
""")


class TaskQueries:
    """Reads for people; each raises StoreError when Postgres is away."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def tree(self, task_id: UUID) -> Sequence[asyncpg.Record]:
        """All rows of the tree that a task belongs to, by the root's id or by any sub-task's."""
        if records := await self._tree_of_root(task_id):
            return records
        for statement in ROOT_OF:
            async with self._database.connection() as connection, connection.transaction():
                await connection.execute(ALLOW_SCAN)
                root: UUID | None = await connection.fetchval(statement, task_id)
            if root is not None:
                return await self._tree_of_root(root)
        return []

    async def root(self, task_id: UUID) -> asyncpg.Record | None:
        """The row of a root task; None where there is no root of this id."""
        for statement in ROOTS:
            if records := await self._database.fetch(statement, [task_id], [task_id]):
                return records[0]
        return None

    async def _tree_of_root(self, root_task_id: UUID) -> Sequence[asyncpg.Record]:
        for statement in TREE:
            if records := await self._database.fetch(statement, root_task_id):
                return records
        return []

    async def list_roots(
        self,
        *,
        statuses: Sequence[str] | None,
        task_type: str | None,
        requester: str | None,
        session_id: str | None,
        limit: int,
    ) -> Sequence[asyncpg.Record]:
        """Root tasks, the newest first, without payloads and results."""
        found: list[asyncpg.Record] = []
        for statement in LIST_ROOTS:
            found += await self._database.fetch(
                statement, list(statuses) if statuses else None, task_type, requester, session_id, limit
            )
        # A root that is just being moved is in both tables.
        once = {record["task_id"]: record for record in reversed(found)}
        return sorted(once.values(), key=lambda record: record["created_at"], reverse=True)[:limit]
