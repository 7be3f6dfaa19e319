"""upgrade: run the migrations on a database, once, however many processes try to at the same time."""

from pathlib import Path

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from migrations.database_url import read_address
from protocol.errors import StoreError

# Two processes that migrate at once wait for one another on this advisory lock ("pantheon" in ASCII, cut).
_LOCK_KEY = 0x70616E7468656F6E & 0x7FFFFFFFFFFFFFFF


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.set_main_option("path_separator", "os")
    return config


def head() -> str:
    """The newest revision that this installation knows."""
    return ScriptDirectory.from_config(_config()).get_current_head() or ""


def _engine(database_url: str) -> AsyncEngine:
    scheme, _, rest = database_url.partition("://")
    if scheme not in ("postgres", "postgresql", "postgresql+asyncpg"):
        raise StoreError(f"not a Postgres URL: it begins with '{scheme}://', and must with 'postgresql://'")
    address = read_address(f"postgresql://{rest}")
    # The address is asyncpg's to read: SQLAlchemy's own form of a URL has no list of hosts.
    return create_async_engine(
        "postgresql+asyncpg://",
        async_creator=lambda: asyncpg.connect(address.url, timeout=address.timeout),
        poolclass=NullPool,
    )


def _upgrade(connection: Connection) -> str:
    connection.execute(text("select pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    return MigrationContext.configure(connection).get_current_revision() or ""


async def upgrade(database_url: str) -> str:
    """Bring the schema to the newest revision and return it; does nothing where it is there. Raises StoreError."""
    engine = _engine(database_url)
    try:
        async with engine.begin() as connection:
            return await connection.run_sync(_upgrade)
    except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError, DBAPIError) as error:
        raise StoreError(f"cannot migrate the database: {_first_line(error)}") from error
    finally:
        await engine.dispose()


async def current(database_url: str) -> str | None:
    """The revision of a database's schema, None where it was never migrated. Raises StoreError."""
    engine = _engine(database_url)
    try:
        async with engine.connect() as connection:
            return await connection.run_sync(lambda sync: MigrationContext.configure(sync).get_current_revision())
    except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError, DBAPIError) as error:
        raise StoreError(f"cannot read the database: {_first_line(error)}") from error
    finally:
        await engine.dispose()


def _first_line(error: BaseException) -> str:
    origin = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return (str(origin) or type(origin).__name__).splitlines()[0]
