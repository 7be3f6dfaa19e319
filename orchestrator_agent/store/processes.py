"""Processes: the orchestrators that the database knows, what each owes, and who takes over from one that died."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from orchestrator_agent.store.pool import Database

# Every attempt and final response that a process has to publish, or published in vain.
UNPUBLISHED = """
select t.root_task_id, t.task_id, t.status, t.agent, t.dispatched_at
from tasks r join tasks t on t.root_task_id = r.root_task_id
where r.task_id = r.root_task_id and r.answered_at is null and t.dispatched_by = $1
  and (t.status = 'dispatched'
    or (t.task_id = t.root_task_id and t.status in ('completed', 'failed', 'cancelled')))
"""
# A root that was at work owes no answer: whoever ends it from now on says so itself.
TAKE_OVER = """
update tasks t set dispatched_by = $2
from tasks r
where r.task_id = r.root_task_id and r.answered_at is null and t.root_task_id = r.root_task_id
  and t.dispatched_by = $1
  and (t.status = 'dispatched' or (t.task_id = t.root_task_id and t.answered_at is null))
"""
STRAYS = """
select distinct t.dispatched_by as process_id
from tasks r join tasks t on t.root_task_id = r.root_task_id
where r.task_id = r.root_task_id and r.answered_at is null
  and (t.status = 'dispatched' or t.task_id = t.root_task_id)
  and t.dispatched_by is not null
  and not exists (select 1 from orchestrators o where o.process_id = t.dispatched_by)
"""
# In `unpublished_since`: the broker has lost what was published, whenever that was.
ALL = "'-infinity'::timestamptz"

# A publish is acknowledged within milliseconds; what a process dispatched this long before its last dispatch was.
SURELY_PUBLISHED = timedelta(seconds=15)


@dataclass(frozen=True)
class DeadProcess:
    """A process that may be dead. `unpublished_since`: it had said that publishing did not work; `noted` is that as
    the database has it. `owes_all`: the broker lost what it had published, and it has not said that again."""

    process_id: UUID
    lock_key: int
    unpublished_since: datetime | None = None
    owes_all: bool = False
    noted: str | None = None

    def may_owe(self, rows: Sequence[Any]) -> list[Any]:
        """Which of its rows may never have reached the broker. Saying an attempt again that did is harmless for the two
        minutes that the broker remembers it, but after that an agent that is long at work on it would get a twin."""
        last = max((one["dispatched_at"] for one in rows if one["dispatched_at"] is not None), default=None)
        if self.owes_all or last is None:
            return list(rows)
        since = last - SURELY_PUBLISHED
        if self.unpublished_since is not None:
            since = min(since, self.unpublished_since - SURELY_PUBLISHED)
        return [
            one
            for one in rows
            if one["status"] != "dispatched" or one["dispatched_at"] is None or one["dispatched_at"] >= since
        ]


class Processes:
    """Statements; each raises StoreError when Postgres is away."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def others(self, process_id: UUID) -> list[DeadProcess]:
        """All processes but this one, alive or not: their locks say which."""
        records = await self._database.fetch(
            f"""
            select process_id, lock_key, unpublished_since::text as noted, unpublished_since = {ALL} as owes_all,
                   case when unpublished_since <> {ALL} then unpublished_since end as since
            from orchestrators where process_id <> $1
            """,
            process_id,
        )
        return [
            DeadProcess(one["process_id"], one["lock_key"], one["since"], bool(one["owes_all"]), one["noted"])
            for one in records
        ]

    async def strays(self) -> list[DeadProcess]:
        """Processes that have rows at work and are not in the list."""
        records = await self._database.fetch(STRAYS)
        return [DeadProcess(one["process_id"], 0) for one in records]

    async def unpublished(self, process_id: UUID) -> Sequence[Any]:
        return await self._database.fetch(UNPUBLISHED, process_id)

    async def take_over(self, dead: DeadProcess, process_id: UUID) -> int | None:
        """Make the rows of a dead process this one's, and strike it off the list; None where something was noted about
        it meanwhile, so that it may owe more than was thought."""
        async with self._database.connection() as connection, connection.transaction():
            struck = await connection.execute(
                "delete from orchestrators where process_id = $1 and unpublished_since::text is not distinct from $2",
                dead.process_id,
                dead.noted,
            )
            if struck == "DELETE 0" and await connection.fetchval(
                "select 1 from orchestrators where process_id = $1", dead.process_id
            ):
                return None
            done = await connection.execute(TAKE_OVER, dead.process_id, process_id)
            return int(done.rpartition(" ")[2])

    async def broker_lost(self) -> None:
        """Note for every process, dead ones too, that what it has published is gone."""
        await self._database.execute(f"update orchestrators set unpublished_since = {ALL}")

    async def owes_all(self, process_id: UUID) -> bool:
        records = await self._database.fetch(
            f"select unpublished_since = {ALL} as all_of_it from orchestrators where process_id = $1", process_id
        )
        return bool(records and records[0]["all_of_it"])

    async def owes_no_more(self, process_id: UUID) -> None:
        await self._database.execute(
            f"update orchestrators set unpublished_since = null where process_id = $1 and unpublished_since = {ALL}",
            process_id,
        )
