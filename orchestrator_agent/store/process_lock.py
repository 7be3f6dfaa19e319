"""ProcessLock: shows the others that this process lives, and notes what the one that may adopt it has to know.

See ADR 0004.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
import structlog

from migrations.database_url import read_address
from orchestrator_agent.store.connecting import connect, takes_settings_at_start
from orchestrator_agent.store.pool import PASSING_ERRORS, SESSION_SETTINGS, first_line
from orchestrator_agent.store.processes import EVERYTHING
from protocol.errors import StoreError

log = structlog.get_logger()

# A process that is frozen keeps its connections: the kernel keeps them open. So the session of its lock ends when
# no statement was sent in it for this time, as long as TCP's keepalives take with a host that vanished.
FROZEN_SECONDS = 25.0
# So many statements are sent in that time: a loop that is busy for a while has not lost its lock yet.
KEEPALIVES = 5
TAKE_AGAIN_SECONDS = 1.0

# The lock of a process: its own, waited for; another's, where it is free; another's, released.
LOCK = "select pg_advisory_lock($1)"
TRY_LOCK = "select pg_try_advisory_lock($1)"
UNLOCK = "select pg_advisory_unlock($1)"

# Enters the process; what it had noted is gone with its session, except that the broker has lost everything.
ENTER = f"""
insert into orchestrators (process_id, instance_id, lock_key) values ($1, $2, $3)
on conflict (process_id) do update set left_at = null, unpublished_since =
case when orchestrators.unpublished_since = {EVERYTHING} then {EVERYTHING} end
"""

# Notes since when the broker has not acknowledged. That it has lost everything outweighs it.
NOTE_UNPUBLISHED = f"""
update orchestrators set unpublished_since = $2
where process_id = $1 and unpublished_since is distinct from {EVERYTHING}
"""

FORGET = "delete from orchestrators where process_id = $1"
LEAVE = "update orchestrators set left_at = now() where process_id = $1"


class ProcessLock:
    """Shows that this process lives without a write: a session's advisory lock, freed by Postgres when the session
    ends.

    The session ends when the process dies, when its host vanishes, and when it was frozen for `frozen_seconds`. A
    process that lost its session and lives takes the lock again at once.
    """

    def __init__(self, url: str, process_id: UUID, instance_id: str, *, frozen_seconds: float = FROZEN_SECONDS) -> None:
        self._url = url
        self._settings_at_start: bool | None = None
        self.process_id = process_id
        self.instance_id = instance_id
        # 63 bits of the process's own random id: the key of the lock.
        self.key = process_id.int & 0x7FFFFFFFFFFFFFFF
        self._connection: asyncpg.Connection[Any] | None = None
        self._unpublished: datetime | None = None
        self._frozen_seconds = frozen_seconds
        # A connection carries one statement at a time.
        self._in_use = asyncio.Lock()
        self._ended = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    @property
    def held(self) -> bool:
        return self._connection is not None and not self._connection.is_closed()

    async def take(self) -> None:
        """Take the lock, then enter the process's row: no other can see the row and find the lock free.

        Raises StoreError.
        """
        await self._connect()
        self._keeper = asyncio.create_task(self._keep(), name="process-lock")

    async def _connect(self) -> None:
        # Each session has its own: the end of the one before may be noticed late.
        ended = self._ended = asyncio.Event()
        connection: asyncpg.Connection[Any] | None = None
        try:
            frozen = {"idle_session_timeout": str(round(self._frozen_seconds * 1000))}
            address = read_address(self._url)
            if self._settings_at_start is None:
                self._settings_at_start = await takes_settings_at_start(address, SESSION_SETTINGS)
            connection = await connect(address, SESSION_SETTINGS | frozen, at_start=self._settings_at_start)
            connection.add_termination_listener(lambda _: ended.set())
            # The session that this one replaces, or a process that adopts this one, may hold it for a while yet.
            await connection.execute(LOCK, self.key, timeout=2 * self._frozen_seconds)
            await connection.execute(ENTER, self.process_id, self.instance_id, self.key, timeout=self._frozen_seconds)
        except (*PASSING_ERRORS, asyncpg.PostgresError) as error:
            if connection is not None:
                connection.terminate()
            raise StoreError(f"cannot take the process's lock: {first_line(error)}") from error
        except BaseException:
            if connection is not None:
                connection.terminate()
            raise
        # What this process had noted is gone, with the row or by ENTER; what is still so is noted again.
        self._unpublished = None
        self._connection = connection

    async def _keep(self) -> None:
        """Send a statement now and then, which a frozen process cannot; where the session has ended, take the lock
        again."""
        while True:
            try:
                async with asyncio.timeout(self._frozen_seconds / KEEPALIVES):
                    await self._ended.wait()
            except TimeoutError:
                await self._keep_alive()
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

    async def _keep_alive(self) -> None:
        connection = self._connection
        assert connection is not None
        try:
            async with self._in_use:
                await connection.execute("select 1", timeout=self._frozen_seconds)
        except (*PASSING_ERRORS, asyncpg.PostgresError) as error:
            log.debug("process.silent", error=first_line(error))
            connection.terminate()

    @asynccontextmanager
    async def _session(self, what: str) -> AsyncIterator["asyncpg.Connection[Any]"]:
        """The session, for one statement. Raises StoreError."""
        if self._connection is None or self._connection.is_closed():
            raise StoreError(f"{what}: the process's lock is not held")
        try:
            async with self._in_use:
                yield self._connection
        except (*PASSING_ERRORS, asyncpg.PostgresError) as error:
            raise StoreError(f"{what}: {first_line(error)}") from error

    async def try_other(self, key: int) -> bool:
        """Take another process's lock, if that is free: the process is dead, or frozen. Freed with this session, if not
        by `leave_other` before. Raises StoreError."""
        async with self._session("cannot ask whether a process lives") as connection:
            return bool(await connection.fetchval(TRY_LOCK, key, timeout=self._frozen_seconds))

    async def leave_other(self, key: int) -> None:
        """Give another process's lock back; a session that has ended has done so."""
        try:
            async with self._session("cannot leave a lock") as connection:
                await connection.execute(UNLOCK, key, timeout=self._frozen_seconds)
        except StoreError as error:
            # Else the other process would seem alive for as long as this one does.
            log.debug("process.lock_kept", error=str(error))
            if self._connection is not None:
                self._connection.terminate()

    async def note_unpublished(self, since: datetime | None) -> None:
        """Note, for a process that adopts this one, since when the broker has not acknowledged. Raises StoreError.

        Written only when it changes, which is when the broker goes and when it comes back.
        """
        if (since is None) == (self._unpublished is None) or not self.held:
            return
        async with self._session("cannot note the broker's absence") as connection:
            await connection.execute(NOTE_UNPUBLISHED, self.process_id, since, timeout=self._frozen_seconds)
        self._unpublished = since

    async def release(self, *, forget: bool = False) -> None:
        """End the session, cleanly. `forget`: this process has published everything, so no other need adopt it."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
        connection, self._connection = self._connection, None
        if connection is None or connection.is_closed():
            return
        try:
            async with asyncio.timeout(3):
                await connection.execute(FORGET if forget else LEAVE, self.process_id)
                await connection.close()
        except (TimeoutError, *PASSING_ERRORS, asyncpg.PostgresError):
            connection.terminate()
