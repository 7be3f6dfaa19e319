"""Bus: one process's connection to NATS, which reconnects for ever."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Self

import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as NatsSubscription
from nats.errors import (
    ConnectionClosedError,
    ConnectionDrainingError,
    ConnectionReconnectingError,
    FlushTimeoutError,
    MaxPayloadError,
    NoRespondersError,
    NoServersError,
    OutboundBufferLimitError,
)
from nats.errors import Error as NatsError
from nats.errors import TimeoutError as NatsTimeoutError
from nats.js import JetStreamContext

from pantheon.bus.client import Client
from pantheon.runtime.urls import nats_servers, redact
from protocol.errors import BusError, TooLarge

# One message as NATS delivered it: `.subject`, `.data`, `.headers`, `.reply`, `.ack()`, `.nak()`, `.in_progress()`.
Delivery = Msg
Subscription = NatsSubscription

log = structlog.get_logger()

# Long enough that a broker which restarts does not meet a storm, short enough that no task is noticeably late.
RECONNECT_WAIT_SECONDS = 0.5
CONNECT_TIMEOUT_SECONDS = 2
# A broker that hangs without closing the connection is noticed after about three of these.
PING_INTERVAL_SECONDS = 10
# What is published while the broker is away is kept here; beyond it, publishing fails and the caller retries.
PENDING_BYTES = 64 * 1024 * 1024

CREDENTIALS = {"user", "password", "token", "user_credentials"}

CONNECTION_ERRORS = (
    ConnectionClosedError,
    ConnectionDrainingError,
    ConnectionReconnectingError,
    FlushTimeoutError,
    NatsTimeoutError,
    NoRespondersError,
    NoServersError,
    OutboundBufferLimitError,
    OSError,
    asyncio.TimeoutError,
)


class Bus:
    """One connection. `async with await Bus.connect(...)`, or `connect` and `close`.

    `generation` counts the connections made: what must be sent again after a reconnect compares it.
    """

    def __init__(self, client: Client, url: str) -> None:
        self.client = client
        self.url = url
        self.js: JetStreamContext = client.jetstream(timeout=5)
        self.generation = 1
        self.closing = False
        self._reconnected: list[Callable[[], None]] = []

    @classmethod
    async def connect(
        cls,
        url: str,
        *,
        name: str,
        wait_seconds: float | None = None,
        options: dict[str, Any] | None = None,
    ) -> Self:
        """Connect, trying again until `wait_seconds` have passed (None: for ever). Raises BusError.

        `options` are further ones of the client library: credentials, TLS.
        """
        try:
            servers = nats_servers(url)
        except ValueError as error:
            raise BusError(f"NATS_URL: {error}") from None
        # Those of the settings count before those of the URL.
        credentials: dict[str, Any] = {} if CREDENTIALS & set(options or {}) else servers.options
        made: list[Self] = []
        last_error = "no answer"
        warned = False

        async def on_error(error: Exception) -> None:
            nonlocal last_error, warned
            last_error = redact(str(error)) or type(error).__name__
            if not made:
                if not warned and wait_seconds is None:
                    warned = True
                    log.warning("nats.waiting", url=str(servers), error=last_error)
            elif not isinstance(error, CONNECTION_ERRORS):
                log.warning("nats.error", error=last_error)

        async def on_disconnect() -> None:
            if made and not made[0].client.is_closed and not made[0].closing:
                log.warning("nats.disconnected", url=str(servers))

        async def on_reconnect() -> None:
            if made:
                made[0]._on_reconnect()

        client = Client()
        connecting = client.connect(
            servers=list(servers.urls),
            name=name,
            allow_reconnect=True,
            max_reconnect_attempts=-1,
            reconnect_time_wait=RECONNECT_WAIT_SECONDS,  # type: ignore[arg-type]
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            ping_interval=PING_INTERVAL_SECONDS,
            max_outstanding_pings=2,
            pending_size=PENDING_BYTES,
            # Subjects are made by `protocol.subjects` of names that were checked, and so are requesters' reply_to.
            skip_subject_validation=True,
            error_cb=on_error,
            disconnected_cb=on_disconnect,
            reconnected_cb=on_reconnect,
            **credentials,
            **(options or {}),
        )
        try:
            async with asyncio.timeout(wait_seconds):
                await connecting
        except (TimeoutError, NatsError, OSError, ValueError) as error:
            if not isinstance(error, TimeoutError):
                last_error = redact(str(error)) or type(error).__name__
            raise BusError(
                f"no NATS server answers at {servers} ({last_error}): check NATS_URL, or start one with 'pantheon up'"
            ) from None
        bus = cls(client, url)
        made.append(bus)
        return bus

    def _on_reconnect(self) -> None:
        self.generation += 1
        log.info("nats.reconnected", url=redact(self.url))
        for callback in self._reconnected:
            callback()

    def on_reconnect(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` after each reconnect; returns the function that ends this."""
        self._reconnected.append(callback)
        return lambda: self._reconnected.remove(callback)

    @property
    def connected(self) -> bool:
        return self.client.is_connected

    @property
    def max_payload(self) -> int:
        """The size of the largest message that the broker carries, in bytes, headers included."""
        return int(self.client.max_payload)

    def too_large(self, subject: str, body: bytes) -> TooLarge:
        return TooLarge(
            f"message of {len(body)} bytes for {subject} exceeds the broker's max_payload of {self.max_payload} bytes"
        )

    async def publish(
        self, subject: str, body: bytes, *, headers: dict[str, str] | None = None, reply: str = ""
    ) -> None:
        """Publish on core NATS: at most once, and no error where there is no subscriber. Raises BusError, TooLarge."""
        try:
            await self.client.publish(subject, body, reply=reply, headers=headers)
        except MaxPayloadError:
            raise self.too_large(subject, body) from None
        except (NatsError, OSError) as error:
            raise BusError(f"cannot publish on {subject}: {error or type(error).__name__}") from error

    async def publish_quietly(self, subject: str, body: bytes) -> None:
        """Publish what may be lost: progress, events, heartbeats. Errors of the bus are logged, not raised."""
        if self.client.post(subject, body):
            return
        try:
            await self.client.publish(subject, body)
        except (NatsError, OSError) as error:
            log.debug("nats.not_published", subject=subject, error=str(error) or type(error).__name__)

    async def subscribe(
        self, subject: str, handler: Callable[[Delivery], Awaitable[None]], *, queue: str = ""
    ) -> Subscription:
        """Pass every message on `subject` to `handler`, one at a time; it survives reconnects. Raises BusError."""
        try:
            return await self.client.subscribe(subject, queue=queue, cb=handler)
        except (NatsError, OSError) as error:
            raise BusError(f"cannot subscribe to {subject}: {error or type(error).__name__}") from error

    async def subscribe_direct(self, subject: str, on_message: Callable[[Delivery], None]) -> Subscription:
        """As `subscribe`, with a plain function that must not block: the fastest way, for what comes often."""
        try:
            return await self.client.subscribe_direct(subject, on_message)
        except (NatsError, OSError) as error:
            raise BusError(f"cannot subscribe to {subject}: {error or type(error).__name__}") from error

    async def unsubscribe(self, subscription: Subscription) -> None:
        """End a subscription; without a connection it has ended already."""
        try:
            await subscription.unsubscribe()
        except (NatsError, OSError) as error:
            log.debug("nats.unsubscribe", error=str(error) or type(error).__name__)

    async def request(self, subject: str, body: bytes, *, timeout_seconds: float) -> Delivery:
        """Core NATS request-reply. Raises BusError when no reply comes in time."""
        try:
            return await self.client.request(subject, body, timeout=timeout_seconds)
        except NoRespondersError:
            raise BusError(f"nobody answers on {subject}: is an orchestrator running?") from None
        except (TimeoutError, NatsError, OSError) as error:
            raise BusError(f"no answer on {subject} within {timeout_seconds:g} s: {error}") from None

    def new_inbox(self) -> str:
        return str(self.client.new_inbox())

    async def flush(self, timeout_seconds: float = 5) -> None:
        """Wait until the server has seen all that was published. Raises BusError."""
        try:
            # nats-py 2.16 writes a flush's PING ahead of what is still in its own buffer; the second PING comes behind.
            await self.client.flush(timeout=timeout_seconds)
            await self.client.flush(timeout=timeout_seconds)
        except (NatsError, OSError) as error:
            raise BusError(f"NATS did not confirm within {timeout_seconds:g} s: {error}") from error

    async def close(self) -> None:
        """Send what is pending, then close; a broker that is away cannot delay this for long."""
        self.closing = True
        if self.client.is_closed:
            return
        try:
            async with asyncio.timeout(2):
                if self.client.is_connected:
                    await self.client.flush(timeout=1)
        except (NatsError, OSError, TimeoutError):
            pass
        try:
            async with asyncio.timeout(3):
                await self.client.close()
        except (NatsError, OSError, TimeoutError) as error:
            log.debug("nats.close", error=str(error))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()
