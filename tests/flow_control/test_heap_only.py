"""What a task that is never queued costs: its rows' updates write no index."""

import asyncio

from orchestrator_agent.service import load_library, orchestrator
from pantheon.process.agent_process import AgentProcess
from pantheon.runtime.settings import MeshSettings
from tests.mesh.agents import rows, words_agent
from tests.mesh.conftest import PlainClient
from tests.waiting import PATIENCE_SECONDS

STATISTICS = "select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables where relname = 'tasks'"


async def test_updates_of_steps_are_heap_only(settings: MeshSettings, plain: PlainClient) -> None:
    # A predicate of an index that names `status` would end this, silently.
    chain = {"s0": {"task": "echo", "with": {"n": 1}}}
    chain |= {f"s{n}": {"task": "echo", "with": {"n": f"${{s{n - 1}.n}}"}} for n in range(1, 5)}
    async with orchestrator(settings, load_library([])), AgentProcess(words_agent(), settings):
        for _ in range(20):
            assert (await plain.ask("execute_dag", {"steps": chain}))["status"] == "completed"
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (found := (await rows(settings, STATISTICS))[0])["n_tup_upd"] < 200:  # noqa: ASYNC110 - counted late
            await asyncio.sleep(0.1)
    assert found["n_tup_hot_upd"] / found["n_tup_upd"] > 0.8, dict(found)
    assert (await rows(settings, "select count(*) from tasks where queue is not null"))[0][0] == 0
