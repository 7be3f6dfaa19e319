"""Progress: what follows when a step or a workflow begins or ends.

The engine's one recursion is here, whole: a step ends, so its workflow may end, so the step that the workflow runs
ends, so next steps begin, and any of them may end at once. The modules below start a step, end a workflow, make rows;
they return what follows (`consequences`), and `follow` acts on it. Where a chain may be long, its next link is put on
the transition's work list (`Transition.soon`) instead of being called.
"""

from collections import deque
from collections.abc import Iterable
from functools import partial
from typing import Any

from orchestrator_agent.engine.assignment import assign
from orchestrator_agent.engine.cancellation import cancel_delegated, cancel_tree
from orchestrator_agent.engine.compensation import pending_compensations, scopes_above
from orchestrator_agent.engine.consequences import Consequence, ScopeBegun, ScopeFailed, StepCompleted, StepFailed
from orchestrator_agent.engine.failures import expression_error, too_large_error
from orchestrator_agent.engine.scope_end import compensate_next, complete_scope, fail_scope
from orchestrator_agent.engine.state import FanOut, Role, Row, Scope, Status
from orchestrator_agent.engine.step_rows import (
    fallback_row,
    fallback_value,
    new_fan_out,
    payload_of,
    skip_step,
    step_row,
    sticky_of,
)
from orchestrator_agent.engine.step_start import over_budget, start_beside, start_step
from orchestrator_agent.engine.transition import Transition
from orchestrator_agent.engine.waits import begin_wait, consume_signal
from orchestrator_agent.workflows.plan import StepPlan
from protocol.errors import ExpressionError
from protocol.messages import ErrorInfo, json_bytes


def follow(t: Transition, consequence: Consequence) -> None:
    """Act on what follows from what was done, and on all that follows from that."""
    match consequence:
        case None:
            return
        case StepCompleted(row, result, result_json):
            step_completed(t, row, result, result_json)
        case StepFailed(row, error):
            step_failed(t, row, error)
        case ScopeBegun(scope):
            begin_steps(t, scope, scope.plan.steps)
        case ScopeFailed(scope, error):
            scope_failed(t, scope, error)


# -- steps begin ------------------------------------------------------------------------------------------------------


def begin_steps(t: Transition, scope: Scope, names: Iterable[str]) -> None:
    """Begin those steps whose needs have ended; end the workflow when all its steps have."""
    t.soon(partial(_begin_ready_steps, t, scope, names))


def _begin_ready_steps(t: Transition, scope: Scope, names: Iterable[str]) -> None:
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
            needed = plan.when is None or plan.when.condition(scope.variables)
        except ExpressionError as error:
            scope_failed(t, scope, expression_error(t.run, scope.row, name, error))
            return
        if needed:
            _begin_step(t, scope, plan, iteration=0)
        else:
            skip_step(t, scope, plan)
            queue.extend(scope.plan.dependants[name])
    if scope.row.status in (Status.RUNNING, Status.PAUSED) and len(scope.ended) == len(scope.plan.steps):
        follow(t, complete_scope(t, scope))


def _repeat_step(t: Transition, scope: Scope, plan: StepPlan, iteration: int) -> None:
    # Something before it on the work list may have ended the workflow.
    if scope.row.status in (Status.RUNNING, Status.PAUSED):
        _begin_step(t, scope, plan, iteration=iteration)


def _begin_step(t: Transition, scope: Scope, plan: StepPlan, *, iteration: int) -> None:
    try:
        if plan.for_each is not None:
            items = plan.for_each.render(scope.variables)
            if not isinstance(items, list):
                raise ExpressionError(f"'for_each' must give a list, not {type(items).__name__}")
            _begin_fan_out(t, scope, plan, items, iteration)
            return
        if plan.waits:
            _take_kept_signal(t, begin_wait(t, scope, plan), plan)
            return
        payload = payload_of(plan, scope.variables)
        sticky = sticky_of(plan, scope.variables)
    except ExpressionError as error:
        scope_failed(t, scope, expression_error(t.run, scope.row, plan.name, error))
        return
    scope.rows[plan.name] = row = step_row(t, scope.row, plan, iteration=iteration, status=Status.READY)
    row.sticky = sticky
    follow(t, start_step(t, row, plan, payload, depth=scope.depth, alone=scope.plan.single))


def _take_kept_signal(t: Transition, row: Row, plan: StepPlan) -> None:
    if plan.wait is None:
        return
    for signal in t.run.signals:
        if signal.step == plan.wait.name and take_signal(t, row, plan, signal):
            return


def take_signal(t: Transition, row: Row, plan: StepPlan, signal: Row) -> bool:
    """End a waiting step with a kept signal; False where the signal is not for it."""
    assert plan.wait is not None
    result = consume_signal(t, plan.wait, signal)
    if result is None:
        return False
    step_completed(t, row, result, json_bytes(result))
    return True


def assign_again(t: Transition, row: Row) -> None:
    """Assign a row that was ready before: meanwhile others may have used up the budget, or its own attempts."""
    if t.run.at_work and (exceeded := over_budget(t, row)) is not None:
        follow(t, exceeded)
    else:
        assign(t, row)


# -- fan-outs ---------------------------------------------------------------------------------------------------------


def _begin_fan_out(t: Transition, scope: Scope, plan: StepPlan, items: list[Any], iteration: int) -> None:
    fan_out = new_fan_out(t, scope, plan, items, iteration)
    row = fan_out.row
    if (size := len(row.payload or b"")) > t.rules.max_payload_bytes:
        # Several values, each within the limit, may make one that is not.
        row.payload, fan_out.items = None, []
        step_failed(t, row, too_large_error(t.run, t.rules, row, "list", size))
    elif items:
        _begin_items(t, fan_out)
    else:
        step_completed(t, row, [], b"[]")


def _begin_items(t: Transition, fan_out: FanOut) -> None:
    """Begin as many of the items that have not begun as the step's concurrency allows."""
    if fan_out.beginning:
        # An item that ended while it began (a sub-workflow with nothing to do): the loop below goes on by itself.
        return
    row, plan, scope = fan_out.row, fan_out.plan, fan_out.scope
    fan_out.beginning = True
    try:
        while not row.ended and (item := fan_out.claim_next()) is not None:
            try:
                variables = fan_out.variables_of(item)
                payload, sticky = payload_of(plan, variables), sticky_of(plan, variables)
            except ExpressionError as error:
                # As of any step: a mistake of the workflow's, which no `on_error` of a step bears.
                scope_failed(t, scope, expression_error(t.run, scope.row, f"{plan.name}[{item}]", error))
                return
            item_row = step_row(t, row, plan, iteration=row.iteration, item=item, status=Status.READY)
            item_row.sticky = sticky
            fan_out.rows[item] = item_row
            follow(t, start_step(t, item_row, plan, payload, depth=scope.depth))
    finally:
        fan_out.beginning = False
    if not row.ended and fan_out.ended == len(fan_out.items):
        step_completed(t, row, fan_out.results, json_bytes(fan_out.results))


def _item_over(t: Transition, fan_out: FanOut, row: Row, result: Any) -> None:
    fan_out.results[row.item] = result
    fan_out.active.discard(row.item)
    fan_out.ended += 1
    _begin_items(t, fan_out)


# -- steps end --------------------------------------------------------------------------------------------------------


def step_completed(t: Transition, row: Row, result: Any, result_json: bytes) -> None:
    """A task, a sub-workflow, a fan-out or a wait ended well."""
    if len(result_json) > t.rules.max_payload_bytes:
        step_failed(t, row, too_large_error(t.run, t.rules, row, "result", len(result_json)))
        return
    t.builder.end(row, Status.COMPLETED)
    row.result = result_json
    t.builder.step_event("completed", row, agent=row.agent)
    cancel_delegated(t, row)
    if row.role is Role.COMPENSATION:
        _compensation_over(t, row)
    elif row.role is Role.DELEGATED:
        t.builder.respond(row)
    else:
        _step_over(t, row, result)


def _step_over(t: Transition, row: Row, result: Any) -> None:
    """Go on behind a step's row that ended well, or whose failure the workflow bears."""
    assert row.parent_task_id is not None
    if (fan_out := t.run.fan_outs.get(row.parent_task_id)) is not None:
        _item_over(t, fan_out, row, result)
        return
    scope = t.run.scopes[row.parent_task_id]
    name = row.step or ""
    plan = scope.plan.steps[name]
    scope.variables[name] = result
    if plan.repeat is not None and row.iteration + 1 < plan.repeat.max and row.status is Status.COMPLETED:
        try:
            again = not plan.repeat.until.condition(scope.variables)
        except ExpressionError as error:
            scope_failed(t, scope, expression_error(t.run, scope.row, name, error))
            return
        if again:
            t.soon(partial(_repeat_step, t, scope, plan, row.iteration + 1))
            return
    scope.ended.add(name)
    begin_steps(t, scope, scope.plan.dependants[name])


def step_failed(t: Transition, row: Row, error: ErrorInfo) -> None:
    """A row will not be tried again: its fallback takes over, its workflow bears it, or its workflow fails."""
    t.builder.end(row, Status.FAILED, error)
    t.builder.step_event("failed", row, error=error)
    cancel_delegated(t, row)
    if row.role is Role.COMPENSATION:
        _compensation_over(t, row)
        return
    if row.role is Role.DELEGATED:
        t.builder.respond(row)
        _late_compensation_over(t, row)
        return
    plan = t.run.step_plan(row)
    if _ended_around(t, row):
        scope = t.run.scopes.get(row.parent_task_id) if row.parent_task_id is not None else None
        if scope is not None and plan.on_error == "continue":
            # Nothing goes on behind it; but this is what its row will be read as.
            scope.variables[plan.name] = None
            scope.ended.add(plan.name)
        _late_compensation_over(t, row)
        return
    if plan.fallback is not None and row.role is Role.STEP and row.task_id not in t.run.fan_outs:
        _fall_back(t, row, plan, error)
        return
    if plan.on_error == "continue":
        _step_over(t, row, None)
        return
    assert row.parent_task_id is not None
    if (fan_out := t.run.fan_outs.get(row.parent_task_id)) is not None:
        for item in sorted(fan_out.active & fan_out.rows.keys()):
            cancel_tree(t, fan_out.rows[item], "another item failed")
        step_failed(t, fan_out.row, error)
        return
    scope_failed(t, t.run.scopes[row.parent_task_id], error)


def _ended_around(t: Transition, row: Row) -> bool:
    """Whether what a row belongs to has ended, or compensates, while this row was still compensating."""
    above = t.run.rows[row.parent_task_id] if row.parent_task_id is not None else t.run.root
    return above.ended or above.status is Status.COMPENSATING


def _fall_back(t: Transition, failed: Row, plan: StepPlan, error: ErrorInfo) -> None:
    assert plan.fallback is not None
    assert failed.parent_task_id is not None
    fan_out = t.run.fan_outs.get(failed.parent_task_id)
    scope = fan_out.scope if fan_out is not None else t.run.scopes[failed.parent_task_id]
    row = fallback_row(t, failed, plan, scope, fan_out)
    try:
        value = fallback_value(failed, plan, scope, fan_out, error)
    except ExpressionError as wrong:
        step_failed(t, row, expression_error(t.run, scope.row, plan.name, wrong))
        return
    if plan.fallback.task_type is not None:
        follow(t, start_beside(t, row, value, depth=scope.depth))
        return
    row.status = Status.WAITING
    step_completed(t, row, value, json_bytes(value))


# -- workflows end ----------------------------------------------------------------------------------------------------


def scope_failed(t: Transition, scope: Scope, error: ErrorInfo) -> None:
    """A workflow ends with the first step that fails, or because its task ends."""
    follow(t, fail_scope(t, scope, error))


def _compensation_over(t: Transition, row: Row) -> None:
    """A compensation ended, well or not: the others are not spared for it."""
    assert row.parent_task_id is not None
    # Not by recursion: thousands may fail one after the other before any agent is asked.
    t.soon(partial(_compensate_next, t, t.run.scopes[row.parent_task_id]))


def _compensate_next(t: Transition, scope: Scope) -> None:
    follow(t, compensate_next(t, scope))


def _late_compensation_over(t: Transition, row: Row) -> None:
    """A workflow that failed inside of one that had ended, or was compensating, has compensated: the workflow that
    waited for that goes on."""
    for scope in scopes_above(t.run, row):
        if scope.row.status is Status.COMPENSATING:
            # The row may itself be one of those that are compensated although they failed.
            scope.pending = pending_compensations(t.run, scope)
            t.soon(partial(_compensate_next, t, scope))
            return
    begin_steps(t, t.run.scopes[t.run.root_task_id], ())
