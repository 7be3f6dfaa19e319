"""Receiving: calls a plain function with each message of a direct subscription, straight from the read buffer.

nats-py (2.16) takes each message out of its buffer by itself (which moves the rest of the buffer), parses its headers,
puts it into a queue, and has a task of the subscription take it out again. Here the messages of one read are found one
after the other and handed to a function; headers are parsed when they are first used. That takes a third of the time
for each message, of which a step has two at the orchestrator and two at its agent. Everything else that a server sends
(INFO, PING, errors, messages of other subscriptions) takes the library's own way.
"""

from collections.abc import Callable
from typing import Any

import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.protocol.parser import Parser

log = structlog.get_logger()

OnMessage = Callable[[Msg], None]


class LazyMessage(Msg):
    """A message whose headers are parsed when they are first used."""

    def __init__(self, client: Any, sid: int, subject: str, reply: str, data: bytes, raw_headers: bytes | None) -> None:
        self._client = client
        self._sid = sid
        self.subject = subject
        self.reply = reply
        self.data = data
        self._metadata = None
        self._ackd = False
        self._raw_headers = raw_headers
        self._headers: dict[str, str] | None = None

    @property
    def headers(self) -> dict[str, str] | None:
        if self._raw_headers is not None:
            raw, self._raw_headers = self._raw_headers, None
            self._headers = _headers_of(self._client, raw)
        return self._headers

    @headers.setter
    def headers(self, headers: dict[str, str] | None) -> None:
        self._raw_headers, self._headers = None, headers


def _headers_of(client: Any, raw: bytes) -> dict[str, str] | None:
    """Headers as the library reads them. It does so in a coroutine, which waits for nothing but to report an error."""
    reading = client._process_headers(raw)
    try:
        reading.send(None)
    except StopIteration as done:
        found: dict[str, str] | None = done.value
        return found
    reading.close()
    return None


class Receiver(Parser):
    """Replaces the library's parser. What is not for a direct subscription is passed to the library a whole line or
    message at a time, so that the library's buffer is empty between two of them."""

    def reset(self) -> None:
        super().reset()
        # How many bytes must have come before the buffer is worth parsing again.
        self._needed = 0

    def attach(self, subscription: Subscription, on_message: OnMessage) -> None:
        """Make a subscription, which has no callback of the library's, a direct one."""
        # Messages that arrived before this call.
        while not subscription._pending_queue.empty():
            message = subscription._pending_queue.get_nowait()
            subscription._pending_size -= len(message.data)
            subscription._pending_queue.task_done()
            _call(on_message, message)
        subscription.on_message = on_message  # type: ignore[attr-defined]

    async def parse(self, data: bytes = b"") -> None:
        if self.buf:
            self.buf.extend(data)
            if len(self.buf) < self._needed:
                return
            data = bytes(self.buf)
            self.buf.clear()
        self._needed = 0
        position = 0
        while True:
            position, end = self._deliver(data, position)
            if not end:
                break
            await super().parse(data[position:end])
            position = end
        self.buf.extend(data[position:])

    def _deliver(self, data: bytes, position: int) -> tuple[int, int]:
        """Deliver the direct messages from a position on. Returns the position of the first thing that is the
        library's, and where that ends (0: it is not complete yet, or there is nothing more)."""
        client = self.nc
        subscriptions, stats = client._subs, client.stats
        size = len(data)
        while position < size:
            end = data.find(b"\r\n", position)
            if end < 0:
                return position, 0
            words = data[position:end].split()
            begin = end + 2
            try:
                # MSG subject sid [reply] size; HMSG subject sid [reply] size-of-headers size (NATS client protocol).
                if words[0] == b"MSG":
                    fixed, header_size = 4, 0
                elif words[0] == b"HMSG":
                    fixed, header_size = 5, int(words[-2])
                else:
                    return position, begin
                sid, after = int(words[2]), begin + int(words[-1])
                if not fixed <= len(words) <= fixed + 1:
                    return position, begin
            except (ValueError, IndexError):
                return position, begin
            if after + 2 > size:
                self._needed = after + 2 - position
                return position, 0
            subscription = subscriptions.get(sid)
            on_message = getattr(subscription, "on_message", None)
            if on_message is None:
                return position, after + 2
            position, body = after + 2, begin + header_size
            stats["in_msgs"] += 1
            stats["in_bytes"] += after - body
            subscription._received += 1
            message = LazyMessage(
                client,
                sid,
                words[1].decode(),
                words[3].decode() if len(words) > fixed else "",
                data[body:after],
                data[begin:body] if header_size else None,
            )
            _call(on_message, message)
        return position, 0


def _call(on_message: OnMessage, message: Msg) -> None:
    try:
        on_message(message)
    except Exception:
        # A mistake in one function must not end the reading for all subscriptions.
        log.exception("nats.hearer_failed", subject=message.subject)
