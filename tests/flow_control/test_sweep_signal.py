"""The signal that wakes the reconciler: at once, by what it follows, and at moments that are known to come."""

import asyncio
from collections.abc import Callable
from datetime import timedelta

from orchestrator_agent.runtime.sweep_signal import SweepSignal
from protocol.messages import now
from tests.waiting import PATIENCE_SECONDS


async def until_woken(signal: SweepSignal) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        await signal.woken.wait()
    signal.woken.clear()


async def test_the_first_sweep_comes_at_once_and_another_when_it_is_woken() -> None:
    signal = SweepSignal()
    await until_woken(signal)
    assert not signal.woken.is_set()
    signal.wake()
    await until_woken(signal)


async def test_a_moment_wakes_whichever_comes_first_and_each_tenth_of_a_second_once() -> None:
    signal = SweepSignal()
    signal.woken.clear()
    later = now() + timedelta(seconds=0.6)
    signal.wake_at(now() + timedelta(days=1))
    for _ in range(3):
        signal.wake_at(later)
    # One that comes before those that were known moves the timer.
    soon = now() + timedelta(seconds=0.2)
    signal.wake_at(soon)
    await until_woken(signal)
    assert soon <= now()
    await until_woken(signal)
    assert later <= now()
    signal.cancel()


async def test_a_moment_that_has_passed_wakes_at_once() -> None:
    signal = SweepSignal()
    signal.woken.clear()
    signal.wake_at(now() - timedelta(hours=1))
    await until_woken(signal)


async def test_what_it_follows_wakes_it_until_it_is_cancelled() -> None:
    callbacks: list[Callable[[], None]] = []

    def on_change(callback: Callable[[], None]) -> Callable[[], None]:
        callbacks.append(callback)
        return lambda: callbacks.remove(callback)

    signal = SweepSignal()
    signal.woken.clear()
    signal.follow(on_change, on_change)
    callbacks[1]()
    await until_woken(signal)
    signal.wake_at(now() + timedelta(days=1))
    signal.cancel()
    assert callbacks == []
