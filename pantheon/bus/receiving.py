"""Receiving: what the broker sends, handed to whoever hears it without a detour.

nats-py (2.16) takes each message out of its buffer by itself (which moves the rest of the buffer), parses its headers,
puts it into a queue, and has a task of the subscription take it out again. Here the messages of a read are found one
after the other, and given to a plain function; headers are parsed when somebody asks for them: a third of the time for
each message, of which a step has two at the orchestrator and two at its agent. Everything else that a server says
(INFO, PING, errors, messages of other subscriptions) goes the library's own way.
"""

from collections.abc import Callable
from typing import Any

import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.protocol.parser import Parser

log = structlog.get_logger()


class Heard(Msg):
    """A message whose headers are read when they are asked for."""

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


Hearer = Callable[[Msg], None]


def _headers_of(client: Any, raw: bytes) -> dict[str, str] | None:
    """As the library reads them. It does so in a coroutine, which waits for nothing but to say an error."""
    reading = client._process_headers(raw)
    try:
        reading.send(None)
    except StopIteration as done:
        found: dict[str, str] | None = done.value
        return found
    reading.close()
    return None


class Receiver(Parser):
    """In the library's parser's place: what is not for a hearer is given to that one, a whole line or message at a
    time, so that between two of them its buffer is empty."""

    def reset(self) -> None:
        super().reset()
        # How much must have come before it is worth looking again.
        self._wanted = 0

    def hear(self, subscription: Subscription, hearer: Hearer) -> None:
        """Have the messages of a subscription, which has no callback, given to a function that waits for nothing."""
        # Those that came before anybody could hear them.
        while not subscription._pending_queue.empty():
            message = subscription._pending_queue.get_nowait()
            subscription._pending_size -= len(message.data)
            subscription._pending_queue.task_done()
            _tell(hearer, message)
        subscription.hearer = hearer  # type: ignore[attr-defined]

    async def parse(self, data: bytes = b"") -> None:
        if self.buf:
            self.buf.extend(data)
            if len(self.buf) < self._wanted:
                return
            data = bytes(self.buf)
            self.buf.clear()
        self._wanted = 0
        position = 0
        while True:
            position, end = self._heard(data, position)
            if not end:
                break
            await super().parse(data[position:end])
            position = end
        self.buf.extend(data[position:])

    def _heard(self, data: bytes, position: int) -> tuple[int, int]:
        """Hand over the messages from a position on. Returns where it met what is the library's, and where that ends
        (0: it is not whole yet, or there is nothing more)."""
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
                self._wanted = after + 2 - position
                return position, 0
            subscription = subscriptions.get(sid)
            hearer = getattr(subscription, "hearer", None)
            if hearer is None:
                return position, after + 2
            position, body = after + 2, begin + header_size
            stats["in_msgs"] += 1
            stats["in_bytes"] += after - body
            subscription._received += 1
            message = Heard(
                client,
                sid,
                words[1].decode(),
                words[3].decode() if len(words) > fixed else "",
                data[body:after],
                data[begin:body] if header_size else None,
            )
            _tell(hearer, message)
        return position, 0


def _tell(hearer: Hearer, message: Msg) -> None:
    try:
        hearer(message)
    except Exception:
        # A mistake of ours must not end the reading for everybody else.
        log.exception("nats.hearer_failed", subject=message.subject)
