"""AgentProcess: one running instance of an agent, from connecting to the last drained task."""

import asyncio
import contextlib
import os
import secrets
import socket
from collections.abc import Awaitable, Callable
from typing import Literal, Self

import structlog
from pydantic import ValidationError

from pantheon.bus import Bus, Delivery, Objects, Publisher, Transport
from pantheon.bus.credentials import nats_options
from pantheon.config import AgentConfig, ConfigManager, Source, make_live_source
from pantheon.discovery import Discovery, make_discovery
from pantheon.discovery.micro_service import MicroService
from pantheon.process.loop_watchdog import LoopWatchdog
from pantheon.process.presence import Presence, endpoints_of, source_of
from pantheon.process.workload import Workload
from pantheon.runtime.background import end
from pantheon.runtime.logs import set_level
from pantheon.runtime.settings import MeshSettings
from pantheon.worker.declaration import Declaration
from pantheon.worker.delegation import Delegation
from pantheon.worker.worker import Worker
from protocol import subjects
from protocol.messages import Control
from protocol.names import ORCHESTRATOR

log = structlog.get_logger()


MakeWorker = Callable[["AgentProcess"], Awaitable[Workload]]


class AgentProcess:
    """`async with AgentProcess(agent, settings) as process: await process.until_stopped()`.

    It starts the parts of an instance in their order, and stops them in the reverse one: connection, publisher,
    discovery, configuration, worker, control orders, micro service, presence. `make_worker(process)` replaces the
    Worker: the orchestrator is an agent whose work is done in batches. It may use the parts before the worker.
    """

    def __init__(
        self,
        agent: Declaration,
        settings: MeshSettings,
        *,
        make_worker: MakeWorker | None = None,
    ) -> None:
        self.agent = agent
        self.settings = settings
        self.instance_id = settings.instance_id or new_instance_id()
        self._make_worker = make_worker
        self._stop = asyncio.Event()
        self._phase: Literal["connecting", "starting", "ready", "ending"] = "connecting"
        # Defaults, file and environment now; the KV store's layer once there is a connection.
        self.config: ConfigManager[AgentConfig] = self._configuration(None)
        self._config_task: asyncio.Task[None] | None = None
        self._worker: Workload | None = None
        self._presence: Presence | None = None
        # Closes the parts that need no draining.
        self._parts = contextlib.AsyncExitStack()
        self.bus: Bus
        self.publisher: Publisher
        self.objects: Objects
        self.discovery: Discovery
        self.micro: MicroService

    def _configuration(self, live: Source | None) -> ConfigManager[AgentConfig]:
        return ConfigManager(
            AgentConfig,
            name=self.agent.name,
            instance_id=self.instance_id,
            defaults={
                "max_concurrency": self.settings.max_concurrency or self.agent.max_concurrency,
                "drain_grace_seconds": self.settings.drain_grace_seconds,
                "task_timeout_seconds": self.settings.agent_timeout_seconds,
                "log_level": self.settings.log_level,
            },
            file=self.settings.config_path,
            live=live,
        )

    @property
    def worker(self) -> Workload:
        assert self._worker is not None, "the process has not started"
        return self._worker

    @property
    def max_concurrency(self) -> int:
        return self.config.current.max_concurrency

    @property
    def source(self) -> str:
        """CloudEvents' `source` of the events that this process publishes."""
        return source_of(self.agent.name, self.instance_id)

    async def __aenter__(self) -> Self:
        # Before there is a connection: a process that waits for NATS or Postgres is alive, and reports as not ready.
        await self._open_health()
        try:
            self.bus = await Bus.connect(
                self.settings.nats_url,
                name=f"{self.agent.name}/{self.instance_id}",
                options=nats_options(self.settings),
            )
        except BaseException:
            await self._parts.aclose()
            raise
        self._parts.push_async_callback(self.bus.close)
        try:
            await self._start()
        except BaseException:
            await self.close(grace_seconds=0)
            raise
        return self

    async def _open_health(self) -> None:
        settings = self.settings
        port, variable = settings.health_port, "HEALTH_PORT"
        if self.agent.name == ORCHESTRATOR and settings.agent_orchestrator_port is not None:
            port, variable = settings.agent_orchestrator_port, "AGENT_ORCHESTRATOR_PORT"
        if port is not None:
            from pantheon.runtime.health import Health

            await self._parts.enter_async_context(Health(self.missing, port=port, variable=variable))

    async def missing(self) -> list[str]:
        """What this process lacks to take tasks, in words; nothing when it is ready."""
        if self._phase == "connecting" or not self.bus.connected:
            return ["NATS is not connected"]
        if self._phase == "ending":
            return ["it is ending"]
        if self._phase == "starting":
            return ["it is still starting"]
        return await self.worker.missing()

    async def _start(self) -> None:
        self._phase = "starting"
        self.publisher = Publisher(self.bus)
        self._parts.push_async_callback(self.publisher.close)
        self.objects = Objects(self.bus, max_bytes=self.settings.max_payload_bytes)
        self.discovery = make_discovery(self.settings, self.bus.client)
        self._parts.push_async_callback(self.discovery.close)
        self.config = self._configuration(make_live_source(self.settings, self.bus.client, self.agent.name))
        self.config.on_change(self._on_config)
        # Not awaited: a KV store that is slow to respond must not delay the start; its values count when they come.
        self._config_task = asyncio.create_task(self.config.start(), name="config")
        await self.agent.call_hooks("startup")
        self.micro = MicroService(
            self.bus.client,
            name=self.agent.name,
            instance_id=self.instance_id,
            version=self.agent.version,
            description=self.agent.description,
            metadata=self.agent.metadata,
            endpoints=endpoints_of(self.agent),
        )
        self._worker = worker = self._agent_worker() if self._make_worker is None else await self._make_worker(self)
        await worker.start()
        control = await self.bus.subscribe(subjects.control(self.agent.name), self._on_control)
        self._parts.push_async_callback(self.bus.unsubscribe, control)
        self._parts.push_async_callback(self.micro.close)
        await self.micro.start()
        self._presence = Presence(
            self.agent,
            self.instance_id,
            self.bus,
            self.discovery,
            micro=self.micro,
            config=self._current_config,
            worker=worker,
        )
        await self._presence.start()
        if isinstance(worker, Worker):
            self._watch_loop(worker, self._presence)
        self._phase = "ready"
        log.info(
            "agent.started",
            agent=self.agent.name,
            instance_id=self.instance_id,
            task_types=list(self.agent.task_types),
            max_concurrency=self.max_concurrency,
        )

    def _watch_loop(self, worker: Worker, presence: Presence) -> None:
        watchdog = LoopWatchdog(
            self.settings, heartbeat=presence.heartbeat, record=lambda: presence.record, held=lambda: worker.held
        )
        watchdog.start()
        self._parts.callback(watchdog.stop)

    def _agent_worker(self) -> Worker:
        transport = Transport(self.bus, self.publisher, self.objects)
        return Worker(
            self.agent,
            transport,
            instance_id=self.instance_id,
            max_concurrency=self.max_concurrency,
            config=self._current_config,
            observer=self.micro,
            delegate=Delegation(transport).run,
        )

    def _current_config(self) -> AgentConfig:
        return self.config.current

    def _on_config(self, old: AgentConfig, new: AgentConfig, changed: frozenset[str]) -> None:
        if "log_level" in changed:
            set_level(new.log_level)
        if "max_concurrency" in changed and self._worker is not None:
            self._worker.resize(new.max_concurrency)
            if self._presence is not None:
                # Routing weighs by capacity, so the registry must know.
                self._presence.refresh()

    async def _on_control(self, delivery: Delivery) -> None:
        try:
            order = Control.model_validate_json(delivery.data)
        except ValidationError as error:
            log.warning("control.invalid", error=str(error.errors(include_url=False, include_input=False)[:1]))
            return
        if order.instance_id not in (None, self.instance_id):
            return
        match order.command:
            case "cancel" if order.task_id is not None:
                self.worker.cancel(order.task_id, order.attempt, order.reason or "cancelled")
            case "pause" if order.task_id is None:
                self.worker.pause()
            case "resume" if order.task_id is None:
                self.worker.resume()
            case "drain":
                log.info("agent.draining", reason=order.reason)
                self.stop()

    def stop(self) -> None:
        """Begin to end: `until_stopped` returns, `close` drains."""
        self._stop.set()

    async def until_stopped(self) -> None:
        await self._stop.wait()

    async def close(self, *, grace_seconds: float | None = None) -> None:
        """Leave the registry, take no more, finish or return tasks, disconnect: in this order, so that no orchestrator
        routes here."""
        self._phase = "ending"
        grace = self.config.current.drain_grace_seconds if grace_seconds is None else grace_seconds
        if self._presence is not None:
            await self._presence.leave()
        if self._worker is not None:
            await self._worker.drain(grace)
        if self._presence is not None:
            await self._presence.stop()
        if self._config_task is not None:
            await end([self._config_task])
        await self.config.close()
        await self._call_shutdown_hooks()
        if self._presence is not None:
            await self._presence.close()
        await self._parts.aclose()
        log.info("agent.stopped", agent=self.agent.name, instance_id=self.instance_id)

    async def _call_shutdown_hooks(self) -> None:
        """Whatever one raises, the rest of the end follows; a cancellation of the process itself is raised again."""
        task = asyncio.current_task()
        cancellations = task.cancelling() if task is not None else 0
        try:
            await self.agent.call_hooks("shutdown")
        except BaseException as error:
            if isinstance(error, GeneratorExit) or (task is not None and task.cancelling() > cancellations):
                raise
            log.warning("hook.raised", hook="shutdown", agent=self.agent.name, exc_info=error)

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


def new_instance_id() -> str:
    """A readable id that is unique per process: `<host>-<pid>-<random>`, cut to what the wire carries."""
    host = "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "-" for c in socket.gethostname())[:32]
    return f"{host or 'host'}-{os.getpid()}-{secrets.token_hex(4)}"
