"""Event loop of a process of the mesh: uvloop, where it exists."""

import asyncio
import socket
import sys
from collections.abc import Coroutine
from typing import Any

import structlog

log = structlog.get_logger()


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a process to its end."""
    if sys.platform == "win32":
        asyncio.run(main)
    else:
        import uvloop

        def make() -> uvloop.Loop:
            loop = uvloop.new_event_loop()
            loop.set_exception_handler(_on_unhandled)
            return loop

        uvloop.run(main, loop_factory=make)


def _on_unhandled(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log errors that no task handled, but for the name look-ups that uvloop itself leaves behind.

    Its `create_connection`, cancelled during a look-up, does not cancel the look-up. Where a resolver responds later
    than NATS's, Postgres's or Redis's client waits for a connection, each of their tries ended in a traceback without
    an origin. The client that connected knows: it ran into its timeout, and reports that.
    """
    error = context.get("exception")
    if isinstance(error, socket.gaierror) and not isinstance(context.get("future"), asyncio.Task):
        log.debug("lookup.too_late", error=str(error))
    else:
        loop.default_exception_handler(context)
