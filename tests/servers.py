"""Real servers for the test suite: started once a session, a database of its own for each test, Consul fetched once.

The fixtures are in conftest.py; here is what they are made of.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from pantheon.stack import StackError, find_consul
from pantheon.stack.servers import ConsulServer, NatsServer, PostgresServer, ValkeyServer
from pantheon.stack.servers.ports import pick_free

_REPOSITORY = Path(__file__).parent.parent
_CONSUL_CACHE = _REPOSITORY / ".cache" / "consul"
_FETCH_SECONDS = 120.0
# Durability is for the stack's own tests; all others get their speed from its absence.
_FAST_SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "shared_buffers": "32MB",
    # Which plan a statement gets depends on when its table was analysed: tests of plans analyse it themselves.
    "autovacuum": "off",
}
_TEMPLATE = "template_pantheon"
# Which test process this is, and of how many.
_PROCESS = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_PROCESSES = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))


def pick_own_free(taken: Iterable[int] = ()) -> int:
    """Pick a free port that no other test process picks: a server that is away for a restart finds its own again."""
    avoid = set(taken)
    while (port := pick_free(avoid)) % _PROCESSES != _PROCESS:
        pass
    return port


@asynccontextmanager
async def nats_server(folder: Path) -> AsyncIterator[NatsServer]:
    """Run a NATS server: one for the session, or one for a test that kills it and calls `start` again."""
    async with NatsServer(folder) as server:
        yield server


@asynccontextmanager
async def valkey_server(folder: Path) -> AsyncIterator[ValkeyServer]:
    """Run a Valkey server."""
    async with ValkeyServer(folder) as server:
        yield server


@asynccontextmanager
async def consul_server(folder: Path) -> AsyncIterator[ConsulServer]:
    """Run a Consul server; skips (in CI: fails) with the reason when no Consul is at hand."""
    async with ConsulServer(folder, await consul_program()) as server:
        yield server


@asynccontextmanager
async def postgres_server(folder: Path, *, durable: bool = False) -> AsyncIterator[PostgresServer]:
    """Run a Postgres server, by default without the syncs that tests do not need."""
    async with PostgresServer(folder, settings={} if durable else dict(_FAST_SETTINGS)) as server:
        yield server


class Databases:
    """Databases for tests, each a copy of one that `migrate` made ready once: a copy takes milliseconds."""

    def __init__(self, server: PostgresServer) -> None:
        """Take a running server."""
        self._server = server
        # Postgres copies a template only while no other connection does.
        self._copying = asyncio.Lock()

    async def prepare(self, migrate: Callable[[str], Awaitable[None]]) -> None:
        """Make the template: `migrate` is given the URL of an empty database; no connection to it may stay open."""
        await self._execute(f"create database {_TEMPLATE}")
        await migrate(self._server.url_of(_TEMPLATE))

    @asynccontextmanager
    async def fresh(self) -> AsyncIterator[str]:
        """Give the URL of a copy, and drop it afterwards, open connections or not."""
        name = f"test_{uuid.uuid4().hex}"
        async with self._copying:
            await self._execute(f"create database {name} template {_TEMPLATE} strategy file_copy")
        try:
            yield self._server.url_of(name)
        finally:
            await self._execute(f"drop database {name} with (force)")

    async def _execute(self, statement: str) -> None:
        connection = await asyncpg.connect(self._server.url_of("postgres"))
        try:
            await connection.execute(statement)
        finally:
            await connection.close()


async def consul_program() -> Path:
    """Return a Consul: of PATH, else fetched into the repository's cache; skips, in CI fails, where neither works."""
    program = find_consul()
    if program is not None:
        return program
    cached = _CONSUL_CACHE / "consul"
    if os.access(cached, os.X_OK):
        return cached
    try:
        return await _fetch_consul()
    except StackError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no Consul: {error}")


async def _fetch_consul() -> Path:
    script = _REPOSITORY / "scripts" / "get-consul"
    process = await asyncio.create_subprocess_exec(
        str(script), str(_CONSUL_CACHE), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(_FETCH_SECONDS):
            output, errors = await process.communicate()
    except TimeoutError:
        raise StackError(f"scripts/get-consul did not end within {_FETCH_SECONDS:.0f} s") from None
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    if process.returncode != 0:
        lines = errors.decode(errors="replace").strip().splitlines() or ["no reason given"]
        raise StackError(lines[-1])
    return Path(output.decode().strip())


__all__ = [
    "Databases",
    "consul_program",
    "consul_server",
    "nats_server",
    "pick_own_free",
    "postgres_server",
    "valkey_server",
]
