"""Compensation: what a workflow that ends unsuccessfully has to compensate, and in which order (ADR 0010).

One compensation after the other, the step that completed last first (sagas: Garcia-Molina, Salem, 1987).
"""

import json
from collections.abc import Iterator
from typing import Any
from uuid import UUID

from orchestrator_agent.engine.state import PendingCompensation, Role, Row, Run, Scope, Status
from orchestrator_agent.engine.step_rows import step_row
from orchestrator_agent.engine.transition import Transition
from orchestrator_agent.workflows.plan import StepPlan
from protocol.errors import ExpressionError
from protocol.ids import step_task_id


def compensation_id(row: Row) -> UUID:
    """The id of the row that compensates this one."""
    return step_task_id(row.task_id, "compensation", 0, -1)


def pending_compensations(run: Run, scope: Scope, *, include_made: bool = False) -> list[PendingCompensation]:
    """What a failed workflow has to compensate, the next one last: completed steps that define a compensation, and
    failed ones with `on_error: compensate`, those of its sub-workflows and items included. `include_made`: also those
    whose compensation has a row."""
    if not any(inner.plan.compensates for inner in run.scopes.values()):
        return []
    children: dict[UUID, list[Row]] = {}
    for row in run.rows.values():
        if row.parent_task_id is not None and row.role in (Role.STEP, Role.FALLBACK):
            children.setdefault(row.parent_task_id, []).append(row)
    found: list[tuple[Any, PendingCompensation]] = []

    def gather(inside: Scope) -> None:
        order = {name: index for index, name in enumerate(inside.plan.steps)}
        for row in children.get(inside.row.task_id, ()):
            if run.reused(row):
                # It is the work of another task, which stands as it ended.
                continue
            plan = inside.plan.steps[row.step or ""]
            take(row, plan, inside.variables, order[plan.name], newest=inside.rows.get(plan.name) is row)

    def take(row: Row, plan: StepPlan, variables: dict[str, Any], order: int, *, newest: bool) -> None:
        if (fan_out := run.fan_outs.get(row.task_id)) is not None:
            for child in children.get(row.task_id, ()):
                here = {**variables, "item": fan_out.items[child.item], "index": child.item}
                take(child, plan, here, order, newest=fan_out.rows[child.item] is child)
            return
        failed = row.status is Status.FAILED and plan.on_error == "compensate" and newest
        counts = row.status is Status.COMPLETED or failed
        if plan.compensate is not None and (counts or compensation_id(row) in run.rows):
            # A step's own compensation stands for all that happened inside of it.
            when = (row.completed_at, order, row.iteration, row.item, row.task_id)
            result = json.loads(row.result) if row.result is not None else None
            pending = PendingCompensation(row=row, plan=plan, variables={**variables, "result": result})
            found.append((when, pending))
            return
        if (inner := run.scopes.get(row.task_id)) is not None:
            within(inner)
        for delegated in run.delegated.get(row.task_id, ()):
            if (inner := run.scopes.get(delegated.task_id)) is not None:
                within(inner)

    def within(inner: Scope) -> None:
        # One that is compensating does so by itself.
        if include_made or inner.row.status is not Status.COMPENSATING:
            gather(inner)

    gather(scope)
    made = {row.task_id for row in run.rows.values() if row.role is Role.COMPENSATION and not include_made}
    in_order = sorted(found, key=lambda entry: entry[0])
    return [pending for _, pending in in_order if compensation_id(pending.row) not in made]


def compensation_row(t: Transition, scope: Scope, pending: PendingCompensation) -> Row:
    """The row that compensates a step: the one at work in its workflow from now on."""
    compensate = pending.plan.compensate
    assert compensate is not None
    row = step_row(
        t,
        scope.row,
        pending.plan,
        iteration=pending.row.iteration,
        item=pending.row.item,
        status=Status.READY,
        role=Role.COMPENSATION,
        task_id=compensation_id(pending.row),
    )
    row.task_type = compensate.task_type
    row.pinned_agent = compensate.agent
    row.timeout_seconds = compensate.timeout_seconds or t.run.root.timeout_seconds
    t.run.compensations[row.task_id] = pending
    scope.compensation = row
    return row


def compensation_payload(pending: PendingCompensation) -> dict[str, Any]:
    """Raises ExpressionError."""
    assert pending.plan.compensate is not None
    payload = pending.plan.compensate.payload.render(pending.variables)
    if not isinstance(payload, dict):
        raise ExpressionError(f"'compensate.with' must give an object, not {type(payload).__name__}")
    return payload


def scopes_above(run: Run, row: Row) -> Iterator[Scope]:
    """The workflows that a row is in, the nearest first."""
    above = row.parent_task_id if row is not run.root else None
    while above is not None:
        if (scope := run.scopes.get(above)) is not None:
            yield scope
        higher = run.rows[above]
        above = higher.parent_task_id if higher is not run.root else None


def compensating_below(run: Run, scope: Scope) -> bool:
    """Whether a workflow inside of this one is compensating."""
    return any(
        inner is not scope
        and inner.row.status is Status.COMPENSATING
        and any(above is scope for above in scopes_above(run, inner.row))
        for inner in run.scopes.values()
    )
