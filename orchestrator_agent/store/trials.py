"""TrialStore: which roots a process decides on, noted before it does, for those that come after its death."""

from collections.abc import Collection
from uuid import UUID

from orchestrator_agent.store.pool import Database

BEGIN = """
insert into trials (process_id, root_task_id) select $1, u.root from unnest($2::uuid[]) as u(root)
on conflict (process_id, root_task_id) do nothing
"""
END = "delete from trials where process_id = $1 and root_task_id = any($2::uuid[])"

# Of a process that died: what it was deciding on. One of several is suspected once, however often; a death counts for
# the one that was alone. By the primary keys.
CONVICT = """
with gone as (delete from trials where process_id = $1 returning root_task_id)
insert into trial_deaths as d (root_task_id, deaths) select root_task_id, 1 from gone
on conflict (root_task_id) do update set died_at = now(),
    deaths = case when (select count(*) from gone) = 1 then d.deaths + 1 else d.deaths end
returning root_task_id, deaths
"""
DEATHS = "select root_task_id, deaths, extract(epoch from now() - died_at)::float8 as seconds_ago from trial_deaths"
# By a walk over the table, which is empty but after deaths. A suspect that no process died on again was none.
FORGET_OLD = """
delete from trial_deaths
where died_at < now() - case when deaths < $1 then interval '1 hour' else interval '30 days' end
"""

# So many deaths on one root are no accident.
GUILTY_DEATHS = 2


class TrialStore:
    """Each method raises StoreError when Postgres is away."""

    def __init__(self, database: Database, process_id: UUID) -> None:
        self._database = database
        self._process_id = process_id

    async def begin(self, root_task_ids: Collection[UUID]) -> None:
        """This process is about to decide on these."""
        await self._database.execute(BEGIN, self._process_id, list(root_task_ids))

    async def end(self, root_task_ids: Collection[UUID]) -> None:
        """It has, and lives."""
        await self._database.execute(END, self._process_id, list(root_task_ids))

    async def convict(self, dead_process_id: UUID) -> dict[UUID, int]:
        """Count a death for what a dead process was deciding on; these roots with all their deaths."""
        found = await self._database.fetch(CONVICT, dead_process_id)
        return {record["root_task_id"]: record["deaths"] for record in found}

    async def deaths(self) -> tuple[dict[UUID, int], float | None]:
        """All roots that processes died on, and how many; and how many seconds ago the last of them did."""
        await self._database.execute(FORGET_OLD, GUILTY_DEATHS)
        found = await self._database.fetch(DEATHS)
        deaths = {record["root_task_id"]: record["deaths"] for record in found}
        return deaths, min((record["seconds_ago"] for record in found), default=None)
