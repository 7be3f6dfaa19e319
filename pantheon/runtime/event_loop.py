"""Event loop of a process of the mesh: uvloop, where it exists; what handlers raise does not end it, and it ends in
time."""

import asyncio
import signal
import socket
import sys
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import structlog

log = structlog.get_logger()

# How long tasks that are cancelled at the end may take; one that swallows its cancellation is left behind then.
END_SECONDS = 0.5


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a process to its end.

    By asyncio's rule a SystemExit or KeyboardInterrupt in any task leaves the loop, in the middle of all other work.
    Here the loop goes on, and what awaits that task gets the exception; only one of `main` itself ends the process.
    """
    loop = _new_loop()
    # asyncio would wait for the threads of its own pool however long they work.
    pool = ThreadPoolExecutor(thread_name_prefix="asyncio")
    loop.set_default_executor(pool)
    asyncio.set_event_loop(loop)
    try:
        _complete(loop, main)
    finally:
        _end_tasks(loop)
        pool.shutdown(wait=False, cancel_futures=True)
        asyncio.set_event_loop(None)
        loop.close()


def _new_loop() -> asyncio.AbstractEventLoop:
    if sys.platform == "win32":
        return asyncio.new_event_loop()
    import uvloop

    loop = uvloop.new_event_loop()
    loop.set_exception_handler(_on_unhandled)
    return loop


def _complete(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any]) -> None:
    task = loop.create_task(work)
    while True:
        try:
            loop.run_until_complete(task)
            return
        except (SystemExit, KeyboardInterrupt) as raised:
            # Until the process handles SIGINT itself, a KeyboardInterrupt is a person's Ctrl-C.
            pressed = signal.getsignal(signal.SIGINT) is signal.default_int_handler
            if task.done() or (isinstance(raised, KeyboardInterrupt) and pressed):
                raise
            log.warning("process.exit_ignored", raised=type(raised).__name__)


def _end_tasks(loop: asyncio.AbstractEventLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        _complete(loop, asyncio.wait(tasks, timeout=END_SECONDS))
    _complete(loop, asyncio.wait([loop.create_task(loop.shutdown_asyncgens())], timeout=END_SECONDS))
    if left := [task.get_name() for task in tasks if not task.done()]:
        log.warning("process.tasks_not_ended", tasks=left)


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
