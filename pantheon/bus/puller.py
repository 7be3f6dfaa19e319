"""Puller: receives the messages of a durable pull consumer as they come, and makes the consumer again if it is gone.

The client library's `fetch` is one round trip before the first message, or a small batch under load; this keeps a
request open at the server all the time (ADR-13 of NATS: pull requests with expiry and idle heartbeat), so that a
message arrives when it is published, and those that arrived together are taken together.
"""

import asyncio
import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import structlog
from nats.errors import Error as NatsError
from nats.js.errors import NotFoundError

from pantheon.bus.connection import Bus, Delivery, Subscription
from pantheon.bus.streams import consumer_config
from pantheon.runtime.background import end
from protocol.errors import BusError
from protocol.streams import ConsumerSpec

log = structlog.get_logger()

# Messages that are released within this time are requested again together.
GATHER_SECONDS = 0.002
REFUSED_SECONDS = 0.25
ENSURE_FIRST_SECONDS = 0.05
ENSURE_MAX_SECONDS = 2.0
_NS = 1_000_000_000


@dataclass(frozen=True)
class PullTimes:
    """How long a pull request lives at the server, and how often the server shows that it still has it.

    The server ends a request after `expires_seconds`, with a 408 that names how much of it was not used. It sends a
    heartbeat every `heartbeat_seconds`; when two have not come the request is lost (a broker that failed over is
    silent).
    """

    expires_seconds: float = 30.0
    heartbeat_seconds: float = 5.0

    @property
    def silence_seconds(self) -> float:
        return 2.5 * self.heartbeat_seconds


DEFAULT_TIMES = PullTimes()


class Puller:
    """Keeps up to `capacity` messages requested or held; `take` returns what has arrived.

    `release(n)` makes room for n more messages: as many are done. `divert` is called with each message
    that arrives, and must not block: a message for which it returns True was forwarded, and is not held here. A message
    that comes another way than from the broker is added by `enqueue`. `arrivals` is set when messages arrive, for a
    reader of several pullers.
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
        arrivals: asyncio.Event | None = None,
        times: PullTimes = DEFAULT_TIMES,
    ) -> None:
        self._bus = bus
        self._stream = stream
        self._spec = spec
        self._deliver_new = deliver_new
        self._capacity = capacity
        self._divert = divert
        self._arrivals = arrivals
        self._times = times
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
        self._request_timer: asyncio.TimerHandle | None = None
        self._refused = False
        self._unhook: Callable[[], None] | None = None

    async def start(self) -> None:
        await self._listen()
        self._unhook = self._bus.on_reconnect(self._on_reconnect)
        self._loop_task = asyncio.create_task(self._keep_requesting(), name=f"pull-{self._spec.durable_name}")

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
        """Stop pulling: open requests are withdrawn, and what has arrived but was not taken returns to the queue."""
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
        """Messages delivered and not released, taken or not."""
        return self._held

    @property
    def receiving(self) -> bool:
        """Whether messages may still arrive: no longer once a pause or a stop has withdrawn the requests."""
        return self._subscription is not None

    @property
    def buffered(self) -> list[Delivery]:
        """Messages delivered and not taken."""
        return list(self._buffer)

    async def take(self, limit: int) -> list[Delivery]:
        """All that has arrived, at most `limit`, waiting for the first. Empty once stopped and drained."""
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

    def enqueue(self, delivery: Delivery) -> None:
        """Hold a message that another puller received and forwarded, as if it had been delivered to this one. There may
        be more of those than room; then as many fewer are requested."""
        self._held += 1
        self._arrive(delivery)

    def release(self, count: int = 1) -> None:
        self._held -= count
        self._request_more()

    def _request_more(self) -> None:
        # A request for every single message would double the traffic; one for half of the room halves it. But while
        # nothing is requested, waiting for the other half would leave slots empty while there is work.
        if self._room() >= max(1, self._capacity // 2):
            self._wake.set()
        elif self._credit == 0:
            self._request_soon()

    def _request_soon(self) -> None:
        if self._request_timer is None and not self._stopping:
            self._request_timer = asyncio.get_running_loop().call_later(GATHER_SECONDS, self._gathered)

    def _gathered(self) -> None:
        self._request_timer = None
        self._wake.set()

    def _room(self) -> int:
        return self._capacity - self._held - self._credit

    def _on_message(self, message: Delivery) -> None:
        self._last_sign = asyncio.get_running_loop().time()
        # A message of the stream has a subject to acknowledge it on, whatever headers its sender gave it.
        if not message.reply and message.headers is not None and "Status" in message.headers:
            self._on_status(message.headers)
            return
        self._credit = max(0, self._credit - 1)
        if self._divert is not None and self._divert(message):
            self._request_more()
            return
        self._held += 1
        if self._credit == 0 and self._room() > 0:
            self._request_soon()
        self._arrive(message)

    def _arrive(self, message: Delivery) -> None:
        self._buffer.append(message)
        self._arrived.set()
        if self._arrivals is not None:
            self._arrivals.set()

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
            # The server accepts no request now (too many are open, a leader is being elected): not again at once.
            self._refused = True
        self._wake.set()

    def _on_reconnect(self) -> None:
        # The server forgets the open requests of a connection that is gone; the consumer may be gone too.
        self._credit = 0
        self._ensure = True
        self._wake.set()

    async def _keep_requesting(self) -> None:
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
                    await self._request(room)
                    self._last_sign = loop.time()
                except BusError:
                    await asyncio.sleep(ENSURE_FIRST_SECONDS)
                    continue
            try:
                async with asyncio.timeout(self._times.heartbeat_seconds):
                    await self._wake.wait()
            except TimeoutError:
                if self._credit and loop.time() - self._last_sign > self._times.silence_seconds:
                    log.debug("pull.silent", consumer=self._spec.durable_name)
                    self._credit = 0
                    self._ensure = True

    async def _request(self, count: int) -> None:
        self._requests += 1
        body = json.dumps(
            {
                "batch": count,
                "expires": int(self._times.expires_seconds * _NS),
                "idle_heartbeat": int(self._times.heartbeat_seconds * _NS),
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
            config = consumer_config(spec, deliver_new=self._deliver_new)
            await self._bus.js.add_consumer(self._stream, config)
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
        """Request no more, and return what was delivered but not taken; the caller naks or drops it."""
        self._stopping = True
        if self._request_timer is not None:
            self._request_timer.cancel()
            self._request_timer = None
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
        # A name of its own each time: what an earlier subscription had requested is not for this one.
        self._inbox = self._bus.new_inbox()
        self._subscription = await self._bus.subscribe_direct(f"{self._inbox}.*", self._on_message)

    async def _unlisten(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is None:
            return
        try:
            # Not just an unsubscribe: messages that the server has sent already would wait for their redelivery.
            async with asyncio.timeout(2):
                # The library's drain does not wait until the server has seen its UNSUB (see Bus.flush).
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
