"""Database: a pool of connections whose errors are the mesh's, and the lock that says this process lives."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Self
from urllib.parse import urlsplit
from uuid import UUID

import asyncpg
import structlog

from pantheon.runtime.settings import one_host_urls
from protocol.errors import StoreError

log = structlog.get_logger()

# What means "Postgres is away or busy, try again", beside the network's own errors. Whole classes of Postgres's error
# codes: an administrator cancels a statement, a role has a timeout of its own, a disk fails for a while.
_PASSING = (
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
# order: with statistics from before a line grew, all of it would be read and sorted for its first hundred rows.
_SESSION = {
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
# that a crash of Postgres may take back. It is looked at once in a statement.
NO_FLUSH = "(select set_config('synchronous_commit', 'off', true)) is not null"
COMMAND_TIMEOUT_SECONDS = 60.0
# A process that is frozen keeps its connections: the kernel answers for it. So the session of its lock ends when
# nothing was said in it for this time, as long as TCP's keepalives take with a host that vanished.
FROZEN_SECONDS = 25.0
# So many words in that time: a loop that is busy for a while has not lost its lock yet.
WORDS = 5
TAKE_AGAIN_SECONDS = 1.0


class Database:
    """`async with Database(url) as database`. Methods raise StoreError for what passes; other errors are bugs."""

    def __init__(self, url: str, *, max_connections: int = 8) -> None:
        self._url = url
        self._max = max_connections
        self._pool: asyncpg.Pool[Any] | None = None

    async def open(self, *, wait_seconds: float | None = None) -> None:
        """Connect, trying again until `wait_seconds` have passed (None: for ever). Raises StoreError."""
        # It tells each attempt to fill up again with a traceback; that Postgres is away is said by who waits for it.
        logging.getLogger("asyncpg.pool").setLevel(logging.ERROR)
        loop = asyncio.get_running_loop()
        end = None if wait_seconds is None else loop.time() + wait_seconds
        wait = 0.1
        while True:
            try:
                self._pool = await asyncpg.create_pool(
                    self._url.replace("postgresql+asyncpg://", "postgresql://"),
                    min_size=2,
                    max_size=self._max,
                    command_timeout=COMMAND_TIMEOUT_SECONDS,
                    server_settings=_SESSION,
                    max_inactive_connection_lifetime=300,
                    # The statements leave nothing behind on a connection; resetting it would double their round trips.
                    reset=_leave_as_it_is,
                )
                return
            except _PASSING as error:
                if end is not None and loop.time() >= end:
                    raise self._away(error) from error
                if wait > 1:
                    log.warning("postgres.waiting", database=self.shown, error=_line(error))
                await asyncio.sleep(wait)
                wait = min(wait * 2, 5)
            except (asyncpg.PostgresError, ValueError) as error:
                raise self._away(error) from error

    def _away(self, error: BaseException) -> StoreError:
        return StoreError(f"Postgres does not answer at {self.shown}: {_line(error)} (check DATABASE_URL)")

    @property
    def shown(self) -> str:
        """The database's address without what is secret in it."""
        each = [urlsplit(one) for one in one_host_urls(self._url)]
        return ",".join(f"{split.hostname}:{split.port or 5432}" for split in each) + each[0].path

    async def close(self) -> None:
        if self._pool is not None:
            try:
                async with asyncio.timeout(3):
                    await self._pool.close()
            except (TimeoutError, *_PASSING):
                self._pool.terminate()
            self._pool = None

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    @asynccontextmanager
    async def mapped(self) -> AsyncIterator["asyncpg.Pool[Any]"]:
        """The pool, with passing errors mapped to StoreError."""
        if self._pool is None:
            raise StoreError("the database is not open")
        try:
            yield self._pool
        except _PASSING as error:
            raise StoreError(f"Postgres at {self.shown}: {_line(error)}") from error

    @asynccontextmanager
    async def connection(self) -> AsyncIterator["asyncpg.pool.PoolConnectionProxy[Any]"]:
        """A connection of the pool's, with passing errors mapped to StoreError.

        What ends by anything but an answer of the server's (a cancel, a broken line) leaves the connection in a state
        that nobody knows, so it is thrown away and not given to the next.
        """
        async with self.mapped() as pool:
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

    async def fetch(self, query: str, *arguments: Any) -> Sequence[asyncpg.Record]:
        async with self.connection() as connection:
            rows: list[asyncpg.Record] = await connection.fetch(query, *arguments)
            return rows

    async def execute(self, query: str, *arguments: Any) -> str:
        async with self.connection() as connection:
            return str(await connection.execute(query, *arguments))


async def _leave_as_it_is(connection: "asyncpg.Connection[Any]") -> None:
    return None


def _line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


class ProcessLock:
    """Says "this process lives" without a write: a session's advisory lock, freed by Postgres when the session ends.

    The session ends when the process dies, when its host vanishes, and when it was frozen for `frozen_seconds`. A
    process that lost its session and lives takes the lock again at once.
    """

    def __init__(self, url: str, process_id: UUID, instance_id: str, *, frozen_seconds: float = FROZEN_SECONDS) -> None:
        self._url = url.replace("postgresql+asyncpg://", "postgresql://")
        self.process_id = process_id
        self.instance_id = instance_id
        # 63 bits of the process's own random id: the key of the lock.
        self.key = process_id.int & 0x7FFFFFFFFFFFFFFF
        self._connection: asyncpg.Connection[Any] | None = None
        self._unpublished: datetime | None = None
        self._frozen_seconds = frozen_seconds
        # A connection carries one statement at a time.
        self._talking = asyncio.Lock()
        self._ended = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    @property
    def held(self) -> bool:
        return self._connection is not None and not self._connection.is_closed()

    async def take(self) -> None:
        """Take the lock, then enter the process's row: nobody can see the row and find the lock free.

        Raises StoreError.
        """
        await self._connect()
        self._keeper = asyncio.create_task(self._keep(), name="process-lock")

    async def _connect(self) -> None:
        # One of each session's own: the end of the one before may be told late.
        ended = self._ended = asyncio.Event()
        connection: asyncpg.Connection[Any] | None = None
        try:
            frozen = {"idle_session_timeout": str(round(self._frozen_seconds * 1000))}
            connection = await asyncpg.connect(self._url, server_settings=_SESSION | frozen, timeout=10)
            connection.add_termination_listener(lambda _: ended.set())
            # A session that this one is to replace, or who adopts this process, may hold it for a while yet.
            await connection.execute("select pg_advisory_lock($1)", self.key, timeout=2 * self._frozen_seconds)
            await connection.execute(
                "insert into orchestrators (process_id, instance_id, lock_key) values ($1, $2, $3) "
                "on conflict (process_id) do update set unpublished_since = "
                "case when orchestrators.unpublished_since = '-infinity' then '-infinity'::timestamptz end",
                self.process_id,
                self.instance_id,
                self.key,
                timeout=self._frozen_seconds,
            )
        except (*_PASSING, asyncpg.PostgresError) as error:
            if connection is not None:
                connection.terminate()
            raise StoreError(f"cannot take the process's lock: {_line(error)}") from error
        except BaseException:
            if connection is not None:
                connection.terminate()
            raise
        # What this process had noted is gone, with the row or above; what is still so is noted again.
        self._unpublished = None
        self._connection = connection

    async def _keep(self) -> None:
        """Say a word now and then, which is what a frozen process cannot; where the session has ended, take the lock
        again."""
        while True:
            try:
                async with asyncio.timeout(self._frozen_seconds / WORDS):
                    await self._ended.wait()
            except TimeoutError:
                await self._say_a_word()
            if not self.held:
                log.warning("process.lock_lost", process_id=str(self.process_id))
                await self._take_again()
                log.info("process.lock_taken", process_id=str(self.process_id))

    async def _take_again(self) -> None:
        while True:
            try:
                await self._connect()
                return
            except StoreError as error:
                log.warning("process.lock_waiting", error=str(error))
                await asyncio.sleep(TAKE_AGAIN_SECONDS)

    async def _say_a_word(self) -> None:
        connection = self._connection
        assert connection is not None
        try:
            async with self._talking:
                await connection.execute("select 1", timeout=self._frozen_seconds)
        except (*_PASSING, asyncpg.PostgresError) as error:
            log.debug("process.silent", error=_line(error))
            connection.terminate()

    @asynccontextmanager
    async def _speaking(self, what: str) -> AsyncIterator["asyncpg.Connection[Any]"]:
        """The session, for one statement. Raises StoreError."""
        if self._connection is None or self._connection.is_closed():
            raise StoreError(f"{what}: the process's lock is not held")
        try:
            async with self._talking:
                yield self._connection
        except (*_PASSING, asyncpg.PostgresError) as error:
            raise StoreError(f"{what}: {_line(error)}") from error

    async def try_other(self, key: int) -> bool:
        """Take another process's lock, if that is free: the process is dead, or frozen. Freed with this session, if not
        by `leave_other` before. Raises StoreError."""
        async with self._speaking("cannot ask whether a process lives") as connection:
            return bool(await connection.fetchval("select pg_try_advisory_lock($1)", key, timeout=self._frozen_seconds))

    async def leave_other(self, key: int) -> None:
        """Give another process's lock back; a session that has ended has done so."""
        try:
            async with self._speaking("cannot leave a lock") as connection:
                await connection.execute("select pg_advisory_unlock($1)", key, timeout=self._frozen_seconds)
        except StoreError as error:
            # Else it would look alive for as long as this process does.
            log.debug("process.lock_kept", error=str(error))
            if self._connection is not None:
                self._connection.terminate()

    async def note_unpublished(self, since: datetime | None) -> None:
        """Say, for whoever adopts this process's rows, since when the broker has not acknowledged. Raises StoreError.

        Written only when it changes, which is when the broker goes and when it comes back.
        """
        if (since is None) == (self._unpublished is None) or not self.held:
            return
        async with self._speaking("cannot note the broker's absence") as connection:
            # That the broker has lost everything (see `store.processes`) outweighs it.
            await connection.execute(
                "update orchestrators set unpublished_since = $2 "
                "where process_id = $1 and unpublished_since is distinct from '-infinity'",
                self.process_id,
                since,
                timeout=self._frozen_seconds,
            )
        self._unpublished = since

    async def release(self, *, forget: bool = False) -> None:
        """End the session. `forget`: this process owes nothing any more, nobody need adopt it."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
        connection, self._connection = self._connection, None
        if connection is None or connection.is_closed():
            return
        try:
            async with asyncio.timeout(3):
                if forget:
                    await connection.execute("delete from orchestrators where process_id = $1", self.process_id)
                await connection.close()
        except (TimeoutError, *_PASSING, asyncpg.PostgresError):
            connection.terminate()
