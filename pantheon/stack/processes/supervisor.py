"""Keeps the parts of a stack running: starts again what dies, with backoff, and ends everything in the right order."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Protocol

from pantheon.stack.errors import StackError
from pantheon.stack.processes.process import Command, ManagedProcess

_FIRST_BACKOFF_SECONDS = 0.1
_BACKOFF_FACTOR = 2.0
_MAX_BACKOFF_SECONDS = 10.0
# Up for this long, a part has proven itself: its next death is a new story.
_PROVEN_SECONDS = 20.0


class Stage(IntEnum):
    """When a part starts and ends: started in this order, ended in the opposite one.

    Agents end while orchestrators still take their last answers, orchestrators while the servers still commit them.
    """

    SERVERS = 0
    ORCHESTRATORS = 1
    AGENTS = 2


class EventKind(StrEnum):
    """What an event tells."""

    STARTED = "started"
    DIED = "died"
    RESTARTED = "restarted"
    RESTART_FAILED = "restart_failed"
    STOPPING = "stopping"
    STOPPED = "stopped"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class StackEvent:
    """Something that happened to a part, `str()` of it a line for a person."""

    kind: EventKind
    name: str
    message: str
    pid: int | None = None

    def __str__(self) -> str:
        return f"{self.name}: {self.message}"


class Part(Protocol):
    """What can be supervised: the servers, and processes of agents."""

    @property
    def name(self) -> str:
        """The name under which its process id is published."""
        ...

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        ...

    @property
    def process(self) -> ManagedProcess | None:
        """The process of the last start."""
        ...

    async def start(self) -> None:
        """Start it, or start it again where it was."""
        ...

    async def wait(self) -> int:
        """Wait until it ends by itself."""
        ...

    async def stop(self, hurry: asyncio.Event | None = None) -> None:
        """End it gracefully, quickly once `hurry` is set."""
        ...

    def ending(self) -> str:
        """Say how it ended."""
        ...


class Worker:
    """A process of the orchestrator or of an agent: SIGTERM asks it to finish or hand back what it holds."""

    def __init__(
        self, name: str, arguments: tuple[str, ...], environment: Mapping[str, str], log: Path, drain_seconds: float
    ) -> None:
        """Take what to run; `drain_seconds` is what it gets between SIGTERM and SIGKILL."""
        self.name = name
        self.process: ManagedProcess | None = None
        self._command = Command(name, arguments, environment=environment)
        self._log = log
        self._drain_seconds = drain_seconds

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self.process.pid if self.process is not None and self.process.returncode is None else None

    async def start(self) -> None:
        """Start the process."""
        self.process = await ManagedProcess.spawn(self._command, self._log)

    async def wait(self) -> int:
        """Wait until it ends by itself."""
        if self.process is None:
            raise StackError(f"{self.name} has not been started")
        return await self.process.wait()

    async def stop(self, hurry: asyncio.Event | None = None) -> None:
        """Ask it to end, kill it after its time."""
        process, self.process = self.process, None
        if process is not None:
            await process.stop([(signal.SIGTERM, self._drain_seconds)], hurry)

    def ending(self) -> str:
        """Say how it ended."""
        return self.process.ending() if self.process is not None else "not started"


@dataclass(slots=True)
class _Watched:
    part: Part
    stage: Stage
    ready: bool = False
    task: asyncio.Task[None] | None = None


class Supervisor:
    """Watches started parts; `on_change` is called after every start and end of a process.

    A watcher that fails by itself is a bug: `failure` then holds the exception, for the owner to end loudly.
    """

    def __init__(self, *, on_event: Callable[[StackEvent], None], on_change: Callable[[], None]) -> None:
        """Take the two callbacks; both are called in the event loop and must not block."""
        self._on_event = on_event
        self._on_change = on_change
        self._watched: list[_Watched] = []
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def parts(self) -> list[Part]:
        """All parts, in the order of their start."""
        return [watched.part for watched in self._watched]

    def processes(self) -> dict[str, list[int]]:
        """Return the process ids by name; one that is away or not yet ready again is missing from its name's list."""
        pids: dict[str, list[int]] = {}
        for watched in self._watched:
            here = pids.setdefault(watched.part.name, [])
            if watched.ready and watched.part.pid is not None:
                here.append(watched.part.pid)
        return pids

    async def start(self, part: Part, stage: Stage) -> None:
        """Start a part and watch it from now on; a failing first start is raised, not repeated."""
        watched = _Watched(part, stage)
        # Before the start: a stop that comes in the middle of it must find the part.
        self._watched.append(watched)
        await part.start()
        watched.ready = True
        self._tell(EventKind.STARTED, part, f"started (pid {part.pid})")
        self._on_change()
        watched.task = asyncio.create_task(self._keep(watched), name=f"watch {part.name}")
        watched.task.add_done_callback(self._watcher_ended)

    async def stop(self, hurry: asyncio.Event) -> None:
        """End all parts, a stage at a time, the last first."""
        for stage in sorted(Stage, reverse=True):
            of_stage = [watched for watched in self._watched if watched.stage is stage]
            if of_stage:
                await asyncio.gather(*(self._stop(watched, hurry) for watched in of_stage))
                self._watched = [watched for watched in self._watched if watched.stage is not stage]
                self._on_change()
        if not self.failure.done():
            self.failure.cancel()

    async def _stop(self, watched: _Watched, hurry: asyncio.Event) -> None:
        if watched.task is not None:
            watched.task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await watched.task
        pid = watched.part.pid
        await watched.part.stop(hurry)
        if pid is not None:
            self._tell(EventKind.STOPPED, watched.part, "stopped", pid=pid)

    async def _keep(self, watched: _Watched) -> None:
        part = watched.part
        loop = asyncio.get_running_loop()
        backoff_seconds = _FIRST_BACKOFF_SECONDS
        while True:
            started_at = loop.time()
            await part.wait()
            watched.ready = False
            if loop.time() - started_at >= _PROVEN_SECONDS:
                backoff_seconds = _FIRST_BACKOFF_SECONDS
            self._on_change()
            self._tell(EventKind.DIED, part, f"died ({part.ending()}); starting it again in {backoff_seconds:.1f} s")
            while True:
                # Jitter: parts that died of one cause do not come back in one moment.
                await asyncio.sleep(backoff_seconds * random.uniform(0.8, 1.2))
                backoff_seconds = min(backoff_seconds * _BACKOFF_FACTOR, _MAX_BACKOFF_SECONDS)
                try:
                    await part.start()
                    break
                except (StackError, OSError) as error:
                    message = f"could not be started again: {error}; next try in {backoff_seconds:.1f} s"
                    self._tell(EventKind.RESTART_FAILED, part, message)
            watched.ready = True
            self._on_change()
            self._tell(EventKind.RESTARTED, part, f"started again (pid {part.pid})")

    def _watcher_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and not self.failure.done():
            self.failure.set_exception(error)

    def _tell(self, kind: EventKind, part: Part, message: str, *, pid: int | None = None) -> None:
        self._on_event(StackEvent(kind, part.name, message, pid if pid is not None else part.pid))
