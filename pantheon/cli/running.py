"""Runs a command's coroutine: Ctrl-C and SIGTERM cancel it, and become one exception when it has ended."""

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from pantheon.cli.exit_codes import CommandError, ExitCode

T = TypeVar("T")

_SIGNALS = {
    signal.SIGINT: ExitCode.INTERRUPTED,
    signal.SIGTERM: ExitCode.TERMINATED,
    signal.SIGHUP: ExitCode.TERMINATED,
}


class Interrupted(CommandError):
    """A signal ended the command; the message states whether what it had begun was ended or goes on."""


def run_async(
    main: Coroutine[Any, Any, T],
    *,
    on_interrupt: Callable[[], str] = lambda: "interrupted",
    on_second: Callable[[], None] = lambda: None,
) -> T:
    """Run a command. The first signal cancels it, each later one calls `on_second` and cancels it again.

    `on_second` may hurry the end, not skip it. A command whose end must not be cut short shields it.

    Raises Interrupted with the message that `on_interrupt` returns.
    """
    return asyncio.run(_run(main, on_interrupt, on_second))


async def _run(main: Coroutine[Any, Any, T], on_interrupt: Callable[[], str], on_second: Callable[[], None]) -> T:
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(main)
    received: list[signal.Signals] = []

    def on_signal(number: signal.Signals) -> None:
        if received:
            on_second()
        # Each signal cancels again: a library may have swallowed the first cancellation.
        task.cancel()
        received.append(number)

    for number in _SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    try:
        return await task
    except asyncio.CancelledError:
        if not received:
            raise
        raise Interrupted(on_interrupt(), _SIGNALS[received[0]]) from None
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
