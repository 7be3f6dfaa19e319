"""MeshRecord: the files of a data folder that name the running processes, kept true while they come and go."""

from __future__ import annotations

from collections.abc import Callable

from pantheon.stack.endpoints import Endpoints, register, remove_endpoints
from pantheon.stack.events import EventKind, StackEvent
from pantheon.stack.folder import DataFolder
from pantheon.stack.processes.supervisor import RunningProcesses


class MeshRecord:
    """Writes `processes.json` at every change, and `endpoints.json` from `publish` to `withdraw`.

    The first is for a successor that ends what a killed supervisor left behind, the second for clients.
    """

    def __init__(self, folder: DataFolder, on_event: Callable[[StackEvent], None]) -> None:
        """Take the folder; nothing is written before the first call."""
        self._folder = folder
        self._on_event = on_event
        self.endpoints: Endpoints | None = None
        """What is published; None before and after."""

    def update(self, processes: RunningProcesses) -> None:
        """Write the processes as they are now."""
        try:
            self._folder.record_processes((name, process.pid, process.birth) for name, process in processes.alive)
            if self.endpoints is not None:
                self.endpoints = self.endpoints.model_copy(update={"processes": processes.ready})
                self.endpoints.write()
        except OSError as error:
            # A full disk or a removed folder must not end the supervision of what still runs.
            self.note(f"cannot keep {self._folder.path} current: {error.strerror}")

    def publish(self, endpoints: Endpoints) -> None:
        """Write `endpoints.json`, and register the folder where `find_newest` of this account searches."""
        self.endpoints = endpoints
        endpoints.write()
        register(self._folder.path)

    def withdraw(self) -> None:
        """Remove `endpoints.json`: from now on no client finds this mesh."""
        self.endpoints = None
        try:
            remove_endpoints(self._folder.path)
        except OSError as error:
            self.note(f"cannot remove endpoints.json: {error.strerror}")

    def note(self, message: str) -> None:
        """Emit an event about the stack itself."""
        self._on_event(StackEvent(EventKind.NOTE, "stack", message))
