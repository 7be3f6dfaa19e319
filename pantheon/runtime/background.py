"""Background tasks: how to end them for good."""

import asyncio
from collections.abc import Iterable
from typing import Any

# Long enough for a task to end, short enough that a stop which needs a second cancellation does not seem to hang.
AGAIN_SECONDS = 0.2


async def end(tasks: Iterable["asyncio.Task[Any]"]) -> None:
    """Cancel tasks until they have ended; their errors are retrieved and dropped.

    Once is not enough: Python 3.11's `asyncio.wait_for`, which the clients of NATS and Postgres use, returns its result
    and forgets a cancellation that comes in the same iteration of the loop.
    """
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        done, left = await asyncio.wait(left, timeout=AGAIN_SECONDS)
        await asyncio.gather(*done, return_exceptions=True)
