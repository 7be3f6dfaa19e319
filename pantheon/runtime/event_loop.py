"""Event loop: the one that a process of the mesh runs on: uvloop, where there is one."""

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
            loop.set_exception_handler(_on_unheard)
            return loop

        uvloop.run(main, loop_factory=make)


def _on_unheard(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Say what nobody heard of, but for the look-ups of names that uvloop itself leaves behind.

    Its `create_connection`, given up while a name is looked up, does not give up the look-up. Where a resolver answers
    later than NATS's, Postgres's or Redis's client waits for a connection, each of their tries ended in a traceback
    with no word of where it was from. Whoever connected knows: it ran into its timeout, and says so.
    """
    error = context.get("exception")
    if isinstance(error, socket.gaierror) and not isinstance(context.get("future"), asyncio.Task):
        log.debug("lookup.too_late", error=str(error))
    else:
        loop.default_exception_handler(context)
