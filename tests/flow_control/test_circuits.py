"""Circuits shared through a real Valkey, also one that is killed meanwhile; each for itself without."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from structlog.testing import capture_logs

from orchestrator_agent.dispatch.agent_health import OPEN_AFTER_FAILURES, OPEN_SECONDS, AgentHealth
from orchestrator_agent.dispatch.redis_state import RedisState, RedisTimes
from orchestrator_agent.dispatch.shared_circuits import ProbeClaims, ProbeTimes, SharedCircuits
from orchestrator_agent.dispatch.signal import DispatchSignal
from orchestrator_agent.dispatch.tuning import DispatchTuning
from orchestrator_agent.parts import Tuning
from orchestrator_agent.service import load_library, orchestrator
from pantheon.discovery import Registry
from pantheon.process.agent_process import AgentProcess
from pantheon.runtime.settings import MeshSettings
from pantheon.stack.servers import ValkeyServer
from protocol import InstanceRecord
from tests.mesh.agents import words_agent
from tests.mesh.conftest import PlainClient
from tests.waiting import PATIENCE_SECONDS, until

# On a machine that stalls for a second, Redis is there all the same.
SLOW = RedisTimes(response_seconds=10.0)
TUNING = DispatchTuning(redis=SLOW)


async def kill(server: ValkeyServer) -> None:
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    await server.wait()


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Process:
    """What one orchestrator process has of circuits."""

    def __init__(self, url: str | None, tuning: DispatchTuning = TUNING) -> None:
        self.clock = Clock()
        self.shared = RedisState(url, tuning.redis)
        self.signal = DispatchSignal()
        self.probes = ProbeClaims(self.shared, self.signal, tuning.probes)
        self.agent_health = AgentHealth(self.clock, probes=self.probes)
        registry = Registry()
        registry.apply([InstanceRecord(name=name, instance_id="i", task_types=("x",)) for name in "ab"])
        self.circuits = SharedCircuits(self.shared, self.agent_health, registry)

    def fail(self, agent: str = "a") -> None:
        for _ in range(OPEN_AFTER_FAILURES):
            self.agent_health.responded(agent, "x", None, failed=True)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Sweep until it is so."""

        async def synced() -> bool:
            await self.circuits.sync()
            return condition()

        await until(synced)

    def half_open(self) -> None:
        """Only this process's clock goes on: in Redis the circuit is open as yet."""
        self.clock.now += OPEN_SECONDS
        assert self.agent_health.circuit("a", "x") == "half_open"

    async def close(self) -> None:
        await self.circuits.stop()
        await self.probes.stop()
        await self.shared.close()


@asynccontextmanager
async def processes(*urls: str | None, tuning: DispatchTuning = TUNING) -> AsyncIterator[list[Process]]:
    made = [Process(url, tuning) for url in urls]
    for process in made:
        await process.circuits.start()
    try:
        yield made
    finally:
        for process in made:
            await process.close()


async def test_a_circuit_that_one_process_opens_is_open_for_the_others_and_closes_for_all(
    valkey: ValkeyServer,
) -> None:
    async with processes(valkey.url, valkey.url) as (each, other):
        each.fail()
        await other.until(lambda: not other.agent_health.admits("a", "x"))
        assert other.agent_health.circuit("a", "x") == "open"
        assert other.agent_health.admits("b", "x")
        for process in (each, other):
            process.half_open()
        await until(lambda: each.agent_health.admits("a", "x"))
        each.agent_health.assigned("a", "x")
        assert not each.agent_health.admits("a", "x")
        each.agent_health.responded("a", "x", 5.0, failed=False)
        await other.until(lambda: other.agent_health.circuit("a", "x") == "closed")
        # Closed is old news soon: who sees it fail again may open it.
        other.fail()
        await each.until(lambda: each.agent_health.circuit("a", "x") == "open")


async def test_however_many_processes_one_probe_goes_through_a_half_open_circuit(
    valkey: ValkeyServer,
) -> None:
    tuning = replace(TUNING, probes=ProbeTimes(in_hand_seconds=60.0))
    with capture_logs() as logs:
        async with processes(*[valkey.url] * 6, tuning=tuning) as made:
            for process in made:
                process.fail()
                process.half_open()
                assert not process.agent_health.admits("a", "x")
            await until(lambda: len([each for each in logs if each["event"] == "circuit.probe"]) == 6)
            claimed = [each["claimed"] for each in logs if each["event"] == "circuit.probe"]
            assert sorted(claimed) == [False] * 5 + [True]
            (chosen,) = [process for process in made if process.agent_health.admits("a", "x")]
            chosen.agent_health.assigned("a", "x")
            assert not any(process.agent_health.admits("a", "x") for process in made)
            # The process that reads the response informs the others.
            reader = next(process for process in made if process is not chosen)
            reader.agent_health.responded("a", "x", 5.0, failed=False)
            for process in made:
                await process.until(lambda process=process: process.agent_health.circuit("a", "x") == "closed")  # type: ignore[misc]
                assert process.agent_health.admits("a", "x")


async def test_a_claim_that_is_not_used_goes_to_another_and_one_that_was_does_not(
    valkey: ValkeyServer,
) -> None:
    tuning = replace(TUNING, probes=ProbeTimes(in_hand_seconds=0.2, again_seconds=0.02))
    async with processes(valkey.url, valkey.url, tuning=tuning) as (each, other):
        for process in (each, other):
            process.fail()
            process.half_open()
        assert not each.agent_health.admits("a", "x")
        await asyncio.wait_for(each.signal.wait(), PATIENCE_SECONDS)
        await until(lambda: other.agent_health.admits("a", "x"))
        other.agent_health.assigned("a", "x")
        assert not each.agent_health.admits("a", "x")
        # From now on it is kept as long as a probe is waited for, and not as long as it was claimed for.
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                noted = await other.shared.noted(["probe:a:x"])
                if noted and noted["probe:a:x"][1] <= OPEN_SECONDS:
                    break
        assert not each.agent_health.admits("a", "x")
        assert not other.agent_health.admits("a", "x")


async def test_a_claim_belongs_to_its_owner(valkey: ValkeyServer) -> None:
    async with processes(valkey.url, valkey.url) as (each, other):
        claimed = await asyncio.gather(*(each.shared.claim("n", str(owner), 60) for owner in range(20)))
        assert sorted(map(bool, claimed)) == [False] * 19 + [True]
        owner = str(claimed.index(True))
        await other.shared.keep("n", "another", 0)
        assert await other.shared.claim("n", "another", 60) is False
        await each.shared.keep("n", owner, 30)
        noted = await each.shared.noted(["n"])
        assert noted is not None
        assert noted["n"][0] == owner
        assert noted["n"][1] <= 30
        await each.shared.keep("n", owner, 0)
        assert await other.shared.claim("n", "another", 60) is True
        await kill(valkey)
        assert await other.shared.claim("n", "another", 60) is None


async def test_while_redis_is_away_each_process_probes_for_itself(valkey: ValkeyServer) -> None:
    async with processes(valkey.url, valkey.url) as made:
        await kill(valkey)
        for process in made:
            process.fail()
            process.half_open()
            await process.until(lambda process=process: process.agent_health.admits("a", "x"))  # type: ignore[misc]
            process.agent_health.assigned("a", "x")
            assert not process.agent_health.admits("a", "x")


async def test_a_probe_without_a_response_is_followed_by_another() -> None:
    async with processes(None) as (each,):
        each.fail()
        each.clock.now += OPEN_SECONDS
        each.agent_health.assigned("a", "x")
        assert not each.agent_health.admits("a", "x")
        each.clock.now += OPEN_SECONDS
        assert each.agent_health.admits("a", "x")


async def test_without_redis_each_process_has_its_own_circuits_and_warns_once() -> None:
    with capture_logs() as logs:
        async with processes(None) as (each,):
            each.fail()
            assert await each.circuits.sync() is False
            assert each.agent_health.circuit("a", "x") == "open"
    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == ["shared.none"]


async def test_a_redis_that_goes_and_comes_back_loses_no_news(
    valkey: ValkeyServer,
) -> None:
    tuning = replace(TUNING, redis=replace(SLOW, retry_seconds=0.05))
    with capture_logs() as logs:
        async with processes(valkey.url, valkey.url, tuning=tuning) as (each, other):
            await each.circuits.sync()
            await kill(valkey)
            each.fail()
            for _ in range(3):
                await each.circuits.sync()
                await asyncio.sleep(0.06)
            assert each.agent_health.circuit("a", "x") == "open"
            assert each.shared.there is False
            await valkey.start()

            # What could not be shared is shared when it is back.
            async def shared() -> bool:
                await each.circuits.sync()
                await other.circuits.sync()
                return not other.agent_health.admits("a", "x")

            await until(shared, "the open circuit at the other one")
    assert [entry["event"] for entry in logs if entry["event"] == "shared.back"]


async def test_a_mesh_goes_on_while_its_redis_is_killed_and_comes_back(
    settings: MeshSettings, plain: PlainClient, valkey: ValkeyServer
) -> None:
    with_redis: Any = settings.model_copy(update={"redis_url": MeshSettings.load(redis_url=valkey.url).redis_url})
    async with (
        orchestrator(with_redis, load_library([]), tuning=Tuning(dispatch=TUNING)),
        AgentProcess(words_agent(), settings),
    ):
        assert (await plain.ask("uppercase", {"text": "a"}))["status"] == "completed"
        await kill(valkey)
        for text in "bcd":
            assert (await plain.ask("uppercase", {"text": text}))["result"] == {"text": text.upper()}
            await asyncio.sleep(0.5)
        await valkey.start()
        assert (await plain.ask("uppercase", {"text": "e"}))["status"] == "completed"


async def test_on_a_mesh_a_broken_agent_is_probed_with_a_claim_and_used_again(
    settings: MeshSettings, plain: PlainClient, valkey: ValkeyServer
) -> None:
    tuning = Tuning(dispatch=replace(TUNING, circuit_open_seconds=0.5, probes=ProbeTimes(in_hand_seconds=60.0)))
    with_redis: Any = settings.model_copy(update={"redis_url": MeshSettings.load(redis_url=valkey.url).redis_url})
    steps = {"a": {"task": "flaky", "with": {"failures": "${input.failures}"}, "retry": {"max_attempts": 1}}}
    with capture_logs() as logs:
        async with (
            orchestrator(with_redis, load_library([]), tuning=tuning),
            AgentProcess(words_agent(), settings),
        ):
            for _ in range(OPEN_AFTER_FAILURES):
                failed = await plain.ask("execute_dag", {"steps": steps, "input": {"failures": 9}})
                assert failed["error"]["code"] == "step_failed"
            assert not [each for each in logs if each["event"] == "circuit.probe"]
            for _ in range(2):
                response = await plain.ask("execute_dag", {"steps": steps, "input": {"failures": 0}})
                assert response["status"] == "completed", response
    assert [each["claimed"] for each in logs if each["event"] == "circuit.probe"] == [True]
