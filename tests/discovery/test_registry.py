"""The registry in memory: what it returns, when it reports a change, and what it costs."""

import asyncio
from collections.abc import Callable

import pytest
import structlog.testing
from nats.aio.client import Client

from pantheon.discovery import NatsKvDiscovery, Registry, make_discovery
from pantheon.discovery.consul_discovery import ConsulDiscovery
from pantheon.runtime.settings import MeshSettings
from protocol import InstanceRecord
from tests.waiting import PATIENCE_SECONDS

Record = Callable[..., InstanceRecord]


async def test_an_agent_serves_while_one_ready_instance_of_it_does(record: Record) -> None:
    registry = Registry()
    registry.apply([record("b_agent", "1"), record("a_agent", "1"), record("a_agent", "2")])
    assert registry.serving("generate_content") == ("a_agent", "b_agent")
    registry.apply([record("a_agent", "1", status="draining")])
    assert registry.serving("generate_content") == ("a_agent", "b_agent")
    registry.apply(removals=[("a_agent", "2")])
    assert registry.serving("generate_content") == ("b_agent",)
    assert [found.instance_id for found in registry.instances("a_agent")] == ["1"]
    registry.apply([record("b_agent", "1", task_types=("other",))])
    assert registry.serving("generate_content") == ()
    assert registry.task_types() == {"other"}
    assert registry.get("b_agent", "1") == record("b_agent", "1", task_types=("other",))
    assert (registry.get("absent", "1"), registry.instances("absent")) == (None, ())


async def test_what_is_the_same_is_no_change(record: Record) -> None:
    registry = Registry()
    assert registry.apply([record()])
    version = registry.version
    assert not registry.apply([record()], removals=[("absent", "1")])
    assert registry.version == version
    assert (len(registry), registry.instances()) == (1, (record(),))


async def test_a_change_wakes_who_waits_for_it_and_who_comes_late_need_not_wait(record: Record) -> None:
    registry = Registry()
    waiting = asyncio.create_task(registry.changed(registry.version))
    cancelled = asyncio.create_task(registry.changed(registry.version))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.sleep(0)
    registry.apply([record()])
    assert await waiting == registry.version
    assert await registry.changed(registry.version - 1) == registry.version
    closing = asyncio.create_task(registry.changed(registry.version))
    await asyncio.sleep(0)
    async with registry:
        pass
    await registry.close()
    assert await asyncio.wait_for(closing, PATIENCE_SECONDS) == registry.version


async def test_changes_that_come_together_call_back_once_and_a_failing_callback_harms_no_other(record: Record) -> None:
    registry = Registry()
    calls: list[int] = []

    def fail() -> None:
        raise RuntimeError("not mine")

    forget_failing = registry.on_change(fail)
    forget = registry.on_change(lambda: calls.append(registry.version))
    with structlog.testing.capture_logs() as logs:
        registry.apply([record(instance_id="1")])
        registry.apply([record(instance_id="2")])
        await asyncio.sleep(0)
    assert calls == [2]
    assert [entry["log_level"] for entry in logs] == ["error"]
    forget_failing()
    forget()
    forget()
    registry.apply([record(instance_id="3")])
    await asyncio.sleep(0)
    assert calls == [2]


async def test_a_lost_source_is_reported_once_and_keeps_what_is_known(record: Record) -> None:
    registry = Registry()
    assert registry.stale
    registry.apply([record()])
    registry.mark_fresh()
    assert (registry.stale, registry.degraded_reason) == (False, None)
    assert registry.mark_stale("gone")
    assert not registry.mark_stale("still gone")
    assert registry.degraded_reason == "still gone"
    assert registry.serving("generate_content") == ("llm_agent",)


async def test_reading_costs_one_lookup_however_many_there_are(record: Record) -> None:
    registry = Registry()
    registry.apply(record(f"agent_{number}", str(number % 7)) for number in range(1000))
    # What was sorted once is handed out again, and not made for each reader.
    assert registry.serving("generate_content") is registry.serving("generate_content")
    assert registry.instances() is registry.instances()
    assert registry.instances("agent_7") is registry.instances("agent_7")
    assert len(registry.serving("generate_content")) == len(registry.instances()) == 1000


async def test_consul_is_chosen_where_its_address_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONSUL_HTTP_ADDR", raising=False)
    client = Client()
    assert isinstance(make_discovery(MeshSettings.load(), client), NatsKvDiscovery)
    monkeypatch.setenv("CONSUL_HTTP_ADDR", "127.0.0.1:8500")
    async with make_discovery(MeshSettings.load(), client) as chosen:
        assert isinstance(chosen, ConsulDiscovery)
