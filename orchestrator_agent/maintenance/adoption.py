"""Adoption: this process lives, and says so; what processes that died owe, it publishes and takes over, and what they
had ordered agents to end, it looks out for. For one that lives and does not reach the broker it publishes too.

See ADR 0004. It looks every two seconds or so, in a loop of its own: a long sweep must not hold it up.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

import structlog

from orchestrator_agent.runtime.attempt_cancellation import AttemptCanceller
from orchestrator_agent.runtime.outbox import Outbox
from orchestrator_agent.runtime.republisher import Republisher
from orchestrator_agent.store.process_lock import ProcessLock
from orchestrator_agent.store.processes import DeadProcess, Processes
from pantheon.bus import Bus, Publisher, stream_mark
from pantheon.runtime.periodic import PeriodicTask, jittered
from protocol.errors import BusError, StoreError
from protocol.messages import now
from protocol.streams import TASKS

log = structlog.get_logger()

LOOK_SECONDS = 2.0


# Whose rows are said, and after which loss or note.
Occasion = tuple[UUID, object]


@dataclass(frozen=True)
class AdoptionTimes:
    """`strays_seconds`: between looks at all open roots for rows of a process that is in no list. `help_after_seconds`:
    a broker that is away for every process is not helped by publishing more."""

    strays_seconds: float = 30.0
    help_after_seconds: float = 10.0


@dataclass
class Said:
    """What was published for an occasion, and where the publisher stood before."""

    since: int
    keys: set[tuple[Any, ...]] = field(default_factory=set)


def _key(row: Any) -> tuple[Any, ...]:
    return row["root_task_id"], row["task_id"], row["status"], row["dispatched_at"]


class Adoption:
    def __init__(
        self,
        bus: Bus,
        publisher: Publisher,
        *,
        lock: ProcessLock,
        processes: Processes,
        republisher: Republisher,
        outbox: Outbox,
        canceller: AttemptCanceller,
        times: AdoptionTimes,
    ) -> None:
        self._bus = bus
        self._publisher = publisher
        self._lock = lock
        self._processes = processes
        self._republisher = republisher
        self._outbox = outbox
        self._canceller = canceller
        self._times = times
        self._losses = 0
        self._said: dict[Occasion, Said] = {}
        # What was said for processes that live, and do not reach the broker.
        self._helped: dict[UUID, set[tuple[Any, ...]]] = {}
        self._strays_at = 0.0
        self._looking = PeriodicTask("adopt", self._look, seconds=LOOK_SECONDS)
        self._unhook: Callable[[], None] | None = None

    async def start(self) -> None:
        self._unhook = self._bus.on_reconnect(self._looking.wake)
        self._looking.start()

    async def stop(self) -> None:
        if self._unhook is not None:
            self._unhook()
            self._unhook = None
        await self._looking.stop()

    async def _look(self) -> None:
        try:
            await self.look()
        except (StoreError, BusError) as error:
            log.warning("adoption.waiting", error=str(error))

    async def broker_lost(self) -> None:
        """The broker has lost messages: note it for every process, so that whoever lives says everything again, and
        whoever adopts one that died before it could does. Raises StoreError."""
        self._losses += 1
        await self._processes.broker_lost()
        self._looking.wake()

    async def look(self) -> None:
        """Raises StoreError, BusError."""
        await self._lock.note_unpublished(self._unpublished_since())
        if not self._bus.connected:
            # What would be said now would only pile up here.
            return
        # Nor while it does not answer: this raises.
        await stream_mark(self._bus, TASKS.name)
        await self._say_own()
        others = await self._processes.others(self._lock.process_id)
        known = {self._lock.process_id, *(one.process_id for one in others)}
        # Others adopt as well.
        self._said = {occasion: said for occasion, said in self._said.items() if occasion[0] in known}
        for dead in others:
            await self._adopt(dead)
        loop = asyncio.get_running_loop()
        if loop.time() >= self._strays_at:
            self._strays_at = loop.time() + jittered(self._times.strays_seconds)
            await self._adopt_strays()

    def _unpublished_since(self) -> datetime | None:
        moments = [one for one in (self._publisher.repeating_since, self._outbox.unpublished_since) if one is not None]
        return min(moments, default=None)

    async def _say_own(self) -> None:
        """After a loss: everything that this process has at work, the same attempts."""
        if not await self._processes.owes_all(self._lock.process_id):
            return
        losses = self._losses
        unpublished = await self._processes.unpublished(self._lock.process_id)
        log.info("broker.saying_again", rows=len(unpublished))
        if await self._say((self._lock.process_id, losses), unpublished) and losses == self._losses:
            await self._processes.owes_no_more(self._lock.process_id)

    async def _say(self, occasion: Occasion, rows: Iterable[Any]) -> bool:
        """Publish what these rows owe; whether the broker has acknowledged it. What it does not take just now (an
        agent's queue is full, say) is repeated by the publisher and said no second time for the same occasion."""
        said = self._said.setdefault(occasion, Said(self._publisher.published))
        fresh = {_key(row): row for row in rows if _key(row) not in said.keys}
        await self._republisher.republish(fresh.values())
        said.keys |= fresh.keys()
        if not await self._republisher.settled(said.since):
            return False
        del self._said[occasion]
        return True

    async def _adopt(self, dead: DeadProcess) -> None:
        """Say what a dead process may not have said, and only then take its rows over: whoever dies in between leaves
        all of it to the next."""
        if not await self._lock.try_other(dead.lock_key):
            await self._help(dead)
            return
        self._helped.pop(dead.process_id, None)
        try:
            rows = await self._processes.unpublished(dead.process_id)
            unsure = dead.may_owe(rows)
            if not await self._say((dead.process_id, dead.noted), unsure):
                return
            adopted = await self._processes.take_over(dead, self._lock.process_id)
            if adopted is not None:
                log.info("process.adopted", process_id=str(dead.process_id), rows=adopted, again=len(unsure))
                self._canceller.watch_for_stale()
        finally:
            await self._lock.leave_other(dead.lock_key)

    async def _help(self, other: DeadProcess) -> None:
        """Say for a process that lives what it cannot say itself: it reaches the database, and not the broker, which
        this one does. Its rows stay its own; what it says again later, the broker has already."""
        since = other.unpublished_since
        if since is None or other.owes_all or (now() - since).total_seconds() < self._times.help_after_seconds:
            self._helped.pop(other.process_id, None)
            return
        said = self._helped.setdefault(other.process_id, set())
        rows = other.may_owe(await self._processes.unpublished(other.process_id))
        fresh = {_key(row): row for row in rows if _key(row) not in said}
        if fresh:
            log.info("process.helped", process_id=str(other.process_id), rows=len(fresh))
            await self._republisher.republish(fresh.values())
            said |= fresh.keys()

    async def _adopt_strays(self) -> None:
        """A process that came back from a long pause works before it has entered itself again. If it dies just then,
        its rows name a process that is in no list."""
        for stray in await self._processes.strays():
            rows = await self._processes.unpublished(stray.process_id)
            if await self._say((stray.process_id, None), rows):
                adopted = await self._processes.take_over(stray, self._lock.process_id)
                log.info("process.stray_adopted", process_id=str(stray.process_id), rows=adopted, again=len(rows))
