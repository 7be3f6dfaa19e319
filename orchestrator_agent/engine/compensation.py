"""Endings: how workflows end: completed, failed, cancelled, and what they undo before they do."""

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

from orchestrator_agent.engine.progress import Steps
from orchestrator_agent.engine.state import Role, Row, Run, Scope, Status, Undo
from orchestrator_agent.workflows.plan import StepPlan
from protocol.errors import ErrorCode, ExpressionError
from protocol.ids import step_task_id
from protocol.messages import ErrorInfo, json_bytes


class Endings(Steps):
    """The highest layer under the happenings themselves."""

    def scope_completed(self, scope: Scope) -> None:
        plan = scope.plan
        if plan.single:
            result = next(scope.variables[name] for name in plan.steps)
        elif plan.output is None:
            result = {name: scope.variables.get(name) for name in plan.steps}
        else:
            try:
                result = plan.output.render(scope.variables)
            except ExpressionError as error:
                self.scope_failed(scope, self.ledger.expression_error(scope.row, "output", error))
                return
        result_json = json_bytes(result)
        if len(result_json) > self.rules.max_payload_bytes:
            self.scope_failed(scope, self.ledger.too_large(scope.row, "result", len(result_json)))
        elif scope.row is not self.run.root:
            self.completed(scope.row, result, result_json)
        elif not self._undoing_below(scope):
            self.end_root(Status.COMPLETED, result=result_json)

    def scope_failed(self, scope: Scope, error: ErrorInfo) -> None:
        """A workflow ends with the first step that fails: what else it has at work is stopped, what it did, undone.

        What undoes already goes on doing so, and comes first: nobody else knows how far it is.
        """
        if scope.row.ended or scope.row.status is Status.COMPENSATING:
            return
        reason = error.message if scope.row is self.run.root else "its workflow failed"
        for row in list(scope.rows.values()):
            self.cancel_tree(row, reason)
        scope.undo = to_undo(self.run, scope)
        if not scope.undo and not self._undoing_below(scope):
            self._failed(scope, error)
            return
        scope.row.become(Status.COMPENSATING)
        scope.row.error = error
        scope.row.expires_at = None
        self.ledger.change(scope.row)
        if scope.row is self.run.root:
            self.ledger.task_event("compensating", error=error)
        else:
            self.ledger.step_event("compensating", scope.row, error=error)
        self._undo_next(scope)

    def _failed(self, scope: Scope, error: ErrorInfo) -> None:
        if scope.row is not self.run.root:
            self.step_failed(scope.row, error)
        else:
            cancelled = error.code == ErrorCode.CANCELLED
            self.end_root(Status.CANCELLED if cancelled else Status.FAILED, error=error)

    # -- compensation -------------------------------------------------------------------------------------------------

    def _undo_next(self, scope: Scope) -> None:
        """One compensation after the other, the step that completed last first (sagas: Garcia-Molina, Salem, 1987)."""
        at_it = scope.undoing is not None and not scope.undoing.ended
        if scope.row.status is not Status.COMPENSATING or at_it or self._undoing_below(scope):
            return
        while scope.undo:
            undo = scope.undo.pop()
            assert undo.plan.compensate is not None
            row = self.row(
                scope.row,
                undo.plan,
                iteration=undo.row.iteration,
                item=undo.row.item,
                status=Status.READY,
                role=Role.COMPENSATION,
                task_id=compensation_id(undo.row),
            )
            row.task_type = undo.plan.compensate.task_type
            row.pinned_agent = undo.plan.compensate.agent
            row.timeout_seconds = undo.plan.compensate.timeout_seconds or self.run.root.timeout_seconds
            self.run.undone[row.task_id] = undo
            scope.undoing = row
            try:
                payload = undo.plan.compensate.payload.render(undo.variables)
                if not isinstance(payload, dict):
                    raise ExpressionError(f"'compensate.with' must give an object, not {type(payload).__name__}")
            except ExpressionError as error:
                wrong = self.ledger.expression_error(scope.row, undo.plan.name, error)
                self.ledger.end(row, Status.FAILED, wrong)
                self.ledger.step_event("failed", row, error=wrong)
                continue
            self.begin_beside(row, payload, depth=scope.depth)
            return
        scope.undoing = None
        assert scope.row.error is not None
        self._failed(scope, scope.row.error)

    def undone(self, row: Row) -> None:
        """A compensation ended, well or not: the others are not spared for it."""
        assert row.parent_task_id is not None
        # Not by recursion: thousands may fail one after the other before any agent is asked.
        self.soon(partial(self._undo_next, self.run.scopes[row.parent_task_id]))

    def undoing_over(self, row: Row) -> None:
        """A workflow that nobody above waited for any more has undone what it did: whoever waits for that goes on."""
        for scope in self._scopes_above(row):
            if scope.row.status is Status.COMPENSATING:
                # It may itself be one of those that want to be undone although they failed.
                scope.undo = to_undo(self.run, scope)
                self.soon(partial(self._undo_next, scope))
                return
        self.plan_steps(self.run.scopes[self.run.root_task_id], ())

    def _undoing_below(self, scope: Scope) -> bool:
        return any(
            one is not scope
            and one.row.status is Status.COMPENSATING
            and any(above is scope for above in self._scopes_above(one.row))
            for one in self.run.scopes.values()
        )

    def _scopes_above(self, row: Row) -> Iterator[Scope]:
        """The workflows that a row is in, the nearest first."""
        above = row.parent_task_id if row is not self.run.root else None
        while above is not None:
            if (scope := self.run.scopes.get(above)) is not None:
                yield scope
            higher = self.run.rows[above]
            above = higher.parent_task_id if higher is not self.run.root else None

    # -- the root -----------------------------------------------------------------------------------------------------

    def end_root(self, status: Status, *, result: bytes | None = None, error: ErrorInfo | None = None) -> None:
        root = self.run.root
        if root.ended:
            return
        for row in list(self.run.active()):
            self.cancel_tree(row, "the task has ended" if error is None else error.message, force=True)
        self.ledger.end(root, status, error)
        root.result = result
        root.usage = self.run.usage()
        self.ledger.decisions.root_ended = True
        self.ledger.task_event(status.value, error=error)

    def cancel_tree(self, row: Row, reason: str, *, force: bool = False) -> None:
        """End a row and all below it; what undoes goes on, unless by `force`."""
        if row.ended or (row.status is Status.COMPENSATING and not force):
            return
        if row.role is Role.SIGNAL:
            # A signal that no step waited for is no work that was cancelled.
            self.ledger.end(row, Status.SKIPPED)
            return
        for below in self.run.below(row):
            self.cancel_tree(below, reason, force=force)
        self.ledger.stop(row, reason)
        self.ledger.end(row, Status.CANCELLED, ErrorInfo(code=ErrorCode.CANCELLED, message=reason))
        self.ledger.step_event("cancelled", row)
        if row.role is Role.DELEGATED:
            self.ledger.decisions.answers.append(row)


def compensation_id(row: Row) -> Any:
    return step_task_id(row.task_id, "compensation", 0, -1)


def to_undo(run: Run, scope: Scope, *, again: bool = False) -> list[Undo]:
    """What a failed workflow has to undo, the next one last: completed steps that say how, and failed ones that want to
    be undone as well, those of its sub-workflows and items included; `again` includes what was undone."""
    if not any(one.plan.compensates for one in run.scopes.values()):
        return []
    children: dict[Any, list[Row]] = {}
    for row in run.rows.values():
        if row.parent_task_id is not None and row.role in (Role.STEP, Role.FALLBACK):
            children.setdefault(row.parent_task_id, []).append(row)
    found: list[tuple[Any, Undo]] = []

    def gather(inside: Scope) -> None:
        order = {name: index for index, name in enumerate(inside.plan.steps)}
        for row in children.get(inside.row.task_id, ()):
            if run.reused(row):
                # It is the work of another task, which stands as it ended.
                continue
            plan = inside.plan.steps[row.step or ""]
            take(row, plan, inside.variables, order[plan.name], newest=inside.rows.get(plan.name) is row)

    def take(row: Row, plan: StepPlan, variables: dict[str, Any], order: int, *, newest: bool) -> None:
        if (fan_out := run.fan_outs.get(row.task_id)) is not None:
            for child in children.get(row.task_id, ()):
                here = {**variables, "item": fan_out.items[child.item], "index": child.item}
                take(child, plan, here, order, newest=fan_out.rows[child.item] is child)
            return
        failed = row.status is Status.FAILED and plan.on_error == "compensate" and newest
        undoable = row.status is Status.COMPLETED or failed
        if plan.compensate is not None and (undoable or compensation_id(row) in run.rows):
            # What a step says of itself stands for all that happened inside of it.
            when = (row.completed_at, order, row.iteration, row.item, row.task_id)
            result = json_value(row.result)
            found.append((when, Undo(row=row, plan=plan, variables={**variables, "result": result})))
            return
        if (inner := run.scopes.get(row.task_id)) is not None:
            within(inner)
        for given_out in run.delegated.get(row.task_id, ()):
            if (inner := run.scopes.get(given_out.task_id)) is not None:
                within(inner)

    def within(inner: Scope) -> None:
        # One that is undoing what it did does so by itself.
        if again or inner.row.status is not Status.COMPENSATING:
            gather(inner)

    gather(scope)
    done = {row.task_id for row in run.rows.values() if row.role is Role.COMPENSATION and not again}
    return [undo for _, undo in sorted(found, key=lambda one: one[0]) if compensation_id(undo.row) not in done]


def json_value(text: bytes | None) -> Any:
    return json.loads(text) if text is not None else None
