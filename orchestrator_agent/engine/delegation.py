"""Delegation: an agent that works on a task adds a child to its tree."""

from orchestrator_agent.engine.events import Delegated
from orchestrator_agent.engine.progress import follow
from orchestrator_agent.engine.state import Role, Row, Run, Scope, Status
from orchestrator_agent.engine.step_start import start_scope
from orchestrator_agent.engine.transition import Transition


def delegate(t: Transition, delegated: Delegated) -> None:
    """A task that an agent delegates becomes a child of the one it works on; the same id again changes nothing."""
    if (known := t.run.rows.get(delegated.task_id)) is not None:
        if known.ended:
            known.reply_to = delegated.reply_to or known.reply_to
            t.builder.respond(known)
        elif delegated.reply_to not in (None, known.reply_to):
            known.reply_to = delegated.reply_to
            t.builder.change(known)
        return
    parent = t.run.rows.get(delegated.parent_task_id)
    scope = _scope_around(t.run, parent)
    if parent is None or parent.status is not Status.DISPATCHED or scope is None:
        return
    child = Row(
        root_task_id=t.run.root_task_id,
        task_id=delegated.task_id,
        parent_task_id=parent.task_id,
        step=delegated.task_type,
        role=Role.DELEGATED,
        task_type=delegated.task_type,
        status=Status.RUNNING,
        reply_to=delegated.reply_to,
        workflow_version=delegated.plan.version,
        timeout_seconds=delegated.timeout_seconds or t.run.root.timeout_seconds,
        created_at=t.now,
    )
    t.builder.make(child)
    t.run.delegated.setdefault(parent.task_id, []).append(child)
    follow(t, start_scope(t, child, delegated.plan, delegated.payload, depth=scope.depth + 1))


def _scope_around(run: Run, row: Row | None) -> Scope | None:
    """The nearest workflow that a row is in."""
    while row is not None and row.parent_task_id is not None:
        if (scope := run.scopes.get(row.parent_task_id)) is not None:
            return scope
        row = run.rows.get(row.parent_task_id)
    return None
