"""Roots: what begins, pauses, resumes and ends a task as a whole."""

from collections.abc import Iterable
from uuid import UUID

from orchestrator_agent.engine.assignment import begin_wait_for_agent
from orchestrator_agent.engine.cancellation import end_root, ending_of
from orchestrator_agent.engine.events import CancelRequested, PauseRequested, ResumeRequested
from orchestrator_agent.engine.progress import assign_again, begin_steps, scope_failed
from orchestrator_agent.engine.state import Role, Row, Status
from orchestrator_agent.engine.transition import Transition
from protocol.errors import ErrorCode
from protocol.messages import ErrorInfo, time_text


def begin_root(t: Transition) -> None:
    """Begin the first steps of the root, once."""
    scope = t.run.scopes.get(t.run.root_task_id)
    begun = any(row.role is Role.STEP and row.parent_task_id == t.run.root_task_id for row in _own_rows(t))
    if scope is None or begun or t.run.root.status is not Status.RUNNING:
        return
    t.builder.task_event("started")
    begin_steps(t, scope, scope.plan.steps)


def _own_rows(t: Transition) -> Iterable[Row]:
    """Those that were not taken over from an earlier run: in this transition, or when the root was accepted, which
    left them older than it."""
    adopted = {row.task_id for row in t.builder.decisions.made}
    return (
        row
        for row in t.run.rows.values()
        if row is not t.run.root and row.task_id not in adopted and not t.run.reused(row)
    )


def fail_root(t: Transition, error: ErrorInfo) -> None:
    """End the whole task; what it did is compensated first."""
    scope = t.run.scopes.get(t.run.root_task_id)
    if scope is not None:
        scope_failed(t, scope, error)
    else:
        end_root(t, ending_of(error), error=error)


def check_deadline(t: Transition) -> None:
    """End the whole task where its deadline has passed."""
    deadline = t.run.facts.deadline_at
    if deadline is None or deadline > t.now:
        return
    message = f"the deadline {time_text(deadline)} has passed"
    fail_root(t, ErrorInfo(code=ErrorCode.DEADLINE_EXCEEDED, message=message))


def cancel_root(t: Transition, request: CancelRequested) -> None:
    before = t.run.root.status
    fail_root(t, ErrorInfo(code=ErrorCode.CANCELLED, message=request.reason))
    report_status(t, request.operation, changed=t.run.root.status is not before)


def pause_root(t: Transition, request: PauseRequested) -> None:
    root = t.run.root
    running = root.status is Status.RUNNING
    if running:
        root.become(Status.PAUSED)
        t.builder.change(root)
        t.builder.task_event("paused")
    report_status(t, request.operation, changed=running)


def resume_root(t: Transition, request: ResumeRequested) -> None:
    root = t.run.root
    paused = root.status is Status.PAUSED
    if paused:
        root.become(Status.RUNNING)
        t.builder.change(root)
        t.builder.task_event("resumed")
        for row in list(t.run.active()):
            if row.status is Status.READY:
                t.builder.change(row)
                begin_wait_for_agent(t, row)
                assign_again(t, row)
    report_status(t, request.operation, changed=paused)


def report_status(t: Transition, operation: UUID | None, *, changed: bool) -> None:
    """The outcome of an operation on the whole task."""
    if operation is not None:
        root = t.run.root
        outcome = {"task_id": str(root.task_id), "status": root.status.value, "changed": changed}
        t.builder.report(operation, outcome)
