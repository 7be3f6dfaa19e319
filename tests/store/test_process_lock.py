"""The lock that says "this process lives": a process that is frozen loses it, one that is idle does not."""

import asyncio
import os
import signal
import sys
from pathlib import Path

from orchestrator_agent.store.pool import WORDS, Database, ProcessLock
from protocol import new_id

REPOSITORY = Path(__file__).parents[2]
WITHIN_SECONDS = 60

HOLDER = """
import asyncio, sys
from uuid import UUID
from orchestrator_agent.store.pool import ProcessLock

async def main():
    lock = ProcessLock(sys.argv[1], UUID(sys.argv[2]), "holder", frozen_seconds=4.0)
    await lock.take()
    while True:
        print("held" if lock.held else "lost", flush=True)
        if not lock.held:
            await lock.release()
            await lock.take()
            print("taken again", flush=True)
        await asyncio.sleep(0.05)

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
            while not await free(database, lock):  # noqa: ASYNC110 - Postgres is asked, it does not tell
                await asyncio.sleep(0.05)
            holder.send_signal(signal.SIGCONT)
            while await holder.stdout.readline() != b"taken again\n":
                pass
            assert not await free(database, lock)
    finally:
        holder.kill()
        await holder.wait()


async def test_a_process_that_has_nothing_to_do_keeps_its_lock(database_url: str) -> None:
    """It says more words than would let the session end, had they not been said; their number is what is waited for."""
    lock = ProcessLock(database_url, new_id(), "idle", frozen_seconds=5.0)
    await lock.take()
    try:
        async with asyncio.timeout(WITHIN_SECONDS), Database(database_url) as database:
            said: set[tuple[int, object]] = set()
            while len(said) <= WORDS:
                (row,) = await database.fetch(
                    "select query_start, pid from pg_stat_activity where pid in "
                    "(select pid from pg_locks where locktype = 'advisory' and objid = ($1::bigint & 4294967295)::oid)",
                    lock.key,
                )
                said.add((row["pid"], row["query_start"]))
                await asyncio.sleep(0.1)
            assert len({pid for pid, _ in said}) == 1
            assert lock.held
    finally:
        await lock.release()
