"""TaskReader: what transitions read of `tasks`: trees, roots by id or key, and who wrote them last.

A root that is not among the tasks at work may have moved to the history: what must know both asks both, in this order
(a tree that is just being moved is in both).
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

import asyncpg

from orchestrator_agent.store.columns import column_list, in_each_table
from orchestrator_agent.store.pool import Database

# No version is that of a root which is not known.
UNKNOWN = -1

# All rows of some trees. By the primary key, or by tasks_history_tree.
TREES = in_each_table(f"select {column_list()} from {{table}} where root_task_id = any($1::uuid[])")

# All rows of those trees that have not ended and are at another version than the known one. Each root is found by the
# primary key, whatever the statistics are (the lateral's limit); then its tree is read by the same index.
NEWER_TREES = f"""
select {column_list("t")}
from unnest($1::uuid[], $2::uuid[], $3::bigint[]) as u(a, b, known),
lateral (
    select r.root_task_id, r.version, r.status from tasks r where r.root_task_id = u.a and r.task_id = u.b limit 1
) r
join tasks t on t.root_task_id = r.root_task_id
where r.version <> u.known and r.status not in ('completed', 'failed', 'cancelled', 'skipped')
"""

# Root rows by id. The id is sent twice: see `columns.MOVED_COLUMNS`. By the primary key, or by tasks_history_tree.
ROOTS = in_each_table(
    f"select {column_list()} from {{table}} where (root_task_id, task_id) in "
    "(select u.a, u.b from unnest($1::uuid[], $2::uuid[]) u(a, b))"
)

# The first task with an idempotency key. By tasks_idempotency, or by tasks_history_idempotency.
FIRST_OF_KEY = in_each_table(
    "select task_id from {table} where tenant = $1 and coalesce(requester, '') = $2 "
    "and idempotency_key = $3 and duplicate_of is null"
)

# Of some roots the versions. By the primary key.
VERSIONS = """
select task_id, version from tasks
where (root_task_id, task_id) in (select u.a, u.b from unnest($1::uuid[], $2::uuid[]) u(a, b))
"""

# Of some roots those that have not ended. By the primary key, each by itself (the lateral's limit).
STILL_OPEN = """
select u.a as task_id from unnest($1::uuid[], $2::uuid[]) as u(a, b), lateral (
select t.status from tasks t where t.root_task_id = u.a and t.task_id = u.b limit 1) t
where t.status not in ('completed', 'failed', 'cancelled', 'skipped')
"""

# Of some roots that have not ended, the version and the process that wrote it. By the primary key.
LAST_WRITERS = """
select task_id, version, dispatched_by from tasks
where (root_task_id, task_id) in (select u.a, u.b from unnest($1::uuid[], $2::uuid[]) u(a, b))
and completed_at is null
"""

# Duplicates of some originals that have not ended yet. By tasks_duplicates.
OPEN_DUPLICATES = """
select task_id from tasks where duplicate_of = any($1::uuid[]) and duplicate_of is not null and status = 'waiting'
"""

# Of some roots, the attempts and final responses that a process has to publish. By the primary key.
UNPUBLISHED_OF = """
select t.root_task_id, t.task_id
from tasks t where t.root_task_id = any($1::uuid[]) and t.dispatched_by = $2 and t.answered_at is null
  and (t.status = 'dispatched'
    or (t.task_id = t.root_task_id and t.status in ('completed', 'failed', 'cancelled')))
"""


class TaskReader:
    """Reads for transitions; each raises StoreError when Postgres is away."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def trees(self, root_task_ids: Sequence[UUID]) -> dict[UUID, list[Any]]:
        """All rows of these roots, at work or in the history."""
        missing = list(root_task_ids)
        trees: dict[UUID, list[Any]] = {}
        for statement in TREES:
            trees |= _by_root(await self._database.fetch(statement, missing))
            missing = [root_task_id for root_task_id in missing if root_task_id not in trees]
            if not missing:
                break
        return trees

    async def newer_trees(self, known: Mapping[UUID, int]) -> dict[UUID, list[Any]]:
        """All rows of those of these roots that have not ended and are not at the version that is `known` (or
        UNKNOWN)."""
        ids = list(known)
        return _by_root(await self._database.fetch(NEWER_TREES, ids, ids, list(known.values())))

    async def roots(self, task_ids: Sequence[UUID]) -> dict[UUID, asyncpg.Record]:
        """The root rows of these ids, at work or in the history."""
        found: dict[UUID, asyncpg.Record] = {}
        for statement in ROOTS:
            missing = [task_id for task_id in task_ids if task_id not in found]
            if not missing:
                break
            records = await self._database.fetch(statement, missing, missing)
            found |= {record["task_id"]: record for record in records}
        return found

    async def first_of_key(self, tenant: str, requester: str | None, key: str) -> UUID | None:
        """The first task with an idempotency key, at work or in the history."""
        for statement in FIRST_OF_KEY:
            if records := await self._database.fetch(statement, tenant, requester or "", key):
                found: UUID = records[0]["task_id"]
                return found
        return None

    async def versions(self, root_task_ids: Sequence[UUID]) -> dict[UUID, int]:
        """The versions of these roots, of those at work."""
        ids = list(root_task_ids)
        return {record["task_id"]: record["version"] for record in await self._database.fetch(VERSIONS, ids, ids)}

    async def still_open(self, root_task_ids: Sequence[UUID]) -> set[UUID]:
        """Those of these roots that have not ended."""
        records = await self._database.fetch(STILL_OPEN, root_task_ids, root_task_ids)
        return {record["task_id"] for record in records}

    async def last_writers(self, root_task_ids: Sequence[UUID]) -> dict[UUID, tuple[int, UUID | None]]:
        """The version of each of these roots that has not ended, and the process that wrote it."""
        ids = list(root_task_ids)
        records = await self._database.fetch(LAST_WRITERS, ids, ids)
        return {record["task_id"]: (record["version"], record["dispatched_by"]) for record in records}

    async def open_duplicates(self, task_ids: Sequence[UUID]) -> list[UUID]:
        """Duplicates of these originals that have not ended."""
        return [record["task_id"] for record in await self._database.fetch(OPEN_DUPLICATES, list(task_ids))]

    async def unpublished_of(self, root_task_ids: Collection[UUID], process_id: UUID) -> Sequence[asyncpg.Record]:
        """Every attempt and final response of these roots that a process has to publish."""
        return await self._database.fetch(UNPUBLISHED_OF, list(root_task_ids), process_id)


def _by_root(records: Iterable[Any]) -> dict[UUID, list[Any]]:
    trees: dict[UUID, list[Any]] = {}
    for record in records:
        trees.setdefault(record["root_task_id"], []).append(record)
    return trees
