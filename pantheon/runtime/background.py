"""Background tasks: how they are kept, and ended for good."""

import asyncio
import os
from collections.abc import Coroutine, Iterable, Iterator
from typing import Any

import structlog

log = structlog.get_logger()

# Long enough for a task to end, short enough that a stop which needs a second cancellation does not seem to hang.
AGAIN_SECONDS = 0.2
# The exit code of a process that cannot go on (EX_SOFTWARE).
DIED = 70


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


class BackgroundTasks:
    """Tasks that run beside the one that began them, kept until they have ended."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def __iter__(self) -> Iterator["asyncio.Task[None]"]:
        return iter(tuple(self._tasks))

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None]":
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def settled(self) -> None:
        """Until those that run now have ended by themselves."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def end(self) -> None:
        await end(self._tasks)


async def or_exit(work: Coroutine[Any, Any, None], what: str) -> None:
    """Run what this process is for. An error in it ends the process: one that seems alive and does nothing is worse
    than one that is started again."""
    try:
        await work
    except Exception:
        log.critical("process.died", what=what, exc_info=True)
        os._exit(DIED)
