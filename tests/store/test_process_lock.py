"""The lock that shows that a process lives: a frozen process loses it, an idle one does not."""

import asyncio
import os
import signal
import sys
from pathlib import Path

from orchestrator_agent.store.pool import Database
from orchestrator_agent.store.process_lock import KEEPALIVES, ProcessLock
from protocol import new_id
from tests.waiting import until

REPOSITORY = Path(__file__).parents[2]
WITHIN_SECONDS = 60

HOLDER = """
import asyncio, sys
from uuid import UUID
from orchestrator_agent.store.process_lock import ProcessLock

async def main():
    lock = ProcessLock(sys.argv[1], UUID(sys.argv[2]), "holder", frozen_seconds=4.0)
    await lock.take()
    print("held", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def free(database: Database, lock: ProcessLock) -> bool:
    async with database.connection() as connection, connection.transaction():
        return bool(await connection.fetchval("select pg_try_advisory_xact_lock($1)", lock.key))


async def test_a_frozen_process_loses_its_lock_and_takes_it_again(database_url: str) -> None:
    process_id = new_id()
    lock = ProcessLock(database_url, process_id, "for its key")
    holder = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLDER, database_url, str(process_id),
        stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert holder.stdout is not None
    try:
        async with asyncio.timeout(WITHIN_SECONDS), Database(database_url) as database:
            assert await holder.stdout.readline() == b"held\n"
            assert not await free(database, lock)
            holder.send_signal(signal.SIGSTOP)
            while not await free(database, lock):  # noqa: ASYNC110 - Postgres notifies of no lock
                await asyncio.sleep(0.05)
            holder.send_signal(signal.SIGCONT)
            while await free(database, lock):  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.05)
    finally:
        holder.kill()
        await holder.wait()


async def test_a_process_that_has_nothing_to_do_keeps_its_lock(database_url: str) -> None:
    """The test waits for so many keepalives that without them the session would have ended."""
    lock = ProcessLock(database_url, new_id(), "idle", frozen_seconds=5.0)
    await lock.take()
    try:
        async with asyncio.timeout(WITHIN_SECONDS), Database(database_url) as database:
            seen: set[tuple[int, object]] = set()
            while len(seen) <= KEEPALIVES:
                (row,) = await database.fetch(
                    "select query_start, pid from pg_stat_activity where pid in "
                    "(select pid from pg_locks where locktype = 'advisory' and objid = ($1::bigint & 4294967295)::oid)",
                    lock.key,
                )
                seen.add((row["pid"], row["query_start"]))
                await asyncio.sleep(0.1)
            assert len({pid for pid, _ in seen}) == 1
            assert lock.held
    finally:
        await lock.release()


async def test_a_process_whose_session_was_ended_takes_its_lock_again_by_itself(database_url: str) -> None:
    """An hour may pass before the next keepalive: only the session's end makes it check."""
    lock = ProcessLock(database_url, new_id(), "cut off", frozen_seconds=3600)
    await lock.take()
    try:
        async with Database(database_url) as database:
            sessions = (
                "select pid from pg_locks where locktype = 'advisory' and objid = ($1::bigint & 4294967295)::oid "
                "and granted"
            )
            (first,) = await database.fetch(sessions, lock.key)
            # As an adopter does.
            await database.execute("delete from orchestrators where process_id = $1", lock.process_id)
            await database.execute("select pg_terminate_backend($1)", first["pid"])

            async def taken_again() -> bool:
                return any(row["pid"] != first["pid"] for row in await database.fetch(sessions, lock.key))

            await until(taken_again, "the lock in another session")
            entered = "select 1 from orchestrators where process_id = $1"
            await until(lambda: database.fetch(entered, lock.process_id), "its row")
    finally:
        await lock.release()


async def test_a_dead_process_is_anothers_to_adopt_until_the_adopter_dies_too(database_url: str) -> None:
    dead = ProcessLock(database_url, new_id(), "dead")
    first, second = (ProcessLock(database_url, new_id(), name) for name in ("first", "second"))
    for lock in (dead, first, second):
        await lock.take()
    try:
        assert not await first.try_other(dead.key)
        await dead.release()
        await until(lambda: first.try_other(dead.key), "the free lock")
        assert not await second.try_other(dead.key)
        await first.release()
        await until(lambda: second.try_other(dead.key), "the lock of the adopter that died")
        await second.leave_other(dead.key)
        await dead.take()
        assert not await second.try_other(dead.key)
    finally:
        for lock in (dead, first, second):
            await lock.release()
