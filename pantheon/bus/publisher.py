"""Publisher: JetStream publishes, pipelined, each repeated until the broker has acknowledged it.

The client library's own asynchronous publish costs a future, a timer and a random token for each message; here an ack
is found by a counter in its subject, and one sweep looks after everything that was not acknowledged.
"""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

import structlog
from nats.errors import Error as NatsError
from nats.errors import MaxPayloadError
from pydantic_core import from_json

from pantheon.bus.connection import Bus, Delivery, Subscription
from pantheon.runtime.background import end
from protocol.errors import BusError

log = structlog.get_logger()

# An ack comes within a millisecond; one that has not come in this time is not coming (or the broker is away).
ACK_TIMEOUT_SECONDS = 5.0
RETRY_FIRST_SECONDS = 0.1
RETRY_MAX_SECONDS = 5.0
SWEEP_SECONDS = 0.05
# What waits for its ack stays in memory; beyond this whoever publishes waits with it.
MAX_PENDING = 50_000


class _Pending:
    """One message on its way. `due` is when it is sent again, by the loop's clock."""

    __slots__ = ("body", "due", "error", "headers", "on_ack", "repeats", "subject")

    def __init__(
        self, subject: str, body: bytes, headers: dict[str, str] | None, on_ack: Callable[[], None] | None
    ) -> None:
        self.subject = subject
        self.body = body
        self.headers = headers
        self.on_ack = on_ack
        self.due = 0.0
        self.repeats = 0
        self.error = "no acknowledgement came"


class Publisher:
    """`publish` waits for the ack of one message; `send` does not, and calls back when it has come.

    A message id (`Nats-Msg-Id`) makes the repeats of one publish one message in the stream.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._inbox = bus.new_inbox()
        self._prefix = len(self._inbox) + 1
        self._count = 0
        self._pending: dict[str, _Pending] = {}
        self._repeating = 0
        self._room = asyncio.Event()
        self._subscription: Subscription | None = None
        self._starting = asyncio.Lock()
        self._sweeper: asyncio.Task[None] | None = None
        self._unhook: Callable[[], None] | None = None
        self._closed = False
        # By stream: the highest sequence that the broker has acknowledged. A broker that later stands lower lost some.
        self.highest_sequence: dict[str, int] = {}
        self._gone_back: list[Callable[[str], None]] = []
        # Since when at least one message is being repeated, for want of an acknowledgement.
        self.repeating_since: datetime | None = None

    async def publish(
        self,
        subject: str,
        body: bytes,
        *,
        message_id: str | None = None,
        headers: dict[str, str] | None = None,
        give_up_seconds: float | None = None,
    ) -> None:
        """Publish and wait for JetStream's ack, repeating until it comes.

        Raises TooLarge at once; BusError only when `give_up_seconds` (None: never) have passed.
        """
        acknowledged: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        one = _Pending(
            subject,
            body,
            self._checked(subject, body, message_id, headers),
            lambda: None if acknowledged.done() else acknowledged.set_result(None),
        )
        try:
            if give_up_seconds is None:
                await self._put(one)
                await acknowledged
                return
            async with asyncio.timeout(give_up_seconds):
                await self._put(one)
                await acknowledged
        except TimeoutError:
            raise BusError(
                f"JetStream did not acknowledge a message for {subject} within {give_up_seconds:g} s: {one.error}"
            ) from None
        finally:
            # Cancelled or given up: nobody waits for it any more.
            if not acknowledged.done() or acknowledged.cancelled():
                self._forget(one)

    async def send(
        self,
        subject: str,
        body: bytes,
        *,
        message_id: str | None = None,
        headers: dict[str, str] | None = None,
        on_ack: Callable[[], None] | None = None,
    ) -> None:
        """Publish without waiting for the ack; what is not acknowledged is repeated in the background.

        Raises TooLarge. The hot path: one write into the socket's buffer, one callback.
        """
        await self._put(_Pending(subject, body, self._checked(subject, body, message_id, headers), on_ack))

    def _checked(
        self, subject: str, body: bytes, message_id: str | None, headers: dict[str, str] | None
    ) -> dict[str, str] | None:
        """All headers. Raises TooLarge here: a server that is sent too much, headers counted, cuts the connection."""
        every = dict(headers) if headers else {}
        if message_id is not None:
            every["Nats-Msg-Id"] = message_id
        if len(body) + 4096 > self._bus.max_payload:
            # NATS/1.0, a line each of `name: value`, an empty line.
            size = 12 + sum(len(name.encode()) + len(value.encode()) + 4 for name, value in every.items())
            if (size if every else 0) + len(body) > self._bus.max_payload:
                raise self._bus.too_large(subject, body)
        return every or None

    async def _put(self, one: _Pending) -> None:
        if self._subscription is None:
            await self._start()
        while len(self._pending) >= MAX_PENDING:
            self._room.clear()
            await self._room.wait()
        self._count += 1
        token = str(self._count)
        self._pending[token] = one
        one.due = asyncio.get_running_loop().time() + ACK_TIMEOUT_SECONDS
        reply = f"{self._inbox}.{token}"
        if self._bus.client.post(one.subject, one.body, reply=reply, headers=one.headers):
            return
        try:
            await self._bus.client.publish(one.subject, one.body, reply=reply, headers=one.headers)
        except MaxPayloadError:
            self._pending.pop(token, None)
            raise self._bus.too_large(one.subject, one.body) from None
        except (NatsError, OSError) as error:
            self._again(one, str(error) or type(error).__name__)

    async def _start(self) -> None:
        async with self._starting:
            if self._subscription is None:
                subscription = await self._bus.hear(f"{self._inbox}.*", self._on_ack)
                self._unhook = self._bus.on_reconnect(self._on_reconnect)
                self._sweeper = asyncio.create_task(self._sweep(), name="publish-again")
                self._subscription = subscription

    def _on_ack(self, delivery: Delivery) -> None:
        token = delivery.subject[self._prefix :]
        one = self._pending.get(token)
        if one is None:
            return
        if not delivery.data:
            # A status and no body: there is no stream for the subject, or nobody who leads it, just now.
            self._again(one, "no stream keeps the subject")
            return
        try:
            ack = from_json(delivery.data)
            if "error" in ack:
                self._again(one, str(ack["error"].get("description", ack["error"])))
                return
            sequence, stream, duplicate = ack["seq"], ack["stream"], ack.get("duplicate", False)
        except (ValueError, KeyError, TypeError, AttributeError):
            self._again(one, delivery.data[:200].decode(errors="replace"))
            return
        del self._pending[token]
        if sequence > self.highest_sequence.get(stream, 0):
            self.highest_sequence[stream] = sequence
        elif not duplicate:
            self.highest_sequence[stream] = sequence
            for callback in self._gone_back:
                callback(stream)
        if one.repeats:
            self._repeating -= 1
            if self._repeating == 0:
                self.repeating_since = None
        self._room.set()
        if one.on_ack is not None:
            one.on_ack()

    def _again(self, one: _Pending, error: str) -> None:
        """Have a message sent again after a while, longer each time."""
        one.error = error
        wait = min(RETRY_FIRST_SECONDS * 2**one.repeats, RETRY_MAX_SECONDS)
        one.due = asyncio.get_running_loop().time() + wait
        if one.repeats == 0:
            if self._repeating == 0:
                self.repeating_since = datetime.now(UTC)
            self._repeating += 1
        one.repeats = min(one.repeats + 1, 16)

    def on_gone_back(self, callback: Callable[[str], None]) -> Callable[[], None]:
        """Call `callback` with the name of each stream in which a new message was given a sequence that an older one
        had: the broker's store went back. Who only compares where the stream stands misses that when it has grown past
        that position again. Returns the function that ends it."""
        self._gone_back.append(callback)
        return lambda: self._gone_back.remove(callback)

    @property
    def published(self) -> int:
        """How many messages there have been, for `settled`."""
        return self._count

    async def settled(self, since: int) -> None:
        """Until all that was published between `since` and now has been acknowledged, or given up."""
        last = self._count
        while any(since < int(token) <= last for token in self._pending):
            self._room.clear()
            await self._room.wait()

    def _forget(self, one: _Pending) -> None:
        for token, pending in list(self._pending.items()):
            if pending is one:
                del self._pending[token]
                self._room.set()
                if one.repeats:
                    self._repeating -= 1
                    if self._repeating == 0:
                        self.repeating_since = None

    def _on_reconnect(self) -> None:
        # What was on its way when the connection broke has no ack coming; the ids make the repeats harmless.
        now = asyncio.get_running_loop().time()
        for one in self._pending.values():
            one.due = min(one.due, now + RETRY_FIRST_SECONDS)

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        looked_whole = loop.time()
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = loop.time()
            if not self._pending or not (self._repeating or now - looked_whole > 0.5):
                continue
            looked_whole = now
            for token, one in [(token, one) for token, one in self._pending.items() if one.due <= now]:
                if not self._bus.connected:
                    self._again(one, "NATS is not connected")
                    continue
                self._again(one, one.error)
                log.debug("publish.again", subject=one.subject, error=one.error, repeats=one.repeats)
                if token not in self._pending:
                    continue
                try:
                    await self._bus.client.publish(
                        one.subject, one.body, reply=f"{self._inbox}.{token}", headers=one.headers
                    )
                    # Sent: its ack has the usual time to come.
                    one.due = loop.time() + ACK_TIMEOUT_SECONDS
                except (NatsError, OSError) as error:
                    one.error = str(error) or type(error).__name__

    async def close(self) -> None:
        """Give up what has not been acknowledged: the rows in Postgres say that it is owed."""
        self._closed = True
        if self._unhook is not None:
            self._unhook()
            self._unhook = None
        if self._sweeper is not None:
            await end([self._sweeper])
        if self._subscription is not None:
            await self._bus.unsubscribe(self._subscription)
            self._subscription = None
