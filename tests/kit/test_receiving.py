"""What a direct subscription receives is what the client library would have received."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import ProtocolError
from nats.protocol.parser import Parser

from pantheon.bus import Bus, Delivery
from pantheon.bus.client import Client
from pantheon.bus.receiving import Receiver
from protocol.errors import BusError
from tests.waiting import until

HEADERS = [
    b"NATS/1.0\r\nNats-Msg-Id: a:1\r\ntraceparent: 00-x\r\n\r\n",
    b"NATS/1.0 408 Request Timeout\r\nNats-Pending-Messages: 3\r\nNats-Pending-Bytes: 0\r\n\r\n",
    b"NATS/1.0 100 Idle Heartbeat\r\n\r\n",
    b"NATS/1.0\r\n\r\n",
    b"NATS/1.0\r\nno word: x\r\nempty:\r\n\r\n",
]


def message(sid: int, reply: bytes, headers: bytes, body: bytes) -> bytes:
    words = [b"a.b", b"%d" % sid, *([reply] if reply else [])]
    if headers:
        return b"HMSG %b %d %d\r\n%b%b\r\n" % (b" ".join(words), len(headers), len(headers) + len(body), headers, body)
    return b"MSG %b %d\r\n%b\r\n" % (b" ".join(words), len(body), body)


messages = st.builds(
    message,
    # 1 is direct, 2 has a callback, 3 is gone.
    st.sampled_from([1, 1, 1, 2, 3]),
    st.sampled_from([b"", b"_INBOX.x.1", b"$JS.ACK.S.C.1.2.3.4.5"]),
    st.sampled_from([b"", b"", *HEADERS]),
    st.one_of(st.binary(max_size=40), st.sampled_from([b"", b"\r\n", b"MSG a 1 5\r\nhello\r\n", b"x" * 5000])),
)
others = st.sampled_from([b"PING\r\n", b"PONG\r\n", b"+OK\r\n", b"-ERR 'slow consumer'\r\n", b'INFO {"x":1}\r\n'])


class Listening(Client):
    """A client without a connection; `received` is what came, in its order."""

    def __init__(self, parser: type[Parser]) -> None:
        super().__init__()
        self._ps = self.parser = parser(self)
        self.received: list[Any] = []
        self.subscriptions = {sid: Subscription(self, sid, "a.*") for sid in (1, 2)}
        self._subs = dict(self.subscriptions)
        if isinstance(self.parser, Receiver):
            self.parser.attach(self.subscriptions[1], self.receive)

    def receive(self, message: Msg) -> None:
        self.received.append((message.sid, message.subject, message.reply, message.data, message.headers))

    async def read(self, data: bytes) -> None:
        await self.parser.parse(data)
        for subscription in self.subscriptions.values():
            while not subscription._pending_queue.empty():
                self.receive(subscription._pending_queue.get_nowait())

    async def _process_ping(self) -> None:
        self.received.append("ping")

    async def _process_pong(self) -> None:
        self.received.append("pong")

    async def _process_err(self, err_msg: str) -> None:
        self.received.append(err_msg)

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        self.received.append(info)


def of(client: Listening, sid: int) -> list[Any]:
    return [entry for entry in client.received if isinstance(entry, tuple) and entry[0] == sid]


@given(st.lists(st.one_of(messages, messages, others), max_size=12), st.lists(st.integers(1, 200), max_size=12))
def test_the_same_comes_of_the_same_bytes_however_they_are_cut(sent: list[bytes], cuts: list[int]) -> None:
    data = b"".join(sent)
    pieces, begin = [], 0
    for cut in cuts:
        pieces.append(data[begin : begin + cut])
        begin += cut
    pieces.append(data[begin:])

    async def both() -> tuple[Listening, Listening]:
        ours, theirs = Listening(Receiver), Listening(Parser)
        for piece in pieces:
            for client in (ours, theirs):
                await client.read(piece)
        return ours, theirs

    ours, theirs = asyncio.run(both())
    for sid in (1, 2):
        assert of(ours, sid) == of(theirs, sid)
        assert ours.subscriptions[sid].delivered == theirs.subscriptions[sid].delivered
    assert [entry for entry in ours.received if not isinstance(entry, tuple)] == [
        entry for entry in theirs.received if not isinstance(entry, tuple)
    ]
    assert (ours.stats["in_msgs"], ours.stats["in_bytes"]) == (theirs.stats["in_msgs"], theirs.stats["in_bytes"])
    assert bytes(ours.parser.buf) == b""


@pytest.mark.parametrize("line", [b"FOO bar\r\n", b"MSG\r\n", b"MSG a.b 1 x\r\n", b"HMSG a.b 1 2\r\n"])
async def test_what_no_server_sends_ends_the_connection_as_before(line: bytes) -> None:
    for parser in (Receiver, Parser):
        client = Listening(parser)
        await client.read(message(1, b"", b"", b"before"))
        with pytest.raises(ProtocolError):
            await client.read(line)
        assert [entry[3] for entry in of(client, 1)] == [b"before"]


async def test_headers_may_be_read_late_and_set() -> None:
    client = Listening(Receiver)
    kept: list[Msg] = []
    client.parser.attach(client.subscriptions[2], kept.append)  # type: ignore[attr-defined]
    await client.read(message(2, b"", HEADERS[0], b"x") + message(2, b"", b"", b"y"))
    assert kept[0].headers == {"Nats-Msg-Id": "a:1", "traceparent": "00-x"}
    assert kept[0].header == kept[0].headers
    assert kept[1].headers is None
    kept[1].headers = {"a": "b"}
    assert kept[1].headers == {"a": "b"}


async def test_a_function_that_fails_with_one_message_gets_the_next_and_so_do_others(bus: Bus) -> None:
    received: list[bytes] = []
    beside: list[bytes] = []

    def on_message(delivery: Delivery) -> None:
        received.append(delivery.data)
        if delivery.data == b"1":
            raise ValueError("no")

    async def other(delivery: Delivery) -> None:
        beside.append(delivery.data)

    subscription = await bus.subscribe_direct("some.subject", on_message)
    await bus.subscribe("some.subject", other)
    for number in range(3):
        await bus.publish("some.subject", b"%d" % number)
    await until(lambda: len(received) == 3 and len(beside) == 3, "all of them")
    assert received == beside == [b"0", b"1", b"2"]
    await bus.unsubscribe(subscription)
    await bus.publish("some.subject", b"3")
    await until(lambda: len(beside) == 4)
    assert received == [b"0", b"1", b"2"]


async def test_a_closed_connection_has_no_subscriptions(bus: Bus) -> None:
    await bus.close()
    with pytest.raises(BusError):
        await bus.subscribe_direct("some.subject", lambda _: None)
