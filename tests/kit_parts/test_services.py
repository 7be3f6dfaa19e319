"""Services: started in their order, stopped in the reverse of it, each whatever the others do."""

import asyncio

import pytest
import structlog.testing

from pantheon.runtime.services import Services


class Noted:
    """Notes what is called; raises, or never returns, where it is configured to."""

    def __init__(self, name: str, calls: list[str], *, start: Exception | None = None, stop: object = None) -> None:
        self._name = name
        self._calls = calls
        self._start = start
        self._stop = stop

    async def start(self) -> None:
        self._calls.append(f"start {self._name}")
        if self._start is not None:
            raise self._start

    async def stop(self) -> None:
        self._calls.append(f"stop {self._name}")
        if isinstance(self._stop, Exception):
            raise self._stop
        if self._stop == "hang":
            await asyncio.Event().wait()


async def test_services_are_stopped_in_the_reverse_of_the_order_in_which_they_were_started() -> None:
    calls: list[str] = []
    services = Services([Noted(name, calls) for name in "abc"])
    await services.start()
    await services.stop()
    assert calls == ["start a", "start b", "start c", "stop c", "stop b", "stop a"]
    await services.stop()
    assert len(calls) == 6


async def test_where_one_cannot_start_those_that_began_are_stopped_and_no_other() -> None:
    calls: list[str] = []
    services = Services([Noted("a", calls), Noted("b", calls, start=ValueError("no")), Noted("c", calls)])
    with pytest.raises(ValueError, match="no"):
        await services.start()
    await services.stop()
    assert calls == ["start a", "start b", "stop b", "stop a"]


@pytest.mark.parametrize("how", [ValueError("no"), "hang"], ids=["raises", "hangs"])
async def test_one_that_does_not_stop_keeps_no_other_from_it(how: object) -> None:
    calls: list[str] = []
    services = Services([Noted("a", calls), Noted("b", calls, stop=how), Noted("c", calls)], stop_seconds=0.05)
    await services.start()
    with structlog.testing.capture_logs() as logs:
        await services.stop()
    assert calls[3:] == ["stop c", "stop b", "stop a"]
    assert [(entry["event"], entry["service"]) for entry in logs] == [("service.not_stopped", "Noted")]
