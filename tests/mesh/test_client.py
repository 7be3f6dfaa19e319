"""The client: what it keeps of tasks that nobody waits for, and of one that takes longer than its caller waits."""

import gc
import tracemalloc
from uuid import UUID

import pytest

from pantheon import Mesh
from pantheon.process.agent_process import AgentProcess
from pantheon.runtime.settings import MeshSettings
from tests.mesh.agents import Seen

BLOB = 100_000
SUBMITS = 100


async def test_a_client_keeps_nothing_of_what_it_only_submits(
    words: AgentProcess, mesh: Mesh, settings: MeshSettings, seen: Seen
) -> None:
    """It kept payload and response of each for ever: ten million tasks later it was out of memory."""

    async def submit(number: int) -> None:
        task_ids = [await mesh.submit("echo", {"blob": "x" * BLOB, "i": index}) for index in range(number)]
        async with Mesh(settings.nats_url) as other:
            for task_id in task_ids:
                assert (await other.wait(task_id)).status == "completed"
        seen.calls.clear()
        gc.collect()

    # Caches of this process, which the orchestrator is part of, fill.
    await submit(10)
    tracemalloc.start()
    try:
        await submit(SUBMITS)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < SUBMITS * BLOB / 4


async def test_a_task_may_be_waited_for_after_its_response_has_come(words: AgentProcess, mesh: Mesh) -> None:
    task_id = await mesh.submit("echo", {"n": 1})
    other = await mesh.submit("echo", {"n": 2})
    assert (await mesh.wait(other)).result == {"n": 2}
    assert (await mesh.wait(task_id)).result == {"n": 1}
    assert (await mesh.wait(task_id)).result == {"n": 1}


async def test_a_run_that_takes_too_long_names_its_task(words: AgentProcess, mesh: Mesh) -> None:
    """Its id was nowhere: the task went on, and nobody could ask for it."""
    steps = {"a": {"sleep": "0.5s"}, "b": {"task": "echo", "needs": ["a"], "with": {"n": 1}}}
    with pytest.raises(TimeoutError, match=r"did not end within 0\.1 s; it goes on") as raised:
        await mesh.run("execute_dag", {"input": {}, "steps": steps}, wait_seconds=0.1)
    task_id = UUID(str(raised.value).split()[1])
    assert (await mesh.wait(task_id)).status == "completed"
