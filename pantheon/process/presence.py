"""Presence: what the mesh sees of one instance: its registry entry, heartbeats, and the events of its start and end."""

import asyncio
from collections.abc import Callable
from typing import Literal

import psutil

from pantheon.bus import Bus
from pantheon.config import AgentConfig
from pantheon.discovery import Discovery, Registration
from pantheon.discovery.micro_service import Endpoint, MicroService
from pantheon.process.workload import Workload
from pantheon.runtime.background import end
from pantheon.runtime.periodic import PeriodicTask
from pantheon.worker.declaration import Declaration
from pantheon.worker.worker import Worker
from protocol import subjects
from protocol.discovery import REFRESH_SECONDS, WAITING_KEY, InstanceRecord
from protocol.events import event
from protocol.messages import Heartbeat, now, to_bytes

# Released slots are reported as soon as there are as many attempts as slots, and not more often than this.
REPORT_RELEASED_SECONDS = 0.5


class Presence:
    """Started once the instance can take tasks: `start`, `leave` before it drains, `stop`, and `close` at the end.

    Heartbeats go on after `leave`: what an instance finishes must not seem lost.
    """

    def __init__(
        self,
        agent: Declaration,
        instance_id: str,
        bus: Bus,
        discovery: Discovery,
        *,
        micro: MicroService,
        config: Callable[[], AgentConfig],
        worker: Workload,
    ) -> None:
        self._agent = agent
        self._instance_id = instance_id
        self._bus = bus
        self._discovery = discovery
        self._micro = micro
        self._config = config
        self._worker = worker
        self._process = psutil.Process()
        self._registration: Registration | None = None
        self._leaving = False
        self._heartbeats = PeriodicTask("heartbeat", self._beat, seconds=REFRESH_SECONDS, jitter=0)
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        self._registration = registration = await self._discovery.register(self._record())
        # The first call only sets the point from which the second one counts.
        self._process.cpu_percent()
        self._heartbeats.start()
        if isinstance(self._worker, Worker):
            reporting = self._report_released(self._worker, registration)
            self._tasks.append(asyncio.create_task(reporting, name="report-released-slots"))
        await self._publish_event("registered")

    def refresh(self) -> None:
        """Update the entry in the background: the capacity has changed."""
        if self._registration is not None:
            updating = self._registration.update(self._record())
            self._tasks.append(asyncio.create_task(updating, name="re-register"))

    async def leave(self) -> None:
        """Mark the instance as draining, so that no orchestrator routes to it."""
        self._leaving = True
        if self._registration is not None:
            await self._registration.update(self._record("draining"))

    async def stop(self) -> None:
        """End the heartbeats."""
        await self._heartbeats.stop()
        await end(self._tasks)

    async def close(self) -> None:
        """Remove the entry."""
        if self._registration is not None:
            await self._registration.close()
            await self._publish_event("deregistered")

    def _record(self, status: Literal["ready", "draining"] = "ready") -> InstanceRecord:
        # Only where it matters, since each change reaches every orchestrator.
        released = self._worker.released if isinstance(self._worker, Worker) else 0
        waiting = {WAITING_KEY: str(released)} if released else {}
        return InstanceRecord(
            name=self._agent.name,
            instance_id=self._instance_id,
            task_types=self._agent.task_types,
            max_concurrency=self._config().max_concurrency,
            version=self._agent.version,
            status=status,
            metadata={**self._agent.metadata, **waiting},
        )

    def heartbeat(self) -> Heartbeat:
        """What this instance does just now."""
        return Heartbeat(
            agent=self._agent.name,
            instance_id=self._instance_id,
            active=self._worker.active,
            max_concurrency=self._config().max_concurrency,
            cpu_percent=self._process.cpu_percent(),
            memory_bytes=self._process.memory_info().rss,
            running=self._worker.running,
            at=now(),
        )

    @property
    def record(self) -> InstanceRecord:
        """What its registration holds."""
        return self._record("draining" if self._leaving else "ready")

    async def _beat(self) -> float:
        await self._bus.publish_quietly(subjects.heartbeat(self._agent.name), to_bytes(self.heartbeat()))
        await self._update_changed()
        return self._config().heartbeat_interval_seconds

    async def _update_changed(self) -> None:
        """Publish what has changed while the process runs: an orchestrator's workflows, slots that are taken again."""
        self._micro.describe(endpoints_of(self._agent))
        registration = self._registration
        if registration is not None and not self._leaving and registration.record != (record := self._record()):
            await registration.update(record)

    async def _report_released(self, worker: Worker, registration: Registration) -> None:
        while True:
            await worker.crowded.wait()
            worker.crowded.clear()
            if self._leaving:
                continue
            record = self._record()
            if record.waiting > registration.record.waiting:
                await registration.update(record)
                await asyncio.sleep(REPORT_RELEASED_SECONDS)

    async def _publish_event(self, name: str) -> None:
        data = {"agent": self._agent.name, "instance_id": self._instance_id, "task_types": list(self._agent.task_types)}
        source = source_of(self._agent.name, self._instance_id)
        await self._bus.publish_quietly(*event("agent", name, source, data))


def source_of(agent: str, instance_id: str) -> str:
    """Which process publishes an event: CloudEvents' `source`."""
    return f"/{agent}/{instance_id}"


def endpoints_of(agent: Declaration) -> list[Endpoint]:
    """An agent's task types as endpoints of a NATS micro service."""
    return [Endpoint(task_type, payload, result) for task_type, (payload, result) in agent.schemas.items()]
