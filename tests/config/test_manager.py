"""ConfigManager: which layer wins, what changes live, what is refused, against real files, Consul and NATS."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest
import structlog.testing
from nats.aio.client import Client
from pydantic import Field, model_validator

from pantheon.config import AgentConfig, ConfigManager, NatsSource, Source, make_live_source
from pantheon.config.consul_source import ConsulSource
from pantheon.config.layers import Setting
from pantheon.discovery.consul_api import ConsulAddress, ConsulApi
from pantheon.runtime.settings import MeshSettings
from protocol.errors import SettingsError
from tests.waiting import PATIENCE_SECONDS, until


class Server(Protocol):
    url: str
    port: int

    def stop(self) -> None: ...
    def start(self) -> None: ...


def manager_of(**values: Any) -> ConfigManager[AgentConfig]:
    return ConfigManager(AgentConfig, **{"name": "llm_agent", "instance_id": "i1", "environ": {}, **values})


def warnings_in(logs: list[Any]) -> list[Any]:
    return [entry for entry in logs if entry["log_level"] == "warning"]


def rewrite(path: Path, text: str) -> None:
    """As editors do: a new file replaces the old one."""
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(path)


# A manager that waits for a store's first layer to the end of its time is not back before the test gives up.
LONG_SECONDS = 10 * PATIENCE_SECONDS


def long_waiting(source: Source, **values: Any) -> ConfigManager[AgentConfig]:
    return manager_of(live=source, first_layer_seconds=LONG_SECONDS, **values)


def test_each_layer_wins_over_the_one_before_and_each_value_knows_where_it_came_from(tmp_path: Path) -> None:
    file = tmp_path / "mesh.yaml"
    file.write_text("max_concurrency: 5\nlog_level: debug\noptions: {tone: dry}\n")
    manager = manager_of(
        defaults={"max_concurrency": 2, "drain_grace_seconds": 7, "options": {"tone": "plain", "size": 1}},
        file=file,
        environ={"MAX_CONCURRENCY": "9"},
    )
    config = manager.current
    assert (config.max_concurrency, config.log_level, config.drain_grace_seconds) == (9, "debug", 7)
    assert config.options == {"tone": "dry", "size": 1}
    assert (config.option("tone"), config.option("absent", 3)) == ("dry", 3)
    assert str(manager.explain("max_concurrency")) == "max_concurrency = 9 from environment (MAX_CONCURRENCY)"
    assert str(manager.explain("log_level")) == f"log_level = 'debug' from file ({file})"
    assert manager.explain("options.size").layer == "defaults"
    assert manager.explain("heartbeat_interval_seconds").layer == "defaults"
    assert manager.explain("name").layer == "identity"
    with pytest.raises(KeyError, match="no setting 'nonsense'"):
        manager.explain("nonsense")


@pytest.mark.parametrize(
    ("text", "environ", "message"),
    [
        ("max_concurrency: none", {}, r"mesh.yaml: max_concurrency='none' is not allowed"),
        ("nonsense: 1", {}, "'nonsense' is not allowed: there is no such setting"),
        ("name: other_agent", {}, "'name' is not allowed: it is given by the agent itself"),
        ("", {"MAX_CONCURRENCY": "0"}, "MAX_CONCURRENCY='0' is not allowed"),
        ("options: 3", {}, "options=3 is not allowed"),
    ],
)
def test_what_is_wrong_at_the_start_is_one_line(
    tmp_path: Path, text: str, environ: dict[str, str], message: str
) -> None:
    file = tmp_path / "mesh.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=message) as caught:
        manager_of(file=file, environ=environ)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_an_error_and_so_is_a_wrong_name(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"absent.yaml cannot be read: No such file"):
        manager_of(file=tmp_path / "absent.yaml")
    with pytest.raises(SettingsError, match="name: String should match"):
        manager_of(name="Not A Name")
    assert AgentConfig.of("llm_agent", "i1", max_concurrency=2).max_concurrency == 2


async def test_a_changed_file_is_reported_and_a_broken_one_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "mesh.toml"
    file.write_text("max_concurrency = 5")
    calls: list[tuple[int, int, frozenset[str]]] = []
    with structlog.testing.capture_logs() as logs:
        async with manager_of(file=file) as manager:
            forget = manager.on_change(
                lambda old, new, keys: calls.append((old.max_concurrency, new.max_concurrency, keys))
            )
            changes = manager.changes()
            rewrite(file, "max_concurrency = 6\noptions.tone = 'dry'")
            change = await asyncio.wait_for(anext(changes), PATIENCE_SECONDS)
            assert (change.old.max_concurrency, change.new.max_concurrency) == (5, 6)
            assert change.changed_keys == {"max_concurrency", "options.tone"}
            rewrite(file, "max_concurrency = ")
            await until(lambda: len(warnings_in(logs)) == 1)
            file.unlink()
            await until(lambda: len(warnings_in(logs)) == 2)
            assert manager.current.max_concurrency == 6
            forget()
            forget()
            rewrite(file, "options.tone = 'dry'")
            change = await asyncio.wait_for(anext(changes), PATIENCE_SECONDS)
            assert change.changed_keys == {"max_concurrency"}
            assert manager.current.max_concurrency == 16
        with pytest.raises(StopAsyncIteration):
            await asyncio.wait_for(anext(changes), PATIENCE_SECONDS)
    assert calls == [(5, 6, frozenset({"max_concurrency", "options.tone"}))]
    assert [found async for found in manager.changes()] == []


class Paired(AgentConfig):
    low: int = Field(default=1)
    high: int = Field(default=9)

    @model_validator(mode="after")
    def _ordered(self) -> "Paired":
        if self.low > self.high:
            raise ValueError("low must not exceed high")
        return self


class Silent:
    """A source that a test speaks for."""

    layer = "live"

    async def follow(self, on_layer: Callable[[Any], None]) -> None:
        on_layer({})
        await asyncio.Event().wait()

    async def close(self) -> None:
        pass


async def test_a_wrong_live_value_is_refused_alone_and_the_rest_of_its_layer_comes_into_effect() -> None:
    manager = ConfigManager(Paired, name="llm_agent", instance_id="i1", environ={}, live=Silent())
    with structlog.testing.capture_logs() as logs:
        async with manager:
            manager.set_layer("live", {"max_concurrency": Setting(4, "k1"), "log_level": Setting("debug", "k2")})
            wrong = {
                "max_concurrency": Setting("lots", "k1"),
                "log_level": Setting("error", "k2"),
                "instance_id": Setting("other", "k3"),
                "nonsense": Setting(1, "k4"),
            }
            manager.set_layer("live", wrong)
            manager.set_layer("live", wrong)
            assert (manager.current.max_concurrency, manager.current.log_level) == (4, "error")
            assert manager.current.instance_id == "i1"
            assert sorted(entry["key"] for entry in warnings_in(logs)) == ["instance_id", "max_concurrency", "nonsense"]
            manager.set_layer("live", {"low": Setting(20, "k5"), "log_level": Setting("info", "k2")})
            assert (manager.current.low, manager.current.log_level) == (1, "error")
            assert "do not go together" in logs[-1]["event"]
            manager.set_layer("live", {})
            assert manager.current.max_concurrency == 16


async def test_a_failing_callback_or_source_harms_no_other() -> None:
    class Failing:
        layer = "live"
        tries = 0

        async def follow(self, on_layer: Callable[[Any], None]) -> None:
            self.tries += 1
            if self.tries == 1:
                raise RuntimeError("not mine")
            on_layer({"max_concurrency": Setting(3, "k")})
            await asyncio.Event().wait()

        async def close(self) -> None:
            pass

    def fail(*_: object) -> None:
        raise RuntimeError("not mine")

    with structlog.testing.capture_logs() as logs:
        async with manager_of(live=Failing()) as manager:
            manager.on_change(fail)
            await until(lambda: manager.current.max_concurrency == 3)
    assert len([entry for entry in logs if entry["log_level"] == "error"]) >= 1


async def test_consuls_values_come_live_and_stay_while_consul_is_away(own_consul_server: Server) -> None:
    api = ConsulApi(ConsulAddress(port=own_consul_server.port))

    async def put(key: str, value: str) -> None:
        async with httpx.AsyncClient(base_url=own_consul_server.url, trust_env=False, timeout=PATIENCE_SECONDS) as http:
            (await http.put(f"/v1/kv/{key}", content=value)).raise_for_status()

    await put("config/llm_agent", '{"max_concurrency": 3, "options": {"tone": "dry"}}')
    await put("config/llm_agent_2/max_concurrency", "99")
    with structlog.testing.capture_logs() as logs:
        async with long_waiting(ConsulSource(api, "llm_agent"), environ={"MAX_CONCURRENCY": "5"}) as manager:
            assert manager.current.max_concurrency == 3
            assert str(manager.explain("options.tone")) == "options.tone = 'dry' from consul (config/llm_agent)"
            await put("config/llm_agent/max_concurrency", "8")
            await until(lambda: manager.current.max_concurrency == 8)
            await put("config/llm_agent/max_concurrency", "many")
            await put("config/llm_agent/bytes", "\x00")
            await until(lambda: len(warnings_in(logs)) == 2)
            assert manager.current.max_concurrency == 8
            own_consul_server.stop()
            await until(lambda: len(warnings_in(logs)) == 3)
            assert manager.current.max_concurrency == 8
            await asyncio.to_thread(own_consul_server.start)
            await put("config/llm_agent/max_concurrency", "2")
            await until(lambda: manager.current.max_concurrency == 2)


async def test_without_consul_an_agent_starts_at_once() -> None:
    api = ConsulApi(ConsulAddress(port=1))
    with structlog.testing.capture_logs() as logs:
        async with asyncio.timeout(PATIENCE_SECONDS), long_waiting(ConsulSource(api, "llm_agent")) as manager:
            assert manager.current.max_concurrency == 16
    assert len(warnings_in(logs)) == 1


async def test_without_a_bucket_in_nats_an_agent_starts_at_once(client: Client) -> None:
    """Most meshes have no such bucket."""
    async with asyncio.timeout(PATIENCE_SECONDS), long_waiting(NatsSource(client, "llm_agent")) as manager:
        assert manager.current.max_concurrency == 16


async def test_the_nats_buckets_values_come_live(client: Client) -> None:
    js = client.jetstream()
    bucket = await js.create_key_value(bucket="config")
    await bucket.put("llm_agent", b'{"max_concurrency": 3}')
    await bucket.put("other_agent", b'{"max_concurrency": 4}')
    with structlog.testing.capture_logs() as logs:
        async with long_waiting(NatsSource(client, "llm_agent")) as manager:
            assert str(manager.explain("max_concurrency")) == "max_concurrency = 3 from nats (llm_agent)"
            await bucket.put("llm_agent.max_concurrency", b"6")
            await until(lambda: manager.current.max_concurrency == 6)
            await bucket.put("llm_agent.options", b"\xff")
            await bucket.put("llm_agent.options.tone", b"dry")
            await until(lambda: manager.current.option("tone") == "dry")
            await bucket.delete("llm_agent.max_concurrency")
            await until(lambda: manager.current.max_concurrency == 3)
            await bucket.delete("absent")
    assert [entry["key"] for entry in warnings_in(logs)] == ["llm_agent.options"]


def test_the_environment_of_the_process_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "MAX_CONCURRENCY", "11")
    manager = ConfigManager(AgentConfig, name="llm_agent", instance_id="i1")
    assert manager.current.max_concurrency == 11


async def test_the_live_source_follows_the_choice_of_discovery(monkeypatch: pytest.MonkeyPatch, client: Client) -> None:
    monkeypatch.delenv("CONSUL_HTTP_ADDR", raising=False)
    assert make_live_source(MeshSettings.load(), client, "llm_agent").layer == "nats"
    monkeypatch.setenv("CONSUL_HTTP_ADDR", "127.0.0.1:1")
    source = make_live_source(MeshSettings.load(), client, "llm_agent")
    assert source.layer == "consul"
    await source.close()
