"""Random workflows, agents and orders of arrival, against a model that a page holds.

Whatever the order, the duplicates, the late responses, the pauses and the restarts: the same end as the model's, and
always an end; and what completed in a workflow that did not, compensated, once each, the last one first.
"""

import json
import os
import random
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator_agent.engine.decisions import Decisions, Rules
from orchestrator_agent.engine.events import (
    AttemptAbandoned,
    CancelRequested,
    DeadlinePassed,
    Delegated,
    Due,
    Expired,
    PauseRequested,
    ResponseReceived,
    ResumeRequested,
    RunEvent,
    SignalReceived,
)
from orchestrator_agent.engine.state import Role, Row, Status
from orchestrator_agent.workflows.plan import Plan
from protocol import new_id, step_task_id
from protocol.messages import ErrorInfo, Usage
from tests.engine.conftest import START, WITH_SCOPE, Driver, World

# More of them on demand: HYPOTHESIS_EXAMPLES=5000.
EXAMPLES = int(os.environ.get("HYPOTHESIS_EXAMPLES", "100"))
MAX_FAILURES = 3  # The settings' attempts are one more.
UNTIL = "2026-02-01T00:00:00Z"
VALUES = {"n": 7}
USED = Usage(input_tokens=6, output_tokens=4, cost_usd=1.0)


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
    # The sub-workflow is one by this name, and not inline.
    key: str = ""
    waits: str = ""
    fallback: str = ""
    on_error: str = "fail"
    # The task that compensates it.
    compensation: str = ""

    @property
    def compensable(self) -> bool:
        return bool(self.compensation)

    def definition(self) -> dict[str, Any]:
        step: dict[str, Any] = {"needs": self.needs, "on_error": self.on_error}
        if not self.when:
            step["when"] = "input == null"
        if self.waits == "signal":
            schema = {"required": ["n"]}
            return {**step, "wait_for": {"signal": self.name, "from": ["anna"], "schema": schema}}
        if self.waits == "sleep":
            return {**step, "sleep": "90s"}
        if self.waits == "until":
            return {**step, "until": f"'{UNTIL}'"}
        given: dict[str, Any] = {"needs": {name: f"${{{name}}}" for name in self.needs}}
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
        elif self.key:
            step["workflow"] = self.key
        else:
            step |= self.inside()
        instead = {"round": 99, "why": "${error.code}"}
        if self.fallback == "literal":
            step["fallback"] = {"result": instead}
        elif self.fallback == "task":
            step["fallback"] = {"task": "instead", "with": instead}
        elif self.fallback == "workflow":
            step["fallback"] = {"task": "stand_in", "with": instead}
        if self.compensation:
            step["compensate"] = {"task": self.compensation, "with": {"was": "${result}"}}
        return step

    def inside(self) -> dict[str, Any]:
        """Its sub-workflow."""
        assert self.sub is not None
        steps = {inner.name: inner.definition() for inner in self.sub}
        return {"steps": steps, "output": {"round": "${input.round}"}} if self.repeat else {"steps": steps}


def response(payload: dict[str, Any]) -> dict[str, Any]:
    """What any agent makes of a payload: a function of it, so that a wrong payload is seen in the end."""
    return {"got": payload, "round": payload.get("round", 0)}


class Fails(Exception):
    """A workflow of the model fails; which of these steps is the first to, the order of events decides."""

    def __init__(self, paths: set[str]) -> None:
        super().__init__(paths)
        self.paths = paths


@dataclass
class Model:
    """The end of a workflow, worked out step by step, one after the other. `failing`: tasks that fail for good;
    `worse`: fallbacks that do; `kept`: results that were taken over from an earlier run."""

    failing: frozenset[str]
    worse: frozenset[str] = frozenset()
    kept: dict[str, Any] = field(default_factory=dict)

    def run(self, shapes: list[Shape], prefix: str = "") -> dict[str, Any]:
        results: dict[str, Any] = {}
        broken: set[str] = set()
        failed: set[str] = set()
        for shape in shapes:
            if not prefix and shape.name in self.kept:
                results[shape.name] = self.kept[shape.name]
                continue
            if any(need in broken for need in shape.needs):
                broken.add(shape.name)
                continue
            try:
                results[shape.name] = self.step(shape, {need: results[need] for need in shape.needs}, prefix)
            except Fails as fails:
                broken.add(shape.name)
                failed |= fails.paths
        if failed:
            raise Fails(failed)
        return results

    def step(self, shape: Shape, needs: dict[str, Any], prefix: str) -> Any:
        if not shape.when:
            return None
        if shape.waits:
            return VALUES if shape.waits == "signal" else {"at": "some time"}
        path = f"{prefix}{shape.name}"
        if shape.items >= 0:
            return self.each(shape, needs, path)
        result: Any = None
        for number in range(1, (shape.repeat or 1) + 1):
            payload = {"needs": needs, **({"round": number} if shape.repeat else {})}
            result = self.task(shape, payload, path)
            if result is None or result.get("round") == 99:
                break
        return result

    def each(self, shape: Shape, needs: dict[str, Any], path: str) -> list[Any]:
        results, failed = [], set()
        for number in range(shape.items):
            try:
                results.append(self.task(shape, {"needs": needs, "item": f"item {number}"}, f"{path}[{number}]"))
            except Fails as fails:
                failed |= fails.paths
        if failed:
            raise Fails(failed)
        return results

    def task(self, shape: Shape, payload: dict[str, Any], path: str) -> Any:
        try:
            return self.work(shape, payload, path)
        except Fails as fails:
            if shape.fallback and not (shape.fallback != "literal" and path in self.worse):
                instead = {"round": 99, "why": "no"}
                return instead if shape.fallback == "literal" else response(instead)
            if shape.on_error == "continue":
                return None
            if shape.fallback == "workflow":
                raise Fails({f"{path}/one"}) from None
            raise Fails({path} if shape.fallback else fails.paths) from None

    def work(self, shape: Shape, payload: dict[str, Any], path: str) -> Any:
        if shape.sub is not None:
            results = self.run(shape.sub, f"{path}/")
            return {"round": payload["round"]} if shape.repeat else results
        if path in self.failing:
            raise Fails({path})
        return response(payload)


def shapes(depth: int) -> st.SearchStrategy[list[Shape]]:
    @st.composite
    def made(draw: st.DrawFn) -> list[Shape]:
        steps: list[Shape] = []
        for number in range(draw(st.integers(1, 5 if depth else 3))):
            names = [step.name for step in steps]
            needs = draw(st.lists(st.sampled_from(names), unique=True, max_size=3)) if names else []
            shape = Shape(f"s{number}", needs, when=draw(st.integers(0, 5)) != 0)
            kind = draw(st.sampled_from(["plain", "plain", "plain", "repeat", "each", "signal", "sleep", "until"]))
            steps.append(shape)
            if kind in ("signal", "sleep", "until"):
                shape.waits = kind
                continue
            if kind == "repeat":
                shape.repeat = draw(st.integers(1, 3))
            elif kind == "each":
                shape.items = draw(st.integers(0, 4))
                shape.concurrency = draw(st.integers(1, 3))
            if depth and draw(st.integers(0, 2)) == 0:
                shape.sub = draw(shapes(depth - 1))
                shape.key = draw(st.sampled_from(["", f"flow{depth}{number}"]))
            shape.fallback = draw(st.sampled_from(["", "", "", "literal", "task", "workflow"]))
            shape.on_error = draw(st.sampled_from(["fail", "fail", "fail", "continue", "compensate"]))
            shape.compensation = draw(st.sampled_from(["", "", "undo", "undo_all"]))
        return steps

    return made()


def paths(steps: list[Shape], prefix: str = "") -> list[str]:
    """Every path at which an agent may be at work."""
    found = []
    for shape in steps:
        path = f"{prefix}{shape.name}"
        for position in [f"{path}[{n}]" for n in range(shape.items)] if shape.items >= 0 else [path]:
            if not shape.waits:
                found += paths(shape.sub, f"{position}/") if shape.sub is not None else [position]
    return found


def all_of(steps: list[Shape]) -> Iterator[Shape]:
    for shape in steps:
        yield shape
        yield from all_of(shape.sub or [])


def timeless(value: Any) -> Any:
    """Without the times that sleeps ended at."""
    if isinstance(value, dict):
        return {name: "some time" if name == "at" else timeless(inner) for name, inner in value.items()}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


@dataclass
class Weather:
    """What may happen beside the work itself, each so often."""

    pauses: float = 0.04
    restarts: float = 0.15
    early_signals: float = 0.05
    wrong_signals: float = 0.05
    delegations: float = 0.08
    absences: float = 0.04
    failing_compensations: float = 0.2
    # At which transition the task is cancelled, or its deadline passes.
    cancel_at: int | None = None
    deadline_at: int | None = None


class Storm:
    """Drives one run with whatever may happen, in an order that `chance` draws."""

    def __init__(
        self,
        driver: Driver,
        chance: random.Random,
        model: Model,
        flaky: frozenset[str],
        *,
        signals: list[str] | None = None,
        weather: Weather | None = None,
        usage: Usage | None = None,
    ) -> None:
        self.driver = driver
        self.chance = chance
        self.model = model
        self.flaky = flaky
        self.signals = signals or []
        self.weather = weather or Weather()
        self.usage = usage
        self.check: Callable[[Decisions], None] = lambda decisions: None
        self.applied: list[RunEvent] = []
        self.transitions = 0

    @property
    def root(self) -> Any:
        return self.driver.run.root_task_id

    @property
    def going(self) -> bool:
        return self.driver.run.root.status in WITH_SCOPE

    def run(self) -> None:
        while self.going:
            self.transitions += 1
            assert self.transitions < 5000, "it never ends"
            self.driver.world.now += timedelta(milliseconds=1)
            # With a budget, one at a time: what was used when a step was dispatched is then known.
            batch = [self._one() for _ in range(self.chance.choice([1, 1, 1, 2, 4]) if self.usage is None else 1)]
            if self.chance.random() < self.weather.restarts:
                self.driver.restart()
            if self.chance.random() < 0.3:
                self._republish()
            if self.going:
                self.check(self.driver.happen(*batch))
            self.applied += batch
        for _ in range(5):
            self._republish()

    def _republish(self) -> None:
        """What was applied before is not current any more: alone, it must change nothing."""
        if not self.applied:
            return
        run_event = self.chance.choice(self.applied)
        run = self.driver.run
        if isinstance(run_event, ResponseReceived | Expired):
            row = run.rows.get(run_event.task_id)
            if row is not None and row.status is Status.DISPATCHED and row.attempt == run_event.attempt:
                return
        elif self.going and not (isinstance(run_event, SignalReceived) and self._kept(run_event)):
            return
        assert self.driver.happen(run_event).empty

    def _kept(self, signal: SignalReceived) -> bool:
        task_id = step_task_id(self.root, f"signal:{signal.name}", 0, signal.operation.int % 2**31)
        return task_id in self.driver.run.rows

    def _one(self) -> RunEvent:
        if (other := self._weather()) is not None:
            return other
        run, world = self.driver.run, self.driver.world
        rows = [
            row
            for row in run.active()
            if row.status not in (Status.RUNNING, Status.COMPENSATING) and row.role is not Role.SIGNAL
        ]
        movable = [row for row in rows if row.status is not Status.READY or run.at_work]
        if not movable:
            assert run.root.status is Status.PAUSED, "something is at work, or waits for an event"
            return ResumeRequested(self.root)
        row = self.chance.choice(movable)
        match row.status:
            case Status.DISPATCHED:
                return self._end_of(row)
            case Status.WAITING if row.run_after is None:
                return SignalReceived(self.root, new_id(), row.step or "", dict(VALUES), "anna")
            case Status.WAITING:
                assert row.run_after is not None
                world.now = max(world.now, row.run_after)
                return Due(self.root, row.task_id)
            case _:
                world.everything_served_by = "worker"
                return Due(self.root, row.task_id)

    def _weather(self) -> RunEvent | None:
        weather, draw = self.weather, self.chance.random
        world = self.driver.world
        if self.transitions == weather.cancel_at:
            return CancelRequested(self.root, "enough")
        if weather.deadline_at is not None and self.transitions >= weather.deadline_at:
            assert self.driver.run.facts.deadline_at is not None
            world.now = max(world.now, self.driver.run.facts.deadline_at)
            if draw() < 0.5:
                return DeadlinePassed(self.root)
        if draw() < weather.absences:
            world.everything_served_by = None if world.everything_served_by else "worker"
        if draw() < weather.pauses:
            return PauseRequested(self.root) if draw() < 0.5 else ResumeRequested(self.root)
        if self.signals and draw() < weather.early_signals:
            return SignalReceived(self.root, new_id(), self.chance.choice(self.signals), dict(VALUES), "anna")
        if self.signals and draw() < weather.wrong_signals:
            given, giver = self.chance.choice([({}, "anna"), (dict(VALUES), "bob"), (dict(VALUES), None)])
            return SignalReceived(self.root, new_id(), self.chance.choice(self.signals), given, giver)
        if draw() < weather.delegations:
            return self._delegation()
        return None

    def _delegation(self) -> RunEvent | None:
        at_work = [row for row in self.driver.run.active() if row.status is Status.DISPATCHED]
        if not at_work:
            return None
        parent = self.chance.choice(at_work)
        task_id = step_task_id(parent.task_id, "run:given", 0, 1)
        given = "child" if not self.driver.run.compensates(parent) and self.chance.random() < 0.5 else "given"
        plan: Plan = self.driver.world.library.newest(given) or self.driver.world.library.single(given)
        if self.driver.run.path(parent).count("/") > 6:
            return None
        return Delegated(self.root, parent.task_id, task_id, given, {"needs": {}}, plan, reply_to="_INBOX.a")

    def _end_of(self, row: Row) -> RunEvent:
        run = self.driver.run
        path, stands_in = run.path(row), row.role is Role.FALLBACK
        above = run.rows[row.parent_task_id] if row.parent_task_id is not None else run.root
        if above.role is Role.FALLBACK and row.role is Role.STEP:
            # A workflow that stands in.
            path, stands_in = run.path(above), True
        if run.compensates(row):
            if self.chance.random() < self.weather.failing_compensations:
                return self._failed(row, retryable=self.chance.random() < 0.5)
        elif path in self.flaky and row.failures < MAX_FAILURES and self.chance.random() < 0.6:
            if self.chance.random() < 0.3:
                assert row.expires_at is not None
                self.driver.world.now = max(self.driver.world.now, row.expires_at)
                return Expired(self.root, row.task_id, row.attempt)
            return self._failed(row, retryable=True)
        elif path in (self.model.worse if stands_in else self.model.failing):
            return self._failed(row, retryable=False)
        if self.chance.random() < 0.1:
            return AttemptAbandoned(self.root, row.task_id, row.attempt, row.agent or "", "it is gone")
        result = response(json.loads(row.payload or b"{}"))
        return ResponseReceived(
            self.root, row.task_id, row.attempt, "completed", result=result, instance_id="i", usage=self.usage
        )

    def _failed(self, row: Row, *, retryable: bool) -> ResponseReceived:
        error = ErrorInfo(code="no", message="no", retryable=retryable)
        return ResponseReceived(self.root, row.task_id, row.attempt, "failed", error=error, usage=self.usage)


def stormy_world(steps: list[Shape]) -> World:
    """No agent is away for long enough to fail a step; what agents delegate may be a workflow that compensates."""
    world = World(rules=Rules(no_agent_wait_seconds=1e9))
    compensation = {"task": "undo", "with": {"was": "${result}"}}
    world.add("child", steps={"one": {"task": "x", "compensate": compensation}, "two": {"task": "x", "needs": ["one"]}})
    world.add("stand_in", steps={"one": {"task": "instead", "with": "${input}"}}, output="${one}")
    world.add("undo_all", steps={"one": {"task": "undo", "with": "${input}"}, "two": {"task": "x", "needs": ["one"]}})
    for shape in all_of(steps):
        if shape.key:
            world.add(shape.key, **shape.inside())
    return world


# -- what must be compensated ---------------------------------------------------------------------------------------


def to_be_compensated(driver: Driver, steps: list[Shape], kept: Collection[Any] = ()) -> set[Any]:
    """Of the rows at the end: completed steps of workflows that ended badly, the outermost that says how."""
    children: dict[Any, list[Row]] = {}
    for row in driver.run.rows.values():
        if row is not driver.run.root:
            children.setdefault(row.parent_task_id, []).append(row)
    found: set[Any] = set()
    delegated = [Shape("one", [], compensation="undo"), Shape("two", ["one"])]

    def newest(row: Row, among: list[Row]) -> bool:
        instead = [other for other in among if (other.step, other.item) == (row.step, row.item)]
        return row.role is Role.FALLBACK or not any(other.role is Role.FALLBACK for other in instead)

    def scope(row: Row, shapes_of: list[Shape], bad: bool) -> None:
        by_name = {shape.name: shape for shape in shapes_of}
        below = [child for child in children.get(row.task_id, ()) if child.role in (Role.STEP, Role.FALLBACK)]
        for child in below:
            if child.task_id in kept:
                # It is the work of an earlier run.
                continue
            shape = by_name.get(child.step or "", Shape(child.step or "", []))
            if shape.items >= 0 and child.role is Role.STEP:
                items = children.get(child.task_id, [])
                for item in items:
                    step(item, shape, bad, newest(item, items))
            else:
                step(child, shape, bad, newest(child, below))

    def step(row: Row, shape: Shape, bad: bool, latest: bool) -> None:
        failed_for_it = row.status is Status.FAILED and shape.on_error == "compensate" and latest
        own = shape.compensable and ((bad and row.status is Status.COMPLETED) or failed_for_it)
        if own:
            found.add(step_task_id(row.task_id, "compensation", 0, -1))
        if own and not failed_for_it:
            return
        worse = bad or row.status is Status.FAILED
        if row.role is Role.FALLBACK and shape.fallback == "workflow":
            scope(row, [Shape("one", [])], worse)
        elif shape.sub is not None and row.role is Role.STEP:
            scope(row, shape.sub, worse)
        for child in children.get(row.task_id, ()):
            if child.role is Role.DELEGATED and not own:
                scope(child, delegated if child.task_type == "child" else [], bad or child.status is Status.FAILED)

    scope(driver.run.root, steps, driver.status != "completed")
    return found


def check_compensated(driver: Driver, steps: list[Shape], kept: Collection[Any] = ()) -> None:
    made = {row.task_id: row for row in driver.run.rows.values() if row.role is Role.COMPENSATION}
    assert made.keys() == to_be_compensated(driver, steps, kept)
    assert all(row.ended for row in made.values())
    compensates = {step_task_id(row.task_id, "compensation", 0, -1): row for row in driver.run.rows.values()}
    last: dict[Any, Any] = {}
    for task_id in driver.table.records:
        if task_id not in made:
            continue
        row, compensated = made[task_id], compensates[task_id]
        assert row.status in (Status.COMPLETED, Status.FAILED)
        result = None if compensated.result is None else json.loads(compensated.result)
        assert json.loads(driver.table.records[task_id]["payload"]) == {"was": result}
        # A workflow compensates the last step first.
        assert compensated.completed_at is not None
        assert last.get(row.parent_task_id, compensated.completed_at) >= compensated.completed_at
        last[row.parent_task_id] = compensated.completed_at


# -- the properties -------------------------------------------------------------------------------------------------


def drawn(data: st.DataObject, steps: list[Shape]) -> tuple[Model, frozenset[str]]:
    everywhere = paths(steps) or ["nowhere"]
    flaky = frozenset(data.draw(st.sets(st.sampled_from(everywhere))))
    failing = frozenset(data.draw(st.sets(st.sampled_from(everywhere), max_size=2)))
    worse = frozenset(data.draw(st.sets(st.sampled_from(everywhere), max_size=1)))
    return Model(failing, worse), flaky


def signals_of(steps: list[Shape]) -> list[str]:
    return sorted({shape.name for shape in all_of(steps) if shape.waits == "signal"})


@settings(max_examples=EXAMPLES)
@given(steps=shapes(1), data=st.data())
def test_any_order_of_the_same_events_comes_to_the_same_end(steps: list[Shape], data: st.DataObject) -> None:
    model, flaky = drawn(data, steps)
    try:
        expected, broken = model.run(steps), set()
    except Fails as fails:
        expected, broken = {}, fails.paths
    definition = {shape.name: shape.definition() for shape in steps}
    for seed in data.draw(st.lists(st.integers(0, 2**32), min_size=2, max_size=3)):
        driver = stormy_world(steps).dag(definition)
        Storm(driver, random.Random(seed), model, flaky, signals=signals_of(steps)).run()
        if broken:
            assert driver.status == "failed"
            assert driver.error.code == "step_failed"
            # With several that would fail, its error is that of the first to arrive.
            assert driver.error.step in broken
        else:
            assert timeless(driver.result) == timeless(expected)
        ends = [name for name in driver.events() if name in ("task.started", "task.completed", "task.failed")]
        assert len(ends) == 2, "begun once, ended once"
        check_compensated(driver, steps)


@settings(max_examples=EXAMPLES)
@given(steps=shapes(1), data=st.data(), seed=st.integers(0, 2**32))
def test_a_task_that_is_cancelled_or_late_ends_so_and_compensates_what_it_did(
    steps: list[Shape], data: st.DataObject, seed: int
) -> None:
    model, flaky = drawn(data, steps)
    moment = data.draw(st.integers(1, 25))
    cancelled = data.draw(st.booleans())
    weather = Weather(cancel_at=moment) if cancelled else Weather(deadline_at=moment)
    driver = stormy_world(steps).dag(
        {shape.name: shape.definition() for shape in steps}, deadline=None if cancelled else START + timedelta(days=99)
    )
    Storm(driver, random.Random(seed), model, flaky, signals=signals_of(steps), weather=weather).run()
    ends = ("completed", "failed", "cancelled") if cancelled else ("completed", "failed")
    assert driver.status in ends
    if driver.status == "cancelled":
        assert driver.error.message == "enough"
    elif driver.status == "failed":
        assert driver.error.code in ("step_failed", "deadline_exceeded")
    check_compensated(driver, steps)


def standing(driver: Driver, steps: list[Shape]) -> set[str]:
    """The steps of an ended run that ended well, and were not compensated in any part."""
    root, rows = driver.run.root_task_id, driver.run.rows
    compensated: set[str] = set()
    for row in rows.values():
        made = rows.get(step_task_id(row.task_id, "compensation", 0, -1))
        if made is None or made.parent_task_id != root:
            continue
        while row.parent_task_id not in (root, None):
            row = rows[row.parent_task_id]
        compensated.add(row.step or "")
    found: set[str] = set()
    for shape in steps:
        own = [row for row in rows.values() if row.parent_task_id == root and row.step == shape.name]
        own = [row for row in own if row.role in (Role.STEP, Role.FALLBACK)]
        newest = max(own, key=lambda row: (row.iteration, row.role is Role.FALLBACK), default=None)
        if newest is None or newest.status not in (Status.COMPLETED, Status.SKIPPED):
            continue
        result = json.loads(newest.result or b"null")
        if shape.name not in compensated and not (
            shape.repeat and result is not None and result["round"] < shape.repeat
        ):
            found.add(shape.name)
    return found


@settings(max_examples=EXAMPLES)
@given(steps=shapes(1), data=st.data(), seed=st.integers(0, 2**32))
def test_what_stands_is_reused_by_retries_and_replays_and_nothing_else(
    steps: list[Shape], data: st.DataObject, seed: int
) -> None:
    """And the end is the same, however often it is run again, however far each run came."""
    world, chance = stormy_world(steps), random.Random(seed)
    driver = world.dag({shape.name: shape.definition() for shape in steps}, deadline=None)
    model, flaky = drawn(data, steps)
    kept: set[Any] = set()
    for last in (False, False, True):
        weather = Weather(cancel_at=chance.choice([None, chance.randint(1, 12)])) if not last else Weather()
        Storm(driver, chance, model, flaky, signals=signals_of(steps), weather=weather).run()
        check_compensated(driver, steps, kept)
        if last:
            break
        well = standing(driver, steps)
        begin = None if driver.status != "completed" and chance.random() < 0.6 else chance.choice(steps)
        old = driver.run
        if begin is not None:
            well.discard(begin.name)
        if chance.random() < 0.5:
            world.now += timedelta(minutes=1)
        for shape in steps:
            if not set(shape.needs) <= well:
                well.discard(shape.name)
        driver = driver.again(from_step=begin.name if begin is not None else None)
        if driver.status == "failed" and driver.error.code == "invalid_request":
            # What a step needs did not complete: there is nothing that it could begin from.
            assert begin is not None
            return
        adopted = [row for row in driver.run.rows.values() if row.parent_task_id == driver.run.root_task_id]
        kept = {row.task_id for row in adopted if driver.run.reused(row)}
        assert {row.step for row in adopted if row.task_id in kept} == well
        # From now on nothing fails.
        results = {row.step or "": json.loads(row.result or b"null") for row in adopted if row.task_id in kept}
        model = Model(frozenset(), kept=results)
        assert old.root.ended
    assert timeless(driver.result) == timeless(model.run(steps))


@settings(max_examples=EXAMPLES)
@given(steps=shapes(1), data=st.data(), seed=st.integers(0, 2**32))
def test_a_budget_is_hard_whatever_the_order(steps: list[Shape], data: st.DataObject, seed: int) -> None:
    model, flaky = drawn(data, steps)
    name = data.draw(st.sampled_from(["tokens", "cost_usd", "tasks", "depth"]))
    bound = data.draw(st.integers(1, 6))
    budget = {name: bound * 10 if name == "tokens" else float(bound) if name == "cost_usd" else bound}
    driver = stormy_world(steps).request(
        "execute_dag", {"steps": {shape.name: shape.definition() for shape in steps}, "budget": budget}
    )
    storm = Storm(driver, random.Random(seed), model, flaky, signals=signals_of(steps), usage=USED)
    asked: set[Any] = set()

    def check(decisions: Decisions) -> None:
        usage = driver.run.usage() or Usage()
        for row in decisions.dispatched.values():
            if driver.run.root.status is Status.RUNNING and not driver.run.compensates(row):
                asked.add(row.task_id)
                assert name != "tokens" or usage.input_tokens + usage.output_tokens < budget[name]
                assert name != "cost_usd" or usage.cost_usd < budget[name]
                assert name != "tasks" or len(asked) <= bound

    storm.check = check
    storm.run()
    assert driver.status in ("completed", "failed")
    if name == "depth":
        # What compensates is not kept from it by a budget, nor is what it delegates.
        bounded = [scope for scope in driver.run.scopes.values() if not driver.run.compensates(scope.row)]
        assert all(scope.depth <= bound for scope in bounded)
    if driver.status == "failed" and driver.error.code == "budget_exceeded":
        assert driver.error.details is not None
        assert driver.error.details["budget"] == name
    check_compensated(driver, steps)


@settings(max_examples=EXAMPLES)
@given(steps=shapes(1), seed=st.integers(0, 2**32))
def test_rows_are_made_once_each_and_as_many_as_the_steps_ask_for(steps: list[Shape], seed: int) -> None:
    driver = stormy_world(steps).dag({shape.name: shape.definition() for shape in steps})
    calm = Weather(delegations=0, early_signals=0, wrong_signals=0)
    Storm(driver, random.Random(seed), Model(frozenset()), frozenset(paths(steps)), weather=calm).run()

    def count(shapes_of: list[Shape]) -> int:
        total = 0
        for shape in shapes_of:
            times = 0 if not shape.when else (shape.repeat or 1) if shape.items < 0 else shape.items
            inner = count(shape.sub) if shape.sub is not None else 0
            own = 1 if shape.items >= 0 and shape.when else 0
            total += own + (1 if not shape.when else times) + times * inner
        return total

    rows = [row for row in driver.run.rows.values() if row.role is not Role.SIGNAL]
    assert len(rows) - 1 == count(steps)
    keys = {(row.parent_task_id, row.step, row.iteration, row.item) for row in rows}
    assert len(keys) == len(rows)
