"""Schema: whether the database has what this version's statements need."""

from orchestrator_agent.store.pool import Database
from protocol.errors import SettingsError

# The migration that they need; revisions are numbers that sort.
SCHEMA = "0007"

# Whether the database was ever migrated, and to which revision.
IS_MIGRATED = "select to_regclass('alembic_version') is not null as migrated"
REVISION = "select max(version_num) as revision from alembic_version"


async def check_schema(database: Database) -> None:
    """A newer schema is that of a rolling upgrade, and serves this version too. Raises SettingsError, StoreError."""
    if not (await database.fetch(IS_MIGRATED))[0]["migrated"]:
        raise SettingsError(f"the database at {database.shown} has no schema yet: run 'pantheon migrate'")
    found = (await database.fetch(REVISION))[0]["revision"]
    if (found or "") < SCHEMA:
        raise SettingsError(
            f"the database at {database.shown} has schema {found}, and this version needs {SCHEMA}: "
            "run 'pantheon migrate'"
        )
