"""PeriodicTask: one call again and again, woken early, and never ended by an error in it."""

import asyncio

import structlog.testing

from pantheon.runtime.periodic import PeriodicTask
from tests.waiting import PATIENCE_SECONDS, until

NEVER_SECONDS = 10 * PATIENCE_SECONDS


class Calls:
    """Counts its calls; each returns the next of `pauses`, or raises it, and then None."""

    def __init__(self, *pauses: float | Exception) -> None:
        self.made = 0
        self._pauses = list(pauses)

    async def __call__(self) -> float | None:
        self.made += 1
        pause = self._pauses.pop(0) if self._pauses else None
        if isinstance(pause, Exception):
            raise pause
        return pause


async def test_the_first_call_comes_at_the_start_and_the_next_after_a_pause() -> None:
    calls = Calls()
    task = PeriodicTask("often", calls, seconds=0.01)
    task.start()
    await until(lambda: calls.made >= 3)
    await task.stop()
    made = calls.made
    await asyncio.sleep(0.05)
    assert calls.made == made


async def test_a_task_may_begin_with_a_pause_which_a_wake_ends() -> None:
    calls = Calls()
    task = PeriodicTask("later", calls, seconds=NEVER_SECONDS, at_start=False)
    task.start()
    for _ in range(3):
        await asyncio.sleep(0)
    assert calls.made == 0
    task.wake()
    await until(lambda: calls.made == 1)
    await task.stop()


async def test_a_wake_that_comes_during_a_call_is_followed_by_another_call() -> None:
    gate = asyncio.Event()
    made = 0

    async def call() -> None:
        nonlocal made
        made += 1
        await gate.wait()

    task = PeriodicTask("busy", call, seconds=NEVER_SECONDS)
    task.start()
    await until(lambda: made == 1)
    task.wake()
    task.wake()
    gate.set()
    await until(lambda: made == 2)
    for _ in range(3):
        await asyncio.sleep(0)
    assert made == 2
    await task.stop()


async def test_a_call_may_choose_the_pause_that_follows_it() -> None:
    calls = Calls(0.0, 0.0, NEVER_SECONDS)
    task = PeriodicTask("choosing", calls, seconds=NEVER_SECONDS)
    task.start()
    await until(lambda: calls.made == 3)
    await task.stop()


async def test_an_error_is_logged_and_the_calls_go_on() -> None:
    calls = Calls(ValueError("a mistake"))
    task = PeriodicTask("mistaken", calls, seconds=0.01)
    with structlog.testing.capture_logs() as logs:
        task.start()
        await until(lambda: calls.made >= 2)
    assert [(entry["event"], entry["task"]) for entry in logs] == [("periodic.failed", "mistaken")]
    await task.stop()


async def test_pauses_are_spread_by_the_jitter() -> None:
    calls, spreads = Calls(NEVER_SECONDS), []

    def least(low: float, high: float) -> float:
        spreads.append((low, high))
        return 0.0

    task = PeriodicTask("spread", calls, seconds=NEVER_SECONDS, jitter=0.5, uniform=least)
    task.start()
    await until(lambda: calls.made >= 3)
    await task.stop()
    assert set(spreads) == {(0.5, 1.5)}


async def test_a_task_that_was_never_started_can_be_stopped() -> None:
    await PeriodicTask("idle", Calls(), seconds=1).stop()
