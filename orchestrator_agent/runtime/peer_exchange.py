"""PeerExchange: beats to the other orchestrators, notes which of them beat, and takes in what they forward to this one
(see `root_ownership`)."""

import asyncio
import json
from collections.abc import Sequence
from uuid import UUID

from orchestrator_agent.runtime.root_ownership import ACK_PREFIX, FINAL, TASK, RootOwnership, kind_of
from pantheon.bus import Bus, Delivery, Puller, Subscription, nak
from pantheon.runtime.background import BackgroundTasks, end
from protocol import subjects

BEAT_SECONDS = 0.25
# Others receive within milliseconds that one leaves; busy ones later.
LEAVE_SECONDS = 0.3
# With so many times as much of one kind as it asks for, this process has what it can do, and others keep what they
# would forward to it. The broker delivers nothing to any of them while too much is not acknowledged.
CROWDED = 4


class PeerExchange:
    """Beats every quarter of a second; `requests` and `responses` hold what is forwarded as if the broker had delivered
    it to this process."""

    def __init__(self, bus: Bus, ownership: RootOwnership, *, requests: Puller, responses: Puller) -> None:
        self._bus = bus
        self._ownership = ownership
        self._requests = requests
        self._responses = responses
        self._left_at: float | None = None
        self._prefix = len(subjects.peer(ownership.own)) + 1
        self._subscriptions: list[Subscription] = []
        self._beating: asyncio.Task[None] | None = None
        self._naking = BackgroundTasks()

    async def start(self) -> None:
        self._subscriptions = [
            await self._bus.subscribe_direct(f"{subjects.peer(self._ownership.own)}.>", self._on_forwarded),
            await self._bus.subscribe_direct(subjects.PEER_BEAT, self._on_beat),
        ]
        self._beating = asyncio.create_task(self._beat_for_ever(), name="peers")

    async def stop(self) -> None:
        """Leave, if it has not left before. Naks what comes until the others have received that."""
        self.leave()
        if self._ownership.has_others and self._left_at is not None:
            await asyncio.sleep(self._left_at + LEAVE_SECONDS - asyncio.get_running_loop().time())
        if self._beating is not None:
            await end([self._beating])
        for subscription in self._subscriptions:
            await self._bus.unsubscribe(subscription)
        await self._naking.settled()

    # -- whether this one takes part -----------------------------------------------------------------------------------

    def stop_accepting(self) -> None:
        """Take nothing from the others until `resume_accepting`: what they forward before they know it is nacked."""
        self._ownership.accepting = False
        self._beat(there=False)

    def resume_accepting(self) -> None:
        if self._left_at is None:
            self._ownership.accepting = True
            self._beat(there=True)

    def leave(self) -> None:
        """Stop accepting for good."""
        if self._left_at is None:
            self._left_at = asyncio.get_running_loop().time()
            self.stop_accepting()

    # -- beats ---------------------------------------------------------------------------------------------------------

    def _beat(self, *, there: bool) -> None:
        crowded = [kind_of(subject) for subject in (TASK, FINAL) if self._is_crowded(subject)]
        beat = {"process_id": self._ownership.own, "there": there, "crowded": crowded}
        self._bus.client.post(subjects.PEER_BEAT, json.dumps(beat).encode())

    def _is_crowded(self, subject: str) -> bool:
        puller = self._puller_of(subject)
        return puller.held > CROWDED * puller.capacity

    def _on_beat(self, delivery: Delivery) -> None:
        try:
            beat = json.loads(delivery.data)
            process_id, there, crowded = str(UUID(beat["process_id"])), bool(beat["there"]), list(beat["crowded"])
        except (ValueError, KeyError, TypeError, AttributeError):
            return
        if process_id == self._ownership.own:
            return
        if not there:
            self._ownership.left(process_id)
            return
        new = self._ownership.received_from(process_id, crowded, asyncio.get_running_loop().time())
        if new and self._ownership.accepting:
            # So that it need not wait for the next beat.
            self._beat(there=True)

    async def _beat_for_ever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if self._ownership.accepting:
                self._beat(there=True)
            before = loop.time()
            await asyncio.sleep(BEAT_SECONDS)
            now = loop.time()
            if now - before > 2 * BEAT_SECONDS:
                self._ownership.received_from_all(now)
            if unsure := self._ownership.drop_silent(now):
                self._naking.spawn(_nak_all(unsure), "nak-forwarded")

    # -- what others forward -------------------------------------------------------------------------------------------

    def _on_forwarded(self, delivery: Delivery) -> None:
        delivery.subject = delivery.subject[self._prefix :]
        if delivery.reply:
            delivery.reply = ACK_PREFIX + delivery.reply
        if self._ownership.accepting:
            self._puller_of(delivery.subject).enqueue(delivery)
        else:
            self._naking.spawn(nak(delivery), "nak-forwarded")

    def _puller_of(self, subject: str) -> Puller:
        return self._requests if subject == TASK else self._responses


async def _nak_all(deliveries: Sequence[Delivery]) -> None:
    """What was acknowledged is not delivered again, whichever process naks it."""
    for delivery in deliveries:
        await nak(delivery)
