"""Pauses: workflows and agents that people have paused; of paused tasks, since when and by whom."""

from collections.abc import Sequence
from uuid import UUID

import asyncpg

from orchestrator_agent.store.pool import Database

# Whoever looks at pauses wants to know whether much waits; counting further would read more than it says.
COUNTED_ROWS = 10_000

# Tasks are found through the open roots (index tasks_open), like everything that is at work. One by one (the lateral's
# limit): whatever the statistics say, the rows of other tasks are not read.
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

PAUSE = """
insert into pauses (kind, name, paused_by, requester) values ($1, $2, $3, $4) on conflict do nothing
"""
# A task that ended while it was paused left its note behind.
FORGET = """
delete from pauses p where p.kind = 'task' and (
    select t.status from tasks t where t.root_task_id = p.name::uuid and t.task_id = p.name::uuid limit 1
    ) is distinct from 'paused'
"""


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
        await self._database.execute("delete from pauses where kind = $1 and name = $2", kind, name)

    async def names(self) -> tuple[frozenset[str], frozenset[str]]:
        """The workflows and the agents that are paused."""
        records = await self._database.fetch("select kind, name from pauses where kind <> 'task'")
        workflows = frozenset(record["name"] for record in records if record["kind"] == "workflow")
        return workflows, frozenset(record["name"] for record in records if record["kind"] == "agent")

    async def listed(self, limit: int) -> Sequence[asyncpg.Record]:
        """All that is paused, the newest first, and of tasks and workflows how many rows are ready and wait."""
        return await self._database.fetch(LISTED, limit)
