"""Keeps the parts of a stack running: restarts what dies, with backoff, and ends everything in the right order."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass

from pantheon.stack.errors import StackError
from pantheon.stack.events import EventKind, StackEvent
from pantheon.stack.processes.parts import Part, Stage
from pantheon.stack.processes.process import ManagedProcess

_FIRST_BACKOFF_SECONDS = 0.1
_BACKOFF_FACTOR = 2.0
_MAX_BACKOFF_SECONDS = 10.0
# After this time a part counts as stable: its next death begins with the first backoff again.
_PROVEN_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class RunningProcesses:
    """The processes of a stack at one moment."""

    ready: dict[str, list[int]]
    """Process ids by name; a process that is not (yet, or again) ready is missing from its name's list."""
    alive: list[tuple[str, ManagedProcess]]
    """All that have not ended, by name, ready or not."""


@dataclass(slots=True)
class _Supervised:
    part: Part
    stage: Stage
    ready: bool = False
    task: asyncio.Task[None] | None = None


class Supervisor:
    """Watches started parts; `on_change` gets the processes after every start and end of one.

    A watcher that fails by itself is a bug: `failure` then holds the exception, for the owner to end loudly.
    """

    def __init__(
        self, *, on_event: Callable[[StackEvent], None], on_change: Callable[[RunningProcesses], None]
    ) -> None:
        """Take the two callbacks; both are called in the event loop and must not block."""
        self._on_event = on_event
        self._on_change = on_change
        self._supervised: list[_Supervised] = []
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def count(self, name: str) -> int:
        """Return how many parts have this name."""
        return sum(entry.part.name == name for entry in self._supervised)

    def processes(self) -> RunningProcesses:
        """Return the processes as they are now."""
        ready: dict[str, list[int]] = {}
        alive: list[tuple[str, ManagedProcess]] = []
        for entry in self._supervised:
            part, process = entry.part, entry.part.process
            pids = ready.setdefault(part.name, [])
            if entry.ready and part.pid is not None:
                pids.append(part.pid)
            if process is not None and process.returncode is None:
                alive.append((part.name, process))
        return RunningProcesses(ready, alive)

    async def start(self, part: Part, stage: Stage) -> None:
        """Start a part and watch it from now on; a failing first start is raised, not repeated."""
        entry = _Supervised(part, stage)
        # Before the start: a stop that comes in the middle of it must find the part.
        self._supervised.append(entry)
        await part.start()
        entry.ready = True
        self._emit(EventKind.STARTED, part, f"started (pid {part.pid})")
        self._changed()
        entry.task = asyncio.create_task(self._keep(entry), name=f"watch {part.name}")
        entry.task.add_done_callback(self._watcher_ended)

    async def stop(self, hurry: asyncio.Event) -> None:
        """End all parts, a stage at a time, the last first."""
        for stage in sorted(Stage, reverse=True):
            of_stage = [entry for entry in self._supervised if entry.stage is stage]
            if of_stage:
                await asyncio.gather(*(self._stop(entry, hurry) for entry in of_stage))
                self._supervised = [entry for entry in self._supervised if entry.stage is not stage]
                self._changed()
        if not self.failure.done():
            self.failure.cancel()

    async def _stop(self, entry: _Supervised, hurry: asyncio.Event) -> None:
        if entry.task is not None:
            entry.task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await entry.task
        pid = entry.part.pid
        await entry.part.stop(hurry)
        if pid is not None:
            self._emit(EventKind.STOPPED, entry.part, "stopped", pid=pid)

    async def _keep(self, entry: _Supervised) -> None:
        part = entry.part
        loop = asyncio.get_running_loop()
        backoff_seconds = _FIRST_BACKOFF_SECONDS
        while True:
            started_at = loop.time()
            await part.wait()
            entry.ready = False
            if loop.time() - started_at >= _PROVEN_SECONDS:
                backoff_seconds = _FIRST_BACKOFF_SECONDS
            self._changed()
            self._emit(EventKind.DIED, part, f"died ({part.ending()}); starting it again in {backoff_seconds:.1f} s")
            while True:
                # Jitter: parts that died of one cause do not come back in one moment.
                await asyncio.sleep(backoff_seconds * random.uniform(0.8, 1.2))
                backoff_seconds = min(backoff_seconds * _BACKOFF_FACTOR, _MAX_BACKOFF_SECONDS)
                try:
                    await part.start()
                    break
                except (StackError, OSError) as error:
                    message = f"could not be started again: {error}; next try in {backoff_seconds:.1f} s"
                    self._emit(EventKind.RESTART_FAILED, part, message)
            entry.ready = True
            self._changed()
            self._emit(EventKind.RESTARTED, part, f"started again (pid {part.pid})")

    def _watcher_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and not self.failure.done():
            self.failure.set_exception(error)

    def _changed(self) -> None:
        self._on_change(self.processes())

    def _emit(self, kind: EventKind, part: Part, message: str, *, pid: int | None = None) -> None:
        self._on_event(StackEvent(kind, part.name, message, pid if pid is not None else part.pid))
