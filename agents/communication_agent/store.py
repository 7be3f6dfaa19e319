"""Files that several processes share: locks between them, and writes that are whole or not there."""

import fcntl
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

LOCK_POLL_SECONDS = 0.02


class LockTimedOut(Exception):
    """Somebody else has held the lock for too long."""


class UnreadableRecord(Exception):
    """A file of ours holds what we did not write."""


@contextmanager
def locked(path: Path, timeout_seconds: float) -> Iterator[None]:
    """Holds the lock file `path` against threads and processes; the operating system frees it when its holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        for pause in _lock_tries(file.fileno(), timeout_seconds, path.name):
            time.sleep(pause)
        yield


def _lock_tries(descriptor: int, timeout_seconds: float, name: str) -> Iterator[float]:
    """The seconds to wait before each further try, until the lock is held. Raises LockTimedOut."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise LockTimedOut(f"{name} stayed locked for {timeout_seconds:g} s") from None
        yield LOCK_POLL_SECONDS


def write_whole(path: Path, content: bytes) -> bool:
    """Puts a file in place at once and durably; False when it already held just that."""
    with suppress(FileNotFoundError):
        if path.read_bytes() == content:
            return False
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return True


class Records:
    """What a channel remembers by key: one small JSON file each, under `folder`."""

    def __init__(self, folder: Path, lock_timeout_seconds: float) -> None:
        self._folder = folder
        self._lock_timeout_seconds = lock_timeout_seconds

    def _path(self, key: str, end: str) -> Path:
        return self._folder / f"{hashlib.sha256(key.encode()).hexdigest()[:40]}{end}"

    def read(self, key: str) -> dict[str, Any]:
        """What was remembered, or nothing; raises UnreadableRecord."""
        path = self._path(key, ".json")
        try:
            found = json.loads(path.read_bytes())
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise UnreadableRecord(f"{path.name} is not JSON: {error}") from error
        if not isinstance(found, dict):
            raise UnreadableRecord(f"{path.name} is not an object")
        return found

    def write(self, key: str, record: dict[str, Any]) -> None:
        """Remembers, durably."""
        write_whole(self._path(key, ".json"), json.dumps(record, indent=1, sort_keys=True).encode())

    def take(self, key: str) -> "_Held":
        """A lock on the key for `async with`, between all processes that share the folder."""
        return _Held(self._path(key, ".lock"), self._lock_timeout_seconds)


class _Held:
    def __init__(self, path: Path, timeout_seconds: float) -> None:
        self._path = path
        self._timeout_seconds = timeout_seconds
        self._descriptor: int | None = None

    async def __aenter__(self) -> None:
        import asyncio

        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            for pause in _lock_tries(descriptor, self._timeout_seconds, "a publication"):
                await asyncio.sleep(pause)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    async def __aexit__(self, *_: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
