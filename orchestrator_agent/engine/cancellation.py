"""Cancellation: a row ends with everything below it, and a root with everything in its tree."""

from orchestrator_agent.engine.state import Role, Row, Status
from orchestrator_agent.engine.transition import Transition
from protocol.errors import ErrorCode
from protocol.messages import ErrorInfo


def cancel_tree(t: Transition, row: Row, reason: str, *, force: bool = False) -> None:
    """End a row and all below it; a workflow that compensates goes on, unless by `force`."""
    if row.ended or (row.status is Status.COMPENSATING and not force):
        return
    if row.role is Role.SIGNAL:
        # A signal that no step waited for is no work that was cancelled.
        t.builder.end(row, Status.SKIPPED)
        return
    for below in t.run.below(row):
        cancel_tree(t, below, reason, force=force)
    t.builder.stop(row, reason)
    t.builder.end(row, Status.CANCELLED, ErrorInfo(code=ErrorCode.CANCELLED, message=reason))
    t.builder.step_event("cancelled", row)
    if row.role is Role.DELEGATED:
        t.builder.respond(row)


def cancel_delegated(t: Transition, row: Row) -> None:
    """Cancel what the agent of an ended task delegated: that agent does not wait for it any more."""
    for child in t.run.delegated.get(row.task_id, ()):
        cancel_tree(t, child, "the task that wanted it has ended")


def end_root(t: Transition, status: Status, *, result: bytes | None = None, error: ErrorInfo | None = None) -> None:
    """End the whole task, once; what is still at work in it is cancelled."""
    root = t.run.root
    if root.ended:
        return
    for row in list(t.run.active()):
        cancel_tree(t, row, "the task has ended" if error is None else error.message, force=True)
    t.builder.end(root, status, error)
    root.result = result
    root.usage = t.run.usage()
    t.builder.decisions.root_ended = True
    t.builder.task_event(status.value, error=error)


def ending_of(error: ErrorInfo) -> Status:
    """The status that a root ends with for an error."""
    return Status.CANCELLED if error.code == ErrorCode.CANCELLED else Status.FAILED
