"""Arrivals: requests in the order in which they are accepted: as they came, and by turns where many wait.

The broker gives requests out in the order of their arrival, so that whoever comes behind 100,000 of another's would
wait for all of them. Where many wait, this looks ahead: it reads what stands in the stream without taking it, notes
whose it is, and lets requesters take turns (`flow.backlog`). What was accepted out of the broker's order is removed
from the stream behind its commit; where that is lost, the broker gives it out later, and its id is known.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any
from uuid import UUID

import structlog
from pydantic_core import from_json

from orchestrator_agent.dispatch.active_processes import ActiveProcesses
from orchestrator_agent.intake.backlog import Backlog, Flow
from orchestrator_agent.store.availability import retry_until_available
from pantheon.bus import (
    Bus,
    Delivery,
    NoBatches,
    Puller,
    acknowledge,
    delivered_sequence,
    nak,
    remove_stored,
    stored_batch,
    stream_position,
)
from pantheon.runtime.background import end
from protocol import subjects
from protocol.errors import BusError
from protocol.names import MESH_PREFIX, ORCHESTRATOR
from protocol.streams import TASKS

log = structlog.get_logger()

# So many are accepted in about a second: up to there, the order of arrival is fair enough, and costs nothing.
MANY = 5_000
# Ahead is read in steps of so much, beside everything else that this process does.
LOOK_COUNT = 1_000
LOOK_BYTES = 4 * 1024 * 1024
# Of one requester's turn; and of how many requesters at once.
READ_BYTES = 4 * 1024 * 1024
READS_AT_ONCE = 16
# With several orchestrators, what is this near to what the broker gives out may be given to another one before it is
# committed here, which would then answer it as one that was asked for again.
MARGIN = 2_048
LOOK_AGAIN_SECONDS = 1.0
# While so many have not been looked at, looking goes before accepting: whose turn it is should be known soon.
MANY_UNSEEN = 10_000
ACCEPT_MEANWHILE = 64
LOOK_WAIT_SECONDS = 0.1
# What was accepted out of turn can still be on its way from the broker.
REMEMBERED = 50_000

SUBJECT = subjects.task(ORCHESTRATOR)
_OPERATION = b'"' + MESH_PREFIX.encode()


class FairIntake:
    """`known` says which of some ids are of tasks that were accepted; of the `active` processes the first one looks
    ahead."""

    def __init__(
        self,
        bus: Bus,
        requests: Puller,
        *,
        known: Callable[[Sequence[UUID]], Awaitable[dict[UUID, Any]]],
        active: ActiveProcesses,
    ) -> None:
        self._bus = bus
        self._requests = requests
        self._known = known
        self._active = active
        self._backlog: Backlog | None = None
        self._looking: asyncio.Task[None] | None = None
        self._giving_back: asyncio.Task[None] | None = None
        self._look = asyncio.Event()
        self._looked = asyncio.Event()
        self._can_look = True
        # Of deliveries that were read from the stream: their numbers, by identity.
        self._read: dict[int, int] = {}
        # Numbers of what was taken out of the broker's order, and whether it is committed.
        self._taken: dict[int, bool] = {}

    async def take(self, limit: int) -> list[Delivery]:
        """The next requests, about `limit`, waiting for the first. Empty once stopped and used up."""
        while True:
            backlog = self._backlog
            if backlog is None:
                deliveries = await self._requests.take(limit)
                self._notice(deliveries)
                return deliveries
            await self._sort_in(backlog, self._requests.take_now(self._requests.held))
            if backlog.pending < MANY // 2 or not (self._can_look and self._active.is_first):
                left = self._end()
                if left:
                    return left
                continue
            self._look.set()
            if backlog.pending - backlog.ahead > MANY_UNSEEN:
                await self._look_first()
                limit = min(limit, ACCEPT_MEANWHILE)
            if batch := await self._by_turns(backlog, limit):
                return batch
            deliveries = await self._requests.take(limit)
            if not deliveries or self._backlog is not backlog:
                return deliveries
            await self._sort_in(backlog, deliveries)

    async def accepted(self, deliveries: Iterable[Delivery]) -> None:
        """These are committed: what the broker has not given out, it need not any more."""
        out_of_turn = [sequence for one in deliveries if (sequence := self._read.get(id(one))) is not None]
        for sequence in out_of_turn:
            self._taken[sequence] = True
        await asyncio.gather(*(remove_stored(self._bus, TASKS.name, sequence) for sequence in out_of_turn))

    def release(self, deliveries: Sequence[Delivery]) -> None:
        """These were dealt with; there is room for as many."""
        read = sum(self._read.pop(id(one), None) is not None for one in deliveries)
        self._requests.release(len(deliveries) - read)

    async def wait_ready(self) -> None:
        """Until the consumer of requests exists."""
        await self._requests.wait_ready()

    @property
    def waiting(self) -> list[Delivery]:
        """Given out by the broker, and not taken."""
        here = [] if self._backlog is None else [delivery for _, delivery in self._backlog.here]
        return [*self._requests.buffered, *here]

    def pause(self) -> None:
        """Take nothing more, and give back what was not taken."""
        self._requests.pause()
        if left := self._end():
            self._giving_back = asyncio.create_task(self._give_back(left), name="give-back")

    async def _give_back(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            await nak(delivery)
        self._requests.release(len(deliveries))

    def resume(self) -> None:
        self._requests.resume()

    async def stop(self) -> list[Delivery]:
        """Ask no more; returns what was given out and not taken."""
        left = [*self._end(), *await self._requests.stop()]
        await end([one for one in (self._looking, self._giving_back) if one is not None])
        return left

    # -- the backlog ---------------------------------------------------------------------------------------------------

    def _notice(self, deliveries: Sequence[Delivery]) -> None:
        """Begin to take turns where the newest delivery says that many wait."""
        if not deliveries or not self._can_look or not self._active.is_first:
            return
        newest = stream_position(deliveries[-1])
        if newest is not None and newest.behind >= MANY:
            self._backlog = Backlog(newest.sequence, newest.behind)
            self._looking = asyncio.create_task(self._look_ahead(self._backlog), name="look-ahead")
            log.info("backlog.began", requests=newest.behind)

    def _end(self) -> list[Delivery]:
        """Go on in the order of arrival; returns what was given out and not taken."""
        backlog, self._backlog = self._backlog, None
        if backlog is None:
            return []
        if self._looking is not None:
            self._looking.cancel()
        log.info("backlog.ended")
        return [delivery for _, delivery in sorted(backlog.here, key=lambda one: one[0])]

    async def _sort_in(self, backlog: Backlog, deliveries: Iterable[Delivery]) -> None:
        for delivery in deliveries:
            sequence = int(delivery.metadata.sequence.stream)
            committed = self._taken.get(sequence)
            if committed is None:
                backlog.arrived(delivery)
            elif committed:
                await acknowledge(delivery)
                self._requests.release()
            else:
                # At work, with a large value: it is given out again when that is over, or was lost.
                await nak(delivery, after_seconds=LOOK_AGAIN_SECONDS)
                self._requests.release()

    async def _look_first(self) -> None:
        self._looked.clear()
        try:
            async with asyncio.timeout(LOOK_WAIT_SECONDS):
                await self._looked.wait()
        except TimeoutError:
            # The broker is slow to tell, or what it had not given out is gone.
            pass

    async def _by_turns(self, backlog: Backlog, limit: int) -> list[Delivery]:
        turns = backlog.turns(limit)
        further = [(flow, share) for flow, share in turns if not flow.here]
        batch = [delivery for flow, share in turns for delivery in await self._given_out(backlog, flow, share)]
        if not batch:
            # Then what these have comes next from the broker.
            return []
        if further and self._active.shared:
            position = await delivered_sequence(self._bus, TASKS.name, ORCHESTRATOR)
            further = [one for one in further if position is not None and one[0].ahead[0] > position + MARGIN]
        places = asyncio.Semaphore(READS_AT_ONCE)
        for read in await asyncio.gather(*(self._read_ahead(backlog, places, *one) for one in further)):
            batch += read
        if self._backlog is backlog:
            # What some did not need of their share, others may have.
            for flow, _ in turns:
                batch += await self._given_out(backlog, flow, limit - len(batch))
        return batch

    async def _given_out(self, backlog: Backlog, flow: Flow, count: int) -> list[Delivery]:
        """A requester's next requests, of those that the broker has given out."""
        batch: list[Delivery] = []
        while flow.here and len(batch) < count:
            sequence, delivery = flow.here[0]
            if (
                _OPERATION in delivery.data
                and not backlog.is_oldest(sequence)
                and await self._before_its_task(delivery)
            ):
                break
            flow.here.popleft()
            batch.append(delivery)
        return batch

    async def _read_ahead(self, backlog: Backlog, places: asyncio.Semaphore, flow: Flow, count: int) -> list[Delivery]:
        """A requester's next requests, out of the stream."""
        numbers = backlog.next_ahead(flow, count)
        try:
            async with places:
                stored, _ = await stored_batch(
                    self._bus, TASKS.name, SUBJECT, start=numbers[0], count=count, max_bytes=READ_BYTES
                )
        except BusError as error:
            log.debug("backlog.unread", error=str(error))
            return []
        if self._backlog is not backlog:
            return []
        batch: list[Delivery] = []
        last = max(numbers[0], stored[-1].sequence if stored else 0)
        wanted = set(numbers)
        for one in stored:
            if one.sequence not in wanted:
                continue
            delivery = one.as_delivery(self._bus)
            if _OPERATION in one.data and await self._before_its_task(delivery):
                last = one.sequence - 1
                break
            self._read[id(delivery)] = one.sequence
            self._taken[one.sequence] = False
            batch.append(delivery)
        backlog.taken_ahead(flow, last)
        while len(self._taken) > REMEMBERED:
            self._taken.pop(next(iter(self._taken)))
        return batch

    async def _before_its_task(self, delivery: Delivery) -> bool:
        """Whether a request is an operation on a task that is not accepted yet: it may be among those that wait."""
        try:
            request = from_json(delivery.data)
            if not request["task_type"].startswith(MESH_PREFIX):
                return False
            task_id = UUID(request["payload"]["task_id"])
        except (ValueError, KeyError, TypeError, AttributeError):
            return False
        return task_id not in await retry_until_available(self._known, [task_id])

    async def _look_ahead(self, backlog: Backlog) -> None:
        while True:
            self._look.clear()
            try:
                stored, behind = await stored_batch(
                    self._bus, TASKS.name, SUBJECT, start=backlog.seen + 1, count=LOOK_COUNT, max_bytes=LOOK_BYTES
                )
            except NoBatches as error:
                log.warning("backlog.in_order", error=str(error))
                self._can_look = False
                return
            except BusError as error:
                log.debug("backlog.unseen", error=str(error))
                await asyncio.sleep(LOOK_AGAIN_SECONDS)
                continue
            for one in stored:
                backlog.found(one.sequence, one.data)
            self._looked.set()
            if not behind or backlog.full:
                await self._look.wait()
