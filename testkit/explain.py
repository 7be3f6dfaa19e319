"""Explain: what a task of a test's mesh waits for, in words."""

from datetime import datetime

from orchestrator_agent.dispatch.router import Router
from orchestrator_agent.engine.assignment import route_request_of
from orchestrator_agent.engine.decisions import RouteRequest
from orchestrator_agent.engine.state import Role, Row, Status
from orchestrator_agent.workflows.plan import StepPlan
from protocol.messages import time_text
from testkit.tracked_run import TrackedRun


def shown_time(moment: datetime | None) -> str:
    return "?" if moment is None else time_text(moment)


def explain(tracked: TrackedRun, router: Router) -> list[str]:
    """What a task waits for, one line for each thing."""
    run = tracked.run
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
    return lines + [_line(tracked, row, router) for row in tracked.waiting_rows()]


def _line(tracked: TrackedRun, row: Row, router: Router) -> str:
    step = f"step '{tracked.run.path(row)}'"
    if row.role in (Role.COMPENSATION, Role.FALLBACK):
        step = f"{row.role.value} of {step}"
    match row.status:
        case Status.DISPATCHED:
            return (
                f"{step} is with {row.agent} ('{row.task_type}', attempt {row.attempt}) "
                f"since {shown_time(row.dispatched_at)}, until {shown_time(row.expires_at)}"
            )
        case Status.READY:
            return f"{step} waits for an agent: {_no_agent(router, route_request_of(tracked.run, row))}"
        case _ if row.failures:
            message = "" if row.error is None else f" failed: {row.error.code}: {row.error.message};"
            return f"{step}:{message} attempt {row.attempt} begins at {shown_time(row.run_after)}"
        case _:
            return f"{step} {_wait(tracked.run.step_plan(row), row)}"


def _wait(plan: StepPlan, row: Row) -> str:
    if plan.wait is None:
        return f"sleeps until {shown_time(row.run_after)}"
    kind = "approval" if plan.wait.approval else "signal"
    givers = f" from {' or '.join(sorted(plan.wait.givers))}" if plan.wait.givers else ""
    until = "for ever" if row.run_after is None else f"until {shown_time(row.run_after)}"
    return f"waits for the {kind} '{plan.wait.name}'{givers} {until}"


def _no_agent(router: Router, request: RouteRequest) -> str:
    if not router.agents(request.task_type, request.pinned_agent):
        pinned = f" of agent '{request.pinned_agent}'" if request.pinned_agent else ""
        served = ", ".join(sorted(router.servable())) or "nobody"
        return f"none serves '{request.task_type}'{pinned}; there is {served}"
    return str(router.wait_reasons(request))
