"""BrokerMarks: where the broker's streams stood when they were last seen.

With them a loss is noticed even when no orchestrator was there to see it (`maintenance.broker_watch`).
"""

from collections.abc import Mapping

from orchestrator_agent.store.pool import Database

# Notes a stream's creation time and last sequence. By the primary key.
NOTE = """
insert into broker_streams (name, created, last_sequence) values ($1, $2, $3)
on conflict (name) do update set created = excluded.created, last_sequence = excluded.last_sequence
"""

# What was noted. Reads the whole table, which has one row for each stream.
NOTED = "select name, created, last_sequence from broker_streams"


class BrokerMarks:
    """Statements; each raises StoreError when Postgres is away."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def note(self, marks: Mapping[str, tuple[str, int]]) -> None:
        """Keep creation time and last sequence of streams, by name."""
        for name, (created, last_sequence) in marks.items():
            await self._database.execute(NOTE, name, created, last_sequence)

    async def noted(self) -> dict[str, tuple[str, int]]:
        records = await self._database.fetch(NOTED)
        return {record["name"]: (record["created"], record["last_sequence"]) for record in records}
