"""Expressions that take long, on a real mesh: decided apart from the event loop, once, while others go on."""

import asyncio
import gc
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from orchestrator_agent.runtime.large_messages import LargeMessages
from orchestrator_agent.workflows.cel.meter import ThreadMeter
from pantheon import Agent, Mesh, TaskContext, TaskFailed
from pantheon.client.mesh import result_of
from pantheon.process.agent_process import AgentProcess
from pantheon.runtime.background import end
from pantheon.runtime.settings import MeshSettings
from tests.mesh.agents import Seen, registry_of
from tests.waiting import PATIENCE_SECONDS, until

LENGTH = 60_000
LIST = [{"n": n} for n in range(LENGTH)]


@pytest.fixture
def in_thread(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One entry for each slice of an evaluation that was made apart from the loop."""
    slices: list[None] = []
    pause = ThreadMeter.pause

    def counted(meter: ThreadMeter) -> None:
        slices.append(None)
        pause(meter)

    monkeypatch.setattr(ThreadMeter, "pause", counted)
    return slices


async def test_a_list_of_any_length_is_gone_over_wherever_an_expression_may_stand(
    words: AgentProcess, mesh: Mesh, in_thread: list[None]
) -> None:
    """From 10,000 elements on, the expression failed; below, it kept everybody for seconds."""
    steps: dict[str, Any] = {
        "first": {"task": "echo", "with": {"n": "${size(input.l.map(e, e.n + 1))}"}},
        "then": {
            "task": "echo",
            "when": "input.l.exists(e, e.n == first.n - 1)",
            "with": {"n": "${input.l.filter(e, e.n >= first.n - 2).map(e, e.n)}"},
        },
        "each": {"task": "echo", "for_each": "${input.l.filter(e, e.n < then.n.size())}", "with": {"n": "${item.n}"}},
    }
    request = {
        "input": {"l": LIST},
        "steps": steps,
        "output": {
            "first": "${first.n}",
            "then": "${then.n}",
            "each": "${each.map(e, e.n)}",
            "all": "${input.l.map(e, e.n)}",
        },
    }
    beside = [await mesh.submit("uppercase", {"text": str(n)}) for n in range(20)]
    result = await mesh.run("execute_dag", request)
    assert result["first"] == LENGTH
    assert result["then"] == [LENGTH - 2, LENGTH - 1]
    assert result["each"] == [0, 1]
    assert result["all"] == list(range(LENGTH))
    assert in_thread
    assert [(await mesh.wait(task_id)).result for task_id in beside] == [{"text": str(n)} for n in range(20)]


async def test_an_expression_without_end_fails_alone(words: AgentProcess, mesh: Mesh, in_thread: list[None]) -> None:
    forever = {
        "input": {"l": list(range(4000))},
        "steps": {
            "a": {"task": "echo", "with": {"n": 1}},
            "b": {
                "task": "echo",
                "needs": ["a"],
                "with": {"n": "${size(input.l.map(x, input.l.exists(y, x + y < 0)))}"},
            },
        },
    }
    task_id = await mesh.submit("execute_dag", forever)
    others = await asyncio.gather(*(mesh.run("uppercase", {"text": str(n)}) for n in range(20)))
    assert len(others) == 20
    with pytest.raises(TaskFailed, match="too many steps") as failed:
        result_of(await mesh.wait(task_id))
    assert failed.value.code == "expression_error"
    assert in_thread


async def test_work_that_is_never_begun_is_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    """A process that stops ends it before."""
    large = LargeMessages()

    async def work() -> None:
        raise AssertionError

    large.work_on(work)
    large.go_on(work)
    await end(large.tasks)
    gc.collect()
    assert not recwarn.list


class Held(NamedTuple):
    """An evaluation apart from the loop, which stands still until it is released."""

    begun: threading.Event
    released: threading.Event


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    evaluation = Held(threading.Event(), threading.Event())

    def stand_still(meter: ThreadMeter) -> None:
        evaluation.begun.set()
        assert evaluation.released.wait(PATIENCE_SECONDS)

    monkeypatch.setattr(ThreadMeter, "pause", stand_still)
    yield evaluation
    evaluation.released.set()


LONG_STEPS: dict[str, Any] = {
    "a": {"task": "echo", "with": {"n": 1}},
    "b": {"task": "echo", "needs": ["a"], "with": {"n": "${size(input.l.map(e, e + 1))}"}},
}


async def others_go_on(mesh: Mesh) -> None:
    async with asyncio.timeout(20):
        for number in range(5):
            assert await mesh.run("uppercase", {"text": f"n{number}"}) == {"text": f"N{number}"}


async def test_responses_for_a_tree_that_takes_long_to_decide_keep_no_others(
    words: AgentProcess, mesh: Mesh, seen: Seen, held: Held
) -> None:
    """Those that came with one for such a tree waited with it, and after two batches all did."""
    gated = {"repeat": {"text": "x", "times": 2}, "flaky": {"failures": 0}, "sleep": {"seconds": 0}}
    gates = {name: seen.gates.setdefault(name, asyncio.Event()) for name in gated}
    steps = {**LONG_STEPS, **{name: {"task": name, "with": payload} for name, payload in gated.items()}}
    task_id = await mesh.submit("execute_dag", {"input": {"l": list(range(LENGTH))}, "steps": steps})
    await until(held.begun.is_set, "the evaluation")
    for name, gate in gates.items():
        await seen.until_called(name)
        gate.set()
        await others_go_on(mesh)
    held.released.set()
    result = result_of(await mesh.wait(task_id))
    assert result["b"] == {"n": LENGTH}
    assert result["repeat"] == {"text": "xx"}
    assert result["sleep"] == {"slept": 0}


async def test_a_delegation_under_a_tree_that_takes_long_to_decide_keeps_no_others(
    settings: MeshSettings, orchestrated: AgentProcess, words: AgentProcess, mesh: Mesh, held: Held
) -> None:
    """The loop of requests waited until it was a part of the tree."""
    asker, gate = Agent("asker_agent"), asyncio.Event()

    @asker.task("ask")
    async def ask(task: dict[str, Any], ctx: TaskContext) -> Any:
        await gate.wait()
        return await ctx.run("uppercase", {"text": "asked"})

    steps = {**LONG_STEPS, "c": {"task": "ask"}}
    async with AgentProcess(asker, settings):
        await until(lambda: registry_of(orchestrated).serving("ask"), "the agent in the registry")
        task_id = await mesh.submit("execute_dag", {"input": {"l": list(range(LENGTH))}, "steps": steps})
        await until(held.begun.is_set, "the evaluation")
        gate.set()
        for _ in range(4):
            await others_go_on(mesh)
        held.released.set()
        result = result_of(await mesh.wait(task_id))
    assert result["b"] == {"n": LENGTH}
    assert result["c"] == {"text": "ASKED"}


async def test_queued_rows_of_a_tree_that_takes_long_to_decide_keep_no_others(
    words: AgentProcess, mesh: Mesh, seen: Seen, held: Held
) -> None:
    """Whatever was queued for the same agents waited until the tree's rows were dispatched."""
    gate = seen.gates.setdefault("repeat", asyncio.Event())
    many = {"task": "repeat", "for_each": "${input.m}", "with": {"text": "x", "times": 1}}
    workflow_input = {"l": list(range(LENGTH)), "m": list(range(100))}
    long = await mesh.submit("execute_dag", {"input": workflow_input, "steps": {**LONG_STEPS, "many": many}})
    await until(held.begun.is_set, "the evaluation")
    short = await mesh.submit("execute_dag", {"input": {"m": list(range(100))}, "steps": {"many": many}})
    gate.set()
    async with asyncio.timeout(30):
        assert len(result_of(await mesh.wait(short))["many"]) == 100
    held.released.set()
    result = result_of(await mesh.wait(long))
    assert result["b"] == {"n": LENGTH}
    assert len(result["many"]) == 100
