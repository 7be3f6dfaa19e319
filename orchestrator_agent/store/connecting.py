"""Connecting to Postgres, with the settings of a session, whatever stands between.

A pooler must leave a client one connection as long as it is connected: that this process lives is shown by a lock of a
session, and its settings are a session's too.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import asyncpg

from migrations.database_url import Address
from protocol.errors import StoreError

_PROBE_SECONDS = 5.0

APPLY = "select set_config(u.name, u.value, false) from unnest($1::text[], $2::text[]) as u(name, value)"

POOLED = (
    "DATABASE_URL leads to a pooler that gives each transaction another connection (PgBouncer with "
    "pool_mode=transaction): orchestrators need one for as long as they are connected. Connect them to Postgres "
    "itself, or give their database pool_mode=session (docs/operations.md, Postgres behind a pooler)"
)


async def connect(address: Address, settings: Mapping[str, str], *, at_start: bool = True) -> "asyncpg.Connection[Any]":
    """A connection with these settings of its session; those of the URL win. With `at_start` they go with the request
    to connect, which costs no round trip and which poolers refuse."""
    required = {**settings, **address.settings}
    if at_start:
        return await asyncpg.connect(address.url, server_settings=required, timeout=address.timeout)
    connection = await asyncpg.connect(address.url, timeout=address.timeout)
    await apply(connection, required)
    return connection


async def apply(connection: Any, settings: Mapping[str, str]) -> None:
    """Have a session use these settings."""
    await connection.execute(APPLY, list(settings), list(settings.values()))


async def takes_settings_at_start(address: Address, settings: Mapping[str, str]) -> bool:
    """Whether what responds there takes settings with the request to connect: Postgres does, poolers do not. Raises as
    connecting does, and StoreError behind a pooler that shares connections between transactions."""
    try:
        one = await connect(address, settings)
    except asyncpg.ProtocolViolationError as error:
        if "startup parameter" not in str(error):
            raise
        one = await asyncpg.connect(address.url, timeout=address.timeout, statement_cache_size=0)
        at_start = False
    else:
        # A pooler may be set to ignore them.
        at_start = str(await one.fetchval("show enable_seqscan")) == settings.get("enable_seqscan", "off")
        await one.close()
        one = await asyncpg.connect(address.url, timeout=address.timeout, statement_cache_size=0)
    try:
        if await _is_shared(address, one):
            raise StoreError(POOLED)
    finally:
        one.terminate()
    return at_start


async def _is_shared(address: Address, one: "asyncpg.Connection[Any]") -> bool:
    """Whether two clients get the same connection in turn: while one has a transaction, the other moves."""
    other = await asyncpg.connect(address.url, timeout=address.timeout, statement_cache_size=0)
    try:
        first = await _backend(one)
        async with other.transaction():
            if await other.fetchval("select pg_backend_pid()") == first:
                return True
            async with asyncio.timeout(_PROBE_SECONDS):
                return await _backend(one) != first
    except TimeoutError:
        # The pooler has no second connection.
        return True
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        if "statement pooling" in str(error):
            return True
        raise
    finally:
        other.terminate()


async def _backend(connection: "asyncpg.Connection[Any]") -> int:
    async with connection.transaction():
        return int(await connection.fetchval("select pg_backend_pid()"))
