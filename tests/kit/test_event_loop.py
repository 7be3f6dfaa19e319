"""The loop of a process: an error that no task handled is logged, but for look-ups that a connection did not wait
for."""

import asyncio
import logging

import pytest
from structlog.testing import capture_logs

from pantheon.runtime import event_loop
from tests.waiting import until


async def fail() -> None:
    raise OSError("nobody heard of this")


async def give_up_a_lookup() -> None:
    """As a client does whose time for a connection is over. Such a port is looked up in a file, without a resolver."""
    connecting = asyncio.ensure_future(asyncio.open_connection("localhost", "no-such-service"))
    await asyncio.sleep(0)
    connecting.cancel()
    await asyncio.wait({connecting})
    assert connecting.cancelled()


def test_an_abandoned_lookup_fails_silently(caplog: pytest.LogCaptureFixture) -> None:
    """uvloop leaves it behind, and each try to reconnect while the resolver was slow ended in a traceback."""

    async def main() -> None:
        with capture_logs() as logs:
            await give_up_a_lookup()
            await until(lambda: "lookup.too_late" in [entry["event"] for entry in logs], "the end of the look-up")

    with caplog.at_level(logging.ERROR, "asyncio"):
        event_loop.run(main())
    assert caplog.records == []


def test_any_other_unhandled_error_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        await asyncio.wait({asyncio.create_task(fail())})
        await until(lambda: bool(caplog.records), "what was said")

    with caplog.at_level(logging.ERROR, "asyncio"):
        event_loop.run(main())
    assert "nobody heard of this" in str(caplog.records[0].exc_info)
