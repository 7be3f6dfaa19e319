"""Client: the client library's connection, whose waits end when the task that waits is cancelled, and with a short way
for the messages that every step has several of.

nats-py (2.16) takes the cancellation of its caller for its own in some places: while a publish waits for the socket,
while a connection is closed, and, on Python 3.11, in every `asyncio.wait_for` whose answer comes in the same moment.
The caller then goes on as if nobody had asked it to end, and is never asked again: a signal, or a cancelled task, is
lost.

Its `publish` passes each message through four coroutines. A message that needs no waiting needs none of them: `post`.
What arrives passes through a queue and a task of its subscription; `hear` does without (`receiving`).
"""

import asyncio
from typing import Any

import nats.aio.client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from pantheon.bus.receiving import Hearer, Receiver

# More than this is a broker, or a network, that does not keep up: then whoever publishes waits.
MUCH_PENDING_BYTES = 1024 * 1024


class Client(nats.aio.client.Client):
    """nats-py's client. What a call did is done; a cancellation that came meanwhile is raised when it returns."""

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
        answer = await super().request(*args, **options)
        _raise_if_more(before)
        return answer

    async def subscribe(self, *args: Any, **options: Any) -> Subscription:
        before = _cancellations()
        subscription = await super().subscribe(*args, **options)
        _raise_if_more(before)
        return subscription

    async def hear(self, subject: str, hearer: Hearer, *, queue: str = "") -> Subscription:
        """Have every message on `subject` given to a function that waits for nothing, in the order of their arrival."""
        subscription = await self.subscribe(subject, queue=queue)
        self._receiver.hear(subscription, hearer)
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
        """Publish without waiting; False where nothing was sent, and `publish` must be awaited: there is no connection,
        much is pending, the message is too large, or a header holds more than a line.

        It ends as `publish` does (nats-py 2.16): in the list of what the flusher writes next.
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
            # Another version of the library, made in another way.
            return False
        return True

    async def _process_pong(self) -> None:
        # nats-py 2.16 tells a flush that was given up of its late PONG, and the error ends its reading, in silence: the
        # connection hears nothing more until it is found stale.
        if self._pongs and self._pongs[0].done():
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        # What waits for a connection that is gone is not sent any more. It would be written to the closed transport,
        # for which the asyncio of Python 3.12 and 3.13.0 raises a TypeError.
        if not self.is_connected:
            self._pending, self._pending_data_size = [], 0
        await super()._close(status, do_cbs)

    @staticmethod
    def _parse_header_lines(raw: bytes) -> dict[str, str]:
        # In the library's place, which looks at each letter of a name.
        found: dict[str, str] = {}
        for line in raw.split(b"\r\n"):
            name, colon, value = line.partition(b":")
            key = name.strip()
            # A name is one word of ASCII; what is none is no header.
            if colon and key.isascii() and len(key.split(None, 1)) <= 1:
                found[key.decode()] = value.strip().decode("utf-8", "replace")
        return found


def publication(subject: str, reply: str, headers: dict[str, str] | None, body: bytes) -> bytes | None:
    """PUB, or HPUB where there are headers, as bytes (NATS client protocol); None where a header is more than a line.

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
    """How often the current task has been asked to end; `asyncio.timeout` takes its own back."""
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0


def _raise_if_more(before: int) -> None:
    if _cancellations() > before:
        raise asyncio.CancelledError
