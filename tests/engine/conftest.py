"""A world for the engine without any I/O: who serves what, what is in the tables, what is out with the agents."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from orchestrator_agent.engine.advance import advance
from orchestrator_agent.engine.decisions import Decisions, Placement, Rules, Wanted
from orchestrator_agent.engine.events import Answered, Due, Expired, Happening
from orchestrator_agent.engine.state import ENDED, TRANSITIONS, Row, Run, Status
from orchestrator_agent.intake import Planner
from orchestrator_agent.store import rows as stored
from orchestrator_agent.store import tasks as writes
from orchestrator_agent.workflows.compiler import compile_workflow
from orchestrator_agent.workflows.library import Library
from orchestrator_agent.workflows.plan import Plan
from protocol import TaskRequest, new_id
from protocol.messages import ErrorInfo, Usage
from protocol.workflow import Workflow

START = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
COLUMNS = stored.COLUMNS.split(", ")


class Table:
    """What Postgres holds of one root: the columns that the store's statements write, and no others."""

    def __init__(self) -> None:
        self.records: dict[UUID, dict[str, Any]] = {}

    def accept(self, run: Run, decisions: Decisions) -> None:
        root = dict.fromkeys(COLUMNS)
        root |= dict(zip(_names(writes._ACCEPTED), writes._accepted_values(run), strict=True))
        self.records[run.root_task_id] = {**root, "version": 1}
        self._make(run, decisions)

    def apply(self, run: Run, decisions: Decisions) -> None:
        root = self.records[run.root_task_id]
        assert root["version"] == run.version
        values = (run.root.status.value, writes._text(run.root.result), writes._error(run.root))
        values += (writes._usage(run.root.usage), run.root.completed_at, run.facts.reply_to)  # type: ignore[assignment]
        names = [name for name in _names(writes._ROOTS) if name not in ("root_task_id", "task_id", "known_version")]
        root |= {**dict(zip(names, values, strict=True)), "version": run.version + 1}
        for row in decisions.changed.values():
            if row is run.root:
                continue
            record = self.records[row.task_id]
            before = Status(record["status"])
            assert before not in ENDED, "what has ended was changed"
            record |= dict(zip(_names(writes._CHANGED), writes._changed_values(row), strict=True))
            assert _reachable(before, Status(record["status"]))
        self._make(run, decisions)
        run.version += 1

    def _make(self, run: Run, decisions: Decisions) -> None:
        for row in decisions.made:
            assert row.task_id not in self.records, "a row was made twice"
            record = dict.fromkeys(COLUMNS)
            self.records[row.task_id] = {
                **record,
                **dict(zip(_names(writes._MADE), writes._made_values(run, row), strict=True)),
                "version": 0,
            }

    def read(self, library: Library) -> Run:
        """The run, as a process that has never seen it makes it."""
        records = list(self.records.values())
        root = next(record for record in records if record["task_id"] == record["root_task_id"])
        payload = json.loads(root["payload"] or "{}")
        if root["workflow_version"] is not None:
            plan = library.version(root["workflow_version"])
        elif root["task_type"] == "execute_dag":
            plan = library.inline(payload)[0]
        else:
            plan = library.single(root["task_type"])
        return stored.run_of(records, plan, library)


def _names(columns: Sequence[tuple[str, str, str]]) -> list[str]:
    return [name for name, _, _ in columns]


def _reachable(before: Status, after: Status) -> bool:
    """Over any number of transitions: one batch may hold several."""
    seen, queue = {before}, [before]
    while queue:
        for following in TRANSITIONS[queue.pop()]:
            if following not in seen:
                seen.add(following)
                queue.append(following)
    return after in seen


def picture(run: Run) -> dict[str, Any]:
    """All of a run that its future depends on, as plain values."""

    def variables(scope_variables: dict[str, Any], plan: Plan, ended: set[str]) -> dict[str, Any]:
        # A repeated step's last result was used when its payload was made, and is replaced before it is read again.
        return {
            name: value
            for name, value in scope_variables.items()
            if not (name in plan.steps and plan.steps[name].repeat is not None and name not in ended)
        }

    live = {row.task_id for row in run.rows.values() if row.status is Status.RUNNING}
    waits = (Status.READY, Status.WAITING, Status.DISPATCHED)
    return {
        "facts": run.facts,
        "version": run.version,
        "usage": run.usage(),
        "rows": {
            task_id: {
                name: getattr(row, name)
                for name in Row.__slots__
                if name != "payload" and not (row is run.root and name == "usage")
            }
            | {"payload": row.payload if row.status in waits else None}
            for task_id, row in run.rows.items()
        },
        "scopes": {
            task_id: {
                "variables": variables(scope.variables, scope.plan, scope.ended),
                "ended": scope.ended,
                "rows": {name: row.task_id for name, row in scope.rows.items()},
                "depth": scope.depth,
                "plan": (scope.plan.name, scope.plan.version, tuple(scope.plan.steps)),
            }
            for task_id, scope in run.scopes.items()
            if task_id in live
        },
        "fan_outs": {
            task_id: {
                "items": one.items,
                "results": one.results,
                "active": one.active,
                "ended": one.ended,
                "next": one.next,
                "rows": {item: row.task_id for item, row in one.rows.items()},
            }
            for task_id, one in run.fan_outs.items()
            if task_id in live
        },
    }


@dataclass
class World:
    """One mesh: `agents` says who serves a task type; `run` a request, then `happen` until it has ended."""

    agents: dict[str, str] = field(default_factory=dict)
    rules: Rules = field(default_factory=Rules)
    library: Library = field(default_factory=Library)
    now: datetime = START
    everything_served_by: str | None = "worker"

    # The engine's Directory.
    def place(self, wanted: Wanted) -> Placement | None:
        agent = self.agents.get(wanted.task_type, self.everything_served_by)
        return Placement(agent) if agent is not None and wanted.pinned_agent in (None, agent) else None

    def served(self, wanted: Wanted) -> bool:
        return self.place(wanted) is not None

    def workflow(self, name: str) -> Plan | None:
        return self.library.newest(name)

    def add(self, name: str, **definition: Any) -> Plan:
        plan = compile_workflow(Workflow.model_validate(definition), name=name, versioned=True)
        self.library.add(plan)
        return plan

    @property
    def planner(self) -> Planner:
        return Planner(self.library, self, self.rules, 300.0)

    def request(self, task_type: str, payload: dict[str, Any] | None = None, **fields: Any) -> "Course":
        request = TaskRequest(
            task_id=fields.pop("task_id", new_id()), task_type=task_type, payload=payload or {}, **fields
        )
        run, decisions = self.planner.plan(request, headers=None, now=self.now)
        return Course(self, run, decisions)

    def dag(self, steps: dict[str, Any], input: dict[str, Any] | None = None, **more: Any) -> "Course":  # noqa: A002
        payload = {"steps": steps, "input": input or {}}
        if "output" in more:
            payload["output"] = more.pop("output")
        return self.request("execute_dag", payload, **more)


class Course:
    """The course of one run: every transition written to the table, and compared with what is read back from it."""

    def __init__(self, world: World, run: Run, decisions: Decisions) -> None:
        self.world = world
        self.run = run
        self.table = Table()
        self.table.accept(run, decisions)
        run.version = 1
        self.log: list[Decisions] = []
        self._note(decisions)
        self.check()

    def happen(self, *happenings: Happening) -> Decisions:
        before_root = self.run.root.status
        decisions = advance(self.run, happenings, directory=self.world, rules=self.world.rules, now=self.world.now)
        if not decisions.empty:
            self.table.apply(self.run, decisions)
        self._note(decisions)
        assert decisions.root_ended == (before_root not in ENDED and self.run.root.status in ENDED)
        self.check()
        return decisions

    def _note(self, decisions: Decisions) -> None:
        self.log.append(decisions)
        for task_id, row in decisions.dispatched.items():
            assert row.status is Status.DISPATCHED
            assert row.agent is not None
            assert self.run.rows[task_id] is row
        assert all(re.fullmatch(r"[a-z]+", entity) for entity, _, _ in decisions.events)
        for moment in decisions.wake_at:
            assert moment.tzinfo is not None

    def check(self) -> None:
        if self.run.root.status is Status.RUNNING:
            assert self.run.scopes[self.run.root_task_id].row is self.run.root
            assert any(True for _ in self.run.active()), "a run that has not ended has something at work"
            assert picture(self.read_back()) == picture(self.run)
        else:
            assert not list(self.run.active()), "an ended run has nothing at work"

    def read_back(self) -> Run:
        return self.table.read(self.world.library)

    def restart(self) -> None:
        """The process dies; another one reads the run."""
        self.run = self.read_back()

    # -- what a test asks and says -----------------------------------------------------------------------------------

    def row(self, path: str) -> Row:
        """The newest row at a place such as `draft/review` or `notes[3]`."""
        found = [row for row in self.run.rows.values() if row is not self.run.root and self.run.path(row) == path]
        return max(found, key=lambda row: (not row.ended, row.iteration))

    def at_work(self) -> dict[str, Row]:
        return {self.run.path(row): row for row in self.run.rows.values() if row.status is Status.DISPATCHED}

    def statuses(self) -> dict[str, str]:
        return {self.run.path(row): row.status.value for row in self.run.rows.values() if row is not self.run.root}

    def payload(self, path: str) -> Any:
        return json.loads(self.row(path).payload or b"null")

    def completed(
        self, path: str, result: Any = None, *, attempt: int | None = None, usage: Usage | None = None
    ) -> Answered:
        row = self.row(path)
        return Answered(
            self.run.root_task_id,
            row.task_id,
            row.attempt if attempt is None else attempt,
            "completed",
            result=result,
            usage=usage,
            instance_id="i",
        )

    def failed(
        self, path: str, code: str = "no", *, retryable: bool = False, attempt: int | None = None, message: str = "no"
    ) -> Answered:
        row = self.row(path)
        error = ErrorInfo(code=code, message=message, retryable=retryable)
        number = row.attempt if attempt is None else attempt
        return Answered(self.run.root_task_id, row.task_id, number, "failed", error=error, instance_id="i")

    def complete(self, path: str, result: Any = None) -> Decisions:
        return self.happen(self.completed(path, result))

    def fail(self, path: str, code: str = "no", *, retryable: bool = False) -> Decisions:
        return self.happen(self.failed(path, code, retryable=retryable))

    def expire(self, path: str) -> Decisions:
        row = self.row(path)
        return self.happen(Expired(self.run.root_task_id, row.task_id, row.attempt))

    def due(self, path: str) -> Decisions:
        return self.happen(Due(self.run.root_task_id, self.row(path).task_id))

    def later(self, seconds: float) -> None:
        self.world.now += timedelta(seconds=seconds)

    @property
    def status(self) -> str:
        return self.run.root.status.value

    @property
    def result(self) -> Any:
        assert self.status == "completed", self.run.root.error
        return json.loads(self.run.root.result or b"null")

    @property
    def error(self) -> ErrorInfo:
        assert self.run.root.error is not None
        return self.run.root.error

    def events(self) -> list[str]:
        return [f"{entity}.{name}" for decisions in self.log for entity, name, _ in decisions.events]


@pytest.fixture
def world() -> World:
    return World()
