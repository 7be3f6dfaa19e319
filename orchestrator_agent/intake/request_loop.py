"""RequestLoop: takes requests in their fair order, as many as have arrived, and has them accepted in batches."""

import asyncio
from collections.abc import Sequence
from functools import partial

from orchestrator_agent.intake.acceptance import Acceptance
from orchestrator_agent.intake.fair_intake import FairIntake
from orchestrator_agent.runtime.held_deliveries import HeldDeliveries
from orchestrator_agent.runtime.large_messages import PAYLOAD_REF, LargeMessages, set_apart
from orchestrator_agent.runtime.root_ownership import RootOwnership
from orchestrator_agent.runtime.trials import WHY, Trials
from pantheon.bus import Bus, Delivery, Puller
from pantheon.runtime.background import end, or_exit
from protocol.messages import salvage_ids
from protocol.names import ORCHESTRATOR
from protocol.streams import TASKS, task_consumer

INTAKE_BATCH = 256


def request_puller(bus: Bus, ownership: RootOwnership) -> Puller:
    return Puller(bus, TASKS.name, task_consumer(ORCHESTRATOR), capacity=2 * INTAKE_BATCH, divert=ownership.forward)


class RequestLoop:
    """`stop_taking` ends it when what it took is accepted; `tasks` are then done."""

    def __init__(
        self,
        requests: Puller,
        fair_intake: FairIntake,
        acceptance: Acceptance,
        *,
        held: HeldDeliveries,
        large: LargeMessages,
        trials: Trials,
    ) -> None:
        self._requests = requests
        self._fair_intake = fair_intake
        self._acceptance = acceptance
        self._held = held
        self._large = large
        self._trials = trials
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self._requests.start()
        self._task = asyncio.create_task(or_exit(self._run(), "request loop"), name="intake")

    async def stop_taking(self) -> list[Delivery]:
        """Take no more requests; returns those that were delivered and not taken."""
        self._stopping = True
        return await self._fair_intake.stop()

    @property
    def tasks(self) -> list["asyncio.Task[None]"]:
        return [] if self._task is None else [self._task]

    async def stop(self) -> None:
        await end(self.tasks)

    async def _run(self) -> None:
        while not self._stopping:
            deliveries = await self._fair_intake.take(INTAKE_BATCH)
            # What was read ahead in the stream was not delivered, so there is nothing to hold.
            self._held.add(delivery for delivery in deliveries if delivery.reply)
            small, large = set_apart(deliveries, PAYLOAD_REF)
            accept = self._accept_carefully if self._trials.has_suspects else self._accept
            for delivery in large:
                self._large.work_on(partial(accept, [delivery]))
            if small:
                await accept(small)

    async def _accept_carefully(self, deliveries: Sequence[Delivery]) -> None:
        """After the death of a process: the requests are noted, and those that one died on are planned alone."""
        ids = {id(delivery): salvage_ids(delivery.data).get("task_id") for delivery in deliveries}
        alone = [delivery for delivery in deliveries if (known := ids[id(delivery)]) and self._trials.is_suspect(known)]
        left = {id(delivery) for delivery in alone}
        others = [delivery for delivery in deliveries if id(delivery) not in left]
        for group in (others, *([delivery] for delivery in alone)):
            task_ids = {task_id for delivery in group if (task_id := ids[id(delivery)]) is not None}
            if any(map(self._trials.in_quarantine, task_ids)):
                await self._refuse(group)
            elif group:
                async with self._trials.on(task_ids):
                    await self._accept(group)

    async def _refuse(self, deliveries: Sequence[Delivery]) -> None:
        try:
            for delivery in deliveries:
                await self._acceptance.refuse(delivery, WHY)
            await self._fair_intake.accepted(deliveries)
        finally:
            self._held.release(deliveries)
            self._fair_intake.release(deliveries)

    async def _accept(self, deliveries: Sequence[Delivery], *, apart: bool = False) -> None:
        ended = deliveries
        try:
            later = await self._acceptance.accept(deliveries, apart=apart)
            if later.long or later.waiting:
                left = {id(delivery) for delivery in (*later.long, *later.waiting)}
                ended = [delivery for delivery in deliveries if id(delivery) not in left]
                for delivery in later.long:
                    self._large.work_on(partial(self._accept, [delivery], apart=True))
                for delivery in later.waiting:
                    self._large.go_on(partial(self._accept, [delivery], apart=True))
            await self._fair_intake.accepted(ended)
        finally:
            self._held.release(ended)
            self._fair_intake.release(ended)
