"""Publisher: JetStream publishes, pipelined, each repeated until the broker has acknowledged it."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

import structlog
from nats.errors import Error as NatsError
from nats.errors import MaxPayloadError
from nats.js.api import PubAck
from nats.js.errors import APIError

from pantheon.bus.connection import Bus
from protocol.errors import BusError

log = structlog.get_logger()

# An ack comes within a millisecond; one that has not come in this time is not coming (or the broker is away).
ACK_TIMEOUT_SECONDS = 5.0
RETRY_FIRST_SECONDS = 0.1
RETRY_MAX_SECONDS = 5.0


class Publisher:
    """`publish` waits for the ack of one message; `send` does not, and calls back when it has come.

    A message id (`Nats-Msg-Id`) makes the repeats of one publish one message in the stream.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._tasks: set[asyncio.Task[None]] = set()
        # By stream: the highest sequence that the broker has acknowledged. A broker that later stands lower lost some.
        self.highest_sequence: dict[str, int] = {}
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
        all_headers = self._checked(subject, body, message_id, headers)
        loop = asyncio.get_running_loop()
        end = None if give_up_seconds is None else loop.time() + give_up_seconds
        wait = RETRY_FIRST_SECONDS
        while True:
            try:
                future = await self._bus.js.publish_async(subject, body, headers=dict(all_headers) or None)
                left = ACK_TIMEOUT_SECONDS if end is None else max(0.01, min(ACK_TIMEOUT_SECONDS, end - loop.time()))
                self._note(await asyncio.wait_for(future, left))
                return
            except MaxPayloadError:
                raise self._bus.too_large(subject, body) from None
            except (TimeoutError, NatsError, APIError, OSError) as error:
                if end is not None and loop.time() + wait >= end:
                    raise BusError(
                        f"JetStream did not acknowledge a message for {subject} within {give_up_seconds:g} s: "
                        f"{error or type(error).__name__}"
                    ) from error
                log.debug("publish.again", subject=subject, error=str(error) or type(error).__name__)
                await asyncio.sleep(wait)
                wait = min(wait * 2, RETRY_MAX_SECONDS)

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
        all_headers = self._checked(subject, body, message_id, headers)

        def repeat() -> None:
            if not self._tasks:
                self.repeating_since = datetime.now(UTC)
            task = asyncio.create_task(self._repeat(subject, body, message_id, headers, on_ack), name="publish-again")
            self._tasks.add(task)
            task.add_done_callback(self._repeated)

        try:
            future = await self._bus.js.publish_async(subject, body, headers=all_headers or None)
        except MaxPayloadError:
            raise self._bus.too_large(subject, body) from None
        except (NatsError, OSError):
            repeat()
            return
        timer = asyncio.get_running_loop().call_later(ACK_TIMEOUT_SECONDS, future.cancel)

        def done(finished: "asyncio.Future[PubAck]") -> None:
            timer.cancel()
            if finished.cancelled() or finished.exception() is not None:
                repeat()
                return
            self._note(finished.result())
            if on_ack is not None:
                on_ack()

        future.add_done_callback(done)

    def _checked(
        self, subject: str, body: bytes, message_id: str | None, headers: dict[str, str] | None
    ) -> dict[str, str]:
        """All headers. Raises TooLarge here: a server that is sent too much, headers counted, cuts the connection."""
        every = dict(headers or {})
        if message_id is not None:
            every["Nats-Msg-Id"] = message_id
        # NATS/1.0, a line each of `name: value`, an empty line.
        size = 12 + sum(len(name.encode()) + len(value.encode()) + 4 for name, value in every.items()) if every else 0
        if size + len(body) > self._bus.max_payload:
            raise self._bus.too_large(subject, body)
        return every

    def _note(self, ack: PubAck) -> None:
        if ack.seq > self.highest_sequence.get(ack.stream, 0):
            self.highest_sequence[ack.stream] = ack.seq

    def _repeated(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not self._tasks:
            self.repeating_since = None
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("publish.failed", error=str(error))

    async def _repeat(
        self,
        subject: str,
        body: bytes,
        message_id: str | None,
        headers: dict[str, str] | None,
        on_ack: Callable[[], None] | None,
    ) -> None:
        await asyncio.sleep(RETRY_FIRST_SECONDS)
        await self.publish(subject, body, message_id=message_id, headers=headers)
        if on_ack is not None:
            on_ack()

    async def close(self) -> None:
        """Give up what is still being repeated: the rows in Postgres say that it is owed."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
