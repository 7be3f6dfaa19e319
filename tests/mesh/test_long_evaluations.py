"""Expressions that take long, on a real mesh: decided apart from the event loop, once, while others go on."""

import asyncio
from typing import Any

import pytest

from orchestrator_agent.workflows.cel.meter import ThreadMeter
from pantheon import Mesh, TaskFailed
from pantheon.client.mesh import result_of
from pantheon.process.agent_process import AgentProcess

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
