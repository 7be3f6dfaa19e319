"""Workflows: every version of a definition that a task was started on, the newest of each name, and how far each
schedule has come."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from orchestrator_agent.store.pool import Database

# Keeps a version of a definition; versions are hashes, so what is there is the same. By the primary key.
SAVE = "insert into workflows (version, name, definition) values ($1, $2, $3::json) on conflict do nothing"

# Makes a version the newest of its name. By the primary key.
PUBLISH = "update workflows set published_at = now() where version = $1"

# A definition. By the primary key.
DEFINITION = "select name, definition from workflows where version = $1"

# The newest published version of each name. Reads the whole table, which has one row for each version.
NEWEST_VERSIONS = """
select distinct on (name) name, version from workflows where published_at is not null order by name, published_at desc
"""

# The last time of each schedule. Reads the whole table, which has one row for each scheduled workflow.
LAST_FIRED = "select workflow, fired_at, definition from schedules"

# Notes a time of a schedule; the latest stays, whichever process notes it last. By the primary key.
NOTE_FIRED = """
insert into schedules (workflow, fired_at, definition) values ($1, $2, $3)
on conflict (workflow) do update
set fired_at = greatest(schedules.fired_at, excluded.fired_at), definition = excluded.definition
"""


class WorkflowStore:
    """Definitions; each method raises StoreError when Postgres is away."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def save(self, version: str, name: str, definition: Mapping[str, Any]) -> None:
        """Keep a version, for tasks that stay on it; it is not published by that."""
        await self._database.execute(SAVE, version, name, json.dumps(definition))

    async def publish(self, version: str) -> None:
        """Make a version the newest of its name, for all orchestrators."""
        await self._database.execute(PUBLISH, version)

    async def definition(self, version: str) -> tuple[str, dict[str, Any]] | None:
        """The name and definition of a version."""
        records = await self._database.fetch(DEFINITION, version)
        return (records[0]["name"], json.loads(records[0]["definition"])) if records else None

    async def newest_versions(self) -> dict[str, str]:
        """The newest published version of each workflow, by name."""
        return {record["name"]: record["version"] for record in await self._database.fetch(NEWEST_VERSIONS)}


class ScheduleStore:
    """How far schedules have come; each method raises StoreError when Postgres is away."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def last_fired(self) -> dict[str, tuple[datetime, str]]:
        """When each scheduled workflow was last started for, and on which definition of its schedule."""
        records = await self._database.fetch(LAST_FIRED)
        return {record["workflow"]: (record["fired_at"], record["definition"]) for record in records}

    async def note_fired(self, workflow: str, at: datetime, definition: str) -> None:
        """Note that a workflow was started for a time of its schedule."""
        await self._database.execute(NOTE_FIRED, workflow, at, definition)
