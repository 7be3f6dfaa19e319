"""PauseStore: workflows and agents that people have paused; of paused tasks, since when and by which operation."""

from collections.abc import Sequence
from uuid import UUID

import asyncpg

from orchestrator_agent.store.pool import Database

# A list of pauses shows whether much is held up; counting further would read more than that is worth.
COUNTED_ROWS = 10_000

# All pauses, the newest first, and of tasks and workflows how many rows are ready. Tasks are found through the open
# roots (tasks_open), like everything that is at work, and their rows by the primary key, each root by itself (the
# lateral's limit): whatever the statistics are, the rows of other tasks are not read.
LISTED = f"""
with found as (
    select p.kind, p.name, null as task_type, p.paused_at, p.paused_by, p.requester, null::uuid as root_task_id
    from pauses p where p.kind <> 'task'
    union all
    (select 'task', r.task_id::text, r.task_type, p.paused_at, p.paused_by, p.requester, r.root_task_id
     from tasks r left join pauses p on p.kind = 'task' and p.name = r.task_id::text
     where r.task_id = r.root_task_id and r.answered_at is null and r.status = 'paused'
     order by p.paused_at desc nulls last limit $1)
)
select f.kind, f.name, f.task_type, f.paused_at, f.paused_by, f.requester,
       case f.kind
           when 'task' then
               (select count(*) from (select 1 from tasks t where t.root_task_id = f.root_task_id
                and t.status = 'ready' limit {COUNTED_ROWS}) c)
           when 'workflow' then
               (select count(*) from (select 1 from tasks r, lateral (
                    select 1 from tasks t where t.root_task_id = r.root_task_id and t.status = 'ready'
                    limit {COUNTED_ROWS}) t
                where r.task_id = r.root_task_id and r.answered_at is null and r.task_type = f.name
                limit {COUNTED_ROWS}) c)
       end as waiting
from found f order by f.paused_at desc nulls last, f.kind, f.name limit $1
"""

# Notes a pause; what is paused already keeps its first note. By the primary key.
PAUSE = """
insert into pauses (kind, name, paused_by, requester) values ($1, $2, $3, $4) on conflict do nothing
"""

# Removes the notes of tasks that ended while they were paused. By the primary key of tasks.
FORGET = """
delete from pauses p where p.kind = 'task' and (
    select t.status from tasks t where t.root_task_id = p.name::uuid and t.task_id = p.name::uuid limit 1
    ) is distinct from 'paused'
"""

# Removes a pause. By the primary key.
RESUME = "delete from pauses where kind = $1 and name = $2"

# The workflows and agents that are paused. Reads the whole table, which has one row for each pause.
PAUSED = "select kind, name from pauses where kind <> 'task'"


class PauseStore:
    """Statements; each raises StoreError when Postgres is away."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def pause(self, kind: str, name: str, paused_by: UUID, requester: str | None) -> None:
        """Pause a workflow or an agent, or note that a task has been; what is paused already keeps its first note."""
        if kind == "task":
            await self._database.execute(FORGET)
        await self._database.execute(PAUSE, kind, name, paused_by, requester)

    async def resume(self, kind: str, name: str) -> None:
        await self._database.execute(RESUME, kind, name)

    async def names(self) -> tuple[frozenset[str], frozenset[str]]:
        """The workflows and the agents that are paused."""
        records = await self._database.fetch(PAUSED)
        workflows = frozenset(record["name"] for record in records if record["kind"] == "workflow")
        return workflows, frozenset(record["name"] for record in records if record["kind"] == "agent")

    async def listed(self, limit: int) -> Sequence[asyncpg.Record]:
        """All that is paused, the newest first, and of tasks and workflows how many ready rows are held up."""
        return await self._database.fetch(LISTED, limit)
