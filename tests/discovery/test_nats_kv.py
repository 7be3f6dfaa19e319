"""Discovery by the KV bucket, against a real broker that is also stopped, killed and wiped."""

import asyncio
import json
import signal
from collections.abc import Callable
from typing import Any, Protocol

import nats.errors
import nats.js.errors
import pytest
import structlog.testing
from nats.aio.client import Client
from nats.js.api import StreamInfo

from pantheon.discovery import DiscoveryDenied, DiscoveryUnavailable, NatsKvDiscovery, ensure_bucket
from pantheon.discovery.kv_watch import BucketWatch, explain, parse_ack_subject
from protocol import InstanceRecord
from protocol.errors import DiscoveryError
from tests.discovery.conftest import IMPATIENT_SECONDS
from tests.waiting import PATIENCE_SECONDS, until

Record = Callable[..., InstanceRecord]


class Server(Protocol):
    def start(self) -> None: ...
    def stop(self, how: signal.Signals = ...) -> None: ...
    def signal(self, which: signal.Signals) -> None: ...
    def wipe(self) -> None: ...


def warnings_in(logs: list[Any]) -> list[Any]:
    return [entry for entry in logs if entry["log_level"] == "warning"]


async def test_what_is_registered_is_found_as_it_was_registered(
    client: Client, other_client: Client, record: Record
) -> None:
    await ensure_bucket(client.jetstream())
    async with NatsKvDiscovery(client) as agent, NatsKvDiscovery(other_client) as orchestrator:
        registry = await orchestrator.registry()
        assert not registry.stale
        assert registry.serving("generate_content") == ()
        mine = record(metadata={"model": "openai:x"}, task_types=("generate_content", "summarize_content"))
        registration = await agent.register(mine)
        assert registration.active
        await until(lambda: registry.serving("generate_content") == ("llm_agent",))
        assert registry.instances() == (mine,)
        assert registry.task_types() == {"generate_content", "summarize_content"}
        # A later registry finds it too, from the bucket's content.
        assert (await orchestrator.registry()).instances("llm_agent") == (mine,)


async def test_the_value_on_the_wire_is_the_contracts(client: Client, record: Record) -> None:
    await ensure_bucket(client.jetstream())
    async with NatsKvDiscovery(client) as discovery:
        await discovery.register(record())
        bucket = await client.jetstream().key_value("agents")
        entry = await bucket.get("llm_agent.one")
        assert entry.value is not None
        assert json.loads(entry.value) == {
            "protocol": 1,
            "name": "llm_agent",
            "instance_id": "one",
            "task_types": ["generate_content"],
            "max_concurrency": 4,
            "version": "1.2.3",
            "status": "ready",
            "metadata": {"model": "none"},
        }
        assert (await bucket.status()).ttl == 15


async def test_a_draining_instance_is_listed_but_does_not_serve(client: Client, record: Record) -> None:
    await ensure_bucket(client.jetstream())
    async with NatsKvDiscovery(client) as discovery:
        registry = await discovery.registry()
        registration = await discovery.register(record())
        await until(lambda: registry.serving("generate_content"))
        await registration.update(record(status="draining"))
        await until(lambda: not registry.serving("generate_content"))
        assert [found.status for found in registry.instances("llm_agent")] == ["draining"]
        with pytest.raises(ValueError, match="cannot become"):
            await registration.update(record(instance_id="two"))


async def test_a_clean_end_is_seen_at_once(client: Client, other_client: Client, record: Record) -> None:
    await ensure_bucket(client.jetstream())
    async with NatsKvDiscovery(client) as agent, NatsKvDiscovery(other_client) as orchestrator:
        registry = await orchestrator.registry()
        registration = await agent.register(record())
        await until(lambda: len(registry) == 1)
        version = registry.version
        await registration.close()
        await registration.close()
        # At once: not when its 15 s are over.
        assert await asyncio.wait_for(registry.changed(version), 10) > version
        assert registry.instances() == ()


async def test_an_instance_that_falls_silent_leaves_after_its_ttl_and_a_living_one_stays(
    client: Client, other_client: Client, record: Record
) -> None:
    await ensure_bucket(client.jetstream(), ttl_seconds=4)
    async with NatsKvDiscovery(client, ttl_seconds=4) as discovery:
        registry = await discovery.registry()
        await discovery.register(record(instance_id="alive"))
        value = record(instance_id="dead").model_dump_json().encode()
        started = asyncio.get_running_loop().time()
        await other_client.jetstream().publish("$KV.agents.llm_agent.dead", value)
        await until(lambda: len(registry) == 2)
        await until(lambda: len(registry) == 1)
        assert asyncio.get_running_loop().time() - started > 3.9
        assert [found.instance_id for found in registry.instances()] == ["alive"]
        assert not registry.stale


async def test_a_registry_that_starts_late_knows_how_old_an_entry_is(
    client: Client, other_client: Client, record: Record
) -> None:
    await ensure_bucket(client.jetstream(), ttl_seconds=12)
    async with NatsKvDiscovery(client, ttl_seconds=12) as discovery:
        value = record(instance_id="dead").model_dump_json().encode()
        await other_client.jetstream().publish("$KV.agents.llm_agent.dead", value)
        alive = await discovery.register(record(instance_id="alive"))
        started = asyncio.get_running_loop().time()
        await asyncio.sleep(8)
        # Ages are counted from the newest entry.
        await alive.update(record(instance_id="alive"))
        registry = await discovery.registry()
        assert len(registry) == 2
        await until(lambda: len(registry) == 1)
        # 12 s and a margin of 1.5 s from the put, not from the moment when it was read, which would be 20 s and more:
        # between the two is what a busy machine may take.
        assert asyncio.get_running_loop().time() - started < 8 + 12


async def test_without_a_bucket_an_agent_waits_and_is_registered_once_it_is_made(
    client: Client, record: Record
) -> None:
    with structlog.testing.capture_logs() as logs:
        async with NatsKvDiscovery(client, load_timeout_seconds=IMPATIENT_SECONDS) as discovery:
            registration = await discovery.register(record())
            assert not registration.active
            registry = await discovery.registry()
            await until(lambda: registry.stale)
            assert "does not exist" in str(registry.degraded_reason)
            await ensure_bucket(client.jetstream())
            await until(lambda: registration.active)
            await until(lambda: registry.serving("generate_content") and not registry.stale)
    assert len(warnings_in(logs)) == 2  # one of the registration, one of the registry


async def test_a_bucket_deleted_and_made_anew_is_followed_again_and_no_instance_leaves_meanwhile(
    client: Client, other_client: Client, record: Record
) -> None:
    js = client.jetstream()
    await ensure_bucket(js)
    async with NatsKvDiscovery(client) as agent, NatsKvDiscovery(other_client) as orchestrator:
        registry = await orchestrator.registry()
        registration = await agent.register(record())
        await until(lambda: len(registry) == 1)
        await js.delete_key_value("agents")
        await until(lambda: registry.stale)
        assert registry.serving("generate_content") == ("llm_agent",)
        await ensure_bucket(js)
        await until(lambda: not registry.stale)
        await until(lambda: registration.active)
        await agent.register(record(instance_id="two", task_types=("summarize_content",)))
        await until(lambda: registry.serving("summarize_content"))
        assert len(registry) == 2


async def test_a_broker_killed_and_wiped_leaves_the_last_known_registry_until_it_is_back(
    client: Client, other_client: Client, nats_server: Server, record: Record
) -> None:
    await ensure_bucket(client.jetstream())
    async with NatsKvDiscovery(client) as agent, NatsKvDiscovery(other_client) as orchestrator:
        registry = await orchestrator.registry()
        registration = await agent.register(record())
        await until(lambda: len(registry) == 1)
        nats_server.stop()
        await until(lambda: registry.stale)
        nats_server.wipe()
        await asyncio.sleep(1)
        nats_server.start()
        await until(lambda: client.is_connected and other_client.is_connected)
        await ensure_bucket(client.jetstream())
        await until(lambda: registration.active)
        await until(lambda: not registry.stale)
        assert registry.serving("generate_content") == ("llm_agent",)


async def test_a_broker_that_hangs_longer_than_the_ttl_is_no_reason_to_drop_an_instance(
    client: Client, other_client: Client, nats_server: Server, record: Record
) -> None:
    await ensure_bucket(client.jetstream(), ttl_seconds=3)
    async with (
        NatsKvDiscovery(client, ttl_seconds=3) as agent,
        NatsKvDiscovery(other_client, ttl_seconds=3) as orchestrator,
    ):
        registry = await orchestrator.registry()
        await agent.register(record())
        await until(lambda: len(registry) == 1)
        sizes: set[int] = set()
        registry.on_change(lambda: sizes.add(len(registry)))
        nats_server.signal(signal.SIGSTOP)
        await until(lambda: registry.stale)
        await asyncio.sleep(5)
        nats_server.signal(signal.SIGCONT)
        await until(lambda: not registry.stale)
        await asyncio.sleep(1)
        assert registry.serving("generate_content") == ("llm_agent",)
        assert sizes == {1}


async def test_what_arrives_while_the_stream_is_asked_is_no_sign_of_another_bucket(client: Client) -> None:
    """With a thousand instances there is always something newer than the broker's response."""

    class Listener:
        def __init__(self) -> None:
            self.keys: list[str] = []
            self.loaded = asyncio.Event()

        def value_put(self, key: str, value: bytes, sent_at_ns: int) -> None:
            self.keys.append(key)

        def value_deleted(self, key: str) -> None: ...

        def watch_loaded(self) -> None:
            self.loaded.set()

        def watch_lost(self, reason: str) -> None: ...

    listener = Listener()

    class Overtaken(BucketWatch):
        async def _stream_info(self) -> StreamInfo:
            info = await super()._stream_info()
            if listener.loaded.is_set():
                await client.jetstream().publish("$KV.agents.llm_agent.newer", b"{}")
                await until(lambda: bool(listener.keys), "the newer value")
            return info

    await ensure_bucket(client.jetstream())
    watch = Overtaken(client, "agents", listener)
    running = asyncio.create_task(watch.run())
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await listener.loaded.wait()
        assert await watch.confirm()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_watch_that_lost_its_consumer_without_a_word_is_made_again(
    client: Client, other_client: Client, record: Record
) -> None:
    js = client.jetstream()
    await ensure_bucket(js)
    async with NatsKvDiscovery(client) as agent, NatsKvDiscovery(other_client) as orchestrator:
        registry = await orchestrator.registry()
        for consumer in await js.consumers_info("KV_agents"):
            await js.delete_consumer("KV_agents", consumer.name)
        await agent.register(record())
        await until(lambda: len(registry) == 1)


async def test_a_broker_without_jetstream_is_named(plain_nats_client: Client, record: Record) -> None:
    with structlog.testing.capture_logs() as logs:
        async with NatsKvDiscovery(plain_nats_client, load_timeout_seconds=IMPATIENT_SECONDS) as discovery:
            registration = await discovery.register(record())
            registry = await discovery.registry()
            await until(lambda: registry.stale)
            assert not registration.active
    assert "JetStream" in str(registry.degraded_reason)
    assert len(warnings_in(logs)) == 2
    with pytest.raises(DiscoveryError, match="JetStream"):
        await ensure_bucket(plain_nats_client.jetstream())


async def test_what_needs_the_broker_is_tried_on_after_the_connection_is_gone_and_closing_is_silent(
    client: Client, other_client: Client, record: Record
) -> None:
    await ensure_bucket(client.jetstream())
    discovery = NatsKvDiscovery(other_client)
    registration = await discovery.register(record())
    await discovery.registry()
    await other_client.close()
    await registration.update(record(status="draining"))
    assert not registration.active
    await discovery.close()


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (nats.js.errors.NotFoundError(), DiscoveryUnavailable, "does not exist"),
        (nats.errors.NoRespondersError(), DiscoveryUnavailable, "JetStream does not answer"),
        (TimeoutError(), DiscoveryUnavailable, "did not answer within"),
        (nats.errors.Error("Permissions Violation for Publish"), DiscoveryDenied, "refuses access"),
        (nats.errors.ConnectionClosedError(), DiscoveryUnavailable, "connection closed"),
        (DiscoveryDenied("as it is"), DiscoveryDenied, "as it is"),
    ],
)
def test_the_librarys_errors_have_one_meaning_each(error: Exception, kind: type[Exception], message: str) -> None:
    explained = explain(error, "agents")
    assert type(explained) is kind
    assert message in explained.message


async def test_records_that_do_not_validate_are_ignored_with_one_warning_a_key(client: Client, record: Record) -> None:
    js = client.jetstream()
    await ensure_bucket(js)
    bad = {
        "llm_agent.json": b"{not json",
        "llm_agent.name": record(instance_id="other").model_dump_json().encode(),
        "llm_agent.proto": record(instance_id="proto")
        .model_dump_json()
        .replace('"protocol":1', '"protocol":2')
        .encode(),
        "llm_agent.type": b'{"protocol": 1, "name": "llm_agent", "instance_id": "type", "task_types": ["Not a type"]}',
        "odd.key.with.dots": b"\xff\xfe",
    }
    with structlog.testing.capture_logs() as logs:
        async with NatsKvDiscovery(client) as discovery:
            registry = await discovery.registry()
            for _ in range(3):
                for key, value in bad.items():
                    await js.publish(f"$KV.agents.{key}", value)
            await discovery.register(record())
            await until(lambda: len(registry) == 1)
    assert sorted(entry["key"] for entry in warnings_in(logs)) == sorted(bad)


async def test_the_minimal_value_of_a_foreign_agent_is_enough(client: Client) -> None:
    js = client.jetstream()
    await ensure_bucket(js)
    async with NatsKvDiscovery(client) as discovery:
        registry = await discovery.registry()
        value = {
            "protocol": 1,
            "name": "uppercase_agent",
            "instance_id": "u-1",
            "task_types": ["uppercase"],
            "max_concurrency": 1,
            "version": "0.1.0",
            "status": "ready",
            "metadata": {},
            "later": True,
        }
        await js.publish("$KV.agents.uppercase_agent.u-1", json.dumps(value).encode())
        await until(lambda: registry.serving("uppercase") == ("uppercase_agent",))


async def test_metadata_of_a_foreign_agent_may_be_any_object(client: Client) -> None:
    """The contract leaves its values free; an agent with a number among them was not seen."""
    js = client.jetstream()
    await ensure_bucket(js)
    async with NatsKvDiscovery(client) as discovery:
        registry = await discovery.registry()
        value = {"protocol": 1, "name": "any_agent", "instance_id": "a-1", "task_types": ["uppercase"]}
        own = {"model": "small", "context": 8192, "fast": True, "languages": ["de", "en"], "owner": None}
        await js.publish("$KV.agents.any_agent.a-1", json.dumps({**value, "metadata": own}).encode())
        await until(lambda: registry.serving("uppercase") == ("any_agent",))
        (found,) = registry.instances("any_agent")
        assert found.metadata == {"model": "small", "context": "8192", "fast": "true", "languages": '["de","en"]'}


async def test_making_the_bucket_twice_or_over_another_configuration_ends_with_the_contracts(client: Client) -> None:
    js = client.jetstream()
    await js.create_key_value(bucket="agents", ttl=600, history=5)
    await ensure_bucket(js)
    await ensure_bucket(js)
    bucket = await js.key_value("agents")
    status = await bucket.status()
    assert (status.ttl, status.history) == (15, 1)


def test_a_delivery_is_read_with_and_without_a_domain() -> None:
    plain = parse_ack_subject("$JS.ACK.KV_agents.c1.1.7.3.1700000000000000000.2")
    assert (plain.stream_sequence, plain.consumer_sequence, plain.sent_at_ns, plain.pending) == (
        7,
        3,
        1700000000000000000,
        2,
    )
    assert parse_ack_subject("$JS.ACK.hub.acc.KV_agents.c1.1.7.3.1700000000000000000.2.rnd") == plain
    with pytest.raises(ValueError, match="reply subject"):
        parse_ack_subject("_INBOX.x")
