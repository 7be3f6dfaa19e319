"""Steps: how they begin and end: tasks, sub-workflows, fan-outs, waits, sleeps, loops, fallbacks."""

from collections import deque
from collections.abc import Iterable
from datetime import timedelta
from functools import partial
from typing import Any

from orchestrator_agent.engine.state import FanOut, Role, Row, Scope, Status
from orchestrator_agent.engine.waits import Waits
from orchestrator_agent.workflows.plan import Plan, StepPlan
from protocol.errors import ErrorCode, ExpressionError, InvalidRequest
from protocol.ids import step_task_id
from protocol.messages import ErrorInfo, json_bytes
from protocol.names import ORCHESTRATOR
from protocol.workflow import MAX_DEPTH


class Steps(Waits):
    """`scope_completed` and `scope_failed` are how a workflow ends; the layer above says."""

    def scope_completed(self, scope: Scope) -> None:
        raise NotImplementedError

    def cancel_tree(self, row: Row, reason: str) -> None:
        raise NotImplementedError

    def undone(self, row: Row) -> None:
        raise NotImplementedError

    def undoing_over(self, row: Row) -> None:
        raise NotImplementedError

    # -- beginning ----------------------------------------------------------------------------------------------------

    def plan_steps(self, scope: Scope, names: Iterable[str]) -> None:
        """Begin those steps whose needs have ended; end the workflow when all its steps have."""
        self.soon(partial(self._plan_some, scope, names))

    def _plan_some(self, scope: Scope, names: Iterable[str]) -> None:
        # Here too: a condition may skip thousands of steps in a row.
        queue = deque(names)
        while queue:
            name = queue.popleft()
            if scope.row.status not in (Status.RUNNING, Status.PAUSED):
                return
            if name in scope.rows or name in scope.ended or scope.open_needs(name):
                continue
            plan = scope.plan.steps[name]
            if plan.repeat is not None:
                scope.variables.setdefault(name, None)
            try:
                wanted = plan.when is None or plan.when.condition(scope.variables)
            except ExpressionError as error:
                self.scope_failed(scope, self.ledger.expression_error(scope.row, name, error))
                return
            if wanted:
                self._begin_step(scope, plan, iteration=0)
            else:
                self._skip(scope, plan)
                queue.extend(scope.plan.dependants[name])
        if scope.row.status in (Status.RUNNING, Status.PAUSED) and len(scope.ended) == len(scope.plan.steps):
            self.scope_completed(scope)

    def _skip(self, scope: Scope, plan: StepPlan) -> None:
        row = self.row(scope.row, plan, iteration=0, status=Status.SKIPPED)
        row.completed_at = self.now
        scope.rows[plan.name] = row
        scope.variables[plan.name] = None
        scope.ended.add(plan.name)
        self.ledger.step_event("skipped", row)

    def _begin_again(self, scope: Scope, plan: StepPlan, iteration: int) -> None:
        # Something before it in the queue may have ended the workflow.
        if scope.row.status in (Status.RUNNING, Status.PAUSED):
            self._begin_step(scope, plan, iteration=iteration)

    def _begin_step(self, scope: Scope, plan: StepPlan, *, iteration: int) -> None:
        try:
            if plan.for_each is not None:
                items = plan.for_each.render(scope.variables)
                if not isinstance(items, list):
                    raise ExpressionError(f"'for_each' must give a list, not {type(items).__name__}")
                self._begin_fan_out(scope, plan, items, iteration)
                return
            if plan.waits:
                self.begin_wait(scope, plan)
                return
            payload = object_of(plan, scope.variables)
            sticky = sticky_of(plan, scope.variables)
        except ExpressionError as error:
            self.scope_failed(scope, self.ledger.expression_error(scope.row, plan.name, error))
            return
        scope.rows[plan.name] = row = self.row(scope.row, plan, iteration=iteration, status=Status.READY)
        row.sticky = sticky
        self._begin(row, plan, payload, depth=scope.depth, alone=scope.plan.single)

    def _begin(self, row: Row, plan: StepPlan, payload: dict[str, Any], *, depth: int, alone: bool = False) -> None:
        """Set a new row to work: as a task of an agent, or as a sub-workflow."""
        sub = plan.sub
        if sub is None and not alone:
            sub = self._workflow_of(row)
        if sub is not None:
            self.begin_scope(row, sub, payload, depth=depth + 1)
        elif plan.workflow is not None:
            path = self.run.path(row)
            message = f"step '{path}': there is no workflow '{plan.workflow}'"
            self.step_failed(row, ErrorInfo(code=ErrorCode.INVALID_WORKFLOW, message=message, step=path))
        else:
            self.begin_task(row, payload)

    def _workflow_of(self, row: Row) -> Plan | None:
        """The workflow that a new row's task type names, if one does: from now on the row's own."""
        # Workflows are what the orchestrator serves: who pins it means the workflow.
        if row.pinned_agent not in (None, ORCHESTRATOR):
            return None
        sub = self.directory.workflow(row.task_type)
        row.workflow_version = sub.version if sub is not None else None
        return sub

    def begin_beside(self, row: Row, payload: dict[str, Any], *, depth: int) -> None:
        """Set to work what stands in for a step, or undoes it: a task of an agent, or a workflow by its name."""
        if (sub := self._workflow_of(row)) is not None:
            self.begin_scope(row, sub, payload, depth=depth + 1)
        else:
            self.begin_task(row, payload)

    def begin_task(self, row: Row, payload: dict[str, Any]) -> None:
        """Let a new row look for an agent, within the budget."""
        row.payload = json_bytes(payload)
        if len(row.payload) > self.rules.max_payload_bytes:
            self.step_failed(row, self.ledger.too_large(row, "payload", len(row.payload)))
            return
        if not self.within_budget(row):
            return
        row.expires_at = self.now + timedelta(seconds=self.rules.no_agent_wait_seconds)
        self.place(row)
        if row.status is Status.READY:
            self.ledger.step_event("ready", row)

    def begin_scope(self, row: Row, plan: Plan, payload: dict[str, Any], *, depth: int) -> None:
        row.status = Status.RUNNING
        root = self.run.scopes[self.run.root_task_id]
        bound = root.plan.budget.depth if root.plan.budget is not None else None
        if bound is not None and depth > bound and not self.run.undoes(row):
            message = f"the task's budget of {bound} nested workflows is used up"
            details = {"budget": "depth", "limit": bound, "used": depth}
            self.scope_failed(root, ErrorInfo(code=ErrorCode.BUDGET_EXCEEDED, message=message, details=details))
            return
        if depth > MAX_DEPTH:
            path = self.run.path(row)
            message = f"step '{path}': workflows call each other deeper than {MAX_DEPTH}"
            self.step_failed(row, ErrorInfo(code=ErrorCode.INVALID_WORKFLOW, message=message, step=path))
            return
        try:
            given = plan.read_input(payload)
        except InvalidRequest as error:
            self.step_failed(row, self.ledger.step_failed(row, ErrorInfo.of(error)))
            return
        inline = plan.definition is not None and plan.version is None
        # A graph that came inline is nowhere else than in its row.
        row.payload = json_bytes({**(plan.definition or {}), "input": given} if inline else given)
        scope = self.run.scopes[row.task_id] = Scope(row=row, plan=plan, variables={"input": given}, depth=depth)
        self.plan_steps(scope, plan.steps)

    # -- fan-outs -----------------------------------------------------------------------------------------------------

    def _begin_fan_out(self, scope: Scope, plan: StepPlan, items: list[Any], iteration: int) -> None:
        row = self.row(scope.row, plan, iteration=iteration, status=Status.RUNNING)
        row.payload = json_bytes({"items": items})
        scope.rows[plan.name] = row
        fan_out = FanOut(row=row, scope=scope, plan=plan, items=items, results=[None] * len(items))
        self.run.fan_outs[row.task_id] = fan_out
        if (size := len(row.payload)) > self.rules.max_payload_bytes:
            # Several values, each within the limit, may make one that is not.
            row.payload, fan_out.items = None, []
            self.step_failed(row, self.ledger.too_large(row, "list", size))
            return
        if items:
            self._begin_items(fan_out)
        else:
            self.completed(row, [], b"[]")

    def _begin_items(self, fan_out: FanOut) -> None:
        """Begin as many of the items that have not begun as the step's concurrency allows."""
        plan, scope = fan_out.plan, fan_out.scope
        if fan_out.beginning:
            # An item that ended while it began (a sub-workflow with nothing to do): the loop below goes on by itself.
            return
        fan_out.beginning = True
        try:
            while (
                not fan_out.row.ended and fan_out.next < len(fan_out.items) and len(fan_out.active) < plan.concurrency
            ):
                item = fan_out.next
                fan_out.next += 1
                fan_out.active.add(item)
                try:
                    variables = {**scope.variables, "item": fan_out.items[item], "index": item}
                    payload = object_of(plan, variables)
                    sticky = sticky_of(plan, variables)
                except ExpressionError as error:
                    # As of any step: a mistake of the workflow's, which no `on_error` of a step bears.
                    self.scope_failed(scope, self.ledger.expression_error(scope.row, f"{plan.name}[{item}]", error))
                    return
                row = self.row(fan_out.row, plan, iteration=fan_out.row.iteration, item=item, status=Status.READY)
                row.sticky = sticky
                fan_out.rows[item] = row
                self._begin(row, plan, payload, depth=scope.depth)
        finally:
            fan_out.beginning = False
        if not fan_out.row.ended and fan_out.ended == len(fan_out.items):
            self.completed(fan_out.row, fan_out.results, json_bytes(fan_out.results))

    def _item_ended(self, fan_out: FanOut, row: Row, result: Any) -> None:
        fan_out.results[row.item] = result
        fan_out.active.discard(row.item)
        fan_out.ended += 1
        self._begin_items(fan_out)

    def _stop_items(self, fan_out: FanOut) -> None:
        for item in sorted(fan_out.active & fan_out.rows.keys()):
            self.cancel_tree(fan_out.rows[item], "another item failed")

    # -- ending -------------------------------------------------------------------------------------------------------

    def completed(self, row: Row, result: Any, result_json: bytes) -> None:
        """A task, a sub-workflow, a fan-out or a wait ended well."""
        if len(result_json) > self.rules.max_payload_bytes:
            self.step_failed(row, self.ledger.too_large(row, "result", len(result_json)))
            return
        self.ledger.end(row, Status.COMPLETED)
        row.result = result_json
        self.ledger.step_event("completed", row, agent=row.agent)
        self._forget_delegated(row)
        if row.role is Role.COMPENSATION:
            self.undone(row)
        elif row.role is Role.DELEGATED:
            self.ledger.decisions.answers.append(row)
        else:
            self._ended(row, result)

    def _ended(self, row: Row, result: Any) -> None:
        """Go on behind a step's row that ended well, or whose failure the workflow bears."""
        assert row.parent_task_id is not None
        if (fan_out := self.run.fan_outs.get(row.parent_task_id)) is not None:
            self._item_ended(fan_out, row, result)
            return
        scope = self.run.scopes[row.parent_task_id]
        name = row.step or ""
        plan = scope.plan.steps[name]
        scope.variables[name] = result
        if plan.repeat is not None and row.iteration + 1 < plan.repeat.max and row.status is Status.COMPLETED:
            try:
                again = not plan.repeat.until.condition(scope.variables)
            except ExpressionError as error:
                self.scope_failed(scope, self.ledger.expression_error(scope.row, name, error))
                return
            if again:
                self.soon(partial(self._begin_again, scope, plan, row.iteration + 1))
                return
        scope.ended.add(name)
        self.plan_steps(scope, scope.plan.dependants[name])

    def step_failed(self, row: Row, error: ErrorInfo) -> None:
        """A row will not be tried again: its fallback takes over, its workflow bears it, or its workflow fails."""
        self.ledger.end(row, Status.FAILED, error)
        self.ledger.step_event("failed", row, error=error)
        self._forget_delegated(row)
        if row.role is Role.COMPENSATION:
            self.undone(row)
            return
        if row.role is Role.DELEGATED:
            self.ledger.decisions.answers.append(row)
            self.undoing_over(row)
            return
        plan = self.run.step_plan(row)
        if self._left_alone(row):
            scope = self.run.scopes.get(row.parent_task_id) if row.parent_task_id is not None else None
            if scope is not None and plan.on_error == "continue":
                # Nothing goes on behind it; but this is what its row will be read as.
                scope.variables[plan.name] = None
                scope.ended.add(plan.name)
            self.undoing_over(row)
            return
        is_fan_out = row.task_id in self.run.fan_outs
        if plan.fallback is not None and row.role is Role.STEP and not is_fan_out:
            self._fall_back(row, plan, error)
            return
        if plan.on_error == "continue":
            self._ended(row, None)
            return
        assert row.parent_task_id is not None
        if (fan_out := self.run.fan_outs.get(row.parent_task_id)) is not None:
            self._stop_items(fan_out)
            self.step_failed(fan_out.row, error)
            return
        self.scope_failed(self.run.scopes[row.parent_task_id], error)

    def _left_alone(self, row: Row) -> bool:
        """Whether what a row belongs to has ended, or is being undone, while this one still undid what it had done."""
        above = self.run.rows[row.parent_task_id] if row.parent_task_id is not None else self.run.root
        return above.ended or above.status is Status.COMPENSATING

    def _fall_back(self, failed: Row, plan: StepPlan, error: ErrorInfo) -> None:
        assert plan.fallback is not None
        assert failed.parent_task_id is not None
        fan_out = self.run.fan_outs.get(failed.parent_task_id)
        scope = fan_out.scope if fan_out is not None else self.run.scopes[failed.parent_task_id]
        told = error.details if error.code == ErrorCode.STEP_FAILED and error.details else {}
        variables = {
            **scope.variables,
            "error": {"code": told.get("code", error.code), "message": told.get("message", error.message)},
        }
        if fan_out is not None:
            variables |= {"item": fan_out.items[failed.item], "index": failed.item}
        row = self.row(
            fan_out.row if fan_out is not None else scope.row,
            plan,
            iteration=failed.iteration,
            item=failed.item,
            status=Status.READY,
            role=Role.FALLBACK,
            task_id=step_task_id(failed.task_id, "fallback", 0, -1),
        )
        row.task_type = plan.fallback.task_type or plan.shown_type
        row.pinned_agent = plan.fallback.agent
        if fan_out is not None:
            fan_out.rows[failed.item] = row
        else:
            scope.rows[plan.name] = row
        try:
            value = plan.fallback.payload.render(variables)
            if plan.fallback.task_type is not None and not isinstance(value, dict):
                raise ExpressionError(f"'fallback.with' must give an object, not {type(value).__name__}")
        except ExpressionError as wrong:
            self.step_failed(row, self.ledger.expression_error(scope.row, plan.name, wrong))
            return
        if plan.fallback.task_type is not None:
            self.begin_beside(row, value, depth=scope.depth)
            return
        row.status = Status.WAITING
        self.completed(row, value, json_bytes(value))

    def _forget_delegated(self, row: Row) -> None:
        """Nobody waits any more for what the agent of an ended task had given out."""
        for child in self.run.delegated.get(row.task_id, ()):
            self.cancel_tree(child, "the task that wanted it has ended")


def object_of(plan: StepPlan, variables: dict[str, Any]) -> dict[str, Any]:
    payload = plan.payload.render(variables)
    if not isinstance(payload, dict):
        raise ExpressionError(f"'with' must give an object, not {type(payload).__name__}")
    return payload


def sticky_of(plan: StepPlan, variables: dict[str, Any]) -> str | None:
    if plan.sticky is None:
        return None
    value = plan.sticky.evaluate(variables)
    return value if isinstance(value, str) else json_bytes(value).decode()
