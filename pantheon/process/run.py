"""run_agent: an agent as this process, from its settings to its exit code."""

import asyncio
import gc
import os
import signal
import sys
import threading
import time

import structlog

from pantheon.process.agent_process import AgentProcess, MakeWorker
from pantheon.runtime import event_loop
from pantheon.runtime.logs import configure_logging
from pantheon.runtime.settings import MeshSettings
from pantheon.worker.declaration import Declaration
from protocol.errors import PantheonError

log = structlog.get_logger()

GC_THRESHOLDS = (50_000, 20, 100)


async def serve(agent: Declaration, settings: MeshSettings, *, make_worker: MakeWorker | None = None) -> None:
    """Run an agent until SIGTERM, SIGINT or a drain order; a second signal ends it at once."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()

    def on_signal() -> None:
        if stopped.is_set():
            os._exit(130)
        stopped.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)

    async def run() -> None:
        async with AgentProcess(agent, settings, make_worker=make_worker) as process:
            # A cancellation comes once; a library that the start awaited may have swallowed it.
            if not stopped.is_set():
                await process.until_stopped()

    # What exists now stays; the collector would walk it again and again for nothing. The thresholds are for programs
    # that make and drop many small objects without circles: by default a quarter of their time went into collecting.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    # Also while it still connects (NATS may be away for long) a signal must end it.
    running = asyncio.create_task(run(), name=agent.name)
    waiting = asyncio.create_task(stopped.wait(), name="signal")
    await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if not running.done():
        running.cancel()
    try:
        await running
    except asyncio.CancelledError:
        log.debug("agent.ended", agent=agent.name)


def run_agent(agent: Declaration, *, make_worker: MakeWorker | None = None) -> int:
    """Run an agent as this process; returns the exit code. Mistakes of settings are one line on stderr.

    Where a thread is still at work at the end, for which the interpreter would wait, the process ends here.
    """
    code = _run_agent(agent, make_worker)
    if threads := _threads_at_work():
        log.warning("process.threads_not_ended", threads=threads)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _threads_at_work() -> list[str]:
    """The threads that keep the interpreter from ending, after a moment in which they may end."""
    end = time.monotonic() + event_loop.END_SECONDS
    threads = [
        thread for thread in threading.enumerate() if not thread.daemon and thread is not threading.current_thread()
    ]
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    return [thread.name for thread in threads if thread.is_alive()]


def _run_agent(agent: Declaration, make_worker: MakeWorker | None) -> int:
    try:
        settings = MeshSettings.load()
        configure_logging(settings.log_level, settings.log_format)
        event_loop.run(serve(agent, settings, make_worker=make_worker))
    except PantheonError as error:
        sys.stderr.write(f"{agent.name}: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0
