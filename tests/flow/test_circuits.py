"""Circuits shared through a real Valkey, also one that is killed meanwhile; each for itself without."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from orchestrator_agent.flow.circuits import Circuits
from orchestrator_agent.flow.shared import Shared
from orchestrator_agent.service import load_library, orchestrator
from orchestrator_agent.standing import OPEN_AFTER_FAILURES, OPEN_SECONDS, Standings
from pantheon.process import AgentProcess
from pantheon.settings import MeshSettings
from pantheon.stack.servers import ValkeyServer
from tests.mesh.agents import words_agent
from tests.mesh.conftest import PlainClient
from tests.waiting import until


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

    def __init__(self, url: str | None) -> None:
        self.clock = Clock()
        self.standings = Standings(self.clock)
        self.shared = Shared(url)
        self.circuits = Circuits(self.shared, self.standings, lambda: ["a", "b"])

    def fail(self, agent: str = "a") -> None:
        for _ in range(OPEN_AFTER_FAILURES):
            self.standings.answered(agent, "x", None, failed=True)

    async def until(self, condition: Callable[[], bool]) -> None:
        async def looked() -> bool:
            await self.circuits.look()
            return condition()

        await until(looked)

    async def close(self) -> None:
        await self.circuits.close()
        await self.shared.close()


@asynccontextmanager
async def processes(*urls: str | None) -> AsyncIterator[list[Process]]:
    made = [Process(url) for url in urls]
    try:
        yield made
    finally:
        for one in made:
            await one.close()


async def test_a_circuit_that_one_process_opens_is_open_for_the_others_and_closes_for_all(
    valkey: ValkeyServer,
) -> None:
    async with processes(valkey.url, valkey.url) as (one, other):
        one.fail()
        await other.until(lambda: not other.standings.admits("a"))
        assert other.standings.circuit("a") == "open"
        assert other.standings.admits("b")
        for process in (one, other):
            process.clock.now += OPEN_SECONDS
            assert process.standings.circuit("a") == "half_open"
        one.standings.placed("a")
        assert not one.standings.admits("a")
        one.standings.answered("a", "x", 5.0, failed=False)
        await other.until(lambda: other.standings.circuit("a") == "closed")
        # Closed is old news soon: who sees it fail again may open it.
        other.fail()
        await one.until(lambda: one.standings.circuit("a") == "open")


async def test_a_probe_of_which_nothing_is_heard_is_followed_by_another() -> None:
    async with processes(None) as (one,):
        one.fail()
        one.clock.now += OPEN_SECONDS
        one.standings.placed("a")
        assert not one.standings.admits("a")
        one.clock.now += OPEN_SECONDS
        assert one.standings.admits("a")


async def test_without_redis_each_process_has_its_own_circuits_and_says_so_once() -> None:
    with capture_logs() as logs:
        async with processes(None) as (one,):
            one.fail()
            assert await one.circuits.look() is False
            assert one.standings.circuit("a") == "open"
    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == ["shared.none"]


async def test_a_store_that_goes_and_comes_back_is_missed_by_nobody(
    valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator_agent.flow.shared.RETRY_SECONDS", 0.05)
    with capture_logs() as logs:
        async with processes(valkey.url, valkey.url) as (one, other):
            await one.circuits.look()
            await kill(valkey)
            one.fail()
            for _ in range(3):
                await one.circuits.look()
                await asyncio.sleep(0.06)
            assert one.standings.circuit("a") == "open"
            assert one.shared.there is False
            await valkey.start()

            # What could not be told is told when it is back.
            async def told() -> bool:
                await one.circuits.look()
                await other.circuits.look()
                return not other.standings.admits("a")

            await until(told, "the open circuit at the other one")
    assert [entry["event"] for entry in logs if entry["event"] == "shared.back"]


async def test_a_mesh_goes_on_while_its_redis_is_killed_and_comes_back(
    settings: MeshSettings, plain: PlainClient, valkey: ValkeyServer
) -> None:
    with_redis: Any = settings.model_copy(update={"redis_url": MeshSettings.load(redis_url=valkey.url).redis_url})
    async with orchestrator(with_redis, load_library([])), AgentProcess(words_agent(), settings):
        assert (await plain.ask("uppercase", {"text": "a"}))["status"] == "completed"
        await kill(valkey)
        for text in "bcd":
            assert (await plain.ask("uppercase", {"text": text}))["result"] == {"text": text.upper()}
            await asyncio.sleep(0.5)
        await valkey.start()
        assert (await plain.ask("uppercase", {"text": "e"}))["status"] == "completed"
