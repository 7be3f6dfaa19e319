"""PurgeWatch: attempts that an operator purged from the broker are published again.

Neither a stream's creation time nor its last sequence shows a purge (`broker_watch`); the broker's own advisory does.
"""

import asyncio
from datetime import datetime
from uuid import UUID

import structlog

from orchestrator_agent.engine.state import Status
from orchestrator_agent.maintenance.broker_watch import WATCHED
from orchestrator_agent.runtime.republisher import Republisher
from orchestrator_agent.store.processes import Processes
from pantheon.bus import Bus, Purge, Subscription, on_purge
from pantheon.runtime.background import end
from protocol import subjects
from protocol.errors import BusError, StoreError
from protocol.messages import now
from protocol.streams import TASKS

log = structlog.get_logger()

RETRY_SECONDS = 2.0


class PurgeWatch:
    def __init__(self, bus: Bus, *, process_id: UUID, processes: Processes, republisher: Republisher) -> None:
        self._bus = bus
        self._process_id = process_id
        self._processes = processes
        self._republisher = republisher
        self._received: asyncio.Queue[tuple[Purge, datetime]] = asyncio.Queue()
        self._subscription: Subscription | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._subscription = await on_purge(self._bus, self._receive)
        self._task = asyncio.create_task(self._run(), name="purges")

    def _receive(self, purge: Purge) -> None:
        if purge.stream in WATCHED:
            self._received.put_nowait((purge, now()))

    async def _run(self) -> None:
        while True:
            purge, received_at = await self._received.get()
            log.warning("broker.purged", stream=purge.stream, subject=purge.subject)
            while True:
                try:
                    await self.republish_purged(purge, received_at)
                    break
                except (BusError, StoreError) as error:
                    log.debug("purge.waiting", error=str(error))
                except Exception:
                    log.exception("purge.failed")
                await asyncio.sleep(RETRY_SECONDS)

    async def republish_purged(self, purge: Purge, received_at: datetime) -> None:
        """Publish the attempts that a purge removed. An agent that is at work already on such an attempt gets a twin of
        it, as after the loss of a whole store; where it is the same instance, it drops the twin. Raises StoreError."""
        lost = [
            row
            for row in await self._processes.unpublished(self._process_id)
            if row["status"] == Status.DISPATCHED
            and row["dispatched_at"] < received_at
            and (purge.stream != TASKS.name or purge.subject in (None, subjects.task(row["agent"])))
        ]
        # The broker has dropped the messages, and remembers their ids: they need others.
        await self._republisher.republish(lost, again=purge.id)

    async def stop(self) -> None:
        if self._subscription is not None:
            await self._bus.unsubscribe(self._subscription)
            self._subscription = None
        if self._task is not None:
            await end([self._task])
