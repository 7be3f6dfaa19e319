"""What the embedded servers share: a port that stays, and a start that returns when the server is ready."""

from __future__ import annotations

import asyncio
import os
import signal
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from pantheon.stack.errors import PortTakenError, ServerStartError, StackError
from pantheon.stack.processes.parts import Part
from pantheon.stack.processes.process import Command, ManagedProcess, last_meaningful_line
from pantheon.stack.servers.ports import is_free, pick_free

_POLL_SECONDS = 0.01
_PROBE_SECONDS = 2.0
# A conflict: another process took the port between our check and the server's bind. Ten in a row do not happen.
_START_ATTEMPTS = 10
_CONFLICT_TEXTS = ("address already in use", "could not create any tcp/ip sockets", "failed to bind", "eaddrinuse")


class Server(Part):
    """A server of the stack with its data in `folder` and its output in `log`.

    The port is chosen at the first start and written beside the data: a later start takes the same port where it is
    free, else another. A restart in a running stack (`start` again on this object) takes the same port or fails,
    because every process of the mesh has its address. Usable as an async context manager.
    """

    ready_seconds = 30.0
    death_signal = signal.SIGKILL
    stop_steps: tuple[tuple[signal.Signals, float], ...] = ((signal.SIGTERM, 10.0),)

    def __init__(self, folder: Path, *, log: Path | None = None, port: int | None = None) -> None:
        """Take a folder for the data (made when absent) and, rarely, a fixed port; by default a free one is found."""
        self.folder = folder.absolute()
        self.log = log or self.folder / f"{self.name}.log"
        self._asked_port = port
        self._port: int | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients connect; valid once started, and over restarts."""

    @property
    def port(self) -> int:
        """The server's port; raises StackError before the first start."""
        if self._port is None:
            raise StackError(f"{self.name} has not been started")
        return self._port

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start the server and return when it responds; raises a StackError of one line otherwise."""
        if self.pid is not None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            await self._prepare()
            await self._start_on_free_port()
        except OSError as error:
            what = f"{error.filename or self.folder}: {error.strerror or error}"
            raise StackError(f"cannot write the files of {self.name} ({what}): check space and permissions") from error

    async def _start_on_free_port(self) -> None:
        for _ in range(_START_ATTEMPTS):
            port = self._choose_port()
            if await self._start_on(port):
                self._port = port
                self._remember_port(port)
                return
            if self._asked_port is not None:
                raise PortTakenError(self.name, self._asked_port)
            if self._port is not None:
                raise ServerStartError(self.name, f"its port {self._port} is held by another process", self.log)
            self._forget_port()
        raise ServerStartError(self.name, "every port that was tried got taken by another process", self.log)

    async def wait_ready(self) -> None:
        """Wait until the server responds and is known to be this one (a port alone does not prove it)."""
        process = self.process
        if process is None:
            raise StackError(f"{self.name} has not been started")
        ready = asyncio.ensure_future(self._until_ready())
        # Beside the probe: another process that holds the port may never respond to it.
        ended = asyncio.ensure_future(process.wait())
        try:
            waiting = (ready, ended)
            await asyncio.wait(waiting, timeout=self.ready_seconds, return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                ready.result()
                return
        finally:
            ready.cancel()
            ended.cancel()
        if process.returncode is not None:
            raise ServerStartError(self.name, process.ending(), self.log)
        line = last_meaningful_line(process.output())
        what = f"no answer within {self.ready_seconds:.0f} s" + (f": {line}" if line else "")
        raise ServerStartError(self.name, what, self.log)

    async def _prepare(self) -> None:
        """Make what the server needs before its first start."""
        return

    @abstractmethod
    def _command(self, port: int) -> Command:
        """Return the command that serves on this port."""

    @abstractmethod
    async def _is_ready(self, port: int) -> bool:
        """Ask the server once; False, or an OSError, means not yet (or not this one)."""

    async def _start_on(self, port: int) -> bool:
        """Start on this port and wait until it is ready; False when the port was taken."""
        previous, self._port = self._port, port
        started = False
        try:
            self.process = await ManagedProcess.spawn(self._command(port), self.log)
            await self.wait_ready()
            started = True
        except ServerStartError:
            if self.process is None or not _is_conflict(self.process.output()):
                raise
        finally:
            if not started:
                await self.stop()
                self._port = previous
        return started

    async def _until_ready(self) -> None:
        while not await self._responds():  # noqa: ASYNC110 - another process sends us no event
            await asyncio.sleep(_POLL_SECONDS)

    async def _responds(self) -> bool:
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                return await self._is_ready(self.port)
        except (OSError, TimeoutError, EOFError, ValueError):
            return False

    def _choose_port(self) -> int:
        if self._asked_port is not None:
            if not is_free(self._asked_port):
                raise PortTakenError(self.name, self._asked_port)
            return self._asked_port
        if self._port is not None:
            return self._port
        try:
            remembered = int(self._port_file.read_text())
            if is_free(remembered):
                return remembered
        except (OSError, ValueError, OverflowError):
            pass
        return pick_free()

    @property
    def _port_file(self) -> Path:
        return self.folder / "port"

    def _remember_port(self, port: int) -> None:
        self._port_file.write_text(f"{port}\n")

    def _forget_port(self) -> None:
        self._port_file.unlink(missing_ok=True)


def server_environment(home: Path) -> Mapping[str, str]:
    """Return the environment of a server: nothing of the caller's that could configure it (PGPORT, CONSUL_*)."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "TMPDIR") if name in os.environ}
    return {**kept, "HOME": str(home), "LC_ALL": "C", "TZ": "UTC"}


def _is_conflict(output: str) -> bool:
    text = output.lower()
    return any(sign in text for sign in _CONFLICT_TEXTS)
