"""The short way of publishing, and the quick reading of headers, held against the client library's own."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client as LibraryClient
from nats.protocol.command import hpub_cmd, pub_cmd

from pantheon.bus import Bus, acknowledge
from pantheon.bus.client import MUCH_PENDING_BYTES, parse_header_lines, publication
from pantheon.stack.servers import NatsServer
from protocol import subjects
from protocol.streams import TASKS, task_consumer
from tests.waiting import until

HEADERS = {"Nats-Msg-Id": "01960000-0000-7000-8000-000000000001:1", "Nats-TTL": "300s", "tracestate": "a=ü"}


def test_a_publication_is_what_the_library_would_write() -> None:
    head = b"NATS/1.0\r\n" + "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items()).encode() + b"\r\n"
    assert publication("agent.a.task", "_INBOX.x.1", HEADERS, b"body") == hpub_cmd(
        "agent.a.task", "_INBOX.x.1", head, b"body"
    )
    assert publication("mesh.event.step.ready", "", None, b"{}") == pub_cmd("mesh.event.step.ready", "", b"{}")
    assert publication("a.b", "", {}, b"") == pub_cmd("a.b", "", b"")


@pytest.mark.parametrize("value", ["one\r\nPUB evil 0\r\n", "one\ntwo", "one\rtwo"])
def test_a_header_of_more_than_a_line_is_nothing_for_the_short_way(value: str) -> None:
    assert publication("a.b", "", {"tracestate": value}, b"") is None


NAMES = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=":"), min_size=1)
VALUES = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]))


@given(st.dictionaries(NAMES, VALUES, max_size=4))
def test_headers_are_read_as_the_library_reads_them(headers: dict[str, str]) -> None:
    raw = "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode()
    assert parse_header_lines(raw) == LibraryClient._parse_header_lines(raw)


ODD = (b"", b"\r\n", b"no colon\r\n", b"two words: x\r\n", b"a:b\r\n", b"a:\tb \r\n", b"\xe4: b\r\nc: \xff\r\n")


@pytest.mark.parametrize("raw", ODD)
def test_odd_headers_are_read_as_the_library_reads_them(raw: bytes) -> None:
    assert parse_header_lines(raw) == LibraryClient._parse_header_lines(raw)


async def test_what_is_posted_arrives_in_order_with_what_is_published(bus: Bus) -> None:
    seen: list[tuple[bytes, Any]] = []

    async def on_message(message: Any) -> None:
        seen.append((message.data, message.headers))

    await bus.subscribe("somewhere.*", on_message)
    await bus.flush()
    for number in range(0, 100, 2):
        assert bus.client.post("somewhere.there", b"%d" % number, headers=HEADERS)
        await bus.publish("somewhere.there", b"%d" % (number + 1))
    await until(lambda: len(seen) == 100, "all of them")
    assert [body for body, _ in seen] == [b"%d" % number for number in range(100)]
    assert [headers for _, headers in seen] == [HEADERS, None] * 50


async def test_what_is_not_plain_is_left_to_the_library(bus: Bus) -> None:
    client = bus.client
    assert not client.post("a.b", b"x" * (bus.max_payload + 1))
    assert not client.post("a.b", b"", headers={"x": "one\ntwo"})
    while client.pending_data_size <= MUCH_PENDING_BYTES:
        assert client.post("a.b", b"x" * 100_000)
    assert not client.post("a.b", b"")
    await until(lambda: client.post("a.b", b""), "room again")


async def test_without_a_broker_nothing_is_posted(bus: Bus, broker: NatsServer) -> None:
    await broker.stop()
    await until(lambda: not bus.connected, "the broker is gone")
    assert not bus.client.post("a.b", b"")


async def test_another_version_of_the_library_is_used_in_its_own_way(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.delattr(bus.client, "_flush_queue")
        assert not bus.client.post("a.b", b"")
    assert bus.client.post("a.b", b"")


async def test_a_message_is_acknowledged_once(bus: Bus) -> None:
    await bus.js.publish(subjects.task("test_agent"), b"{}")
    spec = task_consumer("test_agent")
    pulled = await bus.js.pull_subscribe(spec.filter_subject, durable=spec.durable_name, stream=TASKS.name)
    (message,) = await pulled.fetch(1)
    await acknowledge(message)
    assert message.is_acked
    await acknowledge(message)

    async def none_left() -> bool:
        return (await bus.js.stream_info(TASKS.name)).state.messages == 0

    await until(none_left, "the task has left the queue")
