"""ConcurrencyStore: which roots of a concurrency key run, settled under a lock of the key's own."""

from uuid import UUID

from orchestrator_agent.engine.concurrency import OpenRoot, decide_concurrency
from orchestrator_agent.store.pool import Database

# Keys that roots wait for. By tasks_concurrency, which holds only roots with a key that have not ended.
CONTENDED_KEYS = "select distinct concurrency_key from tasks where concurrency_key is not null and status = 'waiting'"

# One process at a time admits roots of a key.
LOCK = "select pg_advisory_xact_lock(hashtextextended($1, 0))"

# The roots of a key that have not ended, the oldest first. By tasks_concurrency.
OPEN_ROOTS = """
select task_id, status, priority from tasks
where concurrency_key = $1 and concurrency_key is not null
and status in ('waiting', 'running', 'paused', 'compensating') order by created_at, task_id
"""

# Has waiting roots run. A process that has one of them in memory finds its version changed. By the primary key.
ADMIT = """
update tasks set status = 'running', version = version + 1
where (root_task_id, task_id) in (select u, u from unnest($1::uuid[]) u) and status = 'waiting'
"""


class ConcurrencyStore:
    """Statements; each method raises StoreError when Postgres is away."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def contended_keys(self) -> list[str]:
        """Concurrency keys of roots that wait to be admitted."""
        return [record["concurrency_key"] for record in await self._database.fetch(CONTENDED_KEYS)]

    async def admit(self, key: str, bound: int, cancel_older: bool) -> tuple[list[UUID], list[UUID]]:
        """Admit waiting roots of a key, as many as may run; returns those, and those that are to be cancelled for them.

        One transaction under the key's lock: however many processes ask, no more than `bound` run.
        """
        async with self._database.connection() as connection, connection.transaction():
            await connection.execute(LOCK, key)
            rows = await connection.fetch(OPEN_ROOTS, key)
            roots = [OpenRoot(row["task_id"], row["status"] == "waiting", row["priority"]) for row in rows]
            admitted, older = decide_concurrency(roots, bound=bound, cancel_older=cancel_older)
            if admitted:
                await connection.execute(ADMIT, admitted)
            return admitted, older
