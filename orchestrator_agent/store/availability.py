"""Availability: calls of Postgres and of the object store that are tried again while the server is away."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, ParamSpec, TypeVar

import structlog

from pantheon.bus import Objects
from protocol.errors import BusError, ObjectMissing, StoreError
from protocol.large import parse_value
from protocol.messages import ObjectRef

log = structlog.get_logger()

P = ParamSpec("P")
T = TypeVar("T")

WAIT_FIRST_SECONDS = 0.1
WAIT_MAX_SECONDS = 2.0


async def retry_until_available(call: Callable[P, Awaitable[T]], *arguments: P.args, **named: P.kwargs) -> T:
    """Call the store until the call succeeds: without Postgres nothing is accepted and nothing dropped, all waits."""
    return (await retry_write(call, *arguments, **named))[0]


async def retry_write(call: Callable[P, Awaitable[T]], *arguments: P.args, **named: P.kwargs) -> tuple[T, bool]:
    """As `retry_until_available`, for a write; also whether an earlier try failed, and may have been committed all the
    same: a connection can end between the commit and its confirmation."""
    wait = WAIT_FIRST_SECONDS
    doubtful = False
    while True:
        try:
            return await call(*arguments, **named), doubtful
        except StoreError as error:
            doubtful = True
            log.warning("store.waiting", error=str(error), wait_seconds=wait)
            await asyncio.sleep(wait)
            wait = min(wait * 2, WAIT_MAX_SECONDS)


async def read_object(objects: Objects, ref: ObjectRef, field: str) -> Any:
    """The value of a large payload or result; while the object store is away, the read is tried again.

    Raises ObjectMissing, TooLarge, and InvalidRequest where the object does not fit the reference.
    """
    while True:
        try:
            return parse_value(await objects.get(ref), ref, field)
        except BusError as error:
            if isinstance(error, ObjectMissing) or not error.retryable:
                raise
            log.warning("object.waiting", name=ref.name, error=str(error))
            await asyncio.sleep(WAIT_MAX_SECONDS)
