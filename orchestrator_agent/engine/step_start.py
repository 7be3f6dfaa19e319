"""Step start: a new row is set to work, as a task of an agent or as a workflow. It may end at once."""

from typing import Any

from orchestrator_agent.engine.assignment import assign, begin_wait_for_agent
from orchestrator_agent.engine.budget import budget_error, depth_error
from orchestrator_agent.engine.consequences import Consequence, ScopeBegun, ScopeFailed, StepFailed
from orchestrator_agent.engine.failures import invalid_workflow_error, step_failed_error, too_large_error
from orchestrator_agent.engine.state import Row, Scope, Status
from orchestrator_agent.engine.transition import Transition
from orchestrator_agent.workflows.plan import Plan, StepPlan
from protocol.errors import InvalidRequest
from protocol.messages import ErrorInfo, json_bytes
from protocol.names import ORCHESTRATOR
from protocol.workflow import MAX_DEPTH


def start_step(
    t: Transition, row: Row, plan: StepPlan, payload: dict[str, Any], *, depth: int, alone: bool = False
) -> Consequence:
    """Set a step's row to work. `alone`: it is all of its workflow, which is why its task type names none."""
    sub = plan.sub
    if sub is None and not alone:
        sub = _workflow_of(t, row)
    if sub is not None:
        return start_scope(t, row, sub, payload, depth=depth + 1)
    if plan.workflow is not None:
        return StepFailed(row, invalid_workflow_error(t.run, row, f"there is no workflow '{plan.workflow}'"))
    return _start_task(t, row, payload)


def start_beside(t: Transition, row: Row, payload: dict[str, Any], *, depth: int) -> Consequence:
    """Set to work what stands in for a step, or compensates it: a task of an agent, or a workflow by its name."""
    if (sub := _workflow_of(t, row)) is not None:
        return start_scope(t, row, sub, payload, depth=depth + 1)
    return _start_task(t, row, payload)


def _workflow_of(t: Transition, row: Row) -> Plan | None:
    """The workflow that a new row's task type names, if one does: from now on the row's own."""
    # Workflows are what the orchestrator serves: a step that pins it means the workflow.
    if row.pinned_agent not in (None, ORCHESTRATOR):
        return None
    sub = t.directory.workflow(row.task_type)
    row.workflow_version = sub.version if sub is not None else None
    return sub


def _start_task(t: Transition, row: Row, payload: dict[str, Any]) -> Consequence:
    """Assign a new row to an agent, within the budget."""
    row.payload = json_bytes(payload)
    if len(row.payload) > t.rules.max_payload_bytes:
        return StepFailed(row, too_large_error(t.run, t.rules, row, "payload", len(row.payload)))
    if (exceeded := over_budget(t, row)) is not None:
        return exceeded
    begin_wait_for_agent(t, row)
    assign(t, row)
    if row.status is Status.READY:
        t.builder.step_event("ready", row)
    return None


def over_budget(t: Transition, row: Row) -> ScopeFailed | None:
    """Where the tree's budget is used up the whole task fails, and the row with it. What compensates is not bounded."""
    if (error := budget_error(t.run)) is None or t.run.compensates(row):
        return None
    return ScopeFailed(t.run.scopes[t.run.root_task_id], error)


def start_scope(t: Transition, row: Row, plan: Plan, payload: dict[str, Any], *, depth: int) -> Consequence:
    """Set a row to work as a workflow, which may fail before its first step begins."""
    row.status = Status.RUNNING
    if (error := depth_error(t.run, depth)) is not None and not t.run.compensates(row):
        return ScopeFailed(t.run.scopes[t.run.root_task_id], error)
    if depth > MAX_DEPTH:
        reason = f"workflows call each other deeper than {MAX_DEPTH}"
        return StepFailed(row, invalid_workflow_error(t.run, row, reason))
    try:
        values = plan.read_input(payload)
    except InvalidRequest as wrong:
        return StepFailed(row, step_failed_error(t.run, row, ErrorInfo.of(wrong)))
    inline = plan.definition is not None and plan.version is None
    # A graph that came inline is nowhere else than in its row.
    row.payload = json_bytes({**(plan.definition or {}), "input": values} if inline else values)
    scope = t.run.scopes[row.task_id] = Scope(row=row, plan=plan, variables={"input": values}, depth=depth)
    return ScopeBegun(scope)
