"""Runs a stack until a signal ends it, as `pantheon up` does."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator

from pantheon.stack.endpoints import Endpoints
from pantheon.stack.up import Stack


async def serve(stack: Stack, *, on_ready: Callable[[Endpoints], None] = lambda endpoints: None) -> None:
    """Run a stack until SIGINT, SIGTERM or SIGHUP; a second signal hurries its end.

    Signals are handled from the first moment on: one that comes during the start ends what has been started. Raises
    the StackError of a start that fails, and the error of a supervision that does.
    """
    asked_to_stop = asyncio.Event()

    def on_signal() -> None:
        if asked_to_stop.is_set():
            stack.hurry.set()
        asked_to_stop.set()

    with _signals(on_signal):
        asked = asyncio.create_task(asked_to_stop.wait(), name="wait for a signal")
        running = asyncio.create_task(_run(stack, on_ready, asked_to_stop), name="run the stack")
        try:
            await asyncio.wait((running, asked), return_when=asyncio.FIRST_COMPLETED)
        finally:
            asked.cancel()
            running.cancel()
            # The stack ends itself when its task is cancelled, at any point of its life.
            await asyncio.wait((running,))
    if not running.cancelled():
        running.result()


async def _run(stack: Stack, on_ready: Callable[[Endpoints], None], asked_to_stop: asyncio.Event) -> None:
    async with stack:
        if asked_to_stop.is_set():
            # A task is cancelled once per signal; what the start awaited may have swallowed the cancellation.
            return
        on_ready(stack.endpoints)
        await stack.failure


@contextlib.contextmanager
def _signals(handler: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
