"""Publisher: JetStream publishes, pipelined, each repeated until the broker has acknowledged it.

The client library's own asynchronous publish costs a future, a timer and a random token for each message; here an ack
is found by a counter in its subject, and one sweep repeats everything that was not acknowledged.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog
from nats.errors import Error as NatsError
from nats.errors import MaxPayloadError
from pydantic_core import from_json

from pantheon.bus.connection import Bus, Delivery, Subscription
from pantheon.runtime.periodic import PeriodicTask
from protocol.errors import BusError

log = structlog.get_logger()

SWEEP_SECONDS = 0.05
# Where nothing is being repeated, the sweep checks for acks that are late this often.
SWEEP_IDLE_SECONDS = 0.5
# Messages without an ack stay in memory; beyond this many, publishers wait.
MAX_PENDING = 50_000


@dataclass(frozen=True)
class PublishRetries:
    """When a message is published again. A refused one waits `first_seconds`, then twice as long each time.

    An ack comes within a millisecond: one that takes longer than `ack_timeout_seconds` is lost, or the broker is away.
    """

    ack_timeout_seconds: float = 5.0
    first_seconds: float = 0.1
    max_seconds: float = 5.0


DEFAULT_RETRIES = PublishRetries()


class _Pending:
    """One message without an ack. `due` is when it is sent again, by the loop's clock."""

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

    A message id (`Nats-Msg-Id`) makes the repeats of one publish one message in the stream. The publisher starts with
    the first message; `close` stops it.
    """

    def __init__(self, bus: Bus, retries: PublishRetries | None = None) -> None:
        self._bus = bus
        self._retries = retries or DEFAULT_RETRIES
        self._ack_timeout_seconds = self._retries.ack_timeout_seconds
        self._inbox = bus.new_inbox()
        self._prefix = len(self._inbox) + 1
        self._count = 0
        self._pending: dict[str, _Pending] = {}
        self._repeating = 0
        # What the broker has refused messages for, until all are acknowledged.
        self._refusals: set[str] = set()
        self._room = asyncio.Event()
        self._subscription: Subscription | None = None
        self._starting = asyncio.Lock()
        self._sweep_task = PeriodicTask("publish-again", self._sweep, seconds=SWEEP_SECONDS, jitter=0, at_start=False)
        self._swept_at = 0.0
        self._unhook: Callable[[], None] | None = None
        self._gone_back: list[Callable[[str], None]] = []
        # By stream: the highest sequence that the broker has acknowledged. A broker that later stands lower lost some.
        self.highest_sequence: dict[str, int] = {}
        # Since when at least one message is being repeated, for want of an acknowledgement.
        self.repeating_since: datetime | None = None

    def on_gone_back(self, callback: Callable[[str], None]) -> Callable[[], None]:
        """Call `callback` with a stream in which a new message got a sequence that an older one had: the broker's store
        went back. (Comparing where the stream stands misses this once the stream has grown past that point again.)
        Returns the function that ends this."""
        self._gone_back.append(callback)
        return lambda: self._gone_back.remove(callback)

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
        message = _Pending(
            subject,
            body,
            self._checked(subject, body, message_id, headers),
            lambda: None if acknowledged.done() else acknowledged.set_result(None),
        )
        try:
            if give_up_seconds is None:
                await self._send(message)
                await acknowledged
                return
            async with asyncio.timeout(give_up_seconds):
                await self._send(message)
                await acknowledged
        except TimeoutError:
            raise BusError(
                f"JetStream did not acknowledge a message for {subject} within {give_up_seconds:g} s: {message.error}"
            ) from None
        finally:
            # Cancelled or given up: the caller no longer waits for it.
            if not acknowledged.done() or acknowledged.cancelled():
                self._forget(message)

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
        await self._send(_Pending(subject, body, self._checked(subject, body, message_id, headers), on_ack))

    def _checked(
        self, subject: str, body: bytes, message_id: str | None, headers: dict[str, str] | None
    ) -> dict[str, str] | None:
        """All headers. Raises TooLarge here: a server that receives too much, headers counted, cuts the connection."""
        every = dict(headers) if headers else {}
        if message_id is not None:
            every["Nats-Msg-Id"] = message_id
        if len(body) + 4096 > self._bus.max_payload:
            # NATS/1.0, a line each of `name: value`, an empty line.
            size = 12 + sum(len(name.encode()) + len(value.encode()) + 4 for name, value in every.items())
            if (size if every else 0) + len(body) > self._bus.max_payload:
                raise self._bus.too_large(subject, body)
        return every or None

    async def _send(self, message: _Pending) -> None:
        if self._subscription is None:
            await self._start()
        while len(self._pending) >= MAX_PENDING:
            self._room.clear()
            await self._room.wait()
        self._count += 1
        token = str(self._count)
        self._pending[token] = message
        message.due = asyncio.get_running_loop().time() + self._ack_timeout_seconds
        reply = f"{self._inbox}.{token}"
        if self._bus.client.post(message.subject, message.body, reply=reply, headers=message.headers):
            return
        try:
            await self._bus.client.publish(message.subject, message.body, reply=reply, headers=message.headers)
        except MaxPayloadError:
            self._pending.pop(token, None)
            raise self._bus.too_large(message.subject, message.body) from None
        except (NatsError, OSError) as error:
            self._repeat_later(message, str(error) or type(error).__name__)

    async def _start(self) -> None:
        async with self._starting:
            if self._subscription is None:
                subscription = await self._bus.subscribe_direct(f"{self._inbox}.*", self._on_ack)
                self._unhook = self._bus.on_reconnect(self._on_reconnect)
                self._sweep_task.start()
                self._subscription = subscription

    def _on_ack(self, delivery: Delivery) -> None:
        token = delivery.subject[self._prefix :]
        message = self._pending.get(token)
        if message is None:
            return
        if not delivery.data:
            # A status and no body: no stream has the subject, or its stream has no leader, at the moment.
            self._repeat_later(message, "no stream keeps the subject")
            return
        try:
            ack = from_json(delivery.data)
            if "error" in ack:
                refusal = str(ack["error"].get("description", ack["error"]))
                if refusal not in self._refusals:
                    self._refusals.add(refusal)
                    log.warning("publish.refused", subject=message.subject, error=refusal)
                self._repeat_later(message, refusal)
                return
            sequence, stream, duplicate = ack["seq"], ack["stream"], ack.get("duplicate", False)
        except (ValueError, KeyError, TypeError, AttributeError):
            self._repeat_later(message, delivery.data[:200].decode(errors="replace"))
            return
        del self._pending[token]
        if sequence > self.highest_sequence.get(stream, 0):
            self.highest_sequence[stream] = sequence
        elif not duplicate:
            self.highest_sequence[stream] = sequence
            for callback in self._gone_back:
                callback(stream)
        if message.repeats:
            self._repeating -= 1
            if self._repeating == 0:
                self.repeating_since = None
                self._refusals.clear()
        self._room.set()
        if message.on_ack is not None:
            message.on_ack()

    def _repeat_later(self, message: _Pending, error: str) -> None:
        """Have a message sent again after a while, longer each time."""
        message.error = error
        wait = min(self._retries.first_seconds * 2**message.repeats, self._retries.max_seconds)
        message.due = asyncio.get_running_loop().time() + wait
        if message.repeats == 0:
            if self._repeating == 0:
                self.repeating_since = datetime.now(UTC)
            self._repeating += 1
        message.repeats = min(message.repeats + 1, 16)

    @property
    def published(self) -> int:
        """How many messages there have been, for `settled`."""
        return self._count

    @property
    def pending(self) -> int:
        """How many messages have no ack yet."""
        return len(self._pending)

    async def settled(self, since: int) -> None:
        """Until all that was published between `since` and now has been acknowledged, or given up."""
        last = self._count
        while any(since < int(token) <= last for token in self._pending):
            self._room.clear()
            await self._room.wait()

    def _forget(self, message: _Pending) -> None:
        for token, pending in list(self._pending.items()):
            if pending is message:
                del self._pending[token]
                self._room.set()
                if message.repeats:
                    self._repeating -= 1
                    if self._repeating == 0:
                        self.repeating_since = None

    def _on_reconnect(self) -> None:
        # Acks that were under way when the connection broke do not come; the ids make the repeats harmless.
        now = asyncio.get_running_loop().time()
        for message in self._pending.values():
            message.due = min(message.due, now + self._retries.first_seconds)

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        if not self._pending or not (self._repeating or now - self._swept_at > SWEEP_IDLE_SECONDS):
            return
        self._swept_at = now
        for token, message in [(token, message) for token, message in self._pending.items() if message.due <= now]:
            if not self._bus.connected:
                self._repeat_later(message, "NATS is not connected")
                continue
            self._repeat_later(message, message.error)
            log.debug("publish.again", subject=message.subject, error=message.error, repeats=message.repeats)
            if token not in self._pending:
                continue
            try:
                await self._bus.client.publish(
                    message.subject, message.body, reply=f"{self._inbox}.{token}", headers=message.headers
                )
                # Sent: its ack has the usual time to come.
                message.due = loop.time() + self._ack_timeout_seconds
            except (NatsError, OSError) as error:
                message.error = str(error) or type(error).__name__

    async def close(self) -> None:
        """Give up what has not been acknowledged: the rows in Postgres record that it is still to be published."""
        if self._unhook is not None:
            self._unhook()
            self._unhook = None
        await self._sweep_task.stop()
        if self._subscription is not None:
            await self._bus.unsubscribe(self._subscription)
            self._subscription = None
