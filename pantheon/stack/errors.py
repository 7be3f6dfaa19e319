"""The errors of the embedded stack, each one line that states what happened and what to do.

StackError (of protocol/errors.py)
├── DataFolderError      the folder cannot be used (not a folder, not writable, damaged)
├── DataFolderBusyError  another `pantheon up` holds it (.holder_pid)
├── ProgramMissingError  a server's program is not installed
├── PortTakenError       a fixed port is in use (.port)
├── ServerStartError     a server ended, or did not respond, while it started (.server, .log)
├── AgentLoadError       an agent's module could not be loaded (.target)
└── NoMeshError          a client needs a running mesh and there is none
"""

from __future__ import annotations

from pathlib import Path

from protocol.errors import StackError as StackError


class DataFolderError(StackError):
    """The data folder cannot be used as it is."""


class DataFolderBusyError(StackError):
    """Another process runs a stack on this folder."""

    def __init__(self, folder: Path, holder_pid: int | None) -> None:
        self.folder = folder
        self.holder_pid = holder_pid
        holder = f"pid {holder_pid}" if holder_pid else "another process"
        super().__init__(f"{folder} is in use by a running `pantheon up` ({holder}): stop it, or choose another --data")


class ProgramMissingError(StackError):
    """A server's program was not found."""


class PortTakenError(StackError):
    """The port that was asked for belongs to another process."""

    def __init__(self, server: str, port: int) -> None:
        self.server = server
        self.port = port
        super().__init__(
            f"port {port} for {server} is already taken on 127.0.0.1: free it, or leave the port out to get a free one"
        )


class ServerStartError(StackError):
    """A server ended or did not respond while it was started; the message quotes its log."""

    def __init__(self, server: str, what: str, log: Path) -> None:
        self.server = server
        self.log = log
        super().__init__(f"{server} did not start: {what} (log: {log})")


class AgentLoadError(StackError):
    """The module or file of an agent could not be loaded."""

    def __init__(self, target: str, what: str) -> None:
        self.target = target
        super().__init__(f"agent {target} cannot be loaded: {what}")


class NoMeshError(StackError):
    """No running mesh was found for a folder."""
