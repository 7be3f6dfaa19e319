"""One instance of an agent that fails at once, beside one that works: the queue is the other's."""

from typing import Any

from orchestrator_agent.service import OrchestratorWorker, load_library, orchestrator
from pantheon import Agent, TaskFailure
from pantheon.process.agent_process import AgentProcess
from pantheon.runtime.settings import MeshSettings
from tests.mesh.agents import registry_of
from tests.mesh.conftest import PlainClient
from tests.waiting import PATIENCE_SECONDS, until

TASKS = 200


def instance_of(name: str, *, sick: bool) -> tuple[Agent, list[int]]:
    agent, calls = Agent(name, max_concurrency=2), []

    @agent.task("work")
    async def work(task: dict[str, Any]) -> dict[str, bool]:
        calls.append(1)
        if sick:
            raise TaskFailure("disk_full", "nothing can be written here", retryable=True)
        return {"well": True}

    return agent, calls


async def test_an_instance_that_only_fails_takes_few_and_opens_no_circuit(
    settings: MeshSettings, plain: PlainClient
) -> None:
    """It drained the queue, and opened the circuit of the one that worked: most tasks had used up their attempts."""
    sick, failed = instance_of("some_agent", sick=True)
    well, done = instance_of("some_agent", sick=False)
    async with (
        orchestrator(settings, load_library([])) as process,
        AgentProcess(well, settings),
        AgentProcess(sick, settings),
    ):
        registry = registry_of(process)
        await until(lambda: len(registry.instances("some_agent")) == 2, "both instances")
        assert isinstance(process.worker, OrchestratorWorker)
        health = process.worker.parts.dispatch.agent_health
        ids = [await plain.submit("work", {}) for _ in range(TASKS)]
        await plain.until(lambda: len(plain.responses) == TASKS, 2 * PATIENCE_SECONDS)
        ended = [(await plain.response(task_id))["status"] for task_id in ids]
        assert ended.count("completed") == TASKS
        assert len(done) == TASKS
        assert len(failed) < TASKS / 4
        assert health.circuit("some_agent", "work") == "closed"


async def test_an_instance_that_is_alone_goes_on(settings: MeshSettings, plain: PlainClient) -> None:
    sick, failed = instance_of("some_agent", sick=True)
    async with orchestrator(settings, load_library([])) as process, AgentProcess(sick, settings):
        await until(lambda: registry_of(process).serving("work"), "the agent")
        dag = {"steps": {f"s{n}": {"task": "work", "retry": {"max_attempts": 1}} for n in range(12)}}
        task_id = await plain.submit("execute_dag", dag)
        assert (await plain.response(task_id))["status"] == "failed"
        assert failed
