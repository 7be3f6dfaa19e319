"""Rig: the servers of the stack and the processes of a run, with the processor time that each of them takes."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import asyncpg
import nats
import psutil

import migrations
from pantheon.stack.servers import NatsServer, PostgresServer, ValkeyServer
from protocol.discovery import KV_BUCKET, InstanceRecord

REPOSITORY = Path(__file__).parent.parent
READY_SECONDS = 60.0
STOP_SECONDS = 15.0
ORCHESTRATOR = "orchestrator"
ECHO = "echo_agent"


class BenchError(Exception):
    """A run that could not be done; the message has the reason and the log's path."""


class Process:
    """A started program; `ask` sends an order to one that converses."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.log = log
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ready(self) -> None:
        await self._read(READY_SECONDS)

    async def ask(self, *, within_seconds: float = 1800, **order: Any) -> dict[str, Any]:
        """Send an order and wait for the reply. Raises BenchError."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        return await self._read(within_seconds)

    async def _read(self, within_seconds: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(within_seconds):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise BenchError(f"{self.name} did not reply within {within_seconds:g} s (its log: {self.log})") from None
        if not line:
            tail = " / ".join(self.log.read_text(errors="replace").strip().splitlines()[-3:])
            raise BenchError(f"{self.name} ended: {tail or 'no output'}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise BenchError(f"{self.name}: {reply['error']}")
        return reply

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL when that takes too long."""
        if self._process.returncode is not None:
            return
        self._process.terminate()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._process.wait()
        except TimeoutError:
            # Also what it started itself: worker processes of peers.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            await self._process.wait()


class Rig:
    """`async with Rig() as rig`: NATS and Postgres with fsync, on the disk of the repository, and a migrated database.

    `usage` is the processor time by name: servers with all their children, and every process started here.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nats = NatsServer(folder / "nats")
        self.postgres = PostgresServer(folder / "postgres")
        # Only where peers need it.
        self.valkey = ValkeyServer(folder / "valkey")
        self.processes: list[Process] = []

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "TMPDIR", "HOME")}
        return {**kept, "NATS_URL": self.nats.url, "DATABASE_URL": self.postgres.url, "LOG_FORMAT": "json"}

    async def database(self, name: str) -> str:
        """Make an empty database and return its URL."""
        await self.execute(f'create database "{name}"', self.postgres.url_of("postgres"))
        return self.postgres.url_of(name)

    async def execute(self, statement: str, url: str | None = None) -> None:
        connection = await asyncpg.connect(url or self.postgres.url)
        try:
            await connection.execute(statement, timeout=3600)
        finally:
            await connection.close()

    async def value(self, statement: str) -> Any:
        """The first column of the first row."""
        connection = await asyncpg.connect(self.postgres.url)
        try:
            return await connection.fetchval(statement, timeout=3600)
        finally:
            await connection.close()

    async def spawn(
        self,
        name: str,
        *arguments: str,
        program: str = sys.executable,
        environment: dict[str, str] | None = None,
        converses: bool = False,
    ) -> Process:
        """Start a Python program of the project (or of a peer's environment); its output goes to a log."""
        log = self.folder / f"{name}.log"
        with log.open("ab") as file:
            process = await asyncio.create_subprocess_exec(
                program,
                *arguments,
                stdin=asyncio.subprocess.PIPE if converses else asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE if converses else file,
                stderr=file,
                cwd=REPOSITORY,
                env={**self.environment, **(environment or {})},
                limit=1 << 26,
                start_new_session=True,
            )
        made = Process(name, process, log)
        self.processes.append(made)
        if converses:
            try:
                await made.ready()
            except BaseException:
                # The caller never got the process, and could not stop it.
                await self.stop(made)
                raise
        return made

    async def stop(self, process: Process) -> None:
        self.processes.remove(process)
        await process.stop()

    async def start_orchestrators(self, count: int, settings: dict[str, str] | None = None) -> list[Process]:
        """So many, registered; as everywhere, `python -m orchestrator_agent`."""
        made = []
        for _ in range(count):
            name = f"{ORCHESTRATOR}-{sum(process.name.startswith(ORCHESTRATOR) for process in self.processes) + 1}"
            environment = {"INSTANCE_ID": name, **(settings or {})}
            made.append(await self.spawn(name, "-m", "orchestrator_agent", environment=environment))
        await self.until_registered(process.name for process in made)
        return made

    async def start_echo_agent(self) -> Process:
        agent = await self.spawn(ECHO, "-m", "benchmarks.echo_agent", environment={"INSTANCE_ID": ECHO})
        await self.until_registered([ECHO])
        return agent

    async def until_registered(self, instance_ids: Iterable[str]) -> None:
        """Until the registry of the mesh shows all of these. Raises BenchError."""
        missing = set(instance_ids)
        connection = await nats.connect(self.nats.url)
        try:
            async with asyncio.timeout(READY_SECONDS):
                while missing:
                    await asyncio.sleep(0.05)
                    with contextlib.suppress(nats.js.errors.Error):
                        bucket = await connection.jetstream().key_value(KV_BUCKET)
                        for key in await bucket.keys():
                            entry = await bucket.get(key)
                            if entry.value:
                                missing.discard(InstanceRecord.model_validate_json(entry.value).instance_id)
        except TimeoutError:
            raise BenchError(f"{', '.join(sorted(missing))} did not register: see the logs in {self.folder}") from None
        finally:
            await connection.close()
        # Orchestrators learn of it in the moment after.
        await asyncio.sleep(0.5)

    def usage(self) -> dict[str, float]:
        """Processor seconds so far, by process."""
        named = [("nats", self.nats.pid), ("postgres", self.postgres.pid), ("valkey", self.valkey.pid)]
        named += [(process.name, process.pid) for process in self.processes]
        return {name: seconds for name, pid in named if pid is not None and (seconds := _seconds(pid)) is not None}

    async def close(self) -> None:
        await asyncio.gather(*(process.stop() for process in self.processes))
        self.processes.clear()


def _seconds(pid: int) -> float | None:
    """Processor time of a process and all below it, those that ended included."""
    try:
        process = psutil.Process(pid)
        tree = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return None
    total = 0.0
    for member in tree:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = member.cpu_times()
            total += (
                times.user + times.system + getattr(times, "children_user", 0) + getattr(times, "children_system", 0)
            )
    return total


def spent(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Processor seconds between two readings."""
    return {name: seconds - before.get(name, 0.0) for name, seconds in after.items()}


def _new_folder() -> Path:
    """Beside the sources: on their disk, whatever the system's folder for temporary files is made of."""
    below = REPOSITORY / ".cache" / "bench"
    below.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=below))
    # Postgres may run under another account than ours.
    folder.chmod(0o755)
    return folder


@contextlib.asynccontextmanager
async def rig(*, keep: bool = False, valkey: bool = False) -> AsyncIterator[Rig]:
    """A rig in a folder of its own, which is removed afterwards unless `keep`; with Valkey where peers need it."""
    folder = _new_folder()
    made = Rig(folder)
    try:
        async with made.nats, made.postgres, made.valkey if valkey else contextlib.nullcontext():
            await migrations.upgrade(made.postgres.url)
            try:
                yield made
            finally:
                await made.close()
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
