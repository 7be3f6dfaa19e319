"""History: tasks that have ended and were answered leave the table of those at work, and are dropped by age.

Whole trees go, in small batches, into a table partitioned by the month of their answer; a month is dropped when all of
it is older than tasks are kept. That their ids and idempotency keys are remembered is the history's own indexes.
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import structlog

from orchestrator_agent.store.columns import column_list
from orchestrator_agent.store.pool import Database
from pantheon.runtime.periodic import PeriodicTask
from protocol.errors import StoreError
from protocol.messages import now

log = structlog.get_logger()

# One process at a time moves; it is no leader, whoever comes next may be another.
LOCK_KEY = 0x68697374
# What is looked at in one go, and what is moved in one transaction: some milliseconds of Postgres's time.
LOOK_ROOTS = 500
MOVE_ROWS = 1000
# After each batch, Postgres has this many times as long for everything else.
REST_BUSY, REST_IDLE = 40.0, 4.0
# When everything that may go has gone.
PAUSE_SECONDS = 30.0
# Whoever reads the history keeps a month from being made or dropped; it is tried again then, rather than let all wait.
LOCK_WAIT = "500ms"

# By time of acceptance, from where the last look ended: tasks that stay at work for long are walked over once a round.
ENDED = """
select t.task_id, t.created_at, t.answered_at,
       t.answered_at is not null and t.answered_at < now() - make_interval(secs => $3) as may_go
from tasks t
where t.task_id = t.root_task_id and (t.created_at, t.task_id) > ($1, $2)
  and t.created_at < now() - make_interval(secs => $3)
order by t.created_at, t.task_id limit $4
"""
SIZES = """
select u.root_task_id, (select count(*) from tasks t where t.root_task_id = u.root_task_id) as count
from unnest($1::uuid[]) as u(root_task_id)
"""
# First the copy, a step later the end of the original: whoever accepts a task sees at least one of them. (Deleted in
# the same statement, a task that is sent again in that moment would be in neither, and run twice.)
COPY = f"""
insert into tasks_history ({column_list()}, ended_on)
select {column_list("t")}, u.ended_on
from unnest($1::uuid[], $2::date[]) as u(root_task_id, ended_on) join tasks t on t.root_task_id = u.root_task_id
where (select h.task_id from tasks_history h where h.root_task_id = u.root_task_id limit 1) is null
"""
DELETE = "delete from tasks t using unnest($1::uuid[]) as u(root_task_id) where t.root_task_id = u.root_task_id"
MONTHS = """
select c.relname as name from pg_inherits i join pg_class c on c.oid = i.inhrelid
where i.inhparent = 'tasks_history'::regclass
"""

_FIRST = (datetime(1970, 1, 1, tzinfo=UTC), UUID(int=0))


def month_of(day: date) -> tuple[str, date, date]:
    """The partition of a day: its name, its first day, the first day that is not in it."""
    first = day.replace(day=1)
    return f"tasks_history_{first:%Y_%m}", first, (first + timedelta(days=32)).replace(day=1)


def is_over(name: str, today: date, retention_days: float) -> bool:
    """Whether everything in a partition is older than tasks are kept."""
    try:
        first = datetime.strptime(name, "tasks_history_%Y_%m").replace(tzinfo=UTC).date()
    except ValueError:
        return False
    return month_of(first)[2] <= today - timedelta(days=retention_days)


class HistoryArchiver:
    """Moves and drops in the background; `busy` says whether there is work that must not be slowed."""

    def __init__(
        self,
        database: Database,
        *,
        after_seconds: float,
        retention_days: float,
        busy: Callable[[], bool] = lambda: False,
    ) -> None:
        self._database = database
        self._after = after_seconds
        self._retention = retention_days
        self._busy = busy
        self._from = _FIRST
        self._copied: list[UUID] = []
        self._months: set[str] = set()
        self._moving = PeriodicTask("history", self._move, seconds=min(PAUSE_SECONDS, after_seconds))

    async def start(self) -> None:
        self._moving.start()

    async def stop(self) -> None:
        await self._moving.stop()

    async def _move(self) -> float | None:
        """Move a batch; returns how long to rest before the next one, None where there is none yet."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            if not await self.step():
                return None
        except StoreError as error:
            log.warning("history.waiting", error=str(error))
            return None
        return (loop.time() - began) * (REST_BUSY if self._busy() else REST_IDLE)

    async def step(self) -> bool:
        """Move a batch, if no other process does; whether there is more. Raises StoreError."""
        try:
            async with self._database.connection() as connection:
                if not await connection.fetchval("select pg_try_advisory_lock($1)", LOCK_KEY):
                    return False
                try:
                    return await self._step(connection)
                finally:
                    await connection.fetchval("select pg_advisory_unlock($1)", LOCK_KEY)
        except asyncpg.UndefinedTableError as error:
            raise StoreError(f"the history is being read: {error}") from error

    async def _step(self, connection: Any) -> bool:
        if self._copied:
            await connection.execute(DELETE, self._copied)
            self._copied = []
        looked = await connection.fetch(ENDED, *self._from, self._after, LOOK_ROOTS)
        going = {row["task_id"]: row["answered_at"].date() for row in looked if row["may_go"]}
        if not going:
            return await self._looked(connection, looked)
        sizes = await connection.fetch(SIZES, list(going))
        batch: list[UUID] = []
        rows = 0
        for size in sizes:
            if batch and rows + size["count"] > MOVE_ROWS:
                break
            batch.append(size["root_task_id"])
            rows += size["count"]
        for day in {going[task_id] for task_id in batch}:
            await self._make_month(connection, day)
        await connection.execute(COPY, batch, [going[task_id] for task_id in batch])
        self._copied = batch
        log.debug("history.moved", tasks=len(batch), rows=rows)
        return True

    async def _looked(self, connection: Any, looked: Sequence[Any]) -> bool:
        if len(looked) == LOOK_ROOTS:
            self._from = (looked[-1]["created_at"], looked[-1]["task_id"])
            return True
        # All have been seen: from the beginning again, and time to see what is too old.
        self._from = _FIRST
        await self._drop_months(connection)
        return False

    async def _make_month(self, connection: Any, day: date) -> None:
        name, first, end_of = month_of(day)
        if name in self._months:
            return
        async with connection.transaction():
            await connection.execute(f"set local lock_timeout = '{LOCK_WAIT}'")
            bounds = f"from ('{first}') to ('{end_of}')"
            await connection.execute(
                f"create table if not exists {name} partition of tasks_history for values {bounds}"
            )
        self._months.add(name)

    async def _drop_months(self, connection: Any) -> None:
        today = now().date()
        for record in await connection.fetch(MONTHS):
            name = record["name"]
            if is_over(name, today, self._retention):
                async with connection.transaction():
                    await connection.execute(f"set local lock_timeout = '{LOCK_WAIT}'")
                    await connection.execute(f"drop table if exists {name}")
                self._months.discard(name)
                log.info("history.dropped", month=name)
