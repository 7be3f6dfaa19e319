"""Ending background tasks, also those that miss the first cancellation."""

import asyncio

from pantheon.runtime.background import end


async def test_a_task_that_lost_its_cancellation_is_cancelled_again() -> None:
    lost = 0

    async def stubborn() -> None:
        nonlocal lost
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                lost += 1
                if lost == 2:
                    raise

    async def broken() -> None:
        raise ValueError("no")

    tasks = [asyncio.create_task(stubborn()), asyncio.create_task(broken())]
    await asyncio.sleep(0)
    await end(tasks)
    assert lost == 2
    assert all(task.done() for task in tasks)
    assert isinstance(tasks[1].exception(), ValueError)
    await end([])
