"""HistoryStore: trees that ended, in `tasks_history`, partitioned by the month of their responses."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import date, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg

from orchestrator_agent.store.columns import column_list
from orchestrator_agent.store.pool import Database
from protocol.errors import StoreError

# One process at a time moves; it is no leader, the next batch may be another's.
LOCK_KEY = 0x68697374
LOCK, UNLOCK = "select pg_try_advisory_lock($1)", "select pg_advisory_unlock($1)"
# Who reads the history keeps a month from being made or dropped; it is tried again then, rather than let all wait.
LIMIT_WAIT = "set local lock_timeout = '500ms'"

# Roots by time of acceptance, and whether they were responded to long enough ago. By tasks_roots_by_time, from where
# the last step ended: tasks that stay at work for long are walked over once a round.
ENDED = """
select t.task_id, t.created_at, t.answered_at,
       t.answered_at is not null and t.answered_at < now() - make_interval(secs => $3) as may_go
from tasks t
where t.task_id = t.root_task_id and (t.created_at, t.task_id) > ($1, $2)
  and t.created_at < now() - make_interval(secs => $3)
order by t.created_at, t.task_id limit $4
"""

# How many rows some trees have. By the primary key.
SIZES = """
select u.root_task_id, (select count(*) from tasks t where t.root_task_id = u.root_task_id) as count
from unnest($1::uuid[]) as u(root_task_id)
"""

# Copies trees, unless they have been. By the primary key and tasks_history_tree.
# First the copy, a step later the end of the original: who accepts a task sees at least one of them. (Deleted in the
# same statement, a task that is sent again in that moment would be in neither, and run twice.)
COPY = f"""
insert into tasks_history ({column_list()}, ended_on)
select {column_list("t")}, u.ended_on
from unnest($1::uuid[], $2::date[]) as u(root_task_id, ended_on) join tasks t on t.root_task_id = u.root_task_id
where (select h.task_id from tasks_history h where h.root_task_id = u.root_task_id limit 1) is null
"""

# Deletes trees that were copied. By the primary key.
DELETE = "delete from tasks t using unnest($1::uuid[]) as u(root_task_id) where t.root_task_id = u.root_task_id"

# The partitions that there are.
MONTHS = """
select c.relname as name from pg_inherits i join pg_class c on c.oid = i.inhrelid
where i.inhparent = 'tasks_history'::regclass
"""
MAKE_MONTH = "create table if not exists {name} partition of tasks_history for values from ('{first}') to ('{end}')"
DROP_MONTH = "drop table if exists {name}"


def month_of(day: date) -> tuple[str, date, date]:
    """The partition of a day: its name, its first day, the first day that is not in it."""
    first = day.replace(day=1)
    return f"tasks_history_{first:%Y_%m}", first, (first + timedelta(days=32)).replace(day=1)


def surely_new(task_id: UUID, moment: datetime, history_after_seconds: float) -> bool:
    """Whether an id is so young that no task of it can be in the history: a version 7 id holds the time at which it was
    made.

    Half the time to spare is for requesters whose clocks are ahead.
    """
    if task_id.version != 7:
        return False
    age = moment.timestamp() - (task_id.int >> 80) / 1000
    return 0 <= age < history_after_seconds / 2


class HistoryMove:
    """The right to move trees, on the connection that has the lock."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def ended(
        self, after: tuple[datetime, UUID], min_response_age_seconds: float, limit: int
    ) -> Sequence[asyncpg.Record]:
        """Roots behind `after`, by time of acceptance, and of each whether it `may_go`."""
        rows: list[asyncpg.Record] = await self._connection.fetch(ENDED, *after, min_response_age_seconds, limit)
        return rows

    async def sizes(self, root_task_ids: Sequence[UUID]) -> dict[UUID, int]:
        """How many rows each of these trees has."""
        records = await self._connection.fetch(SIZES, list(root_task_ids))
        return {record["root_task_id"]: record["count"] for record in records}

    async def copy(self, ended_on: Mapping[UUID, date]) -> None:
        """Copy the trees of these roots into the months of their responses, which must have been made."""
        await self._connection.execute(COPY, list(ended_on), list(ended_on.values()))

    async def delete(self, root_task_ids: Sequence[UUID]) -> None:
        """Delete trees that were copied from the tasks at work."""
        await self._connection.execute(DELETE, list(root_task_ids))

    async def months(self) -> list[str]:
        return [record["name"] for record in await self._connection.fetch(MONTHS)]

    async def make_month(self, day: date) -> None:
        name, first, end = month_of(day)
        async with self._connection.transaction():
            await self._connection.execute(LIMIT_WAIT)
            await self._connection.execute(MAKE_MONTH.format(name=name, first=first, end=end))

    async def drop_month(self, name: str) -> None:
        async with self._connection.transaction():
            await self._connection.execute(LIMIT_WAIT)
            await self._connection.execute(DROP_MONTH.format(name=name))


class HistoryStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    @asynccontextmanager
    async def moving(self) -> AsyncIterator[HistoryMove | None]:
        """The right to move trees, None while another process has it. Raises StoreError."""
        try:
            async with self._database.connection() as connection:
                if not await connection.fetchval(LOCK, LOCK_KEY):
                    yield None
                    return
                try:
                    yield HistoryMove(connection)
                finally:
                    await connection.fetchval(UNLOCK, LOCK_KEY)
        except asyncpg.UndefinedTableError as error:
            raise StoreError(f"the history is being read: {error}") from error
