"""Assignment: a ready row gets an agent, or begins its wait for one."""

from datetime import datetime, timedelta

from orchestrator_agent.engine.decisions import RouteRequest
from orchestrator_agent.engine.state import Role, Row, Run, Status
from orchestrator_agent.engine.transition import Transition

# A machine that fails takes all its tasks with it, once. What processes died on as often as this may be the cause, and
# is tried apart from others of its kind.
SUSPECT_DEATHS = 2


def route_request_of(run: Run, row: Row) -> RouteRequest:
    """What a ready row needs of an agent."""
    facts = run.facts
    plan = run.step_plan(row)
    own = row.role is Role.STEP
    return RouteRequest(
        task_type=row.task_type,
        pinned_agent=row.pinned_agent,
        requires=plan.requires if own else None,
        sticky=row.sticky,
        avoid=row.agent if row.failures else None,
        tenant=facts.tenant,
        requester=facts.requester,
        # A task that compensates begins nothing new, whatever is paused: it should not have to wait for the resume.
        workflow=run.scopes[run.root_task_id].plan.name if run.root.status is not Status.COMPENSATING else None,
        task_id=row.task_id,
        suspect=row.deaths >= SUSPECT_DEATHS,
    )


def assign(t: Transition, row: Row) -> None:
    """Dispatch a ready row to an agent that has a slot for it now, if one has."""
    run = t.run
    if not run.at_work:
        return
    request = route_request_of(run, row)
    placement = t.directory.choose(request)
    if placement is None:
        _wait(t, row, request)
        return
    row.become(Status.DISPATCHED)
    row.agent = placement.agent
    row.routing = placement.routing
    row.dispatched_at = t.now
    row.expires_at = t.now + timedelta(seconds=row.timeout_seconds)
    deadline = run.facts.deadline_at
    if deadline is not None and not run.compensates(row):
        row.expires_at = min(row.expires_at, deadline)
    t.builder.wake_at(row.expires_at)
    t.builder.dispatch(row)


def _wait(t: Transition, row: Row, request: RouteRequest) -> None:
    """The wait for an agent that serves the row has an end; the wait for a slot at one (flow control) has none."""
    if row.expires_at is None:
        return
    if t.directory.served(request):
        row.expires_at = None
        t.builder.change(row)
    else:
        t.builder.wake_at(row.expires_at)


def begin_wait_for_agent(t: Transition, row: Row) -> datetime:
    """Give a ready row the whole wait for an agent, from now on; returns when it is over."""
    row.expires_at = t.now + timedelta(seconds=t.rules.no_agent_wait_seconds)
    return row.expires_at
