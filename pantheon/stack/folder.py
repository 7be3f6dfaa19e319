"""DataFolder: the folder of a stack, held by a lock; its files, and the processes that were started for it."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pantheon.stack.errors import DataFolderBusyError, DataFolderError
from pantheon.stack.processes.process import end_process, is_same_process

_LOCK_FILE = "lock"
_PROCESSES_FILE = "processes.json"
# Before SIGKILL. Postgres ends at once on SIGQUIT, which does the other programs no harm either.
_LEFTOVER_STEPS = ((signal.SIGTERM, 1.0), (signal.SIGQUIT, 3.0))


class DataFolder:
    """A folder that one stack at a time works in, held by a lock that the kernel drops when its process dies."""

    def __init__(self, path: Path) -> None:
        """Take the path; nothing is touched before `open`."""
        self.path = path.absolute()
        self._lock: int | None = None

    @property
    def logs(self) -> Path:
        """Where the logs are, a file each process."""
        return self.path / "logs"

    def open(self) -> None:
        """Make the folder, check it, and hold it. Raises DataFolderError or DataFolderBusyError."""
        try:
            # It holds the payloads of tasks, and the database's password.
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.logs.mkdir(exist_ok=True)
            descriptor = os.open(self.path / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except (FileExistsError, NotADirectoryError) as error:
            raise DataFolderError(f"{error.filename or self.path} is not a folder: choose another --data") from error
        except OSError as error:
            raise DataFolderError(
                f"cannot write in {error.filename or self.path} ({error.strerror}): "
                "make it writable or choose another --data"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise DataFolderBusyError(self.path, int(holder) if holder.isdigit() else None) from error
        except OSError as error:
            os.close(descriptor)
            raise DataFolderError(
                f"cannot lock {self.path} ({error.strerror}): choose a --data on a local disk"
            ) from error
        self._lock = descriptor
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            # Data of a mesh must not be committed to the repository that it was started in.
            (self.path / ".gitignore").write_text("*\n")
        except OSError as error:
            self.close()
            raise DataFolderError(f"cannot write in {self.path}: {error.strerror}") from error

    def close(self) -> None:
        """Release the folder, if it is held."""
        descriptor, self._lock = self._lock, None
        if descriptor is not None:
            # Emptied, not removed: a removed lock file could be held by one process and made again by the next.
            os.ftruncate(descriptor, 0)
            os.close(descriptor)

    def log_of(self, name: str) -> Path:
        """Return the log of one process by its name (`postgres`, `llm_agent`, `llm_agent-2`)."""
        return self.logs / f"{name}.log"

    def record_processes(self, processes: Iterable[tuple[str, int, str | None]]) -> None:
        """Write what runs (name, pid, birth), for a successor that cleans up after a killed supervisor."""
        rows = [{"name": name, "pid": pid, "birth": birth} for name, pid, birth in processes]
        write_atomically(self.path / _PROCESSES_FILE, json.dumps(rows, indent=1) + "\n")

    async def end_leftovers(self) -> list[str]:
        """End processes that an earlier stack on this folder left running; returns their names.

        The kernel ends them with their supervisor nearly always; this is for where it could not (a system without
        parent-death signals) and for those that are just on their way out.
        """
        leftovers = self._read_processes()
        ended = await asyncio.gather(
            *(end_process(int(row["pid"]), row["birth"], _LEFTOVER_STEPS) for row in leftovers)
        )
        stuck = [row for row, gone in zip(leftovers, ended, strict=True) if not gone]
        if stuck:
            raise DataFolderError(
                f"an earlier {stuck[0]['name']} (pid {stuck[0]['pid']}) of {self.path} cannot be ended: end it yourself"
            )
        return [str(row["name"]) for row in leftovers]

    def _read_processes(self) -> list[dict[str, Any]]:
        try:
            rows = json.loads((self.path / _PROCESSES_FILE).read_text())
            return [row for row in rows if is_same_process(int(row["pid"]), row["birth"])]
        except (OSError, ValueError, TypeError, KeyError):
            return []


def write_atomically(path: Path, text: str, *, mode: int = 0o600) -> None:
    """Replace a file so that a reader sees the old text or the new, never a part."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    unfinished.replace(path)
