"""Step rows: the rows that steps make, and the payloads that their expressions give."""

from typing import Any
from uuid import UUID

from orchestrator_agent.engine.state import FanOut, Role, Row, Scope, Status
from orchestrator_agent.engine.transition import Transition
from orchestrator_agent.workflows.plan import StepPlan
from protocol.errors import ErrorCode, ExpressionError
from protocol.ids import step_task_id
from protocol.messages import ErrorInfo, json_bytes


def step_row(
    t: Transition,
    parent: Row,
    plan: StepPlan,
    *,
    iteration: int,
    status: Status,
    item: int = -1,
    role: Role = Role.STEP,
    task_id: UUID | None = None,
) -> Row:
    """A new row below a workflow's row or, for an item, below its fan-out's."""
    row = Row(
        root_task_id=t.run.root_task_id,
        task_id=task_id or step_task_id(parent.task_id, plan.name, iteration, item),
        parent_task_id=parent.task_id,
        step=plan.name,
        role=role,
        iteration=iteration,
        item=item,
        task_type=plan.shown_type,
        pinned_agent=plan.agent,
        status=status,
        timeout_seconds=plan.timeout_seconds or t.run.root.timeout_seconds,
        created_at=t.now,
    )
    t.builder.make(row)
    return row


def skip_step(t: Transition, scope: Scope, plan: StepPlan) -> None:
    """A step whose condition was false has ended, with null for its result."""
    row = step_row(t, scope.row, plan, iteration=0, status=Status.SKIPPED)
    row.completed_at = t.now
    scope.rows[plan.name] = row
    scope.variables[plan.name] = None
    scope.ended.add(plan.name)
    t.builder.step_event("skipped", row)


def payload_of(plan: StepPlan, variables: dict[str, Any]) -> dict[str, Any]:
    """Raises ExpressionError."""
    payload = plan.payload.render(variables)
    if not isinstance(payload, dict):
        raise ExpressionError(f"'with' must give an object, not {type(payload).__name__}")
    return payload


def sticky_of(plan: StepPlan, variables: dict[str, Any]) -> str | None:
    """Raises ExpressionError."""
    if plan.sticky is None:
        return None
    value = plan.sticky.evaluate(variables)
    return value if isinstance(value, str) else json_bytes(value).decode()


def new_fan_out(t: Transition, scope: Scope, plan: StepPlan, items: list[Any], iteration: int) -> FanOut:
    """The row of a step that runs once for each item, none of which has begun."""
    row = step_row(t, scope.row, plan, iteration=iteration, status=Status.RUNNING)
    row.payload = json_bytes({"items": items})
    scope.rows[plan.name] = row
    fan_out = FanOut(row=row, scope=scope, plan=plan, items=items, results=[None] * len(items))
    t.run.fan_outs[row.task_id] = fan_out
    return fan_out


def fallback_row(t: Transition, failed: Row, plan: StepPlan, scope: Scope, fan_out: FanOut | None) -> Row:
    """The row that stands in for a step, or an item of a fan-out, that failed."""
    assert plan.fallback is not None
    row = step_row(
        t,
        fan_out.row if fan_out is not None else scope.row,
        plan,
        iteration=failed.iteration,
        item=failed.item,
        status=Status.READY,
        role=Role.FALLBACK,
        task_id=step_task_id(failed.task_id, "fallback", 0, -1),
    )
    row.task_type = plan.fallback.task_type or plan.shown_type
    row.pinned_agent = plan.fallback.agent
    if fan_out is not None:
        fan_out.rows[failed.item] = row
    else:
        scope.rows[plan.name] = row
    return row


def fallback_value(failed: Row, plan: StepPlan, scope: Scope, fan_out: FanOut | None, error: ErrorInfo) -> Any:
    """The payload of a fallback's task, or the result of a fallback that is a value. Raises ExpressionError."""
    assert plan.fallback is not None
    own = error.details if error.code == ErrorCode.STEP_FAILED and error.details else {}
    variables = {
        **scope.variables,
        "error": {"code": own.get("code", error.code), "message": own.get("message", error.message)},
    }
    if fan_out is not None:
        variables |= {"item": fan_out.items[failed.item], "index": failed.item}
    value = plan.fallback.payload.render(variables)
    if plan.fallback.task_type is not None and not isinstance(value, dict):
        raise ExpressionError(f"'fallback.with' must give an object, not {type(value).__name__}")
    return value
