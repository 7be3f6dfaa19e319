"""Scope end: how a workflow completes or fails, and what it compensates before it has failed (ADR 0010)."""

from orchestrator_agent.engine.cancellation import cancel_tree, end_root, ending_of
from orchestrator_agent.engine.compensation import (
    compensating_below,
    compensation_payload,
    compensation_row,
    pending_compensations,
)
from orchestrator_agent.engine.consequences import Consequence, ScopeFailed, StepCompleted, StepFailed
from orchestrator_agent.engine.failures import expression_error, too_large_error
from orchestrator_agent.engine.state import Scope, Status
from orchestrator_agent.engine.step_start import start_beside
from orchestrator_agent.engine.transition import Transition
from protocol.errors import ExpressionError
from protocol.messages import ErrorInfo, json_bytes


def complete_scope(t: Transition, scope: Scope) -> Consequence:
    """All steps of a workflow have ended."""
    plan = scope.plan
    if plan.single:
        result = next(scope.variables[name] for name in plan.steps)
    elif plan.output is None:
        result = {name: scope.variables.get(name) for name in plan.steps}
    else:
        try:
            result = plan.output.render(scope.variables)
        except ExpressionError as error:
            return ScopeFailed(scope, expression_error(t.run, scope.row, "output", error))
    result_json = json_bytes(result)
    if len(result_json) > t.rules.max_payload_bytes:
        return ScopeFailed(scope, too_large_error(t.run, t.rules, scope.row, "result", len(result_json)))
    if scope.row is not t.run.root:
        return StepCompleted(scope.row, result, result_json)
    if not compensating_below(t.run, scope):
        end_root(t, Status.COMPLETED, result=result_json)
    return None


def fail_scope(t: Transition, scope: Scope, error: ErrorInfo) -> Consequence:
    """A workflow ends with the first step that fails: what else it has at work is cancelled, what it did, compensated.

    What compensates already goes on doing so, and comes first: only its own workflow knows how far it is.
    """
    if scope.row.ended or scope.row.status is Status.COMPENSATING:
        return None
    reason = error.message if scope.row is t.run.root else "its workflow failed"
    for row in list(scope.rows.values()):
        cancel_tree(t, row, reason)
    scope.pending = pending_compensations(t.run, scope)
    if not scope.pending and not compensating_below(t.run, scope):
        return _end(t, scope, error)
    scope.row.become(Status.COMPENSATING)
    scope.row.error = error
    scope.row.expires_at = None
    t.builder.change(scope.row)
    if scope.row is t.run.root:
        t.builder.task_event("compensating", error=error)
    else:
        t.builder.step_event("compensating", scope.row, error=error)
    return compensate_next(t, scope)


def compensate_next(t: Transition, scope: Scope) -> Consequence:
    """Begin the next compensation of a workflow that has none at work; end the workflow when all are done."""
    at_work = scope.compensation is not None and not scope.compensation.ended
    if scope.row.status is not Status.COMPENSATING or at_work or compensating_below(t.run, scope):
        return None
    while scope.pending:
        pending = scope.pending.pop()
        row = compensation_row(t, scope, pending)
        try:
            payload = compensation_payload(pending)
        except ExpressionError as error:
            wrong = expression_error(t.run, scope.row, pending.plan.name, error)
            t.builder.end(row, Status.FAILED, wrong)
            t.builder.step_event("failed", row, error=wrong)
            continue
        return start_beside(t, row, payload, depth=scope.depth)
    scope.compensation = None
    assert scope.row.error is not None
    return _end(t, scope, scope.row.error)


def _end(t: Transition, scope: Scope, error: ErrorInfo) -> Consequence:
    if scope.row is not t.run.root:
        return StepFailed(scope.row, error)
    end_root(t, ending_of(error), error=error)
    return None
