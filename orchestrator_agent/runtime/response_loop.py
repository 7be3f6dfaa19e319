"""ResponseLoop: takes responses and run events, as many as have arrived, and has them settled in batches.

It never waits for a batch to fill: a lone message is a batch of one, and under load the next batch gathers while this
one is written.
"""

import asyncio
from collections.abc import Sequence
from functools import partial

from orchestrator_agent.inbox import Entry, Inbox
from orchestrator_agent.runtime.held_deliveries import HeldDeliveries
from orchestrator_agent.runtime.large_messages import RESULT_REF, LargeMessages, set_apart
from orchestrator_agent.runtime.responses import Remainder, ResponseSettler
from orchestrator_agent.runtime.root_ownership import RootOwnership
from pantheon.bus import Bus, Delivery, Puller
from pantheon.runtime.background import end, or_exit
from protocol import subjects
from protocol.names import ORCHESTRATOR
from protocol.streams import RESPONSES, ConsumerSpec

RESPONSES_BATCH = 512
# All orchestrators share this consumer. A batch is written in milliseconds; what a dead process held should be
# delivered to another one soon, and a process that waits for Postgres holds with in-progress acks.
RESPONSES_CONSUMER = ConsumerSpec(
    durable_name=ORCHESTRATOR,
    filter_subject=subjects.ALL_RESPONSES,
    ack_wait_seconds=10.0,
    max_deliver=-1,
    max_ack_pending=20_000,
)
# One batch is decided on while another is being written. More would only make the batches smaller.
BATCHES_IN_FLIGHT = 2


def response_puller(bus: Bus, ownership: RootOwnership, inbox: Inbox) -> Puller:
    """Arrivals set what the loop waits for beside the inbox's own entries."""
    return Puller(
        bus,
        RESPONSES.name,
        RESPONSES_CONSUMER,
        capacity=4 * RESPONSES_BATCH,
        divert=ownership.forward,
        arrivals=inbox.arrived,
    )


class ResponseLoop:
    """`stop_taking` ends it when the inbox is empty and all batches are settled; `tasks` are then done."""

    def __init__(
        self,
        responses: Puller,
        inbox: Inbox,
        settler: ResponseSettler,
        *,
        held: HeldDeliveries,
        large: LargeMessages,
    ) -> None:
        self._responses = responses
        self._inbox = inbox
        self._settler = settler
        self._held = held
        self._large = large
        self._in_flight: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self._responses.start()
        self._task = asyncio.create_task(or_exit(self._run(), "response loop"), name="transitions")

    async def stop_taking(self) -> list[Delivery]:
        """Take no more responses; returns those that were delivered and not taken."""
        self._stopping = True
        left = await self._responses.stop()
        self._inbox.arrived.set()
        return left

    @property
    def tasks(self) -> list["asyncio.Task[None]"]:
        return [] if self._task is None else [self._task]

    async def stop(self) -> None:
        await end([*self.tasks, *self._in_flight])

    async def _run(self) -> None:
        arrived = self._inbox.arrived
        while True:
            await arrived.wait()
            arrived.clear()
            deliveries = self._responses.take_now(RESPONSES_BATCH)
            entries = self._inbox.take(RESPONSES_BATCH)
            if deliveries or entries:
                # There may be more than a batch.
                arrived.set()
                self._held.add(deliveries)
                small, large = set_apart(deliveries, RESULT_REF)
                for delivery in large:
                    self._large.work_on(partial(self._settle, [delivery], []))
                if small or entries:
                    await self._settle_beside(small, entries)
            elif self._stopping:
                if self._in_flight:
                    await asyncio.wait(self._in_flight)
                return

    async def _settle_beside(self, deliveries: Sequence[Delivery], entries: Sequence[Entry]) -> None:
        """Settle a batch, beside another one: while one is being written, the next is read and decided on."""
        batch = asyncio.create_task(self._settle(deliveries, entries), name="batch")
        self._in_flight.add(batch)
        batch.add_done_callback(self._settled)
        if len(self._in_flight) >= BATCHES_IN_FLIGHT:
            await asyncio.wait(self._in_flight, return_when=asyncio.FIRST_COMPLETED)
        for done in [batch for batch in self._in_flight if batch.done()]:
            self._in_flight.discard(done)
            done.result()

    def _settled(self, batch: "asyncio.Task[None]") -> None:
        if not batch.cancelled() and batch.exception() is not None:
            # The loop finds it, and ends with it.
            self._inbox.arrived.set()
            return
        self._in_flight.discard(batch)

    async def _settle(self, deliveries: Sequence[Delivery], entries: Sequence[Entry]) -> None:
        rest: Remainder | None = None
        try:
            rest = await self._settler.settle(deliveries, entries)
        finally:
            left = {id(delivery) for delivery in rest.deliveries} if rest is not None else ()
            self._release([delivery for delivery in deliveries if id(delivery) not in left] if left else deliveries)
        if rest is not None:
            self._large.go_on(partial(self._settle_rest, rest))

    async def _settle_rest(self, rest: Remainder) -> None:
        try:
            await rest.work()
        finally:
            self._release(rest.deliveries)

    def _release(self, deliveries: Sequence[Delivery]) -> None:
        self._held.release(deliveries)
        self._responses.release(len(deliveries))
