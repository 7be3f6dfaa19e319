"""AgentProcess: one running instance of an agent, from connecting to the last drained task."""

import asyncio
import contextlib
import gc
import os
import secrets
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Literal, Protocol, Self

import psutil
import structlog
from pydantic import ValidationError

from pantheon.bus import Bus, Delivery, Objects, Publisher, Subscription
from pantheon.bus.credentials import nats_options
from pantheon.config import AgentConfig, ConfigManager, Source, make_live_source
from pantheon.discovery import Discovery, Registration, make_discovery
from pantheon.discovery.micro_service import Endpoint, MicroService
from pantheon.runtime import event_loop
from pantheon.runtime.background import end
from pantheon.runtime.logs import configure_logging, set_level
from pantheon.runtime.settings import MeshSettings
from pantheon.worker.declaration import Declaration
from pantheon.worker.worker import Worker
from protocol import subjects
from protocol.discovery import WAITING_KEY, InstanceRecord
from protocol.errors import PantheonError
from protocol.events import event
from protocol.messages import Control, Heartbeat, RunningTask, now, to_bytes
from protocol.names import ORCHESTRATOR

log = structlog.get_logger()

# Places that attempts have lent are told as soon as they are needed, and not more often than this.
TELL_LENT_SECONDS = 0.5
GC_THRESHOLDS = (50_000, 20, 100)


class Conductor(Protocol):
    """What an AgentProcess runs: a Worker, or the orchestrator's engine in its place."""

    @property
    def max_concurrency(self) -> int: ...
    @property
    def active(self) -> int: ...
    @property
    def running(self) -> tuple[RunningTask, ...]: ...
    @property
    def lent(self) -> int: ...
    async def start(self) -> None: ...
    async def wait_ready(self) -> None: ...
    async def missing(self) -> list[str]: ...
    async def drain(self, grace_seconds: float) -> None: ...
    def cancel(self, task_id: Any, attempt: int | None, reason: str) -> None: ...
    def pause(self) -> None: ...
    def resize(self, max_concurrency: int) -> None: ...
    def resume(self) -> None: ...


class AgentProcess:
    """`async with AgentProcess(agent, settings) as process: await process.until_stopped()`.

    `make_worker(process)` replaces the Worker: the orchestrator is an agent whose work is done in batches.
    """

    def __init__(
        self,
        agent: Declaration,
        settings: MeshSettings,
        *,
        make_worker: "Callable[[AgentProcess], Awaitable[Conductor]] | None" = None,
    ) -> None:
        self.agent = agent
        self.settings = settings
        self.instance_id = settings.instance_id or new_instance_id()
        self._make_worker = make_worker
        self._stop = asyncio.Event()
        self._lent = asyncio.Event()
        self._closing = False
        # Defaults, file and environment now; the KV store's layer once there is a connection.
        self.config: ConfigManager[AgentConfig] = self._configuration(None)
        self._registration: Registration | None = None
        self._control: Subscription | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._process = psutil.Process()
        self._health = contextlib.AsyncExitStack()
        self.bus: Bus
        self.publisher: Publisher
        self.objects: Objects
        self.discovery: Discovery
        self.worker: Conductor
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
    def max_concurrency(self) -> int:
        return self.config.current.max_concurrency

    @property
    def source(self) -> str:
        """Who says an event: CloudEvents' `source`."""
        return f"/{self.agent.name}/{self.instance_id}"

    def record(self, status: Literal["ready", "draining"] = "ready") -> InstanceRecord:
        # Only where it matters: each change is told to every orchestrator.
        lent = self.worker.lent if hasattr(self, "worker") else 0
        waiting = {WAITING_KEY: str(lent)} if lent else {}
        return InstanceRecord(
            name=self.agent.name,
            instance_id=self.instance_id,
            task_types=self.agent.task_types,
            max_concurrency=self.max_concurrency,
            version=self.agent.version,
            status=status,
            metadata={**self.agent.metadata, **waiting},
        )

    def _endpoints(self) -> list[Endpoint]:
        return [Endpoint(task_type, taken, given) for task_type, (taken, given) in self.agent.schemas.items()]

    async def __aenter__(self) -> Self:
        # Before there is a connection: whoever waits for NATS or Postgres is alive, and says that it is not ready.
        await self._open_health()
        try:
            self.bus = await Bus.connect(
                self.settings.nats_url,
                name=f"{self.agent.name}/{self.instance_id}",
                options=nats_options(self.settings),
            )
        except BaseException:
            await self._health.aclose()
            raise
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

            await self._health.enter_async_context(Health(self.missing, port=port, variable=variable))

    async def missing(self) -> list[str]:
        """What this process lacks to take tasks, in words; nothing when it is ready."""
        if not hasattr(self, "bus") or not self.bus.connected:
            return ["NATS is not connected"]
        if self._closing:
            return ["it is ending"]
        if self._registration is None:
            return ["it is still starting"]
        return await self.worker.missing()

    async def _start(self) -> None:
        self.publisher = Publisher(self.bus)
        self.objects = Objects(self.bus, max_bytes=self.settings.max_payload_bytes)
        self.discovery = make_discovery(self.settings, self.bus.client)
        self.config = self._configuration(make_live_source(self.settings, self.bus.client, self.agent.name))
        self.config.on_change(self._on_config)
        # Not waited for: a KV store that is slow to answer must not hold up the start; its word counts when it comes.
        self._tasks = [asyncio.create_task(self.config.start(), name="config")]
        await self.agent.call_hooks("startup")
        self.micro = MicroService(
            self.bus.client,
            name=self.agent.name,
            instance_id=self.instance_id,
            version=self.agent.version,
            description=self.agent.description,
            metadata=self.agent.metadata,
            endpoints=self._endpoints(),
        )
        if self._make_worker is not None:
            self.worker = await self._make_worker(self)
        else:
            from pantheon.worker.delegation import Delegation

            self.worker = worker = Worker(
                self.agent,
                self.bus,
                self.publisher,
                instance_id=self.instance_id,
                max_concurrency=self.max_concurrency,
                objects=self.objects,
                config=lambda: self.config.current,
                observer=self.micro,
                delegate=Delegation(self.bus, self.publisher, self.objects).run,
            )
            worker.on_lent = self._lent.set
        await self.worker.start()
        self._control = await self.bus.subscribe(subjects.control(self.agent.name), self._on_control)
        await self.micro.start()
        self._registration = await self.discovery.register(self.record())
        self._tasks.append(asyncio.create_task(self._beat(), name="heartbeat"))
        self._tasks.append(asyncio.create_task(self._tell_lent(), name="tell-lent-places"))
        await self._say("registered")
        log.info(
            "agent.started",
            agent=self.agent.name,
            instance_id=self.instance_id,
            task_types=list(self.agent.task_types),
            max_concurrency=self.max_concurrency,
        )

    def _on_config(self, old: AgentConfig, new: AgentConfig, changed: frozenset[str]) -> None:
        if "log_level" in changed:
            set_level(new.log_level)
        if "max_concurrency" in changed and hasattr(self, "worker"):
            self.worker.resize(new.max_concurrency)
            if self._registration is not None:
                # Routing weighs by capacity, so the registry must know.
                self._tasks.append(asyncio.create_task(self._registration.update(self.record()), name="re-register"))

    async def _say(self, what: str) -> None:
        data = {"agent": self.agent.name, "instance_id": self.instance_id, "task_types": list(self.agent.task_types)}
        await self.bus.publish_quietly(*event("agent", what, self.source, data))

    async def _beat(self) -> None:
        self._process.cpu_percent()
        while True:
            await self.bus.publish_quietly(
                subjects.heartbeat(self.agent.name),
                to_bytes(
                    Heartbeat(
                        agent=self.agent.name,
                        instance_id=self.instance_id,
                        active=self.worker.active,
                        max_concurrency=self.max_concurrency,
                        cpu_percent=self._process.cpu_percent(),
                        memory_bytes=self._process.memory_info().rss,
                        running=self.worker.running,
                        at=now(),
                    )
                ),
            )
            await self._learn()
            await asyncio.sleep(self.config.current.heartbeat_interval_seconds)

    async def _learn(self) -> None:
        """Tell what has changed while the process runs: an orchestrator's workflows, places that came back."""
        self.micro.describe(self._endpoints())
        registration = self._registration
        if registration is not None and not self._closing and registration.record != (record := self.record()):
            await registration.update(record)

    async def _tell_lent(self) -> None:
        while True:
            await self._lent.wait()
            self._lent.clear()
            registration = self._registration
            if registration is None or self._closing:
                continue
            record = self.record()
            if record.waiting > registration.record.waiting:
                await registration.update(record)
                await asyncio.sleep(TELL_LENT_SECONDS)

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
        """Leave the registry, take no more, finish or hand back, disconnect: in this order, so nobody routes here."""
        self._closing = True
        grace = self.config.current.drain_grace_seconds if grace_seconds is None else grace_seconds
        if self._registration is not None:
            await self._registration.update(self.record("draining"))
        if hasattr(self, "worker"):
            await self.worker.drain(grace)
        await end(self._tasks)
        await self.config.close()
        try:
            await self.agent.call_hooks("shutdown")
        except Exception as error:
            log.warning("hook.raised", hook="shutdown", agent=self.agent.name, exc_info=error)
        if self._registration is not None:
            await self._registration.close()
            await self._say("deregistered")
        if hasattr(self, "micro"):
            await self.micro.close()
        if hasattr(self, "discovery"):
            await self.discovery.close()
        if self._control is not None:
            await self.bus.unsubscribe(self._control)
        if hasattr(self, "publisher"):
            await self.publisher.close()
        await self.bus.close()
        await self._health.aclose()
        log.info("agent.stopped", agent=self.agent.name, instance_id=self.instance_id)

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


def new_instance_id() -> str:
    """A readable id that is unique per process: `<host>-<pid>-<random>`, cut to what the wire carries."""
    host = "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "-" for c in socket.gethostname())[:32]
    return f"{host or 'host'}-{os.getpid()}-{secrets.token_hex(4)}"


async def serve(
    agent: Declaration,
    settings: MeshSettings,
    *,
    make_worker: Callable[[AgentProcess], Awaitable[Conductor]] | None = None,
) -> None:
    """Run an agent until SIGTERM, SIGINT or a drain order; a second signal ends it at once."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()

    def on_signal() -> None:
        if stopped.is_set():
            os._exit(130)
        stopped.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)

    async def run() -> None:
        async with AgentProcess(agent, settings, make_worker=make_worker) as process:
            # A cancellation is said once; whatever the start waited in may have taken it for its own.
            if not stopped.is_set():
                await process.until_stopped()

    # What is there now stays; the collector would walk it again and again for nothing. The thresholds are for programs
    # that make and drop many small objects without circles: by default a quarter of their time went into looking.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    # Also while it still connects (NATS may be away for long) a signal must end it.
    running = asyncio.create_task(run(), name=agent.name)
    waiting = asyncio.create_task(stopped.wait(), name="signal")
    await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if not running.done():
        running.cancel()
    try:
        await running
    except asyncio.CancelledError:
        log.debug("agent.ended", agent=agent.name)


def run_agent(
    agent: Declaration,
    *,
    make_worker: Callable[[AgentProcess], Awaitable[Conductor]] | None = None,
) -> int:
    """Run an agent as this process; returns the exit code. Mistakes of settings are one line on stderr."""
    try:
        settings = MeshSettings.load()
        configure_logging(settings.log_level, settings.log_format)
        event_loop.run(serve(agent, settings, make_worker=make_worker))
    except PantheonError as error:
        sys.stderr.write(f"{agent.name}: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0
