"""Parts of a stack that can be supervised: their stages, what all parts share, and the processes of the mesh itself."""

from __future__ import annotations

import asyncio
import signal
from abc import ABC, abstractmethod
from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path

from pantheon.stack.errors import StackError
from pantheon.stack.processes.process import Command, ManagedProcess


class Stage(IntEnum):
    """When a part starts and ends: started in this order, ended in the opposite one.

    Agents end while orchestrators still accept their last responses, these while the servers still commit them.
    """

    SERVERS = 0
    ORCHESTRATORS = 1
    AGENTS = 2


class Part(ABC):
    """A process that can be restarted after its end. Subclasses set `name`, under which its id is published."""

    name: str
    stop_steps: tuple[tuple[signal.Signals, float], ...]
    """Signals of a graceful end, each with the seconds that it gets."""
    process: ManagedProcess | None = None
    """The process of the last start."""

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self.process.pid if self.process is not None and self.process.returncode is None else None

    @abstractmethod
    async def start(self) -> None:
        """Start it, or start it again where it was."""

    async def wait(self) -> int:
        """Wait until it ends by itself and return its exit status."""
        if self.process is None:
            raise StackError(f"{self.name} has not been started")
        return await self.process.wait()

    async def stop(self, hurry: asyncio.Event | None = None) -> None:
        """End it gracefully, if this object started it; `hurry` shortens the graceful part."""
        process, self.process = self.process, None
        if process is not None:
            await process.stop(self.stop_steps, hurry)

    def ending(self) -> str:
        """Describe how the last run ended."""
        return self.process.ending() if self.process is not None else "not started"


class MeshProcess(Part):
    """A process of the orchestrator or of an agent: on SIGTERM it finishes its tasks or returns them to the broker."""

    def __init__(
        self, name: str, arguments: tuple[str, ...], environment: Mapping[str, str], log: Path, drain_seconds: float
    ) -> None:
        """Take what to run; `drain_seconds` is the time between SIGTERM and SIGKILL."""
        self.name = name
        self.stop_steps = ((signal.SIGTERM, drain_seconds),)
        self._command = Command(name, arguments, environment=environment)
        self._log = log

    async def start(self) -> None:
        """Start the process."""
        self.process = await ManagedProcess.spawn(self._command, self._log)
