"""Flow control on a real mesh: the window, fairness between requesters, priority, two orchestrators."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest

from orchestrator_agent.dispatch.queues import fairness_key
from orchestrator_agent.service import load_library, orchestrator
from pantheon import Agent, Mesh, TaskContext
from pantheon.process.agent_process import AgentProcess
from pantheon.runtime.settings import MeshSettings
from protocol.streams import TASKS
from tests.mesh.agents import rows
from tests.mesh.conftest import PlainClient
from tests.waiting import PATIENCE_SECONDS, until


class Counter:
    """An agent that notes whose tasks it was given, and works only while its gate is open."""

    def __init__(self, concurrency: int = 2, seconds: float = 0.0) -> None:
        self.agent = Agent("slow_agent", max_concurrency=concurrency)
        self.gate = asyncio.Event()
        self.seconds = seconds
        self.values: list[str] = []

        @self.agent.task("work")
        async def work(task: dict[str, Any], ctx: TaskContext) -> dict[str, Any]:
            self.values.append(task["who"])
            await self.gate.wait()
            await asyncio.sleep(self.seconds)
            return {}


async def until_rows(settings: MeshSettings, count: int, query: str) -> None:
    async def there() -> bool:
        return bool((await rows(settings, query))[0][0] >= count)

    await until(there, f"{count} of: {query}")


async def send(plain: PlainClient, who: str, count: int, **fields: Any) -> list[str]:
    return [await plain.send("work", {"who": who}, requester=who, **fields) for _ in range(count)]


WAITING = "select count(*) from tasks where position is not null"


@pytest.mark.parametrize("orchestrators", [1, 2])
async def test_500_tasks_of_one_requester_do_not_delay_the_one_of_another(
    settings: MeshSettings, plain: PlainClient, orchestrators: int
) -> None:
    counter = Counter()
    async with AsyncExitStack() as stack:
        for _ in range(orchestrators):
            await stack.enter_async_context(orchestrator(settings, load_library([])))
        await stack.enter_async_context(AgentProcess(counter.agent, settings))
        many = await send(plain, "many", 500)
        await until_rows(settings, 490, WAITING)
        info = await plain.connection.jetstream().consumer_info(TASKS.name, "slow_agent")
        # As many as it has slots are in the broker; two orchestrators may each round up.
        assert (info.num_pending or 0) + (info.num_ack_pending or 0) <= 2 + orchestrators
        (one,) = await send(plain, "one", 1)
        await until_rows(settings, 1, f"{WAITING} and flow <> {fairness_key('default', 'many')}")
        counter.gate.set()
        await plain.response(one)
        assert counter.values.index("one") < 2 + orchestrators + 6
        await plain.until(lambda: len(plain.responses) > 500, 2 * PATIENCE_SECONDS)
    assert len(counter.values) == 501
    assert all(plain.responses[task_id] for task_id in many)
    assert (await rows(settings, WAITING))[0][0] == 0


async def test_a_higher_priority_goes_first(settings: MeshSettings, plain: PlainClient) -> None:
    counter = Counter(concurrency=1)
    async with orchestrator(settings, load_library([])), AgentProcess(counter.agent, settings):
        await send(plain, "low", 30, priority=1)
        await until_rows(settings, 29, WAITING)
        await send(plain, "high", 5, priority=8)
        await until_rows(settings, 34, WAITING)
        counter.gate.set()
        await plain.until(lambda: len(plain.responses) >= 35)
    assert counter.values[1:6] == ["high"] * 5


async def test_a_request_of_a_high_priority_is_the_next_that_the_agent_gets(
    settings: MeshSettings, plain: PlainClient
) -> None:
    """With 25 slots it was the 26th: so many lay ahead of it in the broker."""
    counter = Counter(concurrency=25, seconds=0.25)
    counter.gate.set()
    async with orchestrator(settings, load_library([])), AgentProcess(counter.agent, settings):
        await send(plain, "low", 200, priority=1)
        await until(lambda: len(counter.values) >= 60, "some rounds")
        (high,) = await send(plain, "high", 1, priority=9)
        await until_rows(settings, 1, f"select count(*) from tasks where root_task_id = '{high}' and step is not null")
        begun = len(counter.values)
        await plain.response(high)
        # What was begun while the test asked is none that lay ahead.
        assert counter.values.index("high") <= begun + 3


async def test_a_row_is_queued_for_a_busy_agent_as_long_as_it_takes_and_fails_when_it_is_gone(
    settings: MeshSettings, plain: PlainClient
) -> None:
    counter = Counter(concurrency=1)
    async with orchestrator(settings, load_library([])):
        async with AgentProcess(counter.agent, settings.model_copy(update={"drain_grace_seconds": 0.1})):
            ids = await send(plain, "a", 10)
            await until_rows(settings, 9, WAITING)
            # Longer than the wait for an agent that is not there.
            await asyncio.sleep(settings.no_agent_wait_seconds * 2)
            assert (await rows(settings, WAITING))[0][0] == 9
            assert not plain.responses
        await plain.until(lambda: len(plain.responses) >= 9)
        codes = [(await plain.response(task_id))["error"]["code"] for task_id in ids if task_id in plain.responses]
        assert set(codes) <= {"unknown_task_type", "no_agent_available"}


async def test_rows_of_a_paused_task_and_of_a_paused_workflow_are_parked_and_go_on(
    settings: MeshSettings, plain: PlainClient
) -> None:
    counter = Counter(concurrency=1)
    step = {"steps": {"do": {"task": "work", "with": {"who": "${input.who}"}}}}
    async with (
        orchestrator(settings, load_library([])),
        AgentProcess(counter.agent, settings),
        Mesh(settings.nats_url) as mesh,
    ):
        await send(plain, "a", 4)
        await until_rows(settings, 2, WAITING)
        held = await mesh.submit("execute_dag", {**step, "input": {"who": "held"}})
        await until_rows(settings, 3, WAITING)
        await mesh.run("mesh.pause", {"task_id": str(held)})
        other = await mesh.submit("execute_dag", {**step, "input": {"who": "flow"}})
        await until_rows(settings, 4, WAITING)
        await mesh.run("mesh.pause", {"workflow": "execute_dag"})
        counter.gate.set()
        await plain.until(lambda: len(counter.values) >= 4)
        await until_rows(settings, 2, "select count(*) from tasks where status = 'ready' and position is null")
        assert counter.values == ["a"] * 4
        await mesh.run("mesh.resume", {"workflow": "execute_dag"})
        assert (await mesh.wait(other, timeout_seconds=PATIENCE_SECONDS)).status == "completed"
        await mesh.run("mesh.resume", {"task_id": str(held)})
        assert (await mesh.wait(held, timeout_seconds=PATIENCE_SECONDS)).status == "completed"


async def test_a_fan_out_of_500_keeps_to_the_window_and_loses_nothing(
    settings: MeshSettings, plain: PlainClient
) -> None:
    counter = Counter(concurrency=4)
    counter.gate.set()
    each = {"task": "work", "for_each": list(range(500)), "concurrency": 500, "with": {"who": "${string(item)}"}}
    async with orchestrator(settings, load_library([])), AgentProcess(counter.agent, settings):
        response = await plain.ask("execute_dag", {"steps": {"all": each}})
        assert response["status"] == "completed", response
    assert sorted(counter.values, key=int) == [str(item) for item in range(500)]
