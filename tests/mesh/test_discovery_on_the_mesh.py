"""Discovery through Consul with a whole mesh, agents that die without goodbye, agents with no kit, live settings."""

import asyncio
import json
import os
import signal
import sys
import textwrap
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client

from orchestrator_agent.service import load_library, orchestrator
from pantheon import Mesh, TaskFailed
from pantheon.process.agent_process import AgentProcess
from pantheon.runtime.settings import MeshSettings
from pantheon.stack.servers import ConsulServer
from tests.mesh.agents import Seen, registry_of, words_agent
from tests.mesh.conftest import PlainClient
from tests.waiting import PATIENCE_SECONDS, until

AGENT_FILE = """
from pantheon import Agent
agent = Agent("mortal_agent")
@agent.task("mortal_echo")
async def echo(task: dict) -> dict:
    return task
if __name__ == "__main__":
    agent.run()
"""


@pytest.fixture
def consul_settings(settings: MeshSettings, consul: ConsulServer) -> MeshSettings:
    # Consul tells of an agent when it has written it down: not as soon as NATS.
    return settings.model_copy(update={"consul_http_addr": consul.url, "no_agent_wait_seconds": 20.0})


def _consul(consul: ConsulServer, path: str) -> Any:
    with urllib.request.urlopen(f"{consul.url}{path}", timeout=PATIENCE_SECONDS) as answer:
        return json.load(answer)


async def test_consul_shows_every_instance_as_the_contract_says(
    consul_settings: MeshSettings, consul: ConsulServer, seen: Seen
) -> None:
    async with (
        orchestrator(consul_settings, load_library([])),
        AgentProcess(words_agent(seen), consul_settings) as process,
        Mesh(consul_settings.nats_url) as mesh,
    ):
        assert await mesh.run("uppercase", {"text": "consul"}) == {"text": "CONSUL"}
        entries = await asyncio.to_thread(_consul, consul, "/v1/health/service/words_agent")
        services = [one for one in entries if one["Service"]["ID"] == f"words_agent-{process.instance_id}"]
        assert len(services) == 1
        service = services[0]["Service"]
        assert service["Service"] == "words_agent"
        assert {"mesh-agent", "task:uppercase", "task:repeat"} <= set(service["Tags"])
        assert service["Meta"]["protocol"] == "1"
        assert service["Meta"]["max_concurrency"] == "20"
        assert service["Meta"]["version"]
        assert any(check["Status"] == "passing" for check in services[0]["Checks"])
        orchestrators = await asyncio.to_thread(_consul, consul, "/v1/health/service/orchestrator_agent?passing=1")
        assert any("task:create_blog_post" in one["Service"]["Tags"] for one in orchestrators)
    entries = await asyncio.to_thread(_consul, consul, "/v1/health/service/words_agent")
    assert all(one["Service"]["ID"] != f"words_agent-{process.instance_id}" for one in entries)


async def test_an_agent_that_dies_without_goodbye_leaves_consul_and_the_routing(
    consul_settings: MeshSettings, consul: ConsulServer, tmp_path: Path
) -> None:
    file = tmp_path / "mortal.py"
    file.write_text(textwrap.dedent(AGENT_FILE))
    environment = {
        **os.environ,
        "NATS_URL": consul_settings.nats_url,
        "CONSUL_HTTP_ADDR": consul.url,
        "INSTANCE_ID": f"mortal-{uuid.uuid4().hex[:8]}",
    }
    impatient = consul_settings.model_copy(update={"no_agent_wait_seconds": 0.6})
    async with orchestrator(impatient, load_library([])) as process, Mesh(consul_settings.nats_url) as mesh:
        child = await asyncio.create_subprocess_exec(sys.executable, str(file), env=environment)
        registry = registry_of(process)
        try:
            await until(lambda: "mortal_agent" in registry.serving("mortal_echo"), "the agent in the registry")
            assert await mesh.run("mortal_echo", {"alive": True}) == {"alive": True}
        finally:
            child.send_signal(signal.SIGKILL)
            await child.wait()
        await until(lambda: not registry.serving("mortal_echo"), "the agent gone from the registry")
        with pytest.raises(TaskFailed) as failed:
            await mesh.run("mortal_echo", {"alive": False})
        assert failed.value.code == "unknown_task_type"


class NoKit:
    """An agent made of nats-py and PROTOCOL.md alone."""

    def __init__(self, connection: Client) -> None:
        self.connection = connection
        self.served = 0

    async def run(self) -> None:
        js = self.connection.jetstream()
        bucket = await js.key_value("agents")
        record = {
            "protocol": 1,
            "name": "plain_agent",
            "instance_id": "p-1",
            "task_types": ["reverse"],
            "max_concurrency": 1,
            "version": "0.0.1",
            "status": "ready",
            "metadata": {},
        }
        await bucket.put("plain_agent.p-1", json.dumps(record).encode())
        config = nats.js.api.ConsumerConfig(
            durable_name="plain_agent",
            filter_subject="agent.plain_agent.task",
            ack_policy=nats.js.api.AckPolicy.EXPLICIT,
            ack_wait=30,
            max_deliver=5,
            max_ack_pending=10_000,
        )
        subscription = await js.pull_subscribe(
            "agent.plain_agent.task", durable="plain_agent", stream="AGENT_TASKS", config=config
        )
        while True:
            try:
                messages = await subscription.fetch(1, timeout=1)
            except (TimeoutError, nats.errors.TimeoutError):
                continue
            for message in messages:
                request = json.loads(message.data)
                answer = {
                    "task_id": request["task_id"],
                    "root_task_id": request["root_task_id"],
                    "attempt": request["attempt"],
                    "task_type": request["task_type"],
                    "agent": "plain_agent",
                    "status": "completed",
                    "result": {"text": request["payload"]["text"][::-1]},
                }
                await js.publish("agent.plain_agent.response", json.dumps(answer).encode())
                await message.ack()
                self.served += 1


async def test_an_agent_with_no_kit_at_all_is_a_full_agent(
    orchestrated: AgentProcess, plain: PlainClient, words: AgentProcess
) -> None:
    agent = NoKit(plain.connection)
    running = asyncio.create_task(agent.run())
    registry = registry_of(orchestrated)
    try:
        await until(lambda: registry.serving("reverse"), "the agent in the registry")
        steps = {
            "turn": {"task": "reverse", "with": {"text": "abc"}},
            "loud": {"task": "uppercase", "with": {"text": "${turn.text}"}},
        }
        answer = await plain.ask("execute_dag", {"steps": steps, "output": "${loud.text}"})
        assert answer["result"] == "CBA"
        await until(lambda: agent.served == 1, "its ack")
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def at_work(plain: PlainClient, seen: Seen) -> tuple[str, dict[str, Any]]:
    """A task that its agent holds until its gate opens, and the request that the agent was given."""
    seen.gates["echo"] = asyncio.Event()
    await plain.overhear("words_agent")
    task_id = await plain.send("echo", {"x": 1})
    await seen.until_called("echo")
    await plain.until(lambda: plain.overheard)
    request, _ = plain.overheard[0]
    return task_id, request


async def test_a_garbled_answer_fails_its_step_and_is_kept(
    orchestrated: AgentProcess, plain: PlainClient, words: AgentProcess, seen: Seen
) -> None:
    task_id, request = await at_work(plain, seen)
    wrong = {name: request[name] for name in ("task_id", "root_task_id", "attempt")} | {"status": "fine"}
    await plain.connection.publish("agent.words_agent.response", json.dumps(wrong).encode())
    await plain.connection.publish("agent.words_agent.response", b"not json at all")
    answer = await plain.answer(task_id)
    assert answer["error"]["details"]["code"] == "invalid_response"
    await plain.until(lambda: len(plain.dead) == 2)
    seen.gates["echo"].set()


@pytest.mark.parametrize("number", ["NaN", "1e999", "-Infinity"])
async def test_a_number_that_json_lacks_is_no_answer(
    orchestrated: AgentProcess, plain: PlainClient, words: AgentProcess, seen: Seen, number: str
) -> None:
    """In memory it would be infinite and in the row null: a restart could branch another way."""
    task_id, request = await at_work(plain, seen)
    answer = {name: request[name] for name in ("task_id", "root_task_id", "attempt")}
    body = json.dumps({**answer, "agent": "words_agent", "status": "completed", "result": {"n": 0}})
    await plain.connection.publish("agent.words_agent.response", body.replace('"n": 0', f'"n": {number}').encode())
    assert (await plain.answer(task_id))["error"]["details"]["code"] == "invalid_response"
    seen.gates["echo"].set()


async def test_an_answer_of_an_old_attempt_changes_nothing(
    orchestrated: AgentProcess, plain: PlainClient, words: AgentProcess, seen: Seen
) -> None:
    task_id, request = await at_work(plain, seen)
    for attempt in (2, 7):
        stale = {
            "task_id": request["task_id"],
            "root_task_id": request["root_task_id"],
            "attempt": attempt,
            "agent": "words_agent",
            "status": "completed",
            "result": {"x": "stale"},
        }
        await plain.connection.publish("agent.words_agent.response", json.dumps(stale).encode())
    seen.gates["echo"].set()
    assert (await plain.answer(task_id))["result"] == {"x": 1}


async def test_a_live_setting_in_consul_changes_an_agents_capacity(
    consul_settings: MeshSettings, consul: ConsulServer, seen: Seen
) -> None:
    name = f"words_{uuid.uuid4().hex[:8]}"

    def put() -> None:
        request = urllib.request.Request(f"{consul.url}/v1/kv/config/{name}/max_concurrency", data=b"3", method="PUT")
        urllib.request.urlopen(request, timeout=PATIENCE_SECONDS).close()

    async with AgentProcess(words_agent(seen, name=name), consul_settings) as process:
        assert process.max_concurrency == 20
        changes = process.config.changes()
        await asyncio.to_thread(put)
        async with asyncio.timeout(PATIENCE_SECONDS):
            change = await anext(changes)
        assert "max_concurrency" in change.changed_keys
        assert process.max_concurrency == process.worker.max_concurrency == 3
        assert "consul" in str(process.config.explain("max_concurrency")).lower()


async def test_a_mesh_without_its_registrys_source_goes_on_with_the_last_known(
    settings: MeshSettings, tmp_path: Path, seen: Seen
) -> None:
    from tests.servers import consul_server

    async with consul_server(tmp_path / "consul") as own:
        cut_off = settings.model_copy(update={"consul_http_addr": own.url})
        async with (
            orchestrator(cut_off, load_library([])),
            AgentProcess(words_agent(seen), cut_off),
            Mesh(cut_off.nats_url) as mesh,
        ):
            assert await mesh.run("uppercase", {"text": "a"}) == {"text": "A"}
            await own.stop()
            assert await mesh.run("uppercase", {"text": "b"}) == {"text": "B"}
