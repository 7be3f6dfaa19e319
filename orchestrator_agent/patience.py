"""Patience: calls of the store that wait while Postgres is away."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

import structlog

from protocol.errors import StoreError

log = structlog.get_logger()

P = ParamSpec("P")
T = TypeVar("T")

WAIT_FIRST_SECONDS = 0.1
WAIT_MAX_SECONDS = 2.0


async def patiently(call: Callable[P, Awaitable[T]], *arguments: P.args, **named: P.kwargs) -> T:
    """Call the store until it answers: without Postgres nothing is taken, nothing is dropped, all of it waits."""
    wait = WAIT_FIRST_SECONDS
    while True:
        try:
            return await call(*arguments, **named)
        except StoreError as error:
            log.warning("store.waiting", error=str(error), wait_seconds=wait)
            await asyncio.sleep(wait)
            wait = min(wait * 2, WAIT_MAX_SECONDS)
