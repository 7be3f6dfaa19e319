"""Puller: messages of a durable pull consumer as they come, with the consumer made again whenever it is gone.

The client library's `fetch` is one round trip before the first message, or a small batch under load; this keeps a
request open at the server all the time (ADR-13 of NATS: pull requests with expiry and idle heartbeat), so that a
message arrives when it is published, and those that arrived together are taken together.
"""

import asyncio
import json
from collections import deque
from collections.abc import Callable
from typing import Self

import structlog
from nats.errors import Error as NatsError
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import NotFoundError

from pantheon.bus.connection import Bus, Delivery, Subscription
from pantheon.runtime.background import end
from protocol.errors import BusError
from protocol.streams import ConsumerSpec

log = structlog.get_logger()

# One open request lives this long; the server ends it with a 408 that says how much of it was not used.
REQUEST_EXPIRES_SECONDS = 30.0
IDLE_HEARTBEAT_SECONDS = 5.0
# Two heartbeats missed: the request is lost (a broker that failed over says nothing).
SILENCE_SECONDS = 2.5 * IDLE_HEARTBEAT_SECONDS
# Messages that end within this time are asked for again together.
GATHER_SECONDS = 0.002
REFUSED_SECONDS = 0.25
ENSURE_FIRST_SECONDS = 0.05
ENSURE_MAX_SECONDS = 2.0
_NS = 1_000_000_000


class Puller:
    """Keeps up to `capacity` messages asked for or held; `take` hands over what has arrived.

    `release(n)` says that n messages were dealt with, which makes room for as many. `divert` is asked about each
    message that arrives, and waits for nothing: what it says True to was passed on, and is not held here. What comes by
    another way than from the broker is `put` in.
    """

    def __init__(
        self,
        bus: Bus,
        stream: str,
        spec: ConsumerSpec,
        *,
        capacity: int,
        deliver_new: bool = False,
        divert: Callable[[Delivery], bool] | None = None,
    ) -> None:
        self._bus = bus
        self._stream = stream
        self._spec = spec
        self._deliver_new = deliver_new
        self._capacity = capacity
        self._divert = divert
        self._buffer: deque[Delivery] = deque()
        self._held = 0
        self._credit = 0
        self._arrived = asyncio.Event()
        self._wake = asyncio.Event()
        self._stopping = False
        self._paused = False
        self._ready = asyncio.Event()
        self._inbox = bus.new_inbox()
        self._requests = 0
        self._last_sign = 0.0
        self._ensure = True
        self._subscription: Subscription | None = None
        self._loop_task: asyncio.Task[None] | None = None
        self._also: asyncio.Event | None = None
        self._asking_soon: asyncio.TimerHandle | None = None
        self._refused = False
        self._unhook: Callable[[], None] | None = None

    async def start(self) -> None:
        await self._listen()
        self._unhook = self._bus.on_reconnect(self._on_reconnect)
        self._loop_task = asyncio.create_task(self._keep_asking(), name=f"pull-{self._spec.durable_name}")

    async def wait_ready(self) -> None:
        """Until the consumer exists."""
        await self._ready.wait()

    @property
    def ready(self) -> bool:
        """Whether the consumer has been seen."""
        return self._ready.is_set()

    def set_capacity(self, capacity: int) -> None:
        self._capacity = capacity
        self._wake.set()

    def pause(self) -> None:
        """Take nothing more: open requests are withdrawn, and what has arrived but was not taken goes back."""
        self._paused = True
        self._wake.set()

    def resume(self) -> None:
        self._paused = False
        self._wake.set()

    @property
    def capacity(self) -> int:
        return self._capacity

    @property
    def held(self) -> int:
        """Messages delivered and not released, waiting or at work."""
        return self._held

    @property
    def waiting(self) -> list[Delivery]:
        """Messages delivered and not taken."""
        return list(self._buffer)

    async def take(self, limit: int) -> list[Delivery]:
        """All that has arrived, at most `limit`, waiting for the first. Empty once stopped and used up."""
        while not self._buffer:
            if self._stopping:
                return []
            self._arrived.clear()
            await self._arrived.wait()
        count = min(limit, len(self._buffer))
        return [self._buffer.popleft() for _ in range(count)]

    def take_now(self, limit: int) -> list[Delivery]:
        """All that has arrived, at most `limit`, without waiting."""
        return [self._buffer.popleft() for _ in range(min(limit, len(self._buffer)))]

    def wake_on(self, event: asyncio.Event) -> None:
        """Also set `event` when messages arrive: for a reader of several pullers."""
        self._also = event

    def put(self, delivery: Delivery) -> None:
        """Hold what was given to another one and passed on, as if it had been given to this one. There may be more of
        that than room; then as much less is asked for."""
        self._held += 1
        self._arrive(delivery)

    def release(self, count: int = 1) -> None:
        self._held -= count
        self._ask_for_more()

    def _ask_for_more(self) -> None:
        # Asking for every single message again would double the traffic; half of the room at once halves it. But with
        # nothing asked for, waiting for the other half would leave places empty while there is work.
        if self._room() >= max(1, self._capacity // 2):
            self._wake.set()
        elif self._credit == 0:
            self._ask_soon()

    def _ask_soon(self) -> None:
        if self._asking_soon is None and not self._stopping:
            self._asking_soon = asyncio.get_running_loop().call_later(GATHER_SECONDS, self._gathered)

    def _gathered(self) -> None:
        self._asking_soon = None
        self._wake.set()

    def _room(self) -> int:
        return self._capacity - self._held - self._credit

    def _on_message(self, message: Delivery) -> None:
        self._last_sign = asyncio.get_running_loop().time()
        # What is in the stream has a subject to acknowledge it on, whatever headers its sender put in.
        if not message.reply and message.headers is not None and "Status" in message.headers:
            self._on_status(message.headers)
            return
        self._credit = max(0, self._credit - 1)
        if self._divert is not None and self._divert(message):
            self._ask_for_more()
            return
        self._held += 1
        if self._credit == 0 and self._room() > 0:
            self._ask_soon()
        self._arrive(message)

    def _arrive(self, message: Delivery) -> None:
        self._buffer.append(message)
        self._arrived.set()
        if self._also is not None:
            self._also.set()

    def _on_status(self, headers: dict[str, str]) -> None:
        status = headers.get("Status", "")
        if status == "100":
            return
        description = headers.get("Description", "").lower()
        unused = headers.get("Nats-Pending-Messages")
        if unused is not None and unused.isdigit():
            self._credit = max(0, self._credit - int(unused))
        else:
            self._credit = 0
        if status == "503" or status == "404" or "consumer deleted" in description or "consumer is push" in description:
            self._credit = 0
            self._ensure = True
        elif status == "409":
            # The server takes no request now (too many wait, a new leader is being found): not again at once.
            self._refused = True
        self._wake.set()

    def _on_reconnect(self) -> None:
        # The server forgets the open requests of a connection that is gone; it may have forgotten the consumer too.
        self._credit = 0
        self._ensure = True
        self._wake.set()

    async def _keep_asking(self) -> None:
        loop = asyncio.get_running_loop()
        wait = ENSURE_FIRST_SECONDS
        while not self._stopping:
            if self._ensure:
                try:
                    await self._ensure_consumer()
                except (TimeoutError, BusError, NatsError, OSError) as error:
                    log.debug("consumer.waiting", consumer=self._spec.durable_name, error=str(error))
                    await asyncio.sleep(wait)
                    wait = min(wait * 2, ENSURE_MAX_SECONDS)
                    continue
                wait = ENSURE_FIRST_SECONDS
                self._ensure = False
                self._ready.set()
            self._wake.clear()
            if self._paused and self._subscription is not None:
                await self._withdraw()
            elif not self._paused and self._subscription is None:
                await self._listen()
            if self._refused:
                self._refused = False
                await asyncio.sleep(REFUSED_SECONDS)
            room = self._room()
            if (
                room > 0
                and self._subscription is not None
                and (self._credit == 0 or room >= max(1, self._capacity // 2))
            ):
                try:
                    await self._ask(room)
                    self._last_sign = loop.time()
                except BusError:
                    await asyncio.sleep(ENSURE_FIRST_SECONDS)
                    continue
            try:
                async with asyncio.timeout(IDLE_HEARTBEAT_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                if self._credit and loop.time() - self._last_sign > SILENCE_SECONDS:
                    log.debug("pull.silent", consumer=self._spec.durable_name)
                    self._credit = 0
                    self._ensure = True

    async def _ask(self, count: int) -> None:
        self._requests += 1
        body = json.dumps(
            {
                "batch": count,
                "expires": int(REQUEST_EXPIRES_SECONDS * _NS),
                "idle_heartbeat": int(IDLE_HEARTBEAT_SECONDS * _NS),
            }
        ).encode()
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._spec.durable_name}"
        self._credit += count
        try:
            await self._bus.publish(subject, body, reply=f"{self._inbox}.{self._requests}")
        except BusError:
            self._credit -= count
            raise

    async def _ensure_consumer(self) -> None:
        spec = self._spec
        try:
            info = await self._bus.js.consumer_info(self._stream, spec.durable_name)
        except NotFoundError:
            await self._bus.js.add_consumer(
                self._stream,
                ConsumerConfig(
                    durable_name=spec.durable_name,
                    filter_subject=spec.filter_subject,
                    ack_policy=AckPolicy.EXPLICIT,
                    deliver_policy=DeliverPolicy.NEW if self._deliver_new else DeliverPolicy.ALL,
                    ack_wait=spec.ack_wait_seconds,
                    max_deliver=spec.max_deliver,
                    max_ack_pending=spec.max_ack_pending,
                ),
            )
            log.info("consumer.made", stream=self._stream, consumer=spec.durable_name)
        else:
            there = info.config
            if there.ack_wait != spec.ack_wait_seconds or there.max_ack_pending != spec.max_ack_pending:
                log.warning(
                    "consumer.differs",
                    consumer=spec.durable_name,
                    ack_wait=there.ack_wait,
                    max_ack_pending=there.max_ack_pending,
                )

    async def stop(self) -> list[Delivery]:
        """Ask no more and hand back what was delivered but not taken; the caller naks or drops it."""
        self._stopping = True
        if self._asking_soon is not None:
            self._asking_soon.cancel()
            self._asking_soon = None
        self._arrived.set()
        if self._loop_task is not None:
            await end([self._loop_task])
        if self._unhook is not None:
            self._unhook()
            self._unhook = None
        await self._unlisten()
        left = list(self._buffer)
        self._buffer.clear()
        return left

    async def _listen(self) -> None:
        # A name of its own each time: what a former subscription had asked for is not for this one.
        self._inbox = self._bus.new_inbox()
        self._subscription = await self._bus.hear(f"{self._inbox}.*", self._on_message)

    async def _unlisten(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is None:
            return
        try:
            # Not just an unsubscribe: what the server has sent already would wait for its redelivery.
            async with asyncio.timeout(2):
                # The library's drain does not wait for its own UNSUB to be seen (see Bus.flush).
                await self._bus.client._send_unsubscribe(subscription._id)
                await self._bus.flush()
                await subscription.drain()  # type: ignore[no-untyped-call]
        except (BusError, NatsError, OSError, TimeoutError) as error:
            log.debug("pull.drain", error=str(error))

    async def _withdraw(self) -> None:
        await self._unlisten()
        self._credit = 0
        while self._buffer:
            delivery = self._buffer.popleft()
            self._held -= 1
            try:
                await delivery.nak()
            except (NatsError, OSError) as error:
                log.debug("pull.nak", error=str(error))

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()
