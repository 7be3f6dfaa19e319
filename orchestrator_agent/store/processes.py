"""Processes: the orchestrators that the database knows, what each has to publish, and the takeover of one that died."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from orchestrator_agent.store.pool import Database

# In `orchestrators.unpublished_since`: not since a moment, but whatever was ever published, because the broker has lost
# it.
EVERYTHING = "'-infinity'::timestamptz"

# All processes but one. By a walk over the table, which has a row for each process.
OTHERS = f"""
select process_id, lock_key, unpublished_since::text as noted, unpublished_since = {EVERYTHING} as lost_everything,
       case when unpublished_since <> {EVERYTHING} then unpublished_since end as since, left_at is not null as left
from orchestrators where process_id <> $1
"""

# The processes, the oldest first: their ids are of version 7. By the primary key.
PROCESS_IDS = "select process_id from orchestrators order by process_id"

# Every attempt and final response that a process has to publish, or published in vain. By tasks_open, and the rows of
# these roots by the primary key.
UNPUBLISHED = """
select t.root_task_id, t.task_id, t.status, t.agent, t.dispatched_at
from tasks r join tasks t on t.root_task_id = r.root_task_id
where r.task_id = r.root_task_id and r.answered_at is null and t.dispatched_by = $1
  and (t.status = 'dispatched'
    or (t.task_id = t.root_task_id and t.status in ('completed', 'failed', 'cancelled')))
"""

# Makes the rows of a process another's, by the same indexes. Of a root that was at work no response is to be published:
# the process that ends it from now on publishes that itself.
TAKE_OVER = """
update tasks t set dispatched_by = $2
from tasks r
where r.task_id = r.root_task_id and r.answered_at is null and t.root_task_id = r.root_task_id
  and t.dispatched_by = $1
  and (t.status = 'dispatched' or (t.task_id = t.root_task_id and t.answered_at is null))
"""

# Processes that have rows at work and are not in the table, by the same indexes.
STRAYS = """
select distinct t.dispatched_by as process_id
from tasks r join tasks t on t.root_task_id = r.root_task_id
where r.task_id = r.root_task_id and r.answered_at is null
  and (t.status = 'dispatched' or t.task_id = t.root_task_id)
  and t.dispatched_by is not null
  and not exists (select 1 from orchestrators o where o.process_id = t.dispatched_by)
"""

# Forgets a process, unless something else was noted about it meanwhile ($2 is the note as text). The time as text:
# an exact comparison, which Python's microseconds and its lack of -infinity would not allow. By the primary key.
FORGET = "delete from orchestrators where process_id = $1 and unpublished_since::text is not distinct from $2"
IS_THERE = "select 1 from orchestrators where process_id = $1"

# Notes for every process that all it has published is lost, whether one has, and that a process has published all
# again.
LOSE_EVERYTHING = f"update orchestrators set unpublished_since = {EVERYTHING}"
HAS_LOST_EVERYTHING = f"""
select unpublished_since = {EVERYTHING} as all_of_it from orchestrators where process_id = $1
"""
EVERYTHING_PUBLISHED = f"""
update orchestrators set unpublished_since = null where process_id = $1 and unpublished_since = {EVERYTHING}
"""

# A publish is acknowledged within milliseconds; what a process dispatched this long before its last dispatch was.
SURELY_PUBLISHED = timedelta(seconds=15)


@dataclass(frozen=True)
class DeadProcess:
    """A process that may be dead. `unpublished_since`: it had noted that publishing did not work; `noted` is that note
    as the database has it. `lost_everything`: the broker lost what it had published, and it has not published that
    again."""

    process_id: UUID
    lock_key: int
    unpublished_since: datetime | None = None
    lost_everything: bool = False
    noted: str | None = None
    # It ended cleanly.
    left: bool = False

    def unsure_of(self, rows: Sequence[Any]) -> list[Any]:
        """Which of its rows may never have reached the broker. To publish an attempt again that did is harmless for the
        two minutes that the broker remembers it, but after that an agent that is long at work on it would get a
        twin."""
        last = max((row["dispatched_at"] for row in rows if row["dispatched_at"] is not None), default=None)
        if self.lost_everything or last is None:
            return list(rows)
        since = last - SURELY_PUBLISHED
        if self.unpublished_since is not None:
            since = min(since, self.unpublished_since - SURELY_PUBLISHED)
        return [
            row
            for row in rows
            if row["status"] != "dispatched" or row["dispatched_at"] is None or row["dispatched_at"] >= since
        ]


class Processes:
    """Statements; each raises StoreError when Postgres is away."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def ids(self) -> list[UUID]:
        """The processes that share the work, the oldest first."""
        return [record["process_id"] for record in await self._database.fetch(PROCESS_IDS)]

    async def others(self, process_id: UUID) -> list[DeadProcess]:
        """All processes but this one, alive or not: their locks show which."""
        records = await self._database.fetch(OTHERS, process_id)
        return [
            DeadProcess(
                row["process_id"],
                row["lock_key"],
                row["since"],
                bool(row["lost_everything"]),
                row["noted"],
                bool(row["left"]),
            )
            for row in records
        ]

    async def strays(self) -> list[DeadProcess]:
        """Processes that have rows at work and are not among those that the database knows."""
        return [DeadProcess(row["process_id"], 0) for row in await self._database.fetch(STRAYS)]

    async def unpublished(self, process_id: UUID) -> Sequence[Any]:
        """Every attempt and final response that a process has to publish, or published in vain."""
        return await self._database.fetch(UNPUBLISHED, process_id)

    async def take_over(self, dead: DeadProcess, process_id: UUID) -> int | None:
        """Make the rows of a dead process this one's, and forget the process; None where something was noted about it
        meanwhile, so that more of its rows may be unpublished than was thought."""
        async with self._database.connection() as connection, connection.transaction():
            forgotten = await connection.execute(FORGET, dead.process_id, dead.noted)
            if forgotten == "DELETE 0" and await connection.fetchval(IS_THERE, dead.process_id):
                return None
            done = await connection.execute(TAKE_OVER, dead.process_id, process_id)
            return int(done.rpartition(" ")[2])

    async def note_loss(self) -> None:
        """Note for every process, dead ones too, that what it has published is gone."""
        await self._database.execute(LOSE_EVERYTHING)

    async def lost_everything(self, process_id: UUID) -> bool:
        """Whether the broker has lost what a process published, and it has not published all of it again."""
        records = await self._database.fetch(HAS_LOST_EVERYTHING, process_id)
        return bool(records and records[0]["all_of_it"])

    async def note_published_again(self, process_id: UUID) -> None:
        """Note that a process has published everything again after a loss."""
        await self._database.execute(EVERYTHING_PUBLISHED, process_id)
