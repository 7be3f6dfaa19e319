"""Adoption: what processes that died have left unpublished, this one publishes, and takes over their rows; attempts
that they had cancelled are cancelled again. For a process that lives and does not reach the broker it publishes too.

See ADR 0004. It checks every two seconds or so, in a loop of its own: a long sweep must not hold it up.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

import structlog

from orchestrator_agent.maintenance.suspects import Suspects
from orchestrator_agent.runtime.attempt_cancellation import AttemptCanceller
from orchestrator_agent.runtime.broker import Broker
from orchestrator_agent.runtime.outbox import Outbox
from orchestrator_agent.runtime.republisher import Republisher
from orchestrator_agent.store.process_lock import ProcessLock
from orchestrator_agent.store.processes import DeadProcess, Processes
from pantheon.bus import stream_mark
from pantheon.runtime.periodic import PeriodicTask, jittered
from protocol.errors import BusError, StoreError
from protocol.messages import now
from protocol.streams import TASKS

log = structlog.get_logger()

CHECK_SECONDS = 2.0


# Whose rows are published, and after which loss or note.
Occasion = tuple[UUID, object]


@dataclass(frozen=True)
class AdoptionTimes:
    # Rows of a process that the database does not know any more: that is a read of all open roots, so not often.
    strays_seconds: float = 30.0
    # Where the broker is away for all processes, it does not help to publish more: others notice within this time.
    help_after_seconds: float = 10.0


@dataclass
class Published:
    """The rows that were published for an occasion, and how much the publisher had published before."""

    since: int
    keys: set[tuple[Any, ...]] = field(default_factory=set)


def _key(row: Any) -> tuple[Any, ...]:
    return row["root_task_id"], row["task_id"], row["status"], row["dispatched_at"]


class Adoption:
    def __init__(
        self,
        broker: Broker,
        *,
        lock: ProcessLock,
        processes: Processes,
        republisher: Republisher,
        outbox: Outbox,
        canceller: AttemptCanceller,
        suspects: Suspects,
        times: AdoptionTimes,
    ) -> None:
        self._bus = broker.bus
        self._publisher = broker.publisher
        self._lock = lock
        self._processes = processes
        self._republisher = republisher
        self._outbox = outbox
        self._canceller = canceller
        self._suspects = suspects
        self._times = times
        self._losses = 0
        self._published: dict[Occasion, Published] = {}
        # What was published for processes that live, and do not reach the broker.
        self._helped: dict[UUID, set[tuple[Any, ...]]] = {}
        self._strays_at = 0.0
        self._checking = PeriodicTask("adopt", self._check, seconds=CHECK_SECONDS)
        self._unhook: Callable[[], None] | None = None

    async def start(self) -> None:
        self._unhook = self._bus.on_reconnect(self._checking.wake)
        self._checking.start()

    async def stop(self) -> None:
        if self._unhook is not None:
            self._unhook()
            self._unhook = None
        await self._checking.stop()

    async def _check(self) -> None:
        try:
            await self.check()
        except (StoreError, BusError) as error:
            log.warning("adoption.waiting", error=str(error))

    async def broker_lost(self) -> None:
        """The broker has lost messages: note it for every process, so that each publishes everything again, or, where
        it dies before, the process that adopts it does. Raises StoreError."""
        self._losses += 1
        await self._processes.note_loss()
        self._checking.wake()

    async def check(self) -> None:
        """Raises StoreError, BusError."""
        await self._lock.note_unpublished(self._unpublished_since())
        if not self._bus.connected:
            # What is published now would only pile up here.
            return
        # Nor while the broker does not respond: this raises.
        await stream_mark(self._bus, TASKS.name)
        await self._publish_own()
        others = await self._processes.others(self._lock.process_id)
        await self._suspects.notice(others)
        known = {self._lock.process_id, *(other.process_id for other in others)}
        # Others adopt as well.
        self._published = {occasion: rows for occasion, rows in self._published.items() if occasion[0] in known}
        for dead in others:
            await self._adopt(dead)
        loop = asyncio.get_running_loop()
        if loop.time() >= self._strays_at:
            self._strays_at = loop.time() + jittered(self._times.strays_seconds)
            await self._adopt_strays()

    def _unpublished_since(self) -> datetime | None:
        moments = (self._publisher.repeating_since, self._outbox.unpublished_since)
        return min((moment for moment in moments if moment is not None), default=None)

    async def _publish_own(self) -> None:
        """After a loss: everything that this process has at work, the same attempts."""
        if not await self._processes.lost_everything(self._lock.process_id):
            return
        losses = self._losses
        unpublished = await self._processes.unpublished(self._lock.process_id)
        log.info("broker.saying_again", rows=len(unpublished))
        if await self._publish((self._lock.process_id, losses), unpublished) and losses == self._losses:
            await self._processes.note_published_again(self._lock.process_id)

    async def _publish(self, occasion: Occasion, rows: Iterable[Any]) -> bool:
        """Publish these rows' attempts and final responses; whether the broker has acknowledged them. What it does not
        take just now (because an agent's queue is full, for example) the publisher repeats, so that it is not published
        a second time for the same occasion."""
        published = self._published.setdefault(occasion, Published(self._publisher.published))
        fresh = {_key(row): row for row in rows if _key(row) not in published.keys}
        await self._republisher.republish(fresh.values())
        published.keys |= fresh.keys()
        if not await self._republisher.settled(published.since):
            return False
        del self._published[occasion]
        return True

    async def _adopt(self, dead: DeadProcess) -> None:
        """Publish what a dead process may not have published, and only then take its rows over: an adopter that dies in
        between leaves all of it to the next one."""
        if not await self._lock.try_other(dead.lock_key):
            await self._help(dead)
            return
        self._helped.pop(dead.process_id, None)
        try:
            if not dead.left:
                # Before anything of it is read: it may have died of what it had.
                await self._suspects.died(dead.process_id)
            rows = await self._processes.unpublished(dead.process_id)
            unsure = dead.unsure_of(rows)
            if not await self._publish((dead.process_id, dead.noted), unsure):
                return
            adopted = await self._processes.take_over(dead, self._lock.process_id)
            if adopted is not None:
                log.info("process.adopted", process_id=str(dead.process_id), rows=adopted, again=len(unsure))
                self._canceller.watch_for_stale()
        finally:
            await self._lock.leave_other(dead.lock_key)

    async def _help(self, other: DeadProcess) -> None:
        """Publish for a process that lives what it cannot publish itself: it reaches the database, and not the broker,
        which this one does. Its rows stay its own; what it publishes again later, the broker has already."""
        since = other.unpublished_since
        if since is None or other.lost_everything or (now() - since).total_seconds() < self._times.help_after_seconds:
            self._helped.pop(other.process_id, None)
            return
        published = self._helped.setdefault(other.process_id, set())
        rows = other.unsure_of(await self._processes.unpublished(other.process_id))
        fresh = {_key(row): row for row in rows if _key(row) not in published}
        if fresh:
            log.info("process.helped", process_id=str(other.process_id), rows=len(fresh))
            await self._republisher.republish(fresh.values())
            published |= fresh.keys()

    async def _adopt_strays(self) -> None:
        """A process that came back from a long pause works before it has entered itself again. If it dies just then,
        its rows name a process that the database does not know."""
        for stray in await self._processes.strays():
            rows = await self._processes.unpublished(stray.process_id)
            if await self._publish((stray.process_id, None), rows):
                adopted = await self._processes.take_over(stray, self._lock.process_id)
                log.info("process.stray_adopted", process_id=str(stray.process_id), rows=adopted, again=len(rows))
