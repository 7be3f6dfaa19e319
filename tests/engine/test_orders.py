"""Random workflows, agents and orders of arrival, against a model that a page holds.

Whatever the order, the duplicates, the late answers and the restarts: the same end as the model's, and always an end.
"""

import json
import random
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator_agent.engine.events import Answered, Due, Expired, Happening
from orchestrator_agent.engine.state import Row, Status
from protocol.messages import ErrorInfo
from tests.engine.conftest import Course, World

MAX_FAILURES = 3  # The settings' attempts are one more.


@dataclass
class Shape:
    """One step of a random workflow, as the model sees it."""

    name: str
    needs: list[str]
    when: bool = True
    repeat: int = 0
    items: int = -1
    concurrency: int = 2
    sub: "list[Shape] | None" = None

    def definition(self) -> dict[str, Any]:
        step: dict[str, Any] = {"needs": self.needs}
        given: dict[str, Any] = {"needs": {name: f"${{{name}}}" for name in self.needs}}
        if not self.when:
            step["when"] = "input == null"
        if self.repeat:
            step["repeat"] = {"until": f"{self.name}.round >= {self.repeat}", "max": 10}
            given["round"] = f"${{{self.name} == null ? 1 : {self.name}.round + 1}}"
        if self.items >= 0:
            step["for_each"] = [f"item {number}" for number in range(self.items)]
            step["concurrency"] = self.concurrency
            given["item"] = "${item}"
        step["with"] = given
        if self.sub is None:
            step["task"] = "work"
        else:
            step["steps"] = {inner.name: inner.definition() for inner in self.sub}
            if self.repeat:
                step["output"] = {"round": "${input.round}"}
        return step


def answer(payload: dict[str, Any]) -> dict[str, Any]:
    """What any agent makes of a payload: a function of it, so that a wrong payload is seen in the end."""
    return {"got": payload, "round": payload.get("round", 0)}


@dataclass
class Model:
    """The end of a workflow, worked out step by step, one after the other."""

    failing: frozenset[str]
    failed: set[str] = field(default_factory=set)

    def run(self, shapes: list[Shape], prefix: str = "", given: Any = None) -> dict[str, Any]:
        results: dict[str, Any] = {}
        broken: set[str] = set()
        for shape in shapes:
            if any(need in broken for need in shape.needs):
                broken.add(shape.name)
                continue
            before = len(self.failed)
            results[shape.name] = self.step(shape, {need: results[need] for need in shape.needs}, prefix)
            if len(self.failed) > before:
                broken.add(shape.name)
        return results

    def step(self, shape: Shape, needs: dict[str, Any], prefix: str) -> Any:
        if not shape.when:
            return None
        path = f"{prefix}{shape.name}"
        if shape.items >= 0:
            return [
                self.task(shape, {"needs": needs, "item": f"item {number}"}, f"{path}[{number}]")
                for number in range(shape.items)
            ]
        if shape.repeat:
            result: Any = None
            for number in range(1, shape.repeat + 1):
                before = len(self.failed)
                result = self.task(shape, {"needs": needs, "round": number}, path)
                if len(self.failed) > before:
                    return None
            return result
        return self.task(shape, {"needs": needs}, path)

    def task(self, shape: Shape, payload: dict[str, Any], path: str) -> Any:
        if shape.sub is not None:
            results = self.run(shape.sub, f"{path}/", payload)
            return {"round": payload["round"]} if shape.repeat else results
        if path in self.failing:
            self.failed.add(path)
            return None
        return answer(payload)


def shapes(depth: int) -> st.SearchStrategy[list[Shape]]:
    @st.composite
    def made(draw: st.DrawFn) -> list[Shape]:
        steps: list[Shape] = []
        for number in range(draw(st.integers(1, 5 if depth else 3))):
            names = [step.name for step in steps]
            needs = draw(st.lists(st.sampled_from(names), unique=True, max_size=3)) if names else []
            shape = Shape(f"s{number}", needs, when=draw(st.integers(0, 5)) != 0)
            kind = draw(st.sampled_from(["plain", "plain", "repeat", "each"]))
            if kind == "repeat":
                shape.repeat = draw(st.integers(1, 3))
            elif kind == "each":
                shape.items = draw(st.integers(0, 4))
                shape.concurrency = draw(st.integers(1, 3))
            if depth and draw(st.integers(0, 3)) == 0:
                shape.sub = draw(shapes(depth - 1))
            steps.append(shape)
        return steps

    return made()


def places(steps: list[Shape], prefix: str = "") -> list[str]:
    """Every place where an agent may be at work."""
    found = []
    for shape in steps:
        path = f"{prefix}{shape.name}"
        for one in [f"{path}[{n}]" for n in range(shape.items)] if shape.items >= 0 else [path]:
            found += places(shape.sub, f"{one}/") if shape.sub is not None else [one]
    return found


class Storm:
    """Drives one run with whatever may happen, in an order that `chance` draws."""

    def __init__(self, course: Course, chance: random.Random, failing: frozenset[str], flaky: frozenset[str]) -> None:
        self.course = course
        self.chance = chance
        self.failing = failing
        self.flaky = flaky
        self.said: list[Happening] = []
        self.transitions = 0

    def run(self) -> None:
        while self.course.status == "running":
            self.transitions += 1
            assert self.transitions < 5000, "it never ends"
            batch = [self._one() for _ in range(self.chance.choice([1, 1, 1, 2, 4]))]
            if self.chance.random() < 0.15:
                self.course.restart()
            if self.chance.random() < 0.3:
                self._say_again()
            self.course.happen(*batch)
            self.said += batch
        for _ in range(5):
            self._say_again()

    def _say_again(self) -> None:
        """What was said before is not current any more: alone, it must change nothing."""
        if not self.said:
            return
        happening = self.chance.choice(self.said)
        if isinstance(happening, Answered | Expired):
            row = self.course.run.rows[happening.task_id]
            if row.status is Status.DISPATCHED and row.attempt == happening.attempt:
                return
        elif self.course.status == "running":
            return
        assert self.course.happen(happening).empty

    def _one(self) -> Happening:
        run = self.course.run
        rows = [row for row in run.active() if row.status is not Status.RUNNING]
        row = self.chance.choice(rows)
        match row.status:
            case Status.DISPATCHED:
                return self._end_of(row)
            case Status.WAITING:
                assert row.run_after is not None
                self.course.world.now = max(self.course.world.now, row.run_after)
                return Due(run.root_task_id, row.task_id)
            case _:
                raise AssertionError(f"{row.status} with an agent for everything")

    def _end_of(self, row: Row) -> Happening:
        run = self.course.run
        path = run.path(row)
        if path in self.flaky and row.failures < MAX_FAILURES and self.chance.random() < 0.6:
            if self.chance.random() < 0.3:
                assert row.expires_at is not None
                self.course.world.now = max(self.course.world.now, row.expires_at)
                return Expired(run.root_task_id, row.task_id, row.attempt)
            return self._failed(row, retryable=True)
        if path in self.failing:
            return self._failed(row, retryable=False)
        result = answer(json.loads(row.payload or b"{}"))
        return Answered(run.root_task_id, row.task_id, row.attempt, "completed", result=result, instance_id="i")

    def _failed(self, row: Row, *, retryable: bool) -> Answered:
        error = ErrorInfo(code="no", message="no", retryable=retryable)
        return Answered(self.course.run.root_task_id, row.task_id, row.attempt, "failed", error=error)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=shapes(1), data=st.data())
def test_any_order_of_the_same_events_comes_to_the_same_end(steps: list[Shape], data: st.DataObject) -> None:
    everywhere = places(steps) or ["nowhere"]
    flaky = frozenset(data.draw(st.sets(st.sampled_from(everywhere))))
    failing = frozenset(data.draw(st.sets(st.sampled_from(everywhere), max_size=2)))
    model = Model(failing)
    expected = model.run(steps)
    definition = {shape.name: shape.definition() for shape in steps}
    for seed in data.draw(st.lists(st.integers(0, 2**32), min_size=2, max_size=3)):
        course = World().dag(definition)
        Storm(course, random.Random(seed), failing, flaky).run()
        if model.failed:
            assert course.status == "failed"
            assert course.error.code == "step_failed"
            # With several that would fail, it is told of the first to arrive.
            assert course.error.step in model.failed
        else:
            assert course.result == expected
        ends = [name for name in course.events() if name.startswith("task.")]
        assert len(ends) == 2, "begun once, ended once"


@settings(max_examples=60, deadline=None)
@given(steps=shapes(1), seed=st.integers(0, 2**32), data=st.data())
def test_rows_are_made_once_each_and_as_many_as_the_steps_ask_for(
    steps: list[Shape], seed: int, data: st.DataObject
) -> None:
    course = World().dag({shape.name: shape.definition() for shape in steps})
    Storm(course, random.Random(seed), frozenset(), frozenset(places(steps))).run()

    def count(shapes_of: list[Shape]) -> int:
        total = 0
        for shape in shapes_of:
            times = 0 if not shape.when else (shape.repeat or 1) if shape.items < 0 else shape.items
            inner = count(shape.sub) if shape.sub is not None else 0
            own = 1 if shape.items >= 0 and shape.when else 0
            total += own + (1 if not shape.when else times) + times * inner
        return total

    assert len(course.run.rows) - 1 == count(steps)
    keys = {(row.parent_task_id, row.step, row.iteration, row.item) for row in course.run.rows.values()}
    assert len(keys) == len(course.run.rows)
