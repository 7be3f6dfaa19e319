"""advance: the one pure transition of a run: what happened, to what is decided.

It changes the run it is given and says what must be written, published and told. When the write fails, the run is
thrown away and read again; nothing else has seen it.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from random import Random
from typing import Any

from orchestrator_agent.engine.compensation import Endings
from orchestrator_agent.engine.decisions import Decisions, Directory, Rules
from orchestrator_agent.engine.events import (
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
    Signalled,
)
from orchestrator_agent.engine.state import Role, Row, Run, Scope, Status, in_order
from orchestrator_agent.engine.waits import payload_of
from orchestrator_agent.workflows.plan import StepPlan
from protocol.errors import ErrorCode, InvalidRequest
from protocol.ids import step_task_id
from protocol.messages import ErrorInfo, json_bytes, time_text


def advance(
    run: Run, run_events: Sequence[RunEvent], *, directory: Directory, rules: Rules, now: datetime, random: Random
) -> Decisions:
    """Apply what happened, in order, and everything that follows from it."""
    transition = _Transition(run, directory, rules, now, random)
    for run_event in run_events:
        transition.apply(run_event)
    return transition.ledger.decisions


def start(
    run: Run, *, directory: Directory, rules: Rules, now: datetime, random: Random, reused: Iterable[Row] = ()
) -> Decisions:
    """Plan the first steps of a new run whose root scope is in place; `reused` rows ended in an earlier run. One that
    waits for its turn has those rows, and plans its steps when it begins."""
    transition = _Transition(run, directory, rules, now, random)
    scope = run.scopes[run.root_task_id]
    for row in reused:
        transition.adopt(scope, row)
    if run.root.status is Status.RUNNING:
        transition.begin()
    return transition.ledger.decisions


def _refusal(plan: StepPlan, signal: Signalled) -> ErrorInfo | None:
    """Why a step that waits for a signal of this name does not take this one."""
    assert plan.wait is not None
    if not plan.wait.accepts(signal.giver):
        who = ", ".join(sorted(plan.wait.givers))
        message = f"'{signal.name}' may be given by {who}, not by {signal.giver or 'nobody in particular'}"
        return ErrorInfo(code="forbidden", message=message)
    try:
        payload_of(plan.wait, signal.payload)
    except InvalidRequest as wrong:
        return ErrorInfo.of(wrong)
    return None


class _Transition(Endings):
    def apply(self, run_event: RunEvent) -> None:
        if self.run.root.ended:
            self._too_late(run_event)
            return
        match run_event:
            case ResponseReceived():
                self._answered(run_event)
            case Expired():
                self._expired(run_event)
            case Due():
                self._due(run_event)
            case DeadlinePassed():
                self._deadline_passed()
            case CancelRequested():
                self._cancel(run_event)
            case PauseRequested():
                self._pause(run_event)
            case ResumeRequested():
                self._resume(run_event)
            case Signalled():
                self._signalled(run_event)
            case Delegated():
                self._delegated(run_event)
            case Begin():
                self.begin()
            case OperationEnded():
                result = None if run_event.result is None else json_bytes(run_event.result)
                self.end_root(
                    Status.FAILED if run_event.error else Status.COMPLETED, result=result, error=run_event.error
                )
            case Reattached():
                if self.run.facts.reply_to != run_event.reply_to:
                    self.run.facts.reply_to = run_event.reply_to
                    self.ledger.change(self.run.root)
            case OriginalEnded():
                if self.run.root.status is Status.WAITING:
                    self.end_root(Status(run_event.status), result=run_event.result, error=run_event.error)
            case Broken():
                self.end_root(Status.FAILED, error=run_event.error)

    def begin(self) -> None:
        """Plan the first steps of the root, once."""
        scope = self.run.scopes.get(self.run.root_task_id)
        begun = any(row.role is Role.STEP and row.parent_task_id == self.run.root_task_id for row in self._own_rows())
        if scope is None or begun or self.run.root.status is not Status.RUNNING:
            return
        self.ledger.task_event("started")
        self.plan_steps(scope, scope.plan.steps)

    def _own_rows(self) -> Iterable[Row]:
        """Those that were not taken over from an earlier run: in this transition, or when the root was accepted, which
        left them older than it."""
        adopted = {row.task_id for row in self.ledger.decisions.made}
        return (
            row
            for row in self.run.rows.values()
            if row is not self.run.root and row.task_id not in adopted and not self.run.reused(row)
        )

    # -- attempts -----------------------------------------------------------------------------------------------------

    def _answered(self, answer: ResponseReceived) -> None:
        row = self.run.current(answer.task_id, answer.attempt)
        if row is None:
            return
        row.instance_id = answer.instance_id
        if answer.usage is not None:
            self.run.consumed(row, answer.usage)
        if answer.status == "completed":
            self.completed(row, answer.result, json_bytes(answer.result))
            return
        # An agent that keeps the deadline fails when it passes: the deadline decides, as where an attempt expires.
        self._deadline_passed()
        if row.status is not Status.DISPATCHED:
            return
        default = ErrorInfo(code=ErrorCode.INTERNAL_ERROR, message="the agent gave no reason")
        self.attempt_failed(row, answer.error or default)

    def _expired(self, expired: Expired) -> None:
        row = self.run.current(expired.task_id, expired.attempt)
        if row is None or row.expires_at is None or row.expires_at > self.now:
            return
        # No attempt outlives the deadline: which of the two is noticed first must not decide how the task ends.
        self._deadline_passed()
        if row.status is not Status.DISPATCHED:
            return
        self.ledger.stop(row, "its time is over")
        if expired.broker_was_down:
            self.attempt_lost(row)
            return
        message = f"no answer from {row.agent} within {row.timeout_seconds:g} s"
        self.attempt_failed(row, ErrorInfo(code=ErrorCode.TIMEOUT, message=message, retryable=True))

    def _due(self, due: Due) -> None:
        row = self.run.rows.get(due.task_id)
        if row is None:
            return
        # Before any other timer, whichever is noticed first.
        self._deadline_passed()
        if row.ended:
            return
        if row is self.run.root:
            self.begin()
        elif row.status is Status.READY:
            self.place_again(row)
            if row.status is Status.READY:
                self._give_up(row)
        elif row.status is Status.WAITING and row.run_after is not None and row.run_after <= self.now:
            plan = self.run.step_plan(row)
            if plan.waits and row.role is Role.STEP:
                self.wait_over(row, plan)
            else:
                self.make_ready(row)

    def _give_up(self, row: Row) -> None:
        over = row.expires_at is not None and row.expires_at <= self.now and self.run.at_work
        single = self.run.scopes[self.run.root_task_id].plan.single and row.role is Role.STEP
        if over and single and not self.directory.served(self.wanted(row)):
            wait = f"{self.rules.no_agent_wait_seconds:g} s"
            message = f"no workflow is called '{row.task_type}', and no agent served it within {wait}"
            self.end_root(Status.FAILED, error=ErrorInfo(code=ErrorCode.UNKNOWN_TASK_TYPE, message=message))
            return
        self.no_place(row)

    # -- what people and clocks do to the whole task ------------------------------------------------------------------

    def _deadline_passed(self) -> None:
        deadline = self.run.facts.deadline_at
        if deadline is None or deadline > self.now:
            return
        message = f"the deadline {time_text(deadline)} has passed"
        self._end(ErrorInfo(code=ErrorCode.DEADLINE_EXCEEDED, message=message))

    def _end(self, error: ErrorInfo) -> None:
        scope = self.run.scopes.get(self.run.root_task_id)
        if scope is not None:
            self.scope_failed(scope, error)
        else:
            cancelled = error.code == ErrorCode.CANCELLED
            self.end_root(Status.CANCELLED if cancelled else Status.FAILED, error=error)

    def _cancel(self, run_event: CancelRequested) -> None:
        before = self.run.root.status
        self._end(ErrorInfo(code=ErrorCode.CANCELLED, message=run_event.reason))
        self._tell(run_event.operation, changed=self.run.root.status is not before)

    def _pause(self, run_event: PauseRequested) -> None:
        root = self.run.root
        if root.status is Status.RUNNING:
            root.become(Status.PAUSED)
            self.ledger.change(root)
            self.ledger.task_event("paused")
            self._tell(run_event.operation, changed=True)
        else:
            self._tell(run_event.operation, changed=False)

    def _resume(self, run_event: ResumeRequested) -> None:
        root = self.run.root
        if root.status is not Status.PAUSED:
            self._tell(run_event.operation, changed=False)
            return
        root.become(Status.RUNNING)
        self.ledger.change(root)
        self.ledger.task_event("resumed")
        for row in list(self.run.active()):
            if row.status is Status.READY:
                self.ledger.change(row)
                row.expires_at = None
                self._wait_again(row)
        self._tell(run_event.operation, changed=True)

    def _wait_again(self, row: Row) -> None:
        row.expires_at = self.now + timedelta(seconds=self.rules.no_agent_wait_seconds)
        self.place_again(row)

    def _tell(self, operation: Any, *, changed: bool) -> None:
        if operation is not None:
            root = self.run.root
            told = {"task_id": str(root.task_id), "status": root.status.value, "changed": changed}
            self.ledger.decisions.outcomes[operation] = told

    def _too_late(self, run_event: RunEvent) -> None:
        operation = getattr(run_event, "operation", None)
        if operation is None:
            return
        if isinstance(run_event, Signalled):
            message = f"task {self.run.root_task_id} has ended {self.run.root.status.value}: nothing waits for a signal"
            self.ledger.decisions.outcomes[operation] = ErrorInfo(code=ErrorCode.INVALID_REQUEST, message=message)
        else:
            self._tell(operation, changed=False)

    # -- signals and delegation ---------------------------------------------------------------------------------------

    def _signalled(self, signal: Signalled) -> None:
        """Keep the signal, then let a step that waits for it take it; the row's id makes giving it twice once."""
        task_id = signal.row_id
        if task_id in self.run.rows:
            self._tell_signal(signal, taken=self.run.rows[task_id].status is Status.COMPLETED)
            return
        waiting = [
            (row, plan)
            for row in self.run.active()
            if row.status is Status.WAITING
            and row.role is Role.STEP
            and (plan := self.run.step_plan(row)).wait is not None
        ]
        waiting = [(row, plan) for row, plan in waiting if plan.wait is not None and plan.wait.name == signal.name]
        refusals = [(row, plan, _refusal(plan, signal)) for row, plan in waiting]
        takers = [(row, plan) for row, plan, refusal in refusals if refusal is None]
        if refusals and not takers:
            # Several may wait for one name; it is refused when it is right for none of them.
            self.ledger.decisions.outcomes[signal.operation] = next(refusal for *_, refusal in refusals if refusal)
            return
        row = Row(
            root_task_id=self.run.root_task_id,
            task_id=task_id,
            parent_task_id=self.run.root_task_id,
            step=signal.name,
            role=Role.SIGNAL,
            task_type="signal",
            status=Status.WAITING,
            payload=json_bytes({"payload": signal.payload, "by": signal.giver, "at": self.now.isoformat()}),
            created_at=self.now,
        )
        self.ledger.make(row)
        self.run.signals = in_order([*self.run.signals, row])
        self.ledger.task_event("signalled", signal=signal.name, by=signal.giver)
        first = min(takers, key=lambda one: (one[0].created_at or self.now, one[0].task_id), default=None)
        taken = first is not None and self.take_signal(*first, row)
        self._tell_signal(signal, taken=taken)

    def _tell_signal(self, signal: Signalled, *, taken: bool) -> None:
        told = {"task_id": str(self.run.root_task_id), "signal": signal.name, "taken": taken}
        self.ledger.decisions.outcomes[signal.operation] = told

    def _delegated(self, given: Delegated) -> None:
        """A task that an agent gives out becomes a child of the one it works on; the same id again changes nothing."""
        if (known := self.run.rows.get(given.task_id)) is not None:
            if known.ended:
                known.reply_to = given.reply_to or known.reply_to
                self.ledger.decisions.answers.append(known)
            elif given.reply_to not in (None, known.reply_to):
                known.reply_to = given.reply_to
                self.ledger.change(known)
            return
        parent = self.run.rows.get(given.parent_task_id)
        scope = self._scope_around(parent)
        if parent is None or parent.status is not Status.DISPATCHED or scope is None:
            return
        row = Row(
            root_task_id=self.run.root_task_id,
            task_id=given.task_id,
            parent_task_id=parent.task_id,
            step=given.task_type,
            role=Role.DELEGATED,
            task_type=given.task_type,
            status=Status.RUNNING,
            reply_to=given.reply_to,
            workflow_version=given.plan.version,
            timeout_seconds=given.timeout_seconds or self.run.root.timeout_seconds,
            created_at=self.now,
        )
        self.ledger.make(row)
        self.run.delegated.setdefault(parent.task_id, []).append(row)
        self.begin_scope(row, given.plan, given.payload, depth=scope.depth + 1)

    def _scope_around(self, row: Row | None) -> Scope | None:
        while row is not None and row.parent_task_id is not None:
            if (scope := self.run.scopes.get(row.parent_task_id)) is not None:
                return scope
            row = self.run.rows.get(row.parent_task_id)
        return None

    def adopt(self, scope: Scope, row: Row) -> None:
        """Take over a step that ended in an earlier run."""
        row.root_task_id = self.run.root_task_id
        row.parent_task_id = scope.row.task_id
        row.task_id = step_task_id(scope.row.task_id, row.step or "", row.iteration, row.item)
        row.role = Role.STEP
        # It is known by its age (`Run.reused`), whatever the clock of who ran it said.
        began = self.run.root.created_at
        if began is not None and (row.created_at is None or row.created_at >= began):
            row.created_at = began - timedelta(microseconds=1)
        self.ledger.make(row)
        scope.rows[row.step or ""] = row
        scope.ended.add(row.step or "")
