"""The workflows that are measured, as payloads of `execute_dag`, and how many agent tasks each of them makes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

CHAIN_STEPS = 5
FAN_OUT_ITEMS = 1000
# What a step may have at work at once.
MOST_AT_ONCE = 10_000
# 100 characters of payload in every message, as in the bare loop.
PAYLOAD = {"k": "v" * 100}


@dataclass(frozen=True)
class Shape:
    """A workflow; `steps` counts the tasks that agents run, which is what steps a second counts."""

    name: str
    title: str
    steps: int
    payload: dict[str, Any]


def _echo(source: str, *needs: str) -> dict[str, Any]:
    step: dict[str, Any] = {"task": "echo", "with": {"k": f"${{{source}}}"}}
    return {**step, "needs": list(needs)} if needs else step


def chain(length: int = CHAIN_STEPS) -> Shape:
    """Each step takes the one before's result, by a CEL reference."""
    steps = {f"s{n}": _echo(f"s{n - 1}.k" if n else "input.k") for n in range(length)}
    return Shape("chain", f"{length}-step chain", length, {"input": PAYLOAD, "steps": steps})


def fan_out(items: int = FAN_OUT_ITEMS, task_type: str = "echo") -> Shape:
    """One step over a list, all items at once."""
    each = {
        "task": task_type,
        "for_each": list(range(items)),
        "concurrency": min(items, MOST_AT_ONCE),
        "with": {"k": "${item}"},
    }
    return Shape("fan_out", f"fan-out of {items}", items, {"input": {}, "steps": {"each": each}, "output": {}})


def diamond() -> Shape:
    """One, then two side by side, then one that needs both."""
    steps = {
        "top": _echo("input.k"),
        "left": _echo("top.k"),
        "right": _echo("top.k"),
        "bottom": {"task": "echo", "with": {"k": "${left.k + right.k}"}},
    }
    return Shape("diamond", "diamond", 4, {"input": PAYLOAD, "steps": steps, "output": {"k": "${bottom.k}"}})


def sub_workflows() -> Shape:
    """Three sub-workflows of two steps, one after the other."""

    def sub(source: str) -> dict[str, Any]:
        inner = {"a": _echo("input.k"), "b": _echo("a.k")}
        return {"steps": inner, "with": {"k": f"${{{source}}}"}, "output": {"k": "${b.k}"}}

    steps = {"first": sub("input.k"), "second": sub("first.k"), "third": sub("second.k")}
    return Shape("sub_workflows", "3 sub-workflows of 2", 6, {"input": PAYLOAD, "steps": steps})


def compensated(items: int) -> Shape:
    """A fan-out that completes, and is compensated item by item, because the step behind it fails."""
    each = {"task": "echo", "for_each": list(range(items)), "with": {"k": "${item}"}, "concurrency": items}
    steps = {
        "each": {**each, "compensate": {"task": "echo", "with": {"k": 1}}},
        "then": {"task": "echo", "with": {"k": "${int('x')}"}, "needs": ["each"]},
    }
    return Shape("compensated", f"compensating {items}", items, {"input": {}, "steps": steps})


SHAPES: dict[str, Callable[[], Shape]] = {
    "chain": chain,
    "fan_out": fan_out,
    "diamond": diamond,
    "sub_workflows": sub_workflows,
}
