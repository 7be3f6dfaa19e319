"""FairIntake: requests in the order in which they are accepted: as they came, or in fair rounds under a backlog.

The broker delivers requests in the order of their arrival, so that one that comes behind 100,000 of another requester
would wait for all of them. Under a backlog this reads ahead: it reads what is in the stream without taking it, notes
its fairness key, and accepts some of each key in each round (`backlog`). What was accepted out of the broker's order is
removed from the stream after its commit; where that is lost, the broker delivers it later, and its id is known.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any
from uuid import UUID

import structlog
from pydantic_core import from_json

from orchestrator_agent.dispatch.active_processes import ActiveProcesses
from orchestrator_agent.intake.backlog import Backlog, KeyBacklog
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
# It reads ahead in steps of so much, beside everything else that this process does.
READ_AHEAD_COUNT = 1_000
READ_AHEAD_BYTES = 4 * 1024 * 1024
# Of one key in one round; and of how many keys at once.
READ_BYTES = 4 * 1024 * 1024
READS_AT_ONCE = 16
# With several orchestrators, what is this near to what the broker delivers may be delivered to another one before it is
# committed here, which would then respond to it as to a repeated request.
MARGIN = 2_048
RETRY_SECONDS = 1.0
# While so many are unread, reading ahead goes before accepting: the keys should be known soon.
MANY_UNSEEN = 10_000
ACCEPT_MEANWHILE = 64
READ_WAIT_SECONDS = 0.1
# What was accepted out of order can still be on its way from the broker.
REMEMBERED = 50_000

SUBJECT = subjects.task(ORCHESTRATOR)
_OPERATION = b'"' + MESH_PREFIX.encode()


class FairIntake:
    """`known` says which of some ids are of tasks that were accepted; of the `active` processes the first one reads
    ahead."""

    def __init__(
        self,
        bus: Bus,
        requests: Puller,
        *,
        known: Callable[[Sequence[UUID]], Awaitable[dict[UUID, Any]]],
        active: ActiveProcesses,
        many: int = MANY,
    ) -> None:
        self._bus = bus
        self._requests = requests
        self._known = known
        self._active = active
        self._many = many
        self._backlog: Backlog | None = None
        self._reading: asyncio.Task[None] | None = None
        self._naking: asyncio.Task[None] | None = None
        self._read_more = asyncio.Event()
        self._has_read = asyncio.Event()
        self._can_read = True
        # Of deliveries that were read from the stream: their numbers, by identity.
        self._read: dict[int, int] = {}
        # Numbers of what was taken out of the broker's order, and whether it is committed.
        self._taken: dict[int, bool] = {}

    @property
    def backlog(self) -> Backlog | None:
        """Pending requests, while there are so many that they are read ahead; else None."""
        return self._backlog

    async def take(self, limit: int) -> list[Delivery]:
        """The next requests, about `limit`, waiting for the first. Empty once stopped and used up."""
        while True:
            backlog = self._backlog
            if backlog is None:
                deliveries = await self._requests.take(limit)
                self._notice(deliveries)
                return deliveries
            await self._sort_in(backlog, self._requests.take_now(self._requests.held))
            if backlog.pending < self._many // 2 or not (self._can_read and self._active.is_first):
                left = self._end()
                if left:
                    return left
                continue
            self._read_more.set()
            if backlog.pending - backlog.ahead > MANY_UNSEEN:
                await self._read_first()
                limit = min(limit, ACCEPT_MEANWHILE)
            if batch := await self._next_round(backlog, limit):
                return batch
            deliveries = await self._requests.take(limit)
            if not deliveries or self._backlog is not backlog:
                return deliveries
            await self._sort_in(backlog, deliveries)

    async def accepted(self, deliveries: Iterable[Delivery]) -> None:
        """These are committed: what the broker has not delivered, it need not deliver any more."""
        undelivered = [number for delivery in deliveries if (number := self._read.get(id(delivery))) is not None]
        for number in undelivered:
            self._taken[number] = True
        await asyncio.gather(*(remove_stored(self._bus, TASKS.name, number) for number in undelivered))

    def release(self, deliveries: Sequence[Delivery]) -> None:
        """These are done; there is room for as many."""
        read = sum(self._read.pop(id(delivery), None) is not None for delivery in deliveries)
        self._requests.release(len(deliveries) - read)

    async def wait_ready(self) -> None:
        """Until the consumer of requests exists."""
        await self._requests.wait_ready()

    @property
    def untaken(self) -> list[Delivery]:
        """Delivered by the broker, and not taken."""
        delivered = [] if self._backlog is None else [delivery for _, delivery in self._backlog.delivered]
        return [*self._requests.buffered, *delivered]

    def pause(self) -> None:
        """Take nothing more, and nak what was not taken."""
        self._requests.pause()
        if left := self._end():
            self._naking = asyncio.create_task(self._nak(left), name="nak-untaken")

    async def _nak(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            await nak(delivery)
        self._requests.release(len(deliveries))

    def resume(self) -> None:
        self._requests.resume()

    async def stop(self) -> list[Delivery]:
        """Take no more; returns what was delivered and not taken."""
        left = [*self._end(), *await self._requests.stop()]
        await end([task for task in (self._reading, self._naking) if task is not None])
        return left

    # -- the backlog ---------------------------------------------------------------------------------------------------

    def _notice(self, deliveries: Sequence[Delivery]) -> None:
        """Begin rounds where the newest delivery says that many are behind it."""
        if not deliveries or not self._can_read or not self._active.is_first:
            return
        newest = stream_position(deliveries[-1])
        if newest is not None and newest.behind >= self._many:
            self._backlog = Backlog(newest.sequence, newest.behind)
            self._reading = asyncio.create_task(self._keep_reading(self._backlog), name="read-ahead")
            log.info("backlog.began", requests=newest.behind)

    def _end(self) -> list[Delivery]:
        """Go on in the order of arrival; returns what was delivered and not taken."""
        backlog, self._backlog = self._backlog, None
        if backlog is None:
            return []
        if self._reading is not None:
            self._reading.cancel()
        log.info("backlog.ended")
        return [delivery for _, delivery in sorted(backlog.delivered, key=lambda pair: pair[0])]

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
                # At work, with a large value: it is delivered again when that is over, or was lost.
                await nak(delivery, after_seconds=RETRY_SECONDS)
                self._requests.release()

    async def _read_first(self) -> None:
        self._has_read.clear()
        try:
            async with asyncio.timeout(READ_WAIT_SECONDS):
                await self._has_read.wait()
        except TimeoutError:
            # The broker is slow, or what it had not delivered is gone.
            pass

    async def _next_round(self, backlog: Backlog, limit: int) -> list[Delivery]:
        keys = backlog.next_round(limit)
        further = [(key, share) for key, share in keys if not key.delivered]
        batch = [delivery for key, share in keys for delivery in await self._delivered(backlog, key, share)]
        if not batch:
            # Then what these have comes next from the broker.
            return []
        if further and self._active.shared:
            position = await delivered_sequence(self._bus, TASKS.name, ORCHESTRATOR)
            further = [pair for pair in further if position is not None and pair[0].ahead[0] > position + MARGIN]
        slots = asyncio.Semaphore(READS_AT_ONCE)
        for read in await asyncio.gather(*(self._read_ahead(backlog, slots, *pair) for pair in further)):
            batch += read
        if self._backlog is backlog:
            # What some did not need of their share, others may have.
            for key, _ in keys:
                batch += await self._delivered(backlog, key, limit - len(batch))
        return batch

    async def _delivered(self, backlog: Backlog, key: KeyBacklog, count: int) -> list[Delivery]:
        """A key's next requests, of those that the broker has delivered."""
        batch: list[Delivery] = []
        while key.delivered and len(batch) < count:
            sequence, delivery = key.delivered[0]
            if (
                _OPERATION in delivery.data
                and not backlog.is_oldest(sequence)
                and await self._before_its_task(delivery)
            ):
                break
            key.delivered.popleft()
            batch.append(delivery)
        return batch

    async def _read_ahead(
        self, backlog: Backlog, slots: asyncio.Semaphore, key: KeyBacklog, count: int
    ) -> list[Delivery]:
        """A key's next requests, out of the stream."""
        numbers = backlog.next_ahead(key, count)
        try:
            async with slots:
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
        requested = set(numbers)
        for message in stored:
            if message.sequence not in requested:
                continue
            delivery = message.as_delivery(self._bus)
            if _OPERATION in message.data and await self._before_its_task(delivery):
                last = message.sequence - 1
                break
            self._read[id(delivery)] = message.sequence
            self._taken[message.sequence] = False
            batch.append(delivery)
        backlog.taken_ahead(key, last)
        while len(self._taken) > REMEMBERED:
            self._taken.pop(next(iter(self._taken)))
        return batch

    async def _before_its_task(self, delivery: Delivery) -> bool:
        """Whether a request is an operation on a task that is not accepted yet: its request may be in the backlog."""
        try:
            request = from_json(delivery.data)
            if not request["task_type"].startswith(MESH_PREFIX):
                return False
            task_id = UUID(request["payload"]["task_id"])
        except (ValueError, KeyError, TypeError, AttributeError):
            return False
        return task_id not in await retry_until_available(self._known, [task_id])

    async def _keep_reading(self, backlog: Backlog) -> None:
        while True:
            self._read_more.clear()
            try:
                stored, behind = await stored_batch(
                    self._bus,
                    TASKS.name,
                    SUBJECT,
                    start=backlog.seen + 1,
                    count=READ_AHEAD_COUNT,
                    max_bytes=READ_AHEAD_BYTES,
                )
            except NoBatches as error:
                log.warning("backlog.in_order", error=str(error))
                self._can_read = False
                return
            except BusError as error:
                log.debug("backlog.unseen", error=str(error))
                await asyncio.sleep(RETRY_SECONDS)
                continue
            for message in stored:
                backlog.found(message.sequence, message.data)
            self._has_read.set()
            if not behind or backlog.full:
                await self._read_more.wait()
