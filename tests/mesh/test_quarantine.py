"""A root that orchestrators die of is ended after it has taken two of them, and takes nothing with it."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from orchestrator_agent.store.process_lock import ProcessLock
from pantheon.process.agent_process import AgentProcess
from pantheon.runtime.settings import MeshSettings
from protocol.ids import new_id
from tests.mesh.agents import Seen, rows, words_agent
from tests.mesh.conftest import PlainClient

HEALTHY = 30
CHAIN = {
    "steps": {
        "one": {"task": "echo", "with": {"n": 1}},
        "two": {"task": "echo", "with": {"n": "${one.n + 1}"}},
    },
    "output": "${two.n}",
}
DEADLY = {
    "steps": {
        "one": {"task": "echo", "with": {"n": 1}},
        "two": {"task": "echo", "with": {"n": "${one.n}", "is": "deadly"}, "needs": ["one"]},
    }
}


class Supervised:
    """Orchestrators that die are started again, as `pantheon up` and containers do."""

    def __init__(self, settings: MeshSettings, moment: str) -> None:
        assert settings.database_url is not None
        self.deaths = 0
        self._moment = moment
        self._environment = {
            **os.environ,
            "NATS_URL": settings.nats_url,
            "DATABASE_URL": settings.database_url.get_secret_value(),
            "LOG_FORMAT": "console",
            "NO_AGENT_WAIT_SECONDS": "30",
        }

    async def run(self) -> None:
        while True:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.mesh.mortal_orchestrator", self._moment, env=self._environment
            )
            try:
                await process.wait()
                self.deaths += 1
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()


@asynccontextmanager
async def supervised(settings: MeshSettings, moment: str, count: int) -> AsyncIterator[Supervised]:
    made = Supervised(settings, moment)
    running = [asyncio.create_task(made.run()) for _ in range(count)]
    try:
        yield made
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


@pytest.mark.parametrize(("moment", "orchestrators"), [("decide", 2), ("plan", 1)])
async def test_a_root_that_orchestrators_die_of_is_quarantined_and_the_others_end_well(
    settings: MeshSettings, seen: Seen, plain: PlainClient, moment: str, orchestrators: int
) -> None:
    async with AgentProcess(words_agent(seen), settings), supervised(settings, moment, orchestrators) as mesh:
        healthy = [await plain.submit("execute_dag", CHAIN) for _ in range(HEALTHY // 2)]
        deadly = str(new_id())
        await plain.send("execute_dag", DEADLY, task_id=deadly)
        for _ in range(HEALTHY // 2):
            task_id = str(new_id())
            healthy.append(task_id)
            await plain.send("execute_dag", CHAIN, task_id=task_id)
        response = await plain.response(deadly, within_seconds=200)
        assert response["status"] == "failed"
        assert response["error"]["code"] == "internal_error"
        assert response["error"]["message"].startswith("2 orchestrator processes died while they decided on this task")
        for task_id in healthy:
            assert (await plain.response(task_id, within_seconds=120))["result"] == 2
        # One without a name, and two that have it; with two orchestrators one may decide on something else just then.
        assert 3 <= mesh.deaths <= 2 + orchestrators
        assert all(len(set(bodies)) == 1 for bodies in plain.responses.values())
        last = await plain.submit("execute_dag", CHAIN)
        assert (await plain.response(last))["result"] == 2
    left = await rows(settings, "select count(*) from trials")
    assert left[0]["count"] == 0
    deaths = await rows(settings, "select root_task_id, deaths from trial_deaths where deaths > 1")
    assert [(str(row["root_task_id"]), row["deaths"]) for row in deaths] == [(deadly, 2)]


async def test_a_clean_end_is_no_death(settings: MeshSettings) -> None:
    assert settings.database_url is not None
    lock = ProcessLock(settings.database_url.get_secret_value(), new_id(), "one")
    await lock.take()
    found = await rows(settings, "select left_at from orchestrators where process_id = $1", lock.process_id)
    assert found[0]["left_at"] is None
    await lock.release()
    found = await rows(settings, "select left_at from orchestrators where process_id = $1", lock.process_id)
    assert found[0]["left_at"] is not None
    await lock.take()
    found = await rows(settings, "select left_at from orchestrators where process_id = $1", lock.process_id)
    assert found[0]["left_at"] is None
    await lock.release(forget=True)
    assert json.dumps(len(await rows(settings, "select 1 from orchestrators"))) == "0"
