"""advance: the one pure transition of a run: from run events to what is decided.

It changes the run that it is called with, and returns what must be written and published. When the write fails, the
run is dropped and read again; nothing else has seen it.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from random import Random

from orchestrator_agent.engine.attempts import attempt_abandoned, attempt_expired, attempt_responded, row_due
from orchestrator_agent.engine.cancellation import end_root
from orchestrator_agent.engine.decisions import Decisions, Directory, Rules
from orchestrator_agent.engine.delegation import delegate
from orchestrator_agent.engine.events import (
    AttemptAbandoned,
    Begin,
    Broken,
    CancelRequested,
    DeadlinePassed,
    Delegated,
    Due,
    Expired,
    OperationEnded,
    OriginalEnded,
    PauseRequested,
    Reattached,
    ResponseReceived,
    ResumeRequested,
    RunEvent,
    SignalReceived,
)
from orchestrator_agent.engine.roots import (
    begin_root,
    cancel_root,
    check_deadline,
    pause_root,
    report_status,
    resume_root,
)
from orchestrator_agent.engine.signals import receive_signal, refuse_late_signal
from orchestrator_agent.engine.state import Role, Row, Run, Scope, Status
from orchestrator_agent.engine.transition import Transition
from protocol.ids import step_task_id
from protocol.messages import json_bytes


def advance(
    run: Run, run_events: Sequence[RunEvent], *, directory: Directory, rules: Rules, now: datetime, random: Random
) -> Decisions:
    """Apply run events, in order, and everything that follows from them. `random` draws the jitter of retries."""
    t = Transition(run, directory, rules, now, random)
    for run_event in run_events:
        _apply(t, run_event)
    return t.builder.decisions


def start(
    run: Run, *, directory: Directory, rules: Rules, now: datetime, random: Random, reused: Iterable[Row] = ()
) -> Decisions:
    """Begin the first steps of a new run whose root scope is in place; `reused` rows ended in an earlier run. A root
    that its concurrency key does not admit yet has those rows, and begins its steps when it is admitted."""
    t = Transition(run, directory, rules, now, random)
    scope = run.scopes[run.root_task_id]
    for row in reused:
        _adopt(t, scope, row)
    if run.root.status is Status.RUNNING:
        begin_root(t)
    return t.builder.decisions


def _apply(t: Transition, run_event: RunEvent) -> None:
    if t.run.root.ended:
        _report_too_late(t, run_event)
        return
    match run_event:
        case ResponseReceived():
            attempt_responded(t, run_event)
        case Expired():
            attempt_expired(t, run_event)
        case AttemptAbandoned():
            attempt_abandoned(t, run_event)
        case Due():
            row_due(t, run_event)
        case DeadlinePassed():
            check_deadline(t)
        case CancelRequested():
            cancel_root(t, run_event)
        case PauseRequested():
            pause_root(t, run_event)
        case ResumeRequested():
            resume_root(t, run_event)
        case SignalReceived():
            receive_signal(t, run_event)
        case Delegated():
            delegate(t, run_event)
        case Begin():
            begin_root(t)
        case OperationEnded():
            result = None if run_event.result is None else json_bytes(run_event.result)
            status = Status.FAILED if run_event.error else Status.COMPLETED
            end_root(t, status, result=result, error=run_event.error)
        case Reattached():
            if t.run.facts.reply_to != run_event.reply_to:
                t.run.facts.reply_to = run_event.reply_to
                t.builder.change(t.run.root)
        case OriginalEnded():
            if t.run.root.status is Status.WAITING:
                end_root(t, Status(run_event.status), result=run_event.result, error=run_event.error)
        case Broken():
            end_root(t, Status.FAILED, error=run_event.error)


def _report_too_late(t: Transition, run_event: RunEvent) -> None:
    if isinstance(run_event, SignalReceived):
        refuse_late_signal(t, run_event)
    else:
        report_status(t, getattr(run_event, "operation", None), changed=False)


def _adopt(t: Transition, scope: Scope, row: Row) -> None:
    """Take over a step that ended in an earlier run."""
    row.root_task_id = t.run.root_task_id
    row.parent_task_id = scope.row.task_id
    row.task_id = step_task_id(scope.row.task_id, row.step or "", row.iteration, row.item)
    row.role = Role.STEP
    # It is known by its age (`Run.reused`), whatever clock the earlier run had.
    began = t.run.root.created_at
    if began is not None and (row.created_at is None or row.created_at >= began):
        row.created_at = began - timedelta(microseconds=1)
    t.builder.make(row)
    scope.rows[row.step or ""] = row
    scope.ended.add(row.step or "")
