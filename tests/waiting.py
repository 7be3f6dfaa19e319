"""Waiting for what a test is sure will come: a poll with a deadline that a loaded machine does not miss."""

import asyncio
from collections.abc import Awaitable, Callable

# Costs nothing where the thing comes. Below pytest's own limit for a test, which would not name what never came.
PATIENCE_SECONDS = 60.0
POLL_SECONDS = 0.02


async def until(
    holds: Callable[[], object | Awaitable[object]], what: str = "", *, seconds: float = PATIENCE_SECONDS
) -> None:
    """Return when something holds; fails, with `what` in the message, when it does not in time."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while True:
        found = holds()
        if await found if isinstance(found, Awaitable) else found:
            return
        assert loop.time() < end, f"not within {seconds:g} s: {what or 'what was waited for'}"
        await asyncio.sleep(POLL_SECONDS)
