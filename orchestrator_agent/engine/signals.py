"""Signals: one that arrives is kept as a row until a step takes it (ADR 0009)."""

from uuid import UUID

from orchestrator_agent.engine.events import SignalReceived
from orchestrator_agent.engine.progress import take_signal
from orchestrator_agent.engine.state import Role, Row, Status, in_order
from orchestrator_agent.engine.transition import Transition
from orchestrator_agent.engine.waits import signal_payload
from orchestrator_agent.workflows.plan import WaitPlan
from protocol.errors import ErrorCode, InvalidRequest
from protocol.messages import ErrorInfo, json_bytes


def receive_signal(t: Transition, signal: SignalReceived) -> None:
    """Keep the signal, then let a step that waits for it take it; the row's id makes sure that it is kept once."""
    task_id = signal.row_id
    if task_id in t.run.rows:
        _report(t, signal, taken=t.run.rows[task_id].status is Status.COMPLETED)
        return
    if signal.waiting_id is not None and (refusal := _not_waiting(t, signal, signal.waiting_id)) is not None:
        t.builder.report(signal.operation, refusal)
        return
    steps = [
        (row, plan)
        for row in t.run.active()
        if row.status is Status.WAITING
        and row.role is Role.STEP
        and (plan := t.run.step_plan(row)).wait is not None
        and plan.wait.name == signal.name
        and signal.waiting_id in (None, row.task_id)
    ]
    refusals = [(row, plan, _refusal(plan.wait, signal)) for row, plan in steps if plan.wait is not None]
    waiters = [(row, plan) for row, plan, refusal in refusals if refusal is None]
    if refusals and not waiters:
        # Several may wait for one name; it is refused when it is right for none of them.
        t.builder.report(signal.operation, next(refusal for *_, refusal in refusals if refusal))
        return
    kept = Row(
        root_task_id=t.run.root_task_id,
        task_id=task_id,
        parent_task_id=t.run.root_task_id,
        step=signal.name,
        role=Role.SIGNAL,
        task_type="signal",
        status=Status.WAITING,
        payload=json_bytes({"payload": signal.payload, "by": signal.giver, "at": t.now.isoformat()}),
        created_at=t.now,
    )
    t.builder.make(kept)
    t.run.signals = in_order([*t.run.signals, kept])
    t.builder.task_event("signalled", signal=signal.name, by=signal.giver)
    first = min(waiters, key=lambda waiter: (waiter[0].created_at or t.now, waiter[0].task_id), default=None)
    _report(t, signal, taken=first is not None and take_signal(t, *first, kept))


def _not_waiting(t: Transition, signal: SignalReceived, row_id: UUID) -> ErrorInfo | None:
    """Why the row that a signal is for does not wait for it."""
    row = t.run.rows.get(row_id)
    if row is None or row is t.run.root or row.role is not Role.STEP:
        message = f"no step of task {t.run.root_task_id} with the id {row_id} waits for a signal"
    elif row.ended:
        # Asked first: of an iteration that has ended, a tree that was read again has no plan any more.
        message = f"step '{t.run.path(row)}' ({row_id}) waits for '{signal.name}' no more: it is {row.status.value}"
    elif row.status is not Status.WAITING or (wait := t.run.step_plan(row).wait) is None:
        message = f"no step of task {t.run.root_task_id} with the id {row_id} waits for a signal"
    elif wait.name != signal.name:
        message = f"step '{t.run.path(row)}' ({row_id}) waits for '{wait.name}', not for '{signal.name}'"
    else:
        return None
    return ErrorInfo(code=ErrorCode.INVALID_REQUEST, message=message)


def refuse_late_signal(t: Transition, signal: SignalReceived) -> None:
    """The task has ended."""
    message = f"task {t.run.root_task_id} has ended {t.run.root.status.value}: nothing waits for a signal"
    t.builder.report(signal.operation, ErrorInfo(code=ErrorCode.INVALID_REQUEST, message=message))


def _refusal(wait: WaitPlan, signal: SignalReceived) -> ErrorInfo | None:
    """Why a step that waits for signals of this name does not take this signal."""
    if not wait.accepts(signal.giver):
        givers = ", ".join(sorted(wait.givers))
        message = f"'{signal.name}' may be given by {givers}, not by {signal.giver or 'nobody in particular'}"
        return ErrorInfo(code="forbidden", message=message)
    try:
        signal_payload(wait, signal.payload)
    except InvalidRequest as wrong:
        return ErrorInfo.of(wrong)
    return None


def _report(t: Transition, signal: SignalReceived, *, taken: bool) -> None:
    outcome = {"task_id": str(t.run.root_task_id), "signal": signal.name, "taken": taken}
    t.builder.report(signal.operation, outcome)
