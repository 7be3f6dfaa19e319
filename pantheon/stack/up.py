"""The embedded stack as a whole: servers, schema, orchestrators and agents of one data folder, up and down."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from pantheon.stack.agents import AgentSpec, find_agent, orchestrator
from pantheon.stack.endpoints import Endpoints, remove_endpoints
from pantheon.stack.errors import DataFolderError, StackError
from pantheon.stack.events import StackEvent
from pantheon.stack.folder import DataFolder
from pantheon.stack.plan import StackPlan
from pantheon.stack.processes.parts import MeshProcess, Stage
from pantheon.stack.processes.process import process_birth
from pantheon.stack.processes.supervisor import Supervisor
from pantheon.stack.record import MeshRecord
from pantheon.stack.servers import ConsulServer, NatsServer, PostgresServer, Server, ValkeyServer

_SETTLE_SECONDS = 30.0


class Stack:
    """A mesh on this machine: `async with Stack(data, plan, migrate=...) as stack:` has it running.

    On entering: holds the folder, ends leftovers, starts the servers side by side, applies migrations, starts
    orchestrators and agents, waits for `settled`, writes endpoints.json. On leaving, or when entering fails or is
    cancelled: agents, orchestrators, servers are ended in this order and the file is removed. All errors that a user
    can cause are a StackError of one line.
    """

    def __init__(
        self,
        data: Path,
        plan: StackPlan | None = None,
        *,
        migrate: Callable[[str], Awaitable[None]] | None = None,
        settled: Callable[[Endpoints], Awaitable[None]] | None = None,
        on_event: Callable[[StackEvent], None] = lambda event: None,
        settle_seconds: float = _SETTLE_SECONDS,
    ) -> None:
        """Describe the stack; nothing happens before it is entered.

        `migrate` is called with the database's URL. `settled` returns when the mesh can take tasks; after
        `settle_seconds` the stack goes on without it.
        """
        self.hurry = asyncio.Event()
        self._settle_seconds = settle_seconds
        self._plan = plan or StackPlan()
        self._folder = DataFolder(data)
        self._record = MeshRecord(self._folder, on_event)
        self._migrate = migrate
        self._settled = settled
        self._on_event = on_event
        self._supervisor: Supervisor | None = None

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
        if self._record.endpoints is None:
            raise StackError("the stack is not running: enter it first")
        return self._record.endpoints

    @property
    def failure(self) -> asyncio.Future[None]:
        """Fails when the supervision itself does; the owner of the stack waits on it beside its own work."""
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
                # A cancelled stop must still happen, only sooner.
                cancelled = error
                self.hurry.set()
        if cancelled is not None:
            raise cancelled
        stopping.result()

    async def _start(self) -> None:
        remove_endpoints(self._folder.path)
        leftovers = await self._folder.end_leftovers()
        if leftovers:
            self._record.note(f"ended what an earlier run had left: {', '.join(sorted(set(leftovers)))}")
        supervisor = self._supervisor = Supervisor(on_event=self._on_event, on_change=self._record.update)
        servers = {server.name: server for server in self._make_servers()}
        inherited = self._plan.own_environment()
        with _first_error():
            async with asyncio.TaskGroup() as group:
                found = [
                    group.create_task(find_agent(target, environment=inherited)) for target in self._plan.agent_targets
                ]
                for server in servers.values():
                    group.create_task(supervisor.start(server, Stage.SERVERS))
        endpoints = self._describe(servers, supervisor)
        if self._migrate is not None:
            await self._migrate(endpoints.database_url)
        environment = {**inherited, "PYTHONUNBUFFERED": "1", **endpoints.environment()}
        await self._start_processes(
            supervisor, orchestrator(self._plan.orchestrators), Stage.ORCHESTRATORS, environment
        )
        for spec in [*self._plan.agents, *(task.result() for task in found)]:
            await self._start_processes(supervisor, spec, Stage.AGENTS, environment)
        await self._settle(self._describe(servers, supervisor))
        self._record.publish(self._describe(servers, supervisor))

    async def _stop(self) -> None:
        # First: from now on no client should find this mesh any more.
        self._record.withdraw()
        try:
            if self._supervisor is not None:
                await self._supervisor.stop(self.hurry)
        finally:
            self._supervisor = None
            self._folder.close()

    def _make_servers(self) -> Iterator[Server]:
        folder, log_of, ports = self._folder.path, self._folder.log_of, self._plan.ports
        yield NatsServer(folder / "nats", log=log_of("nats"), port=ports.get("nats"))
        yield PostgresServer(folder / "postgres", log=log_of("postgres"), port=ports.get("postgres"))
        yield ValkeyServer(folder / "valkey", log=log_of("valkey"), port=ports.get("valkey"))
        if self._plan.consul is not None:
            yield ConsulServer(folder / "consul", self._plan.consul, log=log_of("consul"), port=ports.get("consul"))

    async def _start_processes(
        self, supervisor: Supervisor, spec: AgentSpec, stage: Stage, environment: Mapping[str, str]
    ) -> None:
        earlier = supervisor.count(spec.name)
        for number in range(earlier + 1, earlier + spec.instances + 1):
            log = self._folder.log_of(spec.name if number == 1 else f"{spec.name}-{number}")
            process = MeshProcess(spec.name, spec.arguments, environment, log, self._plan.drain_seconds)
            await supervisor.start(process, stage)

    async def _settle(self, endpoints: Endpoints) -> None:
        if self._settled is None:
            return
        try:
            async with asyncio.timeout(self._settle_seconds):
                await self._settled(endpoints)
        except TimeoutError:
            self._record.note(f"not all parts answered within {self._settle_seconds:.0f} s; see {self._folder.logs}")

    def _describe(self, servers: Mapping[str, Server], supervisor: Supervisor) -> Endpoints:
        return Endpoints(
            nats_url=servers["nats"].url,
            database_url=servers["postgres"].url,
            redis_url=servers["valkey"].url,
            consul_http_addr=servers["consul"].url if "consul" in servers else None,
            processes=supervisor.processes().ready,
            data=self._folder.path,
            folder=Path.cwd(),
            started_at=datetime.now(UTC),
            supervisor_pid=os.getpid(),
            supervisor_birth=process_birth(os.getpid()),
        )


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
