"""A world for the engine without any I/O: its agents, what is in the tables, what is out with the agents."""

import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, Literal
from uuid import UUID

import pytest

from orchestrator_agent.engine.advance import advance
from orchestrator_agent.engine.decisions import Decisions, Placement, RouteRequest, Rules, WaitReasons
from orchestrator_agent.engine.events import Due, Expired, ResponseReceived, RunEvent
from orchestrator_agent.engine.state import ENDED, PendingCompensation, Row, Run, Status
from orchestrator_agent.intake.planner import Planner
from orchestrator_agent.intake.replay import REPLAY, RETRY, ReplayRequest, make_replay
from orchestrator_agent.workflows.compiler import compile_workflow
from orchestrator_agent.workflows.library import Library
from orchestrator_agent.workflows.plan import Plan
from protocol import TaskRequest, new_id
from protocol.messages import ErrorInfo, Usage
from protocol.workflow import Workflow
from testkit.table import Table

START = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


def picture(run: Run) -> dict[str, Any]:
    """All of a run that its future depends on, as plain values."""

    def variables(scope_variables: dict[str, Any], plan: Plan, ended: set[str]) -> dict[str, Any]:
        # A repeated step's last result was used when its payload was made, and is replaced before it is read again.
        return {
            name: value
            for name, value in scope_variables.items()
            if not (name in plan.steps and plan.steps[name].repeat is not None and name not in ended)
        }

    live = {row.task_id for row in run.rows.values() if row.status in WITH_SCOPE}
    waits = (Status.READY, Status.WAITING, Status.DISPATCHED)
    return {
        "facts": run.facts,
        "version": run.version,
        "usage": run.usage(),
        "rows": {
            task_id: {
                name: getattr(row, name)
                for name in Row.__slots__
                if name not in ("payload", "path", "_text") and not (row is run.root and name == "usage")
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
                "pending": [to_come(pending) for pending in scope.pending]
                if scope.row.status is Status.COMPENSATING
                else [],
                "compensation": at_work(scope.compensation),
                "plan": (scope.plan.name, scope.plan.version, tuple(scope.plan.steps)),
            }
            for task_id, scope in run.scopes.items()
            if task_id in live
        },
        "fan_outs": {
            task_id: {
                "items": fan_out.items,
                "results": fan_out.results,
                "active": fan_out.active,
                "ended": fan_out.ended,
                "next": fan_out.next,
                "rows": {item: row.task_id for item, row in fan_out.rows.items()},
            }
            for task_id, fan_out in run.fan_outs.items()
            if task_id in live
        },
        "signals": [row.task_id for row in run.signals],
        "delegated": {
            task_id: sorted(row.task_id for row in rows if not row.ended)
            for task_id, rows in run.delegated.items()
            if any(not row.ended for row in rows)
        },
        "compensations": {task_id for task_id in run.compensations if not run.rows[task_id].ended},
    }


def to_come(pending: PendingCompensation) -> tuple[UUID, dict[str, Any]]:
    """A compensation that is still to be made, and what its payload may be made of: see `_only_known`."""
    names = {*pending.plan.needs, pending.plan.name, "input", "item", "index", "result"}
    return pending.row.task_id, {name: value for name, value in pending.variables.items() if name in names}


def at_work(row: Row | None) -> UUID | None:
    return row.task_id if row is not None and not row.ended else None


WITH_SCOPE = (Status.RUNNING, Status.PAUSED, Status.COMPENSATING)


@dataclass
class World:
    """One mesh: `agents` holds the agent of each task type; `request` a task, then `happen` until it has ended."""

    agents: dict[str, str] = field(default_factory=dict)
    rules: Rules = field(default_factory=Rules)
    library: Library = field(default_factory=Library)
    now: datetime = START
    random: Random = field(default_factory=lambda: Random(0))
    everything_served_by: str | None = "worker"

    # The engine's Directory.
    def choose(self, request: RouteRequest) -> Placement | None:
        agent = self.agents.get(request.task_type, self.everything_served_by)
        return Placement(agent) if agent is not None and request.pinned_agent in (None, agent) else None

    def served(self, request: RouteRequest) -> bool:
        return self.choose(request) is not None

    def responsive(self, request: RouteRequest) -> bool:
        return self.choose(request) is not None

    def wait_reasons(self, request: RouteRequest) -> WaitReasons:
        return WaitReasons(request.task_type)

    def workflow(self, name: str) -> Plan | None:
        return self.library.newest(name)

    def add(self, name: str, **definition: Any) -> Plan:
        plan = compile_workflow(Workflow.model_validate(definition), name=name, versioned=True)
        self.library.add(plan)
        return plan

    @property
    def planner(self) -> Planner:
        return Planner(self.library, self, self.rules, 300.0)

    def advance(self, run: Run, *run_events: RunEvent) -> Decisions:
        """A transition of which nothing is written."""
        return advance(run, run_events, directory=self, rules=self.rules, now=self.now, random=self.random)

    def request(self, task_type: str, payload: dict[str, Any] | None = None, **fields: Any) -> "Driver":
        request = TaskRequest(
            task_id=fields.pop("task_id", new_id()), task_type=task_type, payload=payload or {}, **fields
        )
        run, decisions = self.planner.plan(request, headers=None, now=self.now)
        return Driver(self, run, decisions)

    def dag(self, steps: dict[str, Any], input: dict[str, Any] | None = None, **more: Any) -> "Driver":  # noqa: A002
        payload = {"steps": steps, "input": input or {}}
        if "output" in more:
            payload["output"] = more.pop("output")
        return self.request("execute_dag", payload, **more)


class Driver:
    """Drives one run: every transition written to the table, and compared with what is read back from it."""

    def __init__(self, world: World, run: Run, decisions: Decisions) -> None:
        self.world = world
        self.run = run
        self.table = Table()
        self.table.accept(run, decisions)
        run.version = 1
        self.log: list[Decisions] = []
        self._note(decisions)
        self.check()

    def happen(self, *run_events: RunEvent) -> Decisions:
        before_root = self.run.root.status
        decisions = self.world.advance(self.run, *run_events)
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
        if self.run.root.status in WITH_SCOPE:
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

    def again(self, *, from_step: str | None = None) -> "Driver":
        """The driver of a retry, or of a replay from a step."""
        retry = from_step is None
        asked = ReplayRequest(self.run.root_task_id, retry=retry, from_step=from_step)
        replayed = make_replay(asked, list(self.table.records.values()), self.world.library)
        request = TaskRequest(task_id=new_id(), task_type=RETRY if retry else REPLAY)
        run, decisions = self.world.planner.plan(request, headers=None, now=self.world.now, replayed=replayed)
        return Driver(self.world, run, decisions)

    # -- what a test asks and does -----------------------------------------------------------------------------------

    def row(self, path: str) -> Row:
        """The newest row at a path such as `draft/review` or `notes[3]`."""
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
    ) -> ResponseReceived:
        row = self.row(path)
        return ResponseReceived(
            self.run.root_task_id,
            row.task_id,
            row.attempt if attempt is None else attempt,
            "completed",
            result=result,
            usage=usage,
            instance_id="i",
        )

    def responded(
        self, row: Row, result: Any, *, error: ErrorInfo | None = None, usage: Usage | None = None
    ) -> ResponseReceived:
        """The response to a row's current attempt, where a path would not identify the row."""
        status: Literal["completed", "failed"] = "completed" if error is None else "failed"
        return ResponseReceived(
            row.root_task_id, row.task_id, row.attempt, status, result=result, error=error, usage=usage
        )

    def failed(
        self, path: str, code: str = "no", *, retryable: bool = False, attempt: int | None = None, message: str = "no"
    ) -> ResponseReceived:
        row = self.row(path)
        error = ErrorInfo(code=code, message=message, retryable=retryable)
        number = row.attempt if attempt is None else attempt
        return ResponseReceived(self.run.root_task_id, row.task_id, number, "failed", error=error, instance_id="i")

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
