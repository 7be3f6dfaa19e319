"""The embedded Postgres: made on first use, crash-safe settings, run under any account, root included."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
from pathlib import Path

from pantheon.stack.errors import DataFolderError
from pantheon.stack.processes.process import Command, end_process, process_birth, run_to_end
from pantheon.stack.servers.identity import choose_identity, own
from pantheon.stack.servers.ports import LOOPBACK
from pantheon.stack.servers.programs import find_postgres_folder
from pantheon.stack.servers.server import Server, server_environment

USER = "pantheon"
DATABASE = "pantheon"

_PASSWORD_BYTES = 32
# Dynamic shared memory goes to /dev/shm unless that is as small as a container's default of 64 MB.
_ROOMY_SHARED_MEMORY_BYTES = 256 * 1024 * 1024

# Durability as Postgres ships it (fsync, synchronous_commit); the rest sized for a mesh on one machine.
_SETTINGS = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "logging_collector": "off",
    # Compiling a plan costs more than any of the mesh's short statements.
    "jit": "off",
}


class PostgresServer(Server):
    """`postgres` on a loopback TCP port, reached by password only; the database is called `pantheon`."""

    name = "postgres"
    # Recovery after a crash replays the log, as long as that takes.
    ready_seconds = 120.0
    # SIGQUIT ends all backends at once and leaves the rest to recovery: no supervisor is left to wait for a checkpoint.
    death_signal = signal.SIGQUIT
    stop_steps = ((signal.SIGINT, 20.0), (signal.SIGQUIT, 6.0))

    def __init__(
        self,
        folder: Path,
        *,
        log: Path | None = None,
        port: int | None = None,
        settings: dict[str, str] | None = None,
    ) -> None:
        """Take the folder; `settings` are further server parameters (a test session switches `fsync` off)."""
        super().__init__(folder, log=log, port=port)
        self._settings = settings or {}
        self._password = ""
        self._identity = ""

    @property
    def url(self) -> str:
        """`postgresql://` address of the database `pantheon`, password included."""
        return self.url_of(DATABASE)

    def url_of(self, database: str) -> str:
        """Return the address of another database of this server (`postgres` for administration)."""
        return f"postgresql://{USER}:{self._password}@{LOOPBACK}:{self.port}/{database}"

    @property
    def data_folder(self) -> Path:
        """Postgres's own data directory."""
        return self.folder / "data"

    async def _prepare(self) -> None:
        self._identity = await choose_identity(self.data_folder)
        if (self.data_folder / "PG_VERSION").exists():
            self._password = self._read_password()
            own(self.data_folder, self._identity)
            await self._end_strays()
        else:
            await self._initialise()

    async def _initialise(self) -> None:
        """Make the cluster beside its final folder and move it there whole: an interrupted start leaves no half of it.

        Everything is written unsynced and synced once at the end, which is several times faster than initdb's way.
        """
        self._password = secrets.token_hex(_PASSWORD_BYTES)
        password_file = self._write_password()
        unfinished = self.folder / "data.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        own(unfinished, self._identity)
        programs = find_postgres_folder()
        await self._run(
            "initdb", str(programs / "initdb"), "-D", str(unfinished), "-U", USER, "--no-sync", "--no-instructions",
            "--auth=scram-sha-256", f"--pwfile={password_file}", "--encoding=UTF8",
            # The same order of strings on every machine, whatever locales it has.
            "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C",
            # Iterations slow down guessing of weak passwords; this one is random and the connects are many.
            "--set", "scram_iterations=1", "--set", f"dynamic_shared_memory_type={_shared_memory_type()}",
        )  # fmt: skip
        await self._run(
            "create database", str(programs / "postgres"), "--single", "-D", str(unfinished), "-c", "fsync=off",
            "template1", feed=f"create database {DATABASE}\n",
        )  # fmt: skip
        await self._run("initdb", str(programs / "initdb"), "-D", str(unfinished), "--sync-only")
        unfinished.rename(self.data_folder)
        _sync_folder(self.folder)

    async def _run(self, name: str, *arguments: str, feed: str = "") -> None:
        command = Command(name, arguments, environment=server_environment(self.folder), identity=self._identity)
        await run_to_end(command, self.log, feed=feed)

    async def _end_strays(self) -> None:
        """Make sure that `postmaster.pid` does not stop the start: end a stray server of this folder, or drop the file.

        Postgres takes any living process of that id for its own server; in a container, ids come round soon.
        """
        file = self.data_folder / "postmaster.pid"
        try:
            pid = int(file.read_text().split("\n", 1)[0])
        except (OSError, ValueError):
            return
        birth = process_birth(pid)
        if birth is not None and _runs_in(pid, self.data_folder):
            await end_process(pid, birth, self.stop_steps)
        elif birth is not None:
            file.unlink(missing_ok=True)

    def _command(self, port: int) -> Command:
        settings = {**_SETTINGS, "dynamic_shared_memory_type": _shared_memory_type(), **self._settings}
        settings["port"] = str(port)
        options = [argument for name, value in settings.items() for argument in ("-c", f"{name}={value}")]
        return Command(
            self.name,
            (str(find_postgres_folder() / "postgres"), "-D", str(self.data_folder), *options),
            environment=server_environment(self.folder),
            identity=self._identity,
            death_signal=self.death_signal,
        )

    async def _is_ready(self, port: int) -> bool:
        lines = (self.data_folder / "postmaster.pid").read_text().splitlines()
        # Its eighth line says "ready" once recovery has ended and connections are taken.
        return len(lines) >= 8 and lines[0] == str(self.pid) and lines[3] == str(port) and lines[7].strip() == "ready"

    @property
    def _password_file(self) -> Path:
        return self.folder / "password"

    def _read_password(self) -> str:
        try:
            return self._password_file.read_text().strip()
        except OSError as error:
            raise DataFolderError(
                f"cannot read the database's password in {self._password_file} ({error.strerror}): "
                f"run as the user who made it, or choose another data folder"
            ) from error

    def _write_password(self) -> Path:
        self._password_file.unlink(missing_ok=True)
        descriptor = os.open(self._password_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(self._password + "\n")
            file.flush()
            os.fsync(file.fileno())
        return self._password_file


def _shared_memory_type() -> str:
    """Return where parallel queries share memory: a file in the data folder when /dev/shm is missing, small or full."""
    try:
        space = os.statvfs("/dev/shm")  # noqa: S108 - checked, not written
        roomy = space.f_bavail * space.f_frsize >= _ROOMY_SHARED_MEMORY_BYTES and os.access("/dev/shm", os.W_OK)  # noqa: S108
    except OSError:
        roomy = False
    return "posix" if roomy else "mmap"


def _runs_in(pid: int, folder: Path) -> bool:
    """Return whether this process works in `folder`, as a postmaster does in its data directory."""
    try:
        return Path(f"/proc/{pid}/cwd").resolve(strict=True) == folder.resolve()
    except OSError:
        return False


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
