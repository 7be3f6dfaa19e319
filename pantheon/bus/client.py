"""Client: nats-py's connection, made safe to cancel, with short cuts for the messages that every step has several of.

nats-py (2.16) mistakes the cancellation of its caller for its own in some calls: while a publish waits for the socket,
while a connection is closed, and, on Python 3.11, in every `asyncio.wait_for` whose result comes in the same iteration
of the loop. The caller then goes on as if it had not been cancelled, and is not cancelled again: a signal, or the end
of a task, is lost.

Its `publish` takes each message through four coroutines; `post` writes one that needs no waiting without any of them.
An arriving message goes through a queue and a task of its subscription; `subscribe_direct` calls a function instead
(`pantheon.bus.receiving`).
"""

import asyncio
from typing import Any

import nats.aio.client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from pantheon.bus.receiving import OnMessage, Receiver

# The client library's own connection, for modules that take any: discovery and configuration.
NatsClient = nats.aio.client.Client
# More than this is a broker, or a network, that does not keep up: then publishers wait.
MUCH_PENDING_BYTES = 1024 * 1024


def parse_header_lines(raw: bytes) -> dict[str, str]:
    """Headers as the library reads them, which checks each letter of a name."""
    found: dict[str, str] = {}
    for line in raw.split(b"\r\n"):
        name, colon, value = line.partition(b":")
        key = name.strip()
        # A name is one word of ASCII; any other line is no header.
        if colon and key.isascii() and len(key.split(None, 1)) <= 1:
            found[key.decode()] = value.strip().decode("utf-8", "replace")
    return found


class Client(nats.aio.client.Client):
    """nats-py's client. A cancellation that comes during a call is raised when the call returns; its effect stays."""

    def __init__(self) -> None:
        super().__init__()
        self._ps = self._receiver = Receiver(self)

    async def publish(
        self, subject: str, payload: bytes = b"", reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        before = _cancellations()
        await super().publish(subject, payload, reply=reply, headers=headers)
        _raise_if_more(before)

    async def request(self, *args: Any, **options: Any) -> Msg:
        before = _cancellations()
        reply = await super().request(*args, **options)
        _raise_if_more(before)
        return reply

    async def subscribe(self, *args: Any, **options: Any) -> Subscription:
        before = _cancellations()
        subscription = await super().subscribe(*args, **options)
        _raise_if_more(before)
        return subscription

    async def subscribe_direct(self, subject: str, on_message: OnMessage, *, queue: str = "") -> Subscription:
        """Call a plain function, which must not block, with every message on `subject`, in the order of arrival."""
        subscription = await self.subscribe(subject, queue=queue)
        self._receiver.attach(subscription, on_message)
        return subscription

    async def flush(self, *args: Any, **options: Any) -> None:
        before = _cancellations()
        await super().flush(*args, **options)
        _raise_if_more(before)

    async def close(self) -> None:
        before = _cancellations()
        await super().close()
        _raise_if_more(before)

    def post(self, subject: str, body: bytes, *, reply: str = "", headers: dict[str, str] | None = None) -> bool:
        """Publish without waiting. False where nothing was sent and `publish` must be awaited: there is no connection,
        much is pending, the message is too large, or a header has more than one line.

        It ends as `publish` does (nats-py 2.16): in the list that the flusher writes next.
        """
        try:
            flusher, queue = self._flusher_task, self._flush_queue
            if (
                self._status != self.CONNECTED
                or self._pending_data_size > MUCH_PENDING_BYTES
                or len(body) > self._max_payload
                or flusher is None
                or flusher.done()
                or queue is None
                or (frame := publication(subject, reply, headers, body)) is None
            ):
                return False
            self._pending.append(frame)
            self._pending_data_size += len(frame)
            self.stats["out_msgs"] += 1
            self.stats["out_bytes"] += len(body)
            if queue.empty():
                queue.put_nowait(asyncio.get_running_loop().create_future())
        except AttributeError:
            # Another version of the library, with other internals.
            return False
        return True

    async def _process_pong(self) -> None:
        # nats-py 2.16 sets the result of a flush that was given up when its PONG comes late, and the error ends the
        # reading silently: the connection receives nothing more until it is found stale.
        if self._pongs and self._pongs[0].done():
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        # What is pending for a connection that is gone is not sent any more. It would be written to the closed
        # transport, for which the asyncio of Python 3.12 and 3.13.0 raises a TypeError.
        if not self.is_connected:
            self._pending, self._pending_data_size = [], 0
        await super()._close(status, do_cbs)

    _parse_header_lines = staticmethod(parse_header_lines)


def publication(subject: str, reply: str, headers: dict[str, str] | None, body: bytes) -> bytes | None:
    """PUB, or HPUB where there are headers, as bytes (NATS client protocol); None where a header has several lines.

    `subject` and `reply` must be subjects: nothing is checked here.
    """
    if not headers:
        return b"PUB %b %b %d\r\n%b\r\n" % (subject.encode(), reply.encode(), len(body), body)
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if lines.count("\n") != len(headers) or lines.count("\r") != len(headers):
        return None
    head = f"NATS/1.0\r\n{lines}\r\n".encode()
    sizes = (len(head), len(head) + len(body))
    return b"HPUB %b %b %d %d\r\n%b%b\r\n" % (subject.encode(), reply.encode(), *sizes, head, body)


def _cancellations() -> int:
    """How often the current task has been cancelled; `asyncio.timeout` takes its own cancellations back."""
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0


def _raise_if_more(before: int) -> None:
    if _cancellations() > before:
        raise asyncio.CancelledError
