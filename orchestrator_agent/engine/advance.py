"""advance: the one pure transition of a run: what happened, to what is decided.

It changes the run it is given and says what must be written, published and told. When the write fails, the run is
thrown away and read again; nothing else has seen it.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

from orchestrator_agent.engine.events import (
    Answered,
    Broken,
    CancelRequested,
    DeadlinePassed,
    Due,
    Expired,
    Happening,
    OriginalEnded,
    Reattached,
)
from orchestrator_agent.engine.retry import decide_retry
from orchestrator_agent.engine.state import Row, Run, Scope, Status
from orchestrator_agent.workflows.plan import Plan, StepPlan
from protocol.errors import ErrorCode, ExpressionError, InvalidRequest
from protocol.ids import step_task_id
from protocol.messages import ErrorInfo, json_bytes
from protocol.workflow import MAX_DEPTH


class Directory(Protocol):
    """What planning asks of the world: who serves a task type now, and which workflows there are."""

    def place(self, task_type: str, pinned_agent: str | None) -> str | None:
        """The agent to send a task to, or None while there is none."""

    def workflow(self, name: str) -> Plan | None:
        """The newest version of a workflow, by name."""


@dataclass(frozen=True)
class Rules:
    """The settings that transitions follow. Sizes in bytes."""

    default_max_attempts: int = 4
    no_agent_wait_seconds: float = 30.0
    max_message_bytes: int = 1024 * 1024 - 16 * 1024


@dataclass
class Decisions:
    """What one batch of happenings comes to, for one run."""

    made: list[Row] = field(default_factory=list)
    changed: dict[UUID, Row] = field(default_factory=dict)
    # Rows whose attempt is to be published; those whose agent is to be told to stop.
    dispatched: dict[UUID, Row] = field(default_factory=dict)
    stopped: list[tuple[str, UUID, int, str]] = field(default_factory=list)
    events: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    root_ended: bool = False
    # When somebody should look again, whatever happens: retries, waits for an agent, timeouts.
    wake_at: list[datetime] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        return not self.made and not self.changed


def advance(
    run: Run, happenings: Sequence[Happening], *, directory: Directory, rules: Rules, now: datetime
) -> Decisions:
    """Apply what happened, in order, and everything that follows from it."""
    step = _Transition(run, directory, rules, now)
    for happening in happenings:
        step.apply(happening)
    return step.decisions


def start(run: Run, *, directory: Directory, rules: Rules, now: datetime, reused: Iterable[Row] = ()) -> Decisions:
    """Plan the first steps of a new run whose root scope is in place; `reused` rows ended in an earlier run."""
    step = _Transition(run, directory, rules, now)
    scope = run.scopes[run.root_task_id]
    for row in reused:
        step.adopt(scope, row)
    step.event("task", "started", {"task_id": str(run.root_task_id), "task_type": run.root.task_type})
    step.plan_ready(scope)
    return step.decisions


class _Transition:
    def __init__(self, run: Run, directory: Directory, rules: Rules, now: datetime) -> None:
        self.run = run
        self.directory = directory
        self.rules = rules
        self.now = now
        self.decisions = Decisions()
        self._made: set[UUID] = set()

    # -- what happened ------------------------------------------------------------------------------------------------

    def apply(self, happening: Happening) -> None:
        if self.run.root.ended:
            return
        match happening:
            case Answered():
                self._answered(happening)
            case Expired():
                self._expired(happening)
            case Due():
                self._due(happening)
            case DeadlinePassed():
                deadline = self.run.facts.deadline_at
                if deadline is not None and deadline <= self.now:
                    self._end_root(
                        Status.FAILED,
                        error=ErrorInfo(
                            code=ErrorCode.DEADLINE_EXCEEDED, message=f"the deadline {deadline.isoformat()} has passed"
                        ),
                    )
            case CancelRequested():
                self._end_root(Status.CANCELLED, error=ErrorInfo(code=ErrorCode.CANCELLED, message=happening.reason))
            case Reattached():
                if self.run.facts.reply_to != happening.reply_to:
                    self.run.facts.reply_to = happening.reply_to
                    self._change(self.run.root)
            case OriginalEnded():
                if self.run.root.status is Status.WAITING:
                    self._end_root(Status(happening.status), result=happening.result, error=happening.error)
            case Broken():
                self._end_root(Status.FAILED, error=happening.error)

    def _current(self, task_id: UUID, attempt: int) -> Row | None:
        """The row of an attempt, unless it is not the current one any more: attempts fence."""
        row = self.run.rows.get(task_id)
        if row is None or row.status is not Status.DISPATCHED or row.attempt != attempt:
            return None
        return row

    def _answered(self, answer: Answered) -> None:
        row = self._current(answer.task_id, answer.attempt)
        if row is None:
            return
        row.instance_id = answer.instance_id
        if answer.usage is not None:
            row.usage = answer.usage if row.usage is None else row.usage + answer.usage
        if answer.status == "completed":
            self._step_completed(row, answer.result, json_bytes(answer.result))
            return
        default = ErrorInfo(code=ErrorCode.INTERNAL_ERROR, message="the agent gave no reason")
        self._attempt_failed(row, answer.error or default)

    def _expired(self, expired: Expired) -> None:
        row = self._current(expired.task_id, expired.attempt)
        if row is None or row.expires_at is None or row.expires_at > self.now:
            return
        self._stop(row, "its time is over")
        message = f"no answer from {row.agent} within {row.timeout_seconds:g} s"
        self._attempt_failed(row, ErrorInfo(code=ErrorCode.TIMEOUT, message=message, retryable=True))

    def _due(self, due: Due) -> None:
        row = self.run.rows.get(due.task_id)
        if row is None:
            return
        if row.status is Status.WAITING and row.run_after is not None and row.run_after <= self.now:
            row.run_after = None
            row.become(Status.READY)
            row.expires_at = self.now + timedelta(seconds=self.rules.no_agent_wait_seconds)
            self._change(row)
            self._place(row)
        elif row.status is Status.READY:
            self._place(row)
            if row.status is Status.READY and row.expires_at is not None and row.expires_at <= self.now:
                self._no_agent(row)

    def _no_agent(self, row: Row) -> None:
        scope = self._scope_of(row)
        wait = f"{self.rules.no_agent_wait_seconds:g} s"
        if scope.plan.single:
            message = f"no workflow is called '{row.task_type}', and no agent served it within {wait}"
            self._end_root(Status.FAILED, error=ErrorInfo(code=ErrorCode.UNKNOWN_TASK_TYPE, message=message))
            return
        wanted = f"'{row.task_type}' of agent '{row.pinned_agent}'" if row.pinned_agent else f"'{row.task_type}'"
        message = f"step '{self.run.path(row)}': no agent served {wanted} within {wait}"
        self._step_failed(row, ErrorInfo(code=ErrorCode.NO_AGENT_AVAILABLE, message=message, step=self.run.path(row)))

    # -- attempts -----------------------------------------------------------------------------------------------------

    def _attempt_failed(self, row: Row, error: ErrorInfo) -> None:
        row.failures += 1
        plan = self._scope_of(row).plan.steps[row.step or ""]
        decision = decide_retry(
            plan.retry, default_max_attempts=self.rules.default_max_attempts, failures=row.failures, error=error
        )
        data = {**self._about(row), "error": error.model_dump(mode="json", exclude_defaults=True)}
        if decision.wait_seconds is None:
            self._step_failed(row, self._wrapped(row, error))
            return
        row.error = error
        row.attempt += 1
        row.become(Status.WAITING)
        row.run_after = self.now + timedelta(seconds=decision.wait_seconds)
        row.agent = None
        self._change(row)
        self.decisions.wake_at.append(row.run_after)
        self.event("step", "retrying", {**data, "wait_seconds": round(decision.wait_seconds, 3)})

    def _wrapped(self, row: Row, error: ErrorInfo) -> ErrorInfo:
        """A step's error as its workflow's: the agent's own goes into details."""
        path = self.run.path(row)
        return ErrorInfo(
            code=ErrorCode.STEP_FAILED,
            message=f"step '{path}' failed: {error.message}",
            retryable=error.retryable,
            step=path,
            details=error.model_dump(mode="json", exclude_none=True),
        )

    def _place(self, row: Row) -> None:
        """Give a ready row to an agent, if there is one now."""
        agent = self.directory.place(row.task_type, row.pinned_agent)
        if agent is None:
            if row.expires_at is not None:
                self.decisions.wake_at.append(row.expires_at)
            return
        row.become(Status.DISPATCHED)
        row.agent = agent
        row.dispatched_at = self.now
        row.expires_at = self.now + timedelta(seconds=row.timeout_seconds)
        deadline = self.run.facts.deadline_at
        if deadline is not None:
            row.expires_at = min(row.expires_at, deadline)
        self.decisions.wake_at.append(row.expires_at)
        self._change(row)
        self.decisions.dispatched[row.task_id] = row
        self.event("step", "dispatched", {**self._about(row), "agent": agent})

    def _stop(self, row: Row, reason: str) -> None:
        if row.status is Status.DISPATCHED and row.agent is not None:
            self.decisions.dispatched.pop(row.task_id, None)
            self.decisions.stopped.append((row.agent, row.task_id, row.attempt, reason))

    # -- steps --------------------------------------------------------------------------------------------------------

    def _step_completed(self, row: Row, result: Any, result_json: bytes) -> None:
        scope = self._scope_of(row)
        if len(result_json) > self.rules.max_message_bytes:
            self._step_failed(row, self._too_large(row, "result", len(result_json)))
            return
        row.become(Status.COMPLETED)
        row.result = result_json
        row.error = None
        row.payload = None
        row.completed_at = self.now
        row.expires_at = None
        self._change(row)
        self.event("step", "completed", {**self._about(row), "agent": row.agent})
        name = row.step or ""
        plan = scope.plan.steps[name]
        scope.variables[name] = result
        if plan.repeat is not None and row.iteration + 1 < plan.repeat.max:
            try:
                again = not plan.repeat.until.condition(scope.variables)
            except ExpressionError as error:
                self._fail_scope(scope, self._expression_error(scope, name, error))
                return
            if again:
                self._make(scope, plan, iteration=row.iteration + 1)
                return
        self._step_ended(scope, name)

    def _step_ended(self, scope: Scope, name: str) -> None:
        scope.ended.add(name)
        self._plan_steps(scope, scope.plan.dependants[name])

    def plan_ready(self, scope: Scope) -> None:
        """Make the rows of all steps whose needs have ended."""
        self._plan_steps(scope, scope.plan.steps)

    def _plan_steps(self, scope: Scope, names: Iterable[str]) -> None:
        # A queue and not recursion: a condition may skip thousands of steps in a row.
        queue = deque(names)
        while queue:
            name = queue.popleft()
            if scope.row.ended:
                return
            if name in scope.rows or name in scope.ended or scope.open_needs(name):
                continue
            plan = scope.plan.steps[name]
            if plan.repeat is not None:
                scope.variables.setdefault(name, None)
            if plan.when is not None:
                try:
                    wanted = plan.when.condition(scope.variables)
                except ExpressionError as error:
                    self._fail_scope(scope, self._expression_error(scope, name, error))
                    return
                if not wanted:
                    self._skip(scope, plan)
                    queue.extend(scope.plan.dependants[name])
                    continue
            self._make(scope, plan, iteration=0)
        if not scope.row.ended and len(scope.ended) == len(scope.plan.steps):
            self._scope_completed(scope)

    def _skip(self, scope: Scope, plan: StepPlan) -> None:
        row = self._row(scope, plan, iteration=0, status=Status.SKIPPED)
        row.completed_at = self.now
        scope.rows[plan.name] = row
        scope.variables[plan.name] = None
        self.event("step", "skipped", self._about(row))
        scope.ended.add(plan.name)

    def _make(self, scope: Scope, plan: StepPlan, *, iteration: int) -> None:
        """Make a step's row: a task for an agent, or a sub-workflow with its own first steps."""
        try:
            payload = plan.payload.render(scope.variables)
        except ExpressionError as error:
            self._fail_scope(scope, self._expression_error(scope, plan.name, error))
            return
        if not isinstance(payload, dict):
            wrong = ExpressionError(f"'with' must give an object, not {type(payload).__name__}")
            self._fail_scope(scope, self._expression_error(scope, plan.name, wrong))
            return
        sub, version = plan.sub, None
        if sub is None and plan.task_type is not None and plan.agent is None and not scope.plan.single:
            sub = self.directory.workflow(plan.task_type)
            version = sub.version if sub is not None else None
        if sub is not None:
            self._make_scope(scope, plan, sub, version, payload, iteration)
            return
        row = self._row(scope, plan, iteration=iteration, status=Status.READY)
        scope.rows[plan.name] = row
        row.payload = json_bytes(payload)
        if len(row.payload) > self.rules.max_message_bytes:
            self._step_failed(row, self._too_large(row, "payload", len(row.payload)))
            return
        row.expires_at = self.now + timedelta(seconds=self.rules.no_agent_wait_seconds)
        self._place(row)
        if row.status is Status.READY:
            self.event("step", "ready", self._about(row))

    def _make_scope(
        self, scope: Scope, plan: StepPlan, sub: Plan, version: str | None, payload: dict[str, Any], iteration: int
    ) -> None:
        row = self._row(scope, plan, iteration=iteration, status=Status.RUNNING)
        row.workflow_version = version
        scope.rows[plan.name] = row
        path = self.run.path(row)
        if scope.depth + 1 > MAX_DEPTH:
            message = f"step '{path}': workflows call each other deeper than {MAX_DEPTH}"
            self._step_failed(row, ErrorInfo(code=ErrorCode.INVALID_WORKFLOW, message=message, step=path))
            return
        try:
            given = sub.read_input(payload)
        except InvalidRequest as error:
            self._step_failed(row, self._wrapped(row, ErrorInfo.of(error)))
            return
        row.payload = json_bytes(given)
        inner = Scope(row=row, plan=sub, variables={"input": given}, depth=scope.depth + 1)
        self.run.scopes[row.task_id] = inner
        self.plan_ready(inner)

    def _step_failed(self, row: Row, error: ErrorInfo) -> None:
        row.become(Status.FAILED)
        row.error = error
        row.completed_at = self.now
        row.expires_at = None
        self._change(row)
        data = {**self._about(row), "error": error.model_dump(mode="json", exclude_defaults=True)}
        self.event("step", "failed", data)
        self._fail_scope(self._scope_of(row), error)

    # -- workflows ----------------------------------------------------------------------------------------------------

    def _scope_completed(self, scope: Scope) -> None:
        plan = scope.plan
        if plan.single:
            result = next(scope.variables[name] for name in plan.steps)
        elif plan.output is None:
            result = {name: scope.variables.get(name) for name in plan.steps}
        else:
            try:
                result = plan.output.render(scope.variables)
            except ExpressionError as error:
                self._fail_scope(scope, self._expression_error(scope, "output", error))
                return
        result_json = json_bytes(result)
        if scope.row is not self.run.root:
            self._step_completed(scope.row, result, result_json)
            return
        if len(result_json) > self.rules.max_message_bytes:
            self._fail_scope(scope, self._too_large(scope.row, "result", len(result_json)))
            return
        self._end_root(Status.COMPLETED, result=result_json)

    def _fail_scope(self, scope: Scope, error: ErrorInfo) -> None:
        """A workflow ends with the first step that does: what else it has at work is stopped."""
        if scope.row is self.run.root:
            self._end_root(Status.FAILED, error=error)
            return
        for row in list(scope.rows.values()):
            self._cancel_tree(row, "its workflow failed")
        self._step_failed(scope.row, error)

    def _cancel_tree(self, row: Row, reason: str) -> None:
        if row.ended:
            return
        if (inner := self.run.scopes.get(row.task_id)) is not None:
            for one in list(inner.rows.values()):
                self._cancel_tree(one, reason)
        self._stop(row, reason)
        row.become(Status.CANCELLED)
        row.error = ErrorInfo(code=ErrorCode.CANCELLED, message=reason)
        row.completed_at = self.now
        row.expires_at = None
        self._change(row)
        self.event("step", "cancelled", self._about(row))

    def _end_root(self, status: Status, *, result: bytes | None = None, error: ErrorInfo | None = None) -> None:
        root = self.run.root
        for row in list(self.run.active()):
            self._cancel_tree(row, error.message if error is not None else "the task has ended")
        root.become(status)
        root.result = result
        root.error = error
        root.usage = self.run.usage()
        root.completed_at = self.now
        self._change(root)
        self.decisions.root_ended = True
        data: dict[str, Any] = {"task_id": str(root.task_id), "task_type": root.task_type}
        if error is not None:
            data["error"] = error.model_dump(mode="json", exclude_defaults=True)
        self.event("task", status.value, data)

    def adopt(self, scope: Scope, row: Row) -> None:
        """Take over a step that ended in an earlier run."""
        row.root_task_id = self.run.root_task_id
        row.parent_task_id = scope.row.task_id
        row.task_id = step_task_id(scope.row.task_id, row.step or "", row.iteration, row.item)
        self.run.rows[row.task_id] = row
        self.decisions.made.append(row)
        self._made.add(row.task_id)
        scope.rows[row.step or ""] = row
        scope.ended.add(row.step or "")

    # -- helpers of the above -----------------------------------------------------------------------------------------

    def _scope_of(self, row: Row) -> Scope:
        assert row.parent_task_id is not None
        return self.run.scopes[row.parent_task_id]

    def _row(self, scope: Scope, plan: StepPlan, *, iteration: int, status: Status) -> Row:
        row = Row(
            root_task_id=self.run.root_task_id,
            task_id=step_task_id(scope.row.task_id, plan.name, iteration, -1),
            parent_task_id=scope.row.task_id,
            step=plan.name,
            iteration=iteration,
            task_type=plan.task_type or plan.name,
            pinned_agent=plan.agent,
            status=status,
            timeout_seconds=plan.timeout_seconds or self.run.root.timeout_seconds,
            created_at=self.now,
        )
        self.run.rows[row.task_id] = row
        self.decisions.made.append(row)
        self._made.add(row.task_id)
        return row

    def _change(self, row: Row) -> None:
        if row.task_id not in self._made:
            self.decisions.changed[row.task_id] = row

    def _about(self, row: Row) -> dict[str, Any]:
        return {
            "root_task_id": str(row.root_task_id),
            "task_id": str(row.task_id),
            "parent_task_id": str(row.parent_task_id),
            "step": self.run.path(row),
            "task_type": row.task_type,
            "iteration": row.iteration,
            "attempt": row.attempt,
        }

    def event(self, entity: str, name: str, data: dict[str, Any]) -> None:
        self.decisions.events.append((entity, name, data))

    def _expression_error(self, scope: Scope, name: str, error: ExpressionError) -> ErrorInfo:
        above = self.run.path(scope.row)
        path = f"{above}/{name}" if above else name
        return ErrorInfo(
            code=ErrorCode.EXPRESSION_ERROR,
            message=f"{'' if name == 'output' else 'step '}'{path}': {error.message}",
            step=path,
            details=error.details or None,
        )

    def _too_large(self, row: Row, what: str, size: int) -> ErrorInfo:
        path = self.run.path(row)
        where = f"step '{path}': " if path else ""
        return ErrorInfo(
            code=ErrorCode.TOO_LARGE,
            message=f"{where}a {what} of {size} bytes exceeds the limit of {self.rules.max_message_bytes} bytes",
            step=path or None,
            details={"size_bytes": size, "limit_bytes": self.rules.max_message_bytes},
        )
