"""QuickClient: the client library's connection, with a short way for the messages that every step has several of.

The library's own `publish` passes each message through four coroutines; a message that needs no waiting needs none of
them. What is not plain takes the library's way.
"""

import asyncio

from nats.aio.client import Client

# More than this is a broker, or a network, that does not keep up: then whoever publishes waits.
MUCH_PENDING_BYTES = 1024 * 1024


class QuickClient(Client):
    def post(self, subject: str, body: bytes, *, reply: str = "", headers: dict[str, str] | None = None) -> bool:
        """Publish without waiting; False where nothing was sent, and `publish` must be awaited: there is no connection,
        much is pending, the message is too large, or a header holds more than a line.

        It ends as `Client.publish` does (nats-py 2.16): in the list of what the flusher writes next.
        """
        try:
            flusher, queue = self._flusher_task, self._flush_queue
            if (
                self._status != Client.CONNECTED
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
