"""The embedded stack as a whole: servers, schema, orchestrators and agents of one data folder, up and down."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from pantheon.stack.agents import AgentSpec, built_in_agents, find_agent, orchestrator
from pantheon.stack.endpoints import Endpoints, register, remove_endpoints
from pantheon.stack.errors import DataFolderError, StackError
from pantheon.stack.folder import DataFolder
from pantheon.stack.processes.process import process_birth
from pantheon.stack.processes.supervisor import EventKind, StackEvent, Stage, Supervisor, Worker
from pantheon.stack.servers import ConsulServer, NatsServer, PostgresServer, Server, ValkeyServer

# Longer than an agent's own drain, so that the agent decides; shorter than an init system's patience.
_DRAIN_SECONDS = 25.0
_SETTLE_SECONDS = 30.0
_MESH_VARIABLES = ("NATS_URL", "DATABASE_URL", "REDIS_URL", "CONSUL_HTTP_ADDR")


class Stack:
    """A mesh on this machine: `async with Stack(data, migrate=...) as stack:` has it running.

    On entering: holds the folder, ends leftovers, starts the servers side by side, applies migrations, starts
    orchestrators and agents, waits for `settled`, writes endpoints.json. On leaving, or when entering fails or is
    cancelled: agents, orchestrators, servers are ended in this order and the file is removed. All errors that a user
    can cause are a StackError of one line.
    """

    def __init__(
        self,
        data: Path,
        *,
        migrate: Callable[[str], Awaitable[None]] | None = None,
        orchestrators: int = 1,
        agents: Sequence[AgentSpec] | None = None,
        agent_targets: Sequence[str] = (),
        consul: Path | None = None,
        ports: Mapping[str, int] | None = None,
        env: Mapping[str, str] | None = None,
        settled: Callable[[Endpoints], Awaitable[None]] | None = None,
        on_event: Callable[[StackEvent], None] = lambda event: None,
        drain_seconds: float = _DRAIN_SECONDS,
    ) -> None:
        """Describe the stack; nothing happens before it is entered.

        `migrate` is given the database's URL. `agents` are the five built-in ones when None; `agent_targets` are
        modules or files of further agents, named by themselves. `consul` is the program to run, from `find_consul`.
        `ports` fixes ports by server name. `env` is the environment for the processes, this process's when None; its
        addresses of other meshes are replaced by this one's. `settled` returns when the mesh can take tasks; after
        half a minute the stack goes on without it.
        """
        self.hurry = asyncio.Event()
        self._folder = DataFolder(data)
        self._migrate = migrate
        self._orchestrators = orchestrators
        self._agents = list(built_in_agents() if agents is None else agents)
        self._agent_targets = list(agent_targets)
        self._consul_program = consul
        self._ports = dict(ports or {})
        inherited = os.environ if env is None else env
        self._environment = {name: value for name, value in inherited.items() if name not in _MESH_VARIABLES}
        self._settled = settled
        self._on_event = on_event
        self._drain_seconds = drain_seconds
        self._supervisor: Supervisor | None = None
        self._servers: dict[str, Server] = {}
        self._published: Endpoints | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def endpoints(self) -> Endpoints:
        """Where the running stack is reached; raises StackError when it does not run."""
        if self._published is None:
            raise StackError("the stack is not running: enter it first")
        return self._published

    @property
    def failure(self) -> asyncio.Future[None]:
        """Fails when the supervision itself does; whoever runs the stack waits on it beside its own work."""
        if self._supervisor is None:
            raise StackError("the stack is not running: enter it first")
        return self._supervisor.failure

    async def start(self) -> None:
        """Bring everything up; ends what it had begun when that fails or is cancelled."""
        self._folder.open()
        try:
            await self._start()
        except OSError as error:
            await self.stop()
            if error.filename is None:
                # Not about a file: it came from `migrate` or `settled`, which have errors of their own.
                raise
            raise DataFolderError(
                f"cannot use {error.filename}: {error.strerror}: check space and permissions, or choose another --data"
            ) from error
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End everything that was started, agents first. Finishes even when the caller is cancelled meanwhile."""
        stopping = asyncio.ensure_future(self._stop())
        cancelled: asyncio.CancelledError | None = None
        while not stopping.done():
            try:
                await asyncio.shield(stopping)
            except asyncio.CancelledError as error:
                # Whoever cancels a stop wants it now, but wants it.
                cancelled = error
                self.hurry.set()
        if cancelled is not None:
            raise cancelled
        stopping.result()

    async def _start(self) -> None:
        remove_endpoints(self._folder.path)
        leftovers = await self._folder.end_leftovers()
        if leftovers:
            self._note(f"ended what an earlier run had left: {', '.join(sorted(set(leftovers)))}")
        supervisor = self._supervisor = Supervisor(on_event=self._on_event, on_change=self._record)
        self._servers = {server.name: server for server in self._make_servers()}
        with _first_error():
            async with asyncio.TaskGroup() as group:
                found = [group.create_task(self._find_agent(target)) for target in self._agent_targets]
                for server in self._servers.values():
                    group.create_task(supervisor.start(server, Stage.SERVERS))
        endpoints = self._describe()
        if self._migrate is not None:
            await self._migrate(endpoints.database_url)
        environment = {**self._environment, "PYTHONUNBUFFERED": "1", **endpoints.environment()}
        await self._start_workers(orchestrator(self._orchestrators), Stage.ORCHESTRATORS, environment)
        for spec in [*self._agents, *(task.result() for task in found)]:
            await self._start_workers(spec, Stage.AGENTS, environment)
        await self._settle()
        self._published = self._describe()
        self._published.write()
        register(self._folder.path)

    async def _stop(self) -> None:
        self._published = None
        try:
            # First: from now on nobody should find this mesh any more.
            remove_endpoints(self._folder.path)
        except OSError as error:
            self._note(f"cannot remove endpoints.json: {error.strerror}")
        try:
            if self._supervisor is not None:
                await self._supervisor.stop(self.hurry)
        finally:
            self._supervisor = None
            self._folder.close()

    def _make_servers(self) -> Iterator[Server]:
        folder, log_of, ports = self._folder.path, self._folder.log_of, self._ports
        yield NatsServer(folder / "nats", log=log_of("nats"), port=ports.get("nats"))
        yield PostgresServer(folder / "postgres", log=log_of("postgres"), port=ports.get("postgres"))
        yield ValkeyServer(folder / "valkey", log=log_of("valkey"), port=ports.get("valkey"))
        if self._consul_program is not None:
            yield ConsulServer(folder / "consul", self._consul_program, log=log_of("consul"), port=ports.get("consul"))

    async def _find_agent(self, target: str) -> AgentSpec:
        return await find_agent(target, environment=self._environment)

    async def _start_workers(self, spec: AgentSpec, stage: Stage, environment: Mapping[str, str]) -> None:
        assert self._supervisor is not None
        earlier = sum(part.name == spec.name for part in self._supervisor.parts)
        for number in range(earlier + 1, earlier + spec.instances + 1):
            log = self._folder.log_of(spec.name if number == 1 else f"{spec.name}-{number}")
            worker = Worker(spec.name, spec.arguments, environment, log, self._drain_seconds)
            await self._supervisor.start(worker, stage)

    async def _settle(self) -> None:
        if self._settled is None:
            return
        try:
            async with asyncio.timeout(_SETTLE_SECONDS):
                await self._settled(self._describe())
        except TimeoutError:
            self._note(f"not all parts answered within {_SETTLE_SECONDS:.0f} s; see {self._folder.logs}")

    def _describe(self) -> Endpoints:
        assert self._supervisor is not None
        consul = self._servers.get("consul")
        return Endpoints(
            nats_url=self._servers["nats"].url,
            database_url=self._servers["postgres"].url,
            redis_url=self._servers["valkey"].url,
            consul_http_addr=consul.url if consul is not None else None,
            processes=self._supervisor.processes(),
            data=self._folder.path,
            folder=Path.cwd(),
            started_at=datetime.now(UTC) if self._published is None else self._published.started_at,
            supervisor_pid=os.getpid(),
            supervisor_birth=process_birth(os.getpid()),
        )

    def _record(self) -> None:
        """Keep the files about processes true; runs after every change of a process id."""
        assert self._supervisor is not None
        try:
            living = [(part.name, part.process) for part in self._supervisor.parts if part.process is not None]
            self._folder.record_processes(
                (name, process.pid, process.birth) for name, process in living if process.returncode is None
            )
            if self._published is not None:
                self._published = self._published.model_copy(update={"processes": self._supervisor.processes()})
                self._published.write()
        except OSError as error:
            # A full disk or a removed folder must not end the supervision of what still runs.
            self._note(f"cannot keep {self._folder.path} current: {error.strerror}")

    def _note(self, message: str) -> None:
        self._on_event(StackEvent(EventKind.NOTE, "stack", message))


async def serve(stack: Stack, *, on_ready: Callable[[Endpoints], None] = lambda endpoints: None) -> None:
    """Run a stack until SIGINT, SIGTERM or SIGHUP; a second signal hurries its end.

    Signals count from the first moment on: one that comes during the start ends what has been started. Raises the
    StackError of a start that fails, and the error of a supervision that does.
    """
    asked_to_stop = asyncio.Event()

    def on_signal() -> None:
        if asked_to_stop.is_set():
            stack.hurry.set()
        asked_to_stop.set()

    with _signals(on_signal):
        asked = asyncio.create_task(asked_to_stop.wait(), name="wait for a signal")
        running = asyncio.create_task(_run(stack, on_ready, asked_to_stop), name="run the stack")
        try:
            await asyncio.wait((running, asked), return_when=asyncio.FIRST_COMPLETED)
        finally:
            asked.cancel()
            running.cancel()
            # The stack ends itself when its task is cancelled, at any point of its life.
            await asyncio.wait((running,))
    if not running.cancelled():
        running.result()


async def _run(stack: Stack, on_ready: Callable[[Endpoints], None], asked_to_stop: asyncio.Event) -> None:
    async with stack:
        if asked_to_stop.is_set():
            # A cancellation is said once; whatever the start waited in may have taken it for its own.
            return
        on_ready(stack.endpoints)
        await stack.failure


@contextlib.contextmanager
def _signals(handler: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


@contextlib.contextmanager
def _first_error() -> Iterator[None]:
    """Raise the first error of a task group in place of the group: one cause, one line."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None
