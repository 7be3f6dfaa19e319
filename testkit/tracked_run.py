"""Course: one root task of a test's mesh: its run, its rows, what was said of it; and in words, what it waits for."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from orchestrator_agent.dispatch.router import Router
from orchestrator_agent.engine.assignment import route_request_of
from orchestrator_agent.engine.decisions import Decisions, RouteRequest
from orchestrator_agent.engine.state import Role, Row, Run, Status
from orchestrator_agent.workflows.library import Library
from orchestrator_agent.workflows.plan import StepPlan
from protocol.messages import TaskRequest, time_text
from testkit.table import Table, json_of


@dataclass(frozen=True)
class Said:
    """One event of a task or of a step, as `mesh.event.*` would carry it."""

    at: datetime
    name: str
    data: dict[str, Any]


@dataclass
class Course:
    request: TaskRequest
    run: Run
    table: Table = field(default_factory=Table)
    said: list[Said] = field(default_factory=list)

    @property
    def root(self) -> Row:
        return self.run.root

    def read_again(self, library: Library) -> None:
        """Forget what is in memory; the run is what its rows say."""
        self.run = self.table.read(library)

    def note(self, decisions: Decisions, at: datetime) -> None:
        self.said += [Said(at, f"{entity}.{name}", data) for entity, name, data in decisions.events]

    def at_work(self) -> list[Row]:
        """Rows that wait for somebody or something: those of workflows and fan-outs only hold others."""
        open_rows = [row for row in self.run.active() if row.status not in (Status.RUNNING, Status.COMPENSATING)]
        return [row for row in open_rows if row.role is not Role.SIGNAL]

    def wakes(self) -> Iterator[datetime]:
        """The moments that this task waits for by itself."""
        if self.run.root.ended:
            return
        if self.run.facts.deadline_at is not None and self.run.root.status is not Status.COMPENSATING:
            yield self.run.facts.deadline_at
        for row in self.run.active():
            if row.status is Status.DISPATCHED and row.expires_at is not None:
                yield row.expires_at
            elif row.status is Status.WAITING and row.run_after is not None:
                yield row.run_after

    def looking(self) -> list[Row]:
        """Rows that look for an agent and may find one."""
        return [row for row in self.run.active() if row.status is Status.READY] if self.run.at_work else []

    def payload_of(self, row: Row) -> Any:
        return json_of(self.table.records[row.task_id]["payload"])


def shown_time(moment: datetime | None) -> str:
    return "?" if moment is None else time_text(moment)


def explain(course: Course, router: Router) -> list[str]:
    """What a task waits for, one line for each thing."""
    run = course.run
    if run.root.ended:
        return [f"the task has ended {run.root.status.value}"]
    if run.root.status is Status.WAITING:
        if run.facts.duplicate_of is not None:
            return [f"the task waits for the outcome of {run.facts.duplicate_of}, whose idempotency key it has"]
        return [f"the task waits for its turn: concurrency key {run.facts.concurrency_key}"]
    lines = []
    if run.root.status is Status.PAUSED:
        lines.append("the task is paused: nothing new begins")
    if run.root.status is Status.COMPENSATING and run.root.error is not None:
        lines.append(f"the task undoes what it did, because: {run.root.error.message}")
    return lines + [_line(course, row, router) for row in course.at_work()]


def _line(course: Course, row: Row, router: Router) -> str:
    what = f"step '{course.run.path(row)}'"
    if row.role in (Role.COMPENSATION, Role.FALLBACK):
        what = f"{row.role.value} of {what}"
    match row.status:
        case Status.DISPATCHED:
            return (
                f"{what} is with {row.agent} ('{row.task_type}', attempt {row.attempt}) "
                f"since {shown_time(row.dispatched_at)}, until {shown_time(row.expires_at)}"
            )
        case Status.READY:
            return f"{what} waits for an agent: {_nobody(router, route_request_of(course.run, row))}"
        case _ if row.failures:
            message = "" if row.error is None else f" failed: {row.error.code}: {row.error.message};"
            return f"{what}:{message} attempt {row.attempt} begins at {shown_time(row.run_after)}"
        case _:
            return f"{what} {_waits(course.run.step_plan(row), row)}"


def _waits(plan: StepPlan, row: Row) -> str:
    if plan.wait is None:
        return f"sleeps until {shown_time(row.run_after)}"
    kind = "approval" if plan.wait.approval else "signal"
    who = f" from {' or '.join(sorted(plan.wait.givers))}" if plan.wait.givers else ""
    until = "for ever" if row.run_after is None else f"until {shown_time(row.run_after)}"
    return f"waits for the {kind} '{plan.wait.name}'{who} {until}"


def _nobody(router: Router, wanted: RouteRequest) -> str:
    if not router.candidates(wanted):
        pinned = f" of agent '{wanted.pinned_agent}'" if wanted.pinned_agent else ""
        return f"none serves '{wanted.task_type}'{pinned}; there is {', '.join(sorted(router.servable())) or 'nobody'}"
    return str(router.wait_reasons(wanted))
