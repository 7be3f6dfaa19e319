"""Several orchestrators, and one that starts again: what one of them was told holds for whoever takes the next task."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from typing import Any

import pytest
import pytest_asyncio

from orchestrator_agent.engine.state import Run
from orchestrator_agent.runtime.run_cache import MANY_ROWS, RunCache
from orchestrator_agent.service import OrchestratorWorker, load_library, orchestrator
from pantheon import Mesh
from pantheon.process.agent_process import AgentProcess
from pantheon.runtime.settings import MeshSettings
from protocol.ids import new_id
from tests.mesh.agents import Seen, orchestrator_process, registry_of, rows
from tests.mesh.conftest import PlainClient
from tests.waiting import PATIENCE_SECONDS, until


@pytest_asyncio.fixture
async def second(settings: MeshSettings, orchestrated: AgentProcess) -> AsyncIterator[AgentProcess]:
    """Another orchestrator, which both know of."""
    async with orchestrator(settings, load_library([])) as process:
        await until(lambda: len(registry_of(orchestrated).instances("orchestrator_agent")) == 2, "the second one")
        for one in (orchestrated, process):
            await until(partial(_shares, one), "both share the work")
        yield process


def _shares(process: AgentProcess) -> bool:
    assert isinstance(process.worker, OrchestratorWorker)
    return process.worker.parts.dispatch.active.count == 2


def keyed(name: str, text: str, *, most: int = 100) -> dict[str, Any]:
    return {
        "name": name,
        "concurrency": {"max": most},
        "steps": {"say": {"task": "echo", "with": {"text": text}}},
        "output": "${say.text}",
    }


async def test_a_task_sent_after_a_workflow_was_put_runs_on_it_whoever_takes_it(
    words: AgentProcess, second: AgentProcess, mesh: Mesh
) -> None:
    # The one that had not put it in took its name for a task type that nobody serves, or ran the version before.
    for text in ("one", "two", "three"):
        await mesh.put_workflow(keyed("fresh", text))
        results = await asyncio.gather(*(mesh.run("fresh") for _ in range(20)))
        assert set(results) == {text}


async def test_a_key_of_a_workflow_that_was_just_put_lets_no_more_in_than_it_says(
    words: AgentProcess, second: AgentProcess, mesh: Mesh, seen: Seen
) -> None:
    # Whoever does not know the workflow yet does not know its bound either, and let everybody in.
    gate = seen.gates["echo"] = asyncio.Event()
    await mesh.put_workflow(keyed("narrow", "x", most=3))
    ids = await asyncio.gather(*(mesh.submit("narrow") for _ in range(30)))
    await seen.until_called("echo", 3)
    # Longer than a sweep of either.
    await asyncio.sleep(3)
    assert seen.count("echo") == 3
    gate.set()
    ended = await asyncio.gather(*(mesh.wait(one, timeout_seconds=PATIENCE_SECONDS) for one in ids))
    assert {one.status for one in ended} == {"completed"}


async def test_an_orchestrator_that_starts_again_knows_workflows_and_pauses_before_it_takes_a_task(
    settings: MeshSettings, mesh: Mesh, plain: PlainClient
) -> None:
    async with orchestrator(settings, load_library([])):
        for name in ("known", "held"):
            await mesh.put_workflow(keyed(name, name))
        await mesh.pause(workflow="held")
    # They wait in the broker when the orchestrator comes, and nobody serves task types of these names.
    known = [await plain.send("known") for _ in range(5)]
    held = await plain.send("held")
    async with orchestrator(settings, load_library([])):
        await plain.until(lambda: {*known, held} <= plain.accepted.keys())
        found = await rows(
            settings, "select task_type, workflow_version from tasks where task_type in ('known', 'held')"
        )
        assert len(found) == 6
        assert all(row["workflow_version"] is not None for row in found)


async def test_many_duplicates_that_wait_hold_up_no_timer(
    words: AgentProcess, mesh: Mesh, seen: Seen, settings: MeshSettings
) -> None:
    # Each sweep looked at them all, a thousand at a time, and never came to what was due.
    gate = seen.gates["uppercase"] = asyncio.Event()
    original = await mesh.submit("uppercase", {"text": "x"}, idempotency_key="k")
    await seen.until_called("uppercase")
    await rows(
        settings,
        "insert into tasks (root_task_id, task_id, task_type, tenant, status, duplicate_of, created_at, version, "
        "attempt, timeout_seconds, priority) select u, u, 'uppercase', 'default', 'waiting', $1, now(), 1, 1, 300, 5 "
        "from unnest($2::uuid[]) u returning 1",
        original,
        [new_id() for _ in range(3000)],
    )
    steps = {"nap": {"sleep": "200ms"}}
    await mesh.run("execute_dag", {"steps": steps}, timeout_seconds=PATIENCE_SECONDS)
    gate.set()
    await mesh.wait(original)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (await rows(settings, "select count(*) from tasks where status = 'waiting'"))[0]["count"]:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def test_a_large_tree_stays_with_one_orchestrator_and_holds_up_no_small_task(
    words: AgentProcess, orchestrated: AgentProcess, second: AgentProcess, mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each took the answers and places of a fan-out in turns, and read all of its tree before each decision: half a
    # minute for 5,000 items, in which a task of one step took ten seconds.
    items = 1500
    read: list[int] = []
    build = RunCache.build

    async def counted(self: RunCache, records: Sequence[Mapping[str, Any]]) -> Run:
        if len(records) > MANY_ROWS:
            read.append(len(records))
        return await build(self, records)

    monkeypatch.setattr(RunCache, "build", counted)
    each = {"for_each": "${input.all}", "concurrency": 1000, "task": "echo", "with": {"n": "${item}"}}
    payload = {"input": {"all": list(range(items))}, "steps": {"each": each}, "output": "${each.map(one, one.n)}"}
    large = await mesh.submit("execute_dag", payload)
    ended = asyncio.create_task(mesh.wait(large, timeout_seconds=4 * PATIENCE_SECONDS))
    small = 0
    while not ended.done():
        assert await mesh.run("uppercase", {"text": "x"}) == {"text": "X"}
        small += 1
    assert (await ended).result == list(range(items))
    assert small > 3
    # Whoever began it had it in mind; a sweep, or the other's first sight of it, may read it now and then.
    assert len(read) < 25, read


async def test_the_answers_of_a_large_tree_find_another_orchestrator_when_the_one_that_had_it_dies(
    settings: MeshSettings, words: AgentProcess, orchestrated: AgentProcess, mesh: Mesh, seen: Seen
) -> None:
    gate = seen.gates["echo"] = asyncio.Event()
    each = {"for_each": list(range(MANY_ROWS + 100)), "concurrency": 1000, "task": "echo", "with": {"n": "${item}"}}
    async with orchestrator_process(settings) as other:
        await until(lambda: len(registry_of(orchestrated).instances("orchestrator_agent")) == 2, "the other one")
        await until(partial(_shares, orchestrated), "both share the work")
        ids = [await mesh.submit("execute_dag", {"steps": {"each": each}}) for _ in range(2)]
        await seen.until_called("echo", 20)
        gate.set()
        await seen.until_called("echo", 200)
        await other.end()
        for one in ids:
            assert (await mesh.wait(one, timeout_seconds=4 * PATIENCE_SECONDS)).status == "completed"
