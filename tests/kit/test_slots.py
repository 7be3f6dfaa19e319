"""Places: an attempt that waits for a task it gave out lends its place, and has it back before anything new."""

import asyncio

import pytest

from pantheon.worker.slots import Place, Places
from tests.waiting import until


async def wait_in(place: Place, gate: asyncio.Event) -> None:
    async with place.lent():
        await gate.wait()


async def test_a_lent_place_is_taken_by_another_and_given_back_when_that_one_ends() -> None:
    places = Places(1)
    gate = asyncio.Event()
    first = places.take()
    assert (places.free, places.crowded) == (0, True)
    waiting = asyncio.create_task(wait_in(first, gate))
    await until(lambda: places.free == 1)
    second = places.take()
    assert (places.free, places.lent) == (0, 1)
    gate.set()
    # Whoever wants its place back comes before what is new.
    await until(lambda: places.free == -1)
    assert not waiting.done()
    second.leave()
    await waiting
    assert (places.free, places.lent) == (0, 0)
    first.leave()
    assert (places.free, places.crowded) == (1, False)


async def test_one_that_waits_for_several_at_once_lends_one_place_until_the_last() -> None:
    places = Places(2)
    gates = [asyncio.Event(), asyncio.Event()]
    place = places.take()
    waits = [asyncio.create_task(wait_in(place, gate)) for gate in gates]
    await until(lambda: places.lent == 1)
    assert places.free == 2
    gates[0].set()
    await waits[0]
    assert places.free == 2
    gates[1].set()
    await waits[1]
    assert (places.free, places.lent) == (1, 0)


async def test_an_attempt_that_ends_while_a_part_of_it_still_waits_leaves_nothing() -> None:
    places = Places(1)
    gate = asyncio.Event()
    place = places.take()
    waiting = asyncio.create_task(wait_in(place, gate))
    await until(lambda: places.lent == 1)
    place.leave()
    assert (places.free, places.lent) == (1, 0)
    gate.set()
    await waiting
    assert (places.free, places.lent) == (1, 0)


@pytest.mark.parametrize("wants_back", [False, True])
async def test_an_attempt_that_is_interrupted_waits_for_no_place(wants_back: bool) -> None:
    places = Places(1)
    gate = asyncio.Event()
    place = places.take()
    waiting = asyncio.create_task(wait_in(place, gate))
    await until(lambda: places.lent == 1)
    other = places.take()
    if wants_back:
        gate.set()
        await until(lambda: places.free == -1)
    waiting.cancel()
    if wants_back:
        # In the moment in which a place comes.
        places.resize(1)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (places.free, places.lent) == (-1, 0)
    other.leave()
    place.leave()
    assert places.free == 1


async def test_where_too_many_wait_the_next_one_keeps_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pantheon.worker.slots.LENT_LIMIT", 1)
    places = Places(2)
    gate = asyncio.Event()
    made = [places.take(), places.take()]
    waits = [asyncio.create_task(wait_in(place, gate)) for place in made]
    await until(lambda: places.lent == 1)
    assert places.free == 1
    gate.set()
    await asyncio.gather(*waits)
    assert (places.free, places.lent) == (0, 0)


async def test_more_places_serve_who_wants_one_back_first() -> None:
    places = Places(1)
    gate = asyncio.Event()
    waiting = asyncio.create_task(wait_in(places.take(), gate))
    await until(lambda: places.lent == 1)
    places.take()
    gate.set()
    await until(lambda: places.free == -1)
    places.resize(3)
    await waiting
    assert (places.free, places.lent) == (1, 0)
