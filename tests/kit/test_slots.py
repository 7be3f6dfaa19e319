"""Slots: an attempt that waits for a delegated task releases its slot, and has it again before anything new."""

import asyncio

import pytest

from pantheon.worker.slots import Slot, Slots
from tests.waiting import until


def slots_of(count: int, **more: int) -> Slots:
    return Slots(count, lambda: None, **more)


async def wait_in(slot: Slot, gate: asyncio.Event) -> None:
    async with slot.released():
        await gate.wait()


async def test_a_released_slot_is_taken_by_another_attempt_and_returns_when_that_one_ends() -> None:
    slots = slots_of(1)
    gate = asyncio.Event()
    first = slots.take()
    assert (slots.free, slots.crowded) == (0, True)
    waiting = asyncio.create_task(wait_in(first, gate))
    await until(lambda: slots.free == 1)
    second = slots.take()
    assert (slots.free, slots.released) == (0, 1)
    gate.set()
    # An attempt that needs its slot again comes before a new one.
    await until(lambda: slots.free == -1)
    assert not waiting.done()
    second.end()
    await waiting
    assert (slots.free, slots.released) == (0, 0)
    first.end()
    assert (slots.free, slots.crowded) == (1, False)


async def test_an_attempt_that_waits_for_several_tasks_releases_one_slot_until_the_last() -> None:
    slots = slots_of(2)
    gates = [asyncio.Event(), asyncio.Event()]
    slot = slots.take()
    waits = [asyncio.create_task(wait_in(slot, gate)) for gate in gates]
    await until(lambda: slots.released == 1)
    assert slots.free == 2
    gates[0].set()
    await waits[0]
    assert slots.free == 2
    gates[1].set()
    await waits[1]
    assert (slots.free, slots.released) == (1, 0)


async def test_an_attempt_that_ends_while_a_part_of_it_still_waits_leaves_nothing() -> None:
    slots = slots_of(1)
    gate = asyncio.Event()
    slot = slots.take()
    waiting = asyncio.create_task(wait_in(slot, gate))
    await until(lambda: slots.released == 1)
    slot.end()
    assert (slots.free, slots.released) == (1, 0)
    gate.set()
    await waiting
    assert (slots.free, slots.released) == (1, 0)


@pytest.mark.parametrize("returning", [False, True])
async def test_an_attempt_that_is_interrupted_waits_for_no_slot(returning: bool) -> None:
    slots = slots_of(1)
    gate = asyncio.Event()
    slot = slots.take()
    waiting = asyncio.create_task(wait_in(slot, gate))
    await until(lambda: slots.released == 1)
    other = slots.take()
    if returning:
        gate.set()
        await until(lambda: slots.free == -1)
    waiting.cancel()
    if returning:
        # In the moment in which a slot becomes free.
        slots.resize(1)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (slots.free, slots.released) == (-1, 0)
    other.end()
    slot.end()
    assert slots.free == 1


async def test_where_too_many_wait_the_next_one_keeps_its_slot() -> None:
    slots = slots_of(2, released_limit=1)
    gate = asyncio.Event()
    made = [slots.take(), slots.take()]
    waits = [asyncio.create_task(wait_in(slot, gate)) for slot in made]
    await until(lambda: slots.released == 1)
    assert slots.free == 1
    gate.set()
    await asyncio.gather(*waits)
    assert (slots.free, slots.released) == (0, 0)


async def test_more_slots_serve_returning_attempts_first() -> None:
    slots = slots_of(1)
    gate = asyncio.Event()
    waiting = asyncio.create_task(wait_in(slots.take(), gate))
    await until(lambda: slots.released == 1)
    slots.take()
    gate.set()
    await until(lambda: slots.free == -1)
    slots.resize(3)
    await waiting
    assert (slots.free, slots.released) == (1, 0)
