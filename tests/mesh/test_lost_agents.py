"""An agent is alive if it takes and responds: what the others lie with is given to agents that do."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from nats.aio.msg import Msg

from orchestrator_agent.maintenance.lost_agents import BLOCKED, DEAF, LivenessTimes
from orchestrator_agent.parts import Tuning
from orchestrator_agent.service import load_library, orchestrator
from pantheon import Agent, TaskContext
from pantheon.bus import Bus, queue_lengths, queue_state
from pantheon.process.agent_process import AgentProcess
from pantheon.runtime.settings import MeshSettings
from pantheon.worker.worker import Worker
from protocol.ids import new_id
from tests.mesh.agents import registry_of, rows
from tests.mesh.conftest import PlainClient
from tests.waiting import PATIENCE_SECONDS, until

# What takes fifteen seconds in production; the agents' heartbeats are faster by as much.
QUICK = Tuning(liveness=LivenessTimes(check=0.25, suspect=0.6, silent=1.5, deaf=1.5, unlisted=0.7, remember=30))
quickly = pytest.mark.parametrize("tuning", [QUICK], ids=["quickly"])


@pytest.fixture(autouse=True)
def fast_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEARTBEAT_INTERVAL_SECONDS", "0.2")


class PerishableAgent:
    """`tests.mesh.perishable_agent`, which a test kills, stops or starts again."""

    def __init__(self, settings: MeshSettings, name: str, **environment: str) -> None:
        self.name = name
        self._environment = {**os.environ, "NATS_URL": settings.nats_url, **environment}
        if settings.consul_http_addr:
            self._environment["CONSUL_HTTP_ADDR"] = settings.consul_http_addr
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.mesh.perishable_agent", self.name, env=self._environment
        )

    def send(self, how: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(how)

    async def end(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
        if self.process is not None:
            await self.process.wait()


@asynccontextmanager
async def perishable(settings: MeshSettings, name: str, **environment: str) -> AsyncIterator[PerishableAgent]:
    made = PerishableAgent(settings, name, **environment)
    await made.start()
    try:
        yield made
    finally:
        await made.end()


def worker_agent(name: str, *, slots: int = 2) -> tuple[Agent, list[int]]:
    """An agent that serves `work` in the test's own process, and the attempts that it was given."""
    agent, attempts = Agent(name, max_concurrency=slots), []

    @agent.task("work")
    async def work(task: dict[str, Any], ctx: TaskContext) -> dict[str, Any]:
        attempts.append(ctx.attempt)
        await asyncio.sleep(task.get("seconds", 0))
        return {"by": name}

    return agent, attempts


def failures(plain: PlainClient, agent: str) -> list[dict[str, Any]]:
    found = [each["data"] for each in plain.events if each["channel"] == "mesh.event.agent.failed"]
    return [each for each in found if each["agent"] == agent]


async def attempts_of(settings: MeshSettings) -> list[tuple[int, int, int]]:
    found = await rows(settings, "select attempt, failures, deaths from tasks where step = 'work' order by task_id")
    return [(row["attempt"], row["failures"], row["deaths"]) for row in found]


async def beats_received(plain: PlainClient, agent: str, count: int = 6) -> None:
    """Wait for so many heartbeats with work in them: the orchestrator has received some of them too."""
    beats = 0

    async def count_beat(message: Msg) -> None:
        nonlocal beats
        beats += bool(json.loads(message.data)["running"])

    subscription = await plain.connection.subscribe(f"agent.{agent}.heartbeat", cb=count_beat)
    await until(lambda: beats >= count, "heartbeats")
    await subscription.unsubscribe()


async def in_hand(settings: MeshSettings, count: int) -> bool:
    async with await Bus.connect(settings.nats_url, name="test", wait_seconds=PATIENCE_SECONDS) as bus:
        state = await queue_state(bus, "perishable_agent")
    return state is not None and state.in_hand == count


async def until_served(orchestrated: AgentProcess, *agents: str) -> None:
    registry = registry_of(orchestrated)
    await until(lambda: set(agents) <= set(registry.serving("work")), f"{agents} in the registry")


async def submit_to(plain: PlainClient, count: int, **payload: Any) -> list[str]:
    return [await plain.submit("work", payload) for _ in range(count)]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_what_an_agent_leaves_behind_goes_to_others_within_20_seconds(
    settings: MeshSettings, orchestrated: AgentProcess, plain: PlainClient, how: signal.Signals
) -> None:
    """With the times of production."""
    async with perishable(settings, "perishable_agent") as gone:
        await until_served(orchestrated, "perishable_agent")
        ids = await submit_to(plain, 4, seconds=60)
        agent, attempts = worker_agent("other_agent", slots=8)
        async with AgentProcess(agent, settings):
            await until_served(orchestrated, "other_agent")
            gone.send(how)
            await until(lambda: len(attempts) == len(ids), "all of it at the other agent", seconds=20)
            (failure,) = failures(plain, "perishable_agent")
            assert failure["reason"] == "lost"
            assert failure["instance_id"]
            # Those that had waited for a slot were given to the other one at once.
            assert sorted(await attempts_of(settings)) == [(1, 0, 0), (1, 0, 0), (2, 0, 1), (2, 0, 1)]


@quickly
async def test_only_what_a_process_had_in_hand_counts_as_a_death(
    settings: MeshSettings, orchestrated: AgentProcess, plain: PlainClient
) -> None:
    async with perishable(settings, "perishable_agent") as gone:
        await until_served(orchestrated, "perishable_agent")
        ids = await submit_to(plain, 4, seconds=3)
        await beats_received(plain, "perishable_agent")
        agent, attempts = worker_agent("other_agent", slots=8)
        async with AgentProcess(agent, settings):
            await until_served(orchestrated, "other_agent")
            gone.send(signal.SIGKILL)
            responses = [await plain.response(task_id) for task_id in ids]
    assert [response["result"] for response in responses] == [{"by": "other_agent"}] * 4
    assert len(attempts) == 4
    assert sorted(await attempts_of(settings)) == [(1, 0, 0), (1, 0, 0), (2, 0, 1), (2, 0, 1)]
    async with await Bus.connect(settings.nats_url, name="test", wait_seconds=PATIENCE_SECONDS) as bus:
        assert await queue_lengths(bus) == {}


@quickly
async def test_an_agent_with_instances_left_loses_what_its_dead_one_had(
    settings: MeshSettings, orchestrated: AgentProcess, plain: PlainClient
) -> None:
    """Nobody else serves the type: what the dead instance had goes to the one that is left, long before the broker
    would deliver it again, and what that one works on stays with it."""
    async with perishable(settings, "perishable_agent") as gone:
        await until_served(orchestrated, "perishable_agent")
        ids = await submit_to(plain, 2, seconds=8)
        await beats_received(plain, "perishable_agent")
        async with perishable(settings, "perishable_agent"):
            await until(lambda: len(registry_of(orchestrated).instances("perishable_agent")) == 2, "two instances")
            ids += await submit_to(plain, 2, seconds=4)
            await until(lambda: in_hand(settings, 4), "all of it at work")
            await beats_received(plain, "perishable_agent")
            gone.send(signal.SIGKILL)
            for task_id in ids:
                assert (await plain.response(task_id))["status"] == "completed"
    assert sorted(await attempts_of(settings)) == [(1, 0, 0), (1, 0, 0), (2, 0, 1), (2, 0, 1)]
    assert len(failures(plain, "perishable_agent")) == 1


@quickly
async def test_two_orchestrators_give_it_away_once(
    settings: MeshSettings, orchestrated: AgentProcess, plain: PlainClient, tuning: Tuning
) -> None:
    """Both notice, and both try."""
    async with orchestrator(settings, load_library([]), tuning=tuning) as second:
        await until(lambda: registry_of(second).version, "its registry")
        async with perishable(settings, "perishable_agent") as gone:
            await until_served(orchestrated, "perishable_agent")
            ids = await submit_to(plain, 4, seconds=3)
            await beats_received(plain, "perishable_agent")
            agent, attempts = worker_agent("other_agent", slots=8)
            async with AgentProcess(agent, settings):
                await until_served(orchestrated, "other_agent")
                await until_served(second, "other_agent")
                gone.send(signal.SIGKILL)
                for task_id in ids:
                    assert (await plain.response(task_id))["result"] == {"by": "other_agent"}
    assert sorted(attempts) == [1, 1, 2, 2]
    assert sorted(await attempts_of(settings)) == [(1, 0, 0), (1, 0, 0), (2, 0, 1), (2, 0, 1)]


@quickly
async def test_a_deaf_agent_is_routed_around_until_it_pulls_again(
    settings: MeshSettings, orchestrated: AgentProcess, plain: PlainClient
) -> None:
    deaf, of_deaf = worker_agent("deaf_agent")
    other, attempts = worker_agent("other_agent")
    async with AgentProcess(deaf, settings) as process:
        await until_served(orchestrated, "deaf_agent")
        worker = process.worker
        assert isinstance(worker, Worker)
        worker.pause()
        await until(lambda: not worker.receiving, "its requests withdrawn")
        ids = await submit_to(plain, 2)
        async with AgentProcess(other, settings):
            await until_served(orchestrated, "other_agent")
            for task_id in ids:
                assert (await plain.response(task_id))["result"] == {"by": "other_agent"}
            (failure,) = failures(plain, "deaf_agent")
            assert failure["detail"] == DEAF
            # What comes now is not even tried there.
            more = await submit_to(plain, 6)
            for task_id in more:
                assert (await plain.response(task_id))["result"] == {"by": "other_agent"}
            assert of_deaf == []
            assert len(attempts) == 8
        ids = await submit_to(plain, 1)
        worker.resume()
        assert (await plain.response(ids[0]))["result"] == {"by": "deaf_agent"}


async def test_an_agent_with_a_blocked_loop_keeps_what_it_works_on_and_is_routed_around(
    settings: MeshSettings, orchestrated: AgentProcess, plain: PlainClient
) -> None:
    """With the times of production: the thread reports it, for longer than a registration lives."""
    beats: list[dict[str, Any]] = []

    async def note_beat(message: Msg) -> None:
        beats.append(json.loads(message.data))

    await plain.connection.subscribe("agent.perishable_agent.heartbeat", cb=note_beat)
    async with perishable(settings, "perishable_agent", SLOTS="1"):
        await until_served(orchestrated, "perishable_agent")
        blocked = await plain.submit("work", {"seconds": 22, "block": True})
        waiting = await plain.submit("work", {})
        other, attempts = worker_agent("other_agent")
        async with AgentProcess(other, settings):
            await until_served(orchestrated, "other_agent")
            assert (await plain.response(waiting))["result"] == {"by": "other_agent"}
            await until(lambda: failures(plain, "perishable_agent"), "its report", seconds=20)
            reported = [beat for beat in beats if beat["blocked_seconds"]]
            assert [len(beat["running"]) for beat in reported] == [1] * len(reported)
            (failure,) = failures(plain, "perishable_agent")
            assert failure["detail"] == BLOCKED
            later = await plain.submit("work", {})
            assert (await plain.response(later))["result"] == {"by": "other_agent"}
            response = await plain.response(blocked, within_seconds=60)
            assert response["result"] == {"by": "perishable_agent"}
            assert len(attempts) == 2
        assert max(beat["blocked_seconds"] or 0 for beat in beats) > 15


@quickly
async def test_a_slow_agent_that_is_full_is_not_deaf(
    settings: MeshSettings, orchestrated: AgentProcess, plain: PlainClient
) -> None:
    """Something lies in its queue, and it asks for nothing: it has no slot."""
    slow, attempts = worker_agent("slow_agent", slots=1)
    other, of_other = worker_agent("other_agent", slots=1)
    async with AgentProcess(slow, settings):
        await until_served(orchestrated, "slow_agent")
        (task_id,) = await submit_to(plain, 1, seconds=4)
        await until(lambda: attempts, "it at work")
        body = json.dumps({"task_id": str(new_id()), "task_type": "work", "payload": {}}).encode()
        await plain.connection.jetstream().publish("agent.slow_agent.task", body)
        async with AgentProcess(other, settings):
            await until_served(orchestrated, "other_agent")
            assert (await plain.response(task_id))["result"] == {"by": "slow_agent"}
            await until(lambda: len(attempts) == 2, "what lay in its queue")
    assert of_other == []
    assert failures(plain, "slow_agent") == []


@quickly
async def test_one_task_that_kills_is_poison_and_those_beside_it_are_not(
    settings: MeshSettings, orchestrated: AgentProcess, plain: PlainClient
) -> None:
    """Every process that it is given to dies at once, with all that lies beside it; there is one agent, started again
    each time."""
    made = PerishableAgent(settings, "perishable_agent", SLOTS="4")
    await made.start()

    async def keep_running() -> None:
        while True:
            assert made.process is not None
            await made.process.wait()
            await made.start()

    keeping = asyncio.create_task(keep_running())
    try:
        await until_served(orchestrated, "perishable_agent")
        killer = await plain.submit("work", {"kill": True, "seconds": 0.3})
        healthy = await submit_to(plain, 3, seconds=0.6)
        poisoned = await plain.response(killer, within_seconds=90)
        assert poisoned["status"] == "failed"
        assert poisoned["error"]["details"]["code"] == "poison"
        for task_id in healthy:
            assert (await plain.response(task_id))["status"] == "completed"
    finally:
        keeping.cancel()
        await made.end()
