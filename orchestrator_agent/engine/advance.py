"""advance: the one pure transition of a run: what happened, to what is decided.

It changes the run it is given and says what must be written, published and told. When the write fails, the run is
thrown away and read again; nothing else has seen it.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from orchestrator_agent.engine.decisions import Decisions, Directory, Ledger, Rules
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
from orchestrator_agent.engine.state import FanOut, Row, Run, Scope, Status
from orchestrator_agent.workflows.plan import Plan, StepPlan
from protocol.errors import ErrorCode, ExpressionError, InvalidRequest
from protocol.ids import step_task_id
from protocol.messages import ErrorInfo, json_bytes
from protocol.workflow import MAX_DEPTH


def advance(
    run: Run, happenings: Sequence[Happening], *, directory: Directory, rules: Rules, now: datetime
) -> Decisions:
    """Apply what happened, in order, and everything that follows from it."""
    transition = _Transition(run, directory, rules, now)
    for happening in happenings:
        transition.apply(happening)
    return transition.ledger.decisions


def start(run: Run, *, directory: Directory, rules: Rules, now: datetime, reused: Iterable[Row] = ()) -> Decisions:
    """Plan the first steps of a new run whose root scope is in place; `reused` rows ended in an earlier run."""
    transition = _Transition(run, directory, rules, now)
    scope = run.scopes[run.root_task_id]
    for row in reused:
        transition.adopt(scope, row)
    transition.ledger.event("task", "started", {"task_id": str(run.root_task_id), "task_type": run.root.task_type})
    transition.plan_steps(scope, scope.plan.steps)
    return transition.ledger.decisions


class _Transition:
    def __init__(self, run: Run, directory: Directory, rules: Rules, now: datetime) -> None:
        self.run = run
        self.directory = directory
        self.rules = rules
        self.now = now
        self.ledger = Ledger(run, rules, now)
        self._to_do: deque[Callable[[], None]] = deque()
        self._doing = False

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
                    message = f"the deadline {deadline.isoformat()} has passed"
                    self._fail_root(ErrorInfo(code=ErrorCode.DEADLINE_EXCEEDED, message=message))
            case CancelRequested():
                error = ErrorInfo(code=ErrorCode.CANCELLED, message=happening.reason)
                self._end_root(Status.CANCELLED, error=error)
            case Reattached():
                if self.run.facts.reply_to != happening.reply_to:
                    self.run.facts.reply_to = happening.reply_to
                    self.ledger.change(self.run.root)
            case OriginalEnded():
                if self.run.root.status is Status.WAITING:
                    self._end_root(Status(happening.status), result=happening.result, error=happening.error)
            case Broken():
                self._fail_root(happening.error)

    def _answered(self, answer: Answered) -> None:
        row = self.run.current(answer.task_id, answer.attempt)
        if row is None:
            return
        row.instance_id = answer.instance_id
        if answer.usage is not None:
            row.usage = answer.usage if row.usage is None else row.usage + answer.usage
        if answer.status == "completed":
            self._completed(row, answer.result, json_bytes(answer.result))
            return
        default = ErrorInfo(code=ErrorCode.INTERNAL_ERROR, message="the agent gave no reason")
        self._attempt_failed(row, answer.error or default)

    def _expired(self, expired: Expired) -> None:
        row = self.run.current(expired.task_id, expired.attempt)
        if row is None or row.expires_at is None or row.expires_at > self.now:
            return
        self.ledger.stop(row, "its time is over")
        message = f"no answer from {row.agent} within {row.timeout_seconds:g} s"
        self._attempt_failed(row, ErrorInfo(code=ErrorCode.TIMEOUT, message=message, retryable=True))

    def _due(self, due: Due) -> None:
        row = self.run.rows.get(due.task_id)
        if row is None or row is self.run.root:
            return
        if row.status is Status.WAITING and row.run_after is not None and row.run_after <= self.now:
            row.run_after = None
            row.become(Status.READY)
            row.expires_at = self.now + timedelta(seconds=self.rules.no_agent_wait_seconds)
            self.ledger.change(row)
            self._place(row)
        elif row.status is Status.READY:
            self._place(row)
            if row.status is Status.READY and row.expires_at is not None and row.expires_at <= self.now:
                self._no_agent(row)

    def _no_agent(self, row: Row) -> None:
        if self.run.scopes[self.run.root_task_id].plan.single:
            wait = f"{self.rules.no_agent_wait_seconds:g} s"
            message = f"no workflow is called '{row.task_type}', and no agent served it within {wait}"
            self._fail_root(ErrorInfo(code=ErrorCode.UNKNOWN_TASK_TYPE, message=message))
            return
        self._step_failed(row, self.ledger.no_agent(row))

    # -- attempts -----------------------------------------------------------------------------------------------------

    def _place(self, row: Row) -> None:
        """Give a ready row to an agent, if there is one now."""
        agent = self.directory.place(row.task_type, row.pinned_agent)
        if agent is None:
            if row.expires_at is not None:
                self.ledger.decisions.wake_at.append(row.expires_at)
            return
        row.become(Status.DISPATCHED)
        row.agent = agent
        row.dispatched_at = self.now
        row.expires_at = self.now + timedelta(seconds=row.timeout_seconds)
        deadline = self.run.facts.deadline_at
        if deadline is not None:
            row.expires_at = min(row.expires_at, deadline)
        self.ledger.decisions.wake_at.append(row.expires_at)
        self.ledger.change(row)
        self.ledger.decisions.dispatched[row.task_id] = row
        self.ledger.step_event("dispatched", row, agent=agent)

    def _attempt_failed(self, row: Row, error: ErrorInfo) -> None:
        row.failures += 1
        decision = decide_retry(
            self.run.step_plan(row).retry,
            default_max_attempts=self.rules.default_max_attempts,
            failures=row.failures,
            error=error,
        )
        if decision.wait_seconds is None:
            self._step_failed(row, self.ledger.step_failed(row, error))
            return
        row.error = error
        row.attempt += 1
        row.become(Status.WAITING)
        row.run_after = self.now + timedelta(seconds=decision.wait_seconds)
        row.expires_at = None
        row.agent = None
        self.ledger.change(row)
        self.ledger.decisions.wake_at.append(row.run_after)
        self.ledger.step_event("retrying", row, error=error, wait_seconds=round(decision.wait_seconds, 3))

    # -- steps that end -----------------------------------------------------------------------------------------------

    def _completed(self, row: Row, result: Any, result_json: bytes) -> None:
        """A task, a sub-workflow or a fan-out ended well."""
        if len(result_json) > self.rules.max_message_bytes:
            self._step_failed(row, self.ledger.too_large(row, "result", len(result_json)))
            return
        self.ledger.end(row, Status.COMPLETED)
        row.result = result_json
        row.payload = None
        self.ledger.step_event("completed", row, agent=row.agent)
        assert row.parent_task_id is not None
        if (fan_out := self.run.fan_outs.get(row.parent_task_id)) is not None:
            self._item_completed(fan_out, row, result)
            return
        scope = self.run.scopes[row.parent_task_id]
        name = row.step or ""
        plan = scope.plan.steps[name]
        scope.variables[name] = result
        if plan.repeat is not None and row.iteration + 1 < plan.repeat.max:
            try:
                again = not plan.repeat.until.condition(scope.variables)
            except ExpressionError as error:
                self._fail_scope(scope, self.ledger.expression_error(scope.row, name, error))
                return
            if again:
                self._soon(partial(self._make_again, scope, plan, row.iteration + 1))
                return
        scope.ended.add(name)
        self.plan_steps(scope, scope.plan.dependants[name])

    def _item_completed(self, fan_out: FanOut, row: Row, result: Any) -> None:
        fan_out.results[row.item] = result
        fan_out.active.discard(row.item)
        fan_out.ended += 1
        if fan_out.ended == len(fan_out.items):
            self._completed(fan_out.row, fan_out.results, json_bytes(fan_out.results))
        else:
            self._make_items(fan_out)

    def _step_failed(self, row: Row, error: ErrorInfo) -> None:
        self.ledger.end(row, Status.FAILED, error)
        self.ledger.step_event("failed", row, error=error)
        assert row.parent_task_id is not None
        if (fan_out := self.run.fan_outs.get(row.parent_task_id)) is not None:
            for item in sorted(fan_out.active):
                self._cancel_tree(fan_out.rows[item], "another item failed")
            self._step_failed(fan_out.row, error)
            return
        self._fail_scope(self.run.scopes[row.parent_task_id], error)

    # -- steps that begin ---------------------------------------------------------------------------------------------

    def plan_steps(self, scope: Scope, names: Iterable[str]) -> None:
        """Make the rows of those steps whose needs have ended; end the workflow when all its steps have."""
        self._soon(partial(self._plan_some, scope, names))

    def _soon(self, act: Callable[[], None]) -> None:
        """Act now, or after what is acting: a queue and not recursion, because workflows and fan-outs that end at once
        may follow each other, or repeat, a thousand times."""
        self._to_do.append(act)
        if self._doing:
            return
        self._doing = True
        try:
            while self._to_do:
                self._to_do.popleft()()
        finally:
            self._doing = False

    def _plan_some(self, scope: Scope, names: Iterable[str]) -> None:
        # Here too: a condition may skip thousands of steps in a row.
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
            try:
                wanted = plan.when is None or plan.when.condition(scope.variables)
            except ExpressionError as error:
                self._fail_scope(scope, self.ledger.expression_error(scope.row, name, error))
                return
            if wanted:
                self._make_step(scope, plan, iteration=0)
            else:
                self._skip(scope, plan)
                queue.extend(scope.plan.dependants[name])
        if not scope.row.ended and len(scope.ended) == len(scope.plan.steps):
            self._scope_completed(scope)

    def _make_again(self, scope: Scope, plan: StepPlan, iteration: int) -> None:
        # Something before it in the queue may have ended the workflow.
        if not scope.row.ended:
            self._make_step(scope, plan, iteration=iteration)

    def _skip(self, scope: Scope, plan: StepPlan) -> None:
        row = self._row(scope.row, plan, iteration=0, status=Status.SKIPPED)
        row.completed_at = self.now
        scope.rows[plan.name] = row
        scope.variables[plan.name] = None
        scope.ended.add(plan.name)
        self.ledger.step_event("skipped", row)

    def _make_step(self, scope: Scope, plan: StepPlan, *, iteration: int) -> None:
        try:
            if plan.for_each is not None:
                items = plan.for_each.render(scope.variables)
                if not isinstance(items, list):
                    raise ExpressionError(f"'for_each' must give a list, not {type(items).__name__}")
                self._make_fan_out(scope, plan, items, iteration)
                return
            payload = _object(plan.payload.render(scope.variables))
        except ExpressionError as error:
            self._fail_scope(scope, self.ledger.expression_error(scope.row, plan.name, error))
            return
        scope.rows[plan.name] = row = self._row(scope.row, plan, iteration=iteration, status=Status.READY)
        self._begin(row, plan, payload, depth=scope.depth, alone=scope.plan.single)

    def _begin(self, row: Row, plan: StepPlan, payload: dict[str, Any], *, depth: int, alone: bool = False) -> None:
        """Set a new row to work: as a task of an agent, or as a sub-workflow."""
        sub = plan.sub
        if sub is None and plan.agent is None and not alone:
            sub = self.directory.workflow(row.task_type)
            row.workflow_version = sub.version if sub is not None else None
        if sub is not None:
            self._begin_scope(row, sub, payload, depth=depth + 1)
            return
        row.payload = json_bytes(payload)
        if len(row.payload) > self.rules.max_message_bytes:
            self._step_failed(row, self.ledger.too_large(row, "payload", len(row.payload)))
            return
        row.expires_at = self.now + timedelta(seconds=self.rules.no_agent_wait_seconds)
        self._place(row)
        if row.status is Status.READY:
            self.ledger.step_event("ready", row)

    def _begin_scope(self, row: Row, plan: Plan, payload: dict[str, Any], *, depth: int) -> None:
        row.status = Status.RUNNING
        if depth > MAX_DEPTH:
            path = self.run.path(row)
            message = f"step '{path}': workflows call each other deeper than {MAX_DEPTH}"
            self._step_failed(row, ErrorInfo(code=ErrorCode.INVALID_WORKFLOW, message=message, step=path))
            return
        try:
            given = plan.read_input(payload)
        except InvalidRequest as error:
            self._step_failed(row, self.ledger.step_failed(row, ErrorInfo.of(error)))
            return
        row.payload = json_bytes(given)
        scope = self.run.scopes[row.task_id] = Scope(row=row, plan=plan, variables={"input": given}, depth=depth)
        self.plan_steps(scope, plan.steps)

    def _make_fan_out(self, scope: Scope, plan: StepPlan, items: list[Any], iteration: int) -> None:
        row = self._row(scope.row, plan, iteration=iteration, status=Status.RUNNING)
        row.payload = json_bytes({"items": items})
        scope.rows[plan.name] = row
        fan_out = FanOut(row=row, scope=scope, plan=plan, items=items, results=[None] * len(items))
        self.run.fan_outs[row.task_id] = fan_out
        if items:
            self._make_items(fan_out)
        else:
            self._completed(row, [], b"[]")

    def _make_items(self, fan_out: FanOut) -> None:
        """Begin as many of the items that have not begun as the step's concurrency allows."""
        plan, scope = fan_out.plan, fan_out.scope
        while not fan_out.row.ended and fan_out.next < len(fan_out.items) and len(fan_out.active) < plan.concurrency:
            item = fan_out.next
            fan_out.next += 1
            fan_out.active.add(item)
            try:
                variables = {**scope.variables, "item": fan_out.items[item], "index": item}
                payload = _object(plan.payload.render(variables))
            except ExpressionError as error:
                # Not through the item's row, which there is none of yet.
                for one in sorted(fan_out.active & fan_out.rows.keys()):
                    self._cancel_tree(fan_out.rows[one], "another item failed")
                self._step_failed(fan_out.row, self.ledger.expression_error(scope.row, f"{plan.name}[{item}]", error))
                return
            row = self._row(fan_out.row, plan, iteration=fan_out.row.iteration, item=item, status=Status.READY)
            fan_out.rows[item] = row
            self._begin(row, plan, payload, depth=scope.depth)

    # -- workflows that end -------------------------------------------------------------------------------------------

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
                self._fail_scope(scope, self.ledger.expression_error(scope.row, "output", error))
                return
        result_json = json_bytes(result)
        if scope.row is not self.run.root:
            self._completed(scope.row, result, result_json)
        elif len(result_json) > self.rules.max_message_bytes:
            self._fail_root(self.ledger.too_large(scope.row, "result", len(result_json)))
        else:
            self._end_root(Status.COMPLETED, result=result_json)

    def _fail_scope(self, scope: Scope, error: ErrorInfo) -> None:
        """A workflow ends with the first step that fails: what else it has at work is stopped."""
        if scope.row is self.run.root:
            self._fail_root(error)
            return
        if scope.row.ended:
            return
        for row in list(scope.rows.values()):
            self._cancel_tree(row, "its workflow failed")
        self._step_failed(scope.row, error)

    def _fail_root(self, error: ErrorInfo) -> None:
        self._end_root(Status.FAILED, error=error)

    def _end_root(self, status: Status, *, result: bytes | None = None, error: ErrorInfo | None = None) -> None:
        root = self.run.root
        if root.ended:
            return
        for row in list(self.run.active()):
            self._cancel_tree(row, "the task has ended" if error is None else error.message)
        self.ledger.end(root, status, error)
        root.result = result
        root.usage = self.run.usage()
        self.ledger.decisions.root_ended = True
        data: dict[str, Any] = {"task_id": str(root.task_id), "task_type": root.task_type}
        if error is not None:
            data["error"] = error.model_dump(mode="json", exclude_defaults=True)
        self.ledger.event("task", status.value, data)

    def _cancel_tree(self, row: Row, reason: str) -> None:
        if row.ended:
            return
        for below in self.run.below(row):
            self._cancel_tree(below, reason)
        self.ledger.stop(row, reason)
        self.ledger.end(row, Status.CANCELLED, ErrorInfo(code=ErrorCode.CANCELLED, message=reason))
        self.ledger.step_event("cancelled", row)

    # -- rows ---------------------------------------------------------------------------------------------------------

    def adopt(self, scope: Scope, row: Row) -> None:
        """Take over a step that ended in an earlier run."""
        row.root_task_id = self.run.root_task_id
        row.parent_task_id = scope.row.task_id
        row.task_id = step_task_id(scope.row.task_id, row.step or "", row.iteration, row.item)
        self.ledger.make(row)
        scope.rows[row.step or ""] = row
        scope.ended.add(row.step or "")

    def _row(self, parent: Row, plan: StepPlan, *, iteration: int, status: Status, item: int = -1) -> Row:
        row = Row(
            root_task_id=self.run.root_task_id,
            task_id=step_task_id(parent.task_id, plan.name, iteration, item),
            parent_task_id=parent.task_id,
            step=plan.name,
            iteration=iteration,
            item=item,
            task_type=plan.task_type or plan.name,
            pinned_agent=plan.agent,
            status=status,
            timeout_seconds=plan.timeout_seconds or self.run.root.timeout_seconds,
            created_at=self.now,
        )
        self.ledger.make(row)
        return row


def _object(payload: Any) -> dict[str, Any]:
    if not isinstance(payload, dict):
        raise ExpressionError(f"'with' must give an object, not {type(payload).__name__}")
    return payload
