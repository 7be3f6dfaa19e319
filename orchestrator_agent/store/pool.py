"""Database: a pool of connections to Postgres that maps the errors of its client library to the mesh's."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Self
from urllib.parse import urlsplit

import asyncpg
import asyncpg.pgproto.pgproto
import structlog

from migrations.database_url import read_address
from orchestrator_agent.store.connecting import apply, takes_settings_at_start
from pantheon.runtime.settings import one_host_urls
from protocol.errors import StoreError
from protocol.ids import use_fast_ids

log = structlog.get_logger()

# What means "Postgres is away or busy, try again", beside the network's own errors. Whole classes of Postgres's error
# codes: an administrator cancels a statement, a role has a timeout of its own, a disk fails for a while.
PASSING_ERRORS = (
    asyncpg.PostgresConnectionError,  # 08
    asyncpg.exceptions.IdleInTransactionSessionTimeoutError,
    asyncpg.exceptions.ReadOnlySQLTransactionError,
    asyncpg.exceptions.TransactionRollbackError,  # 40: deadlock, serialization
    asyncpg.exceptions.InsufficientResourcesError,  # 53: connections, memory, disk
    asyncpg.exceptions.LockNotAvailableError,
    asyncpg.exceptions.OperatorInterventionError,  # 57: cancelled, shut down, starting, crashed
    asyncpg.exceptions.PostgresSystemError,  # 58: files
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    asyncio.TimeoutError,
    ConnectionError,
)

# The batch statements join arrays with a table by its primary key. Without statistics (a fresh table) the planner
# would rather read the whole table for each batch; these leave it the index, and one plan for ever. A bitmap gives no
# order: with statistics from before a queue grew, all of it would be read and sorted for its first hundred rows.
SESSION_SETTINGS = {
    "application_name": "pantheon-orchestrator",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_mergejoin": "off",
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",
    "timezone": "UTC",
    # A process that is frozen in the midst of a transaction must not hold its locks: they last milliseconds.
    "idle_in_transaction_session_timeout": "15s",
    # A host that vanished must not hold its advisory lock for the two hours that TCP's defaults would.
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}
# A condition, always true, that has the statement's own transaction committed without waiting for the disk: for notes
# that a crash of Postgres may take back. A statement evaluates it once.
NO_FLUSH = "(select set_config('synchronous_commit', 'off', true)) is not null"
COMMAND_TIMEOUT_SECONDS = 60.0


class Database:
    """`async with Database(url) as database`. Methods raise StoreError for what passes; other errors are bugs."""

    def __init__(self, url: str, *, max_connections: int = 8) -> None:
        self._url = url
        self._max = max_connections
        self._pool: asyncpg.Pool[Any] | None = None

    async def open(self, *, wait_seconds: float | None = None) -> None:
        """Connect, trying again until `wait_seconds` have passed (None: for ever). Raises StoreError."""
        # The library logs each failed attempt to fill the pool with a traceback; that Postgres is away is logged below.
        logging.getLogger("asyncpg.pool").setLevel(logging.ERROR)
        loop = asyncio.get_running_loop()
        end = None if wait_seconds is None else loop.time() + wait_seconds
        wait = 0.1
        while True:
            try:
                address = read_address(self._url)
                settings = {**SESSION_SETTINGS, **address.settings}
                at_start = await takes_settings_at_start(address, SESSION_SETTINGS)
                if address.ignored:
                    log.warning("postgres.parameters_ignored", names=list(address.ignored), hint="they are libpq's own")
                self._pool = await asyncpg.create_pool(
                    address.url,
                    min_size=2,
                    max_size=self._max,
                    timeout=address.timeout,
                    command_timeout=COMMAND_TIMEOUT_SECONDS,
                    server_settings=settings if at_start else None,
                    init=None if at_start else partial(apply, settings=settings),
                    max_inactive_connection_lifetime=300,
                    # The statements leave nothing behind on a connection; resetting it would double their round trips.
                    reset=_no_reset,
                )
                return
            except PASSING_ERRORS as error:
                if end is not None and loop.time() >= end:
                    raise self._away(error) from error
                if wait > 1:
                    log.warning("postgres.waiting", database=self.shown, error=first_line(error))
                await asyncio.sleep(wait)
                wait = min(wait * 2, 5)
            except (asyncpg.PostgresError, ValueError) as error:
                raise self._away(error) from error

    def _away(self, error: BaseException) -> StoreError:
        return StoreError(f"Postgres does not answer at {self.shown}: {first_line(error)} (check DATABASE_URL)")

    @property
    def shown(self) -> str:
        """The database's address without what is secret in it."""
        hosts = [urlsplit(url) for url in one_host_urls(self._url)]
        return ",".join(f"{host.hostname}:{host.port or 5432}" for host in hosts) + hosts[0].path

    async def close(self) -> None:
        if self._pool is not None:
            try:
                async with asyncio.timeout(3):
                    await self._pool.close()
            except (TimeoutError, *PASSING_ERRORS):
                self._pool.terminate()
            self._pool = None

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator["asyncpg.pool.PoolConnectionProxy[Any]"]:
        """A connection of the pool's, with passing errors mapped to StoreError.

        Where a statement ends by anything but a response of the server's (a cancel, a broken connection), the state of
        the connection is unknown, so it is closed and not reused.
        """
        pool = self._pool
        if pool is None:
            raise StoreError("the database is not open")
        try:
            connection = await pool.acquire()
            try:
                yield connection
            except asyncpg.PostgresError:
                raise
            except BaseException:
                connection.terminate()
                raise
            finally:
                await pool.release(connection)
        except PASSING_ERRORS as error:
            raise StoreError(f"Postgres at {self.shown}: {first_line(error)}") from error

    async def fetch(self, query: str, *arguments: Any) -> Sequence[asyncpg.Record]:
        async with self.connection() as connection:
            rows: list[asyncpg.Record] = await connection.fetch(query, *arguments)
            return rows

    async def execute(self, query: str, *arguments: Any) -> str:
        async with self.connection() as connection:
            return str(await connection.execute(query, *arguments))

    async def ping(self) -> None:
        """A round trip. Raises StoreError."""
        await self.fetch("select 1")


async def _no_reset(connection: "asyncpg.Connection[Any]") -> None:
    return None


def use_postgres_ids() -> None:
    """Have all ids be those of Postgres's client: made of text in a tenth of the time, hashed in a third."""
    use_fast_ids(asyncpg.pgproto.pgproto.UUID)


def first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
