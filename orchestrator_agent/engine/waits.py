"""Waits: steps that run no task: they end when their time has come, or when a signal for them is there."""

import json
from datetime import datetime, timedelta
from typing import Any

from orchestrator_agent.engine.state import Row, Run, Scope, Status
from orchestrator_agent.engine.step_rows import step_row
from orchestrator_agent.engine.transition import Transition
from orchestrator_agent.workflows.plan import StepPlan, WaitPlan
from protocol.errors import ErrorCode, ExpressionError, InvalidRequest
from protocol.fields import utc
from protocol.messages import ErrorInfo, json_bytes, time_text
from protocol.workflow import seconds_of


def begin_wait(t: Transition, scope: Scope, plan: StepPlan) -> Row:
    """Raises ExpressionError where the time to wait for is none."""
    until = _wake_time(plan, scope.variables, t.now)
    scope.rows[plan.name] = row = step_row(t, scope.row, plan, iteration=0, status=Status.WAITING)
    row.run_after = until
    if until is not None:
        t.builder.wake_at(until)
    if plan.wait is None:
        t.builder.step_event("waiting", row)
    else:
        row.payload = json_bytes({"approval" if plan.wait.approval else "signal": plan.wait.name})
        t.builder.step_event("waiting", row, waits_for=plan.wait.name)
    return row


def _wake_time(plan: StepPlan, variables: dict[str, Any], now: datetime) -> datetime | None:
    if plan.wait is not None:
        seconds = plan.wait.timeout_seconds
        return None if seconds is None else now + timedelta(seconds=seconds)
    if plan.sleep_seconds is not None:
        try:
            return now + timedelta(seconds=seconds_of(plan.sleep_seconds.render(variables)))
        except ValueError as error:
            raise ExpressionError(f"'sleep': {error}") from None
    assert plan.until is not None
    value = plan.until.evaluate(variables)
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        moment = None
    if moment is None or moment.tzinfo is None:
        raise ExpressionError(f"'until' must give a time such as 2030-01-31T08:00:00Z, not {value!r}")
    try:
        return utc(moment)
    except ValueError as error:
        raise ExpressionError(f"'until': {value} {error}") from None


def consume_signal(t: Transition, wait: WaitPlan, signal: Row) -> dict[str, Any] | None:
    """The result of a step that takes a kept signal, which is used up then; None where the signal is not for it."""
    content = _json_of(signal.payload)
    if not wait.accepts(content.get("by")):
        return None
    try:
        payload = signal_payload(wait, content["payload"])
    except InvalidRequest:
        return None
    t.run.signals = [kept for kept in t.run.signals if kept is not signal]
    t.builder.end(signal, Status.COMPLETED)
    if wait.approval:
        # The giver is the request's requester, whatever the payload holds.
        return {**payload, "by": content.get("by"), "at": content.get("at")}
    return payload


def signal_payload(wait: WaitPlan, payload: dict[str, Any]) -> dict[str, Any]:
    """A signal's payload as the step that waits for it needs it. Raises InvalidRequest where it does not fit."""
    if wait.approval and not isinstance(payload.get("approved"), bool):
        # Approvals and signals share their names, and `mesh.signal` may send either.
        raise InvalidRequest(f"'{wait.name}' is an approval: payload.approved must be true or false", field="payload")
    return payload if wait.schema is None else wait.schema.read(payload)


def timed_out(run: Run, row: Row, plan: StepPlan) -> ErrorInfo | dict[str, Any] | None:
    """What a waiting step comes to when its time has come: the error that it fails with, or its result."""
    if plan.wait is None:
        return {"at": time_text(row.run_after) if row.run_after else None}
    if plan.wait.continue_on_timeout:
        return None
    path = run.path(row)
    message = f"step '{path}': nobody gave '{plan.wait.name}' within {plan.wait.timeout_seconds:g} s"
    return ErrorInfo(code=ErrorCode.TIMEOUT, message=message, step=path)


def _json_of(text: bytes | None) -> dict[str, Any]:
    value = json.loads(text or b"{}")
    return value if isinstance(value, dict) else {}
