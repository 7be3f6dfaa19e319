"""Waits: steps that are no work: they end when their time has come, or their signal."""

import json
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from orchestrator_agent.engine.attempts import Attempts
from orchestrator_agent.engine.state import Role, Row, Scope, Status
from orchestrator_agent.workflows.plan import StepPlan, WaitPlan
from protocol.errors import ErrorCode, ExpressionError, InvalidRequest
from protocol.fields import utc
from protocol.ids import step_task_id
from protocol.messages import ErrorInfo, json_bytes, time_text
from protocol.workflow import seconds_of


class Waits(Attempts):
    """`completed` is how a row ends well; the layer above says."""

    def completed(self, row: Row, result: Any, result_json: bytes) -> None:
        raise NotImplementedError

    def begin_wait(self, scope: Scope, plan: StepPlan) -> None:
        """A step that is no work: it ends when its time has come, or its signal."""
        until = self._wake_time(plan, scope.variables)
        scope.rows[plan.name] = row = self.row(scope.row, plan, iteration=0, status=Status.WAITING)
        row.run_after = until
        if until is not None:
            self.ledger.decisions.wake_at.append(until)
        if plan.wait is None:
            self.ledger.step_event("waiting", row)
            return
        row.payload = json_bytes({"approval" if plan.wait.approval else "signal": plan.wait.name})
        self.ledger.step_event("waiting", row, waits_for=plan.wait.name)
        for signal in self.run.signals:
            if signal.step == plan.wait.name and self.take_signal(row, plan, signal):
                return

    def _wake_time(self, plan: StepPlan, variables: dict[str, Any]) -> datetime | None:
        if plan.wait is not None:
            seconds = plan.wait.timeout_seconds
            return None if seconds is None else self.now + timedelta(seconds=seconds)
        if plan.sleep_seconds is not None:
            try:
                return self.now + timedelta(seconds=seconds_of(plan.sleep_seconds.render(variables)))
            except ValueError as error:
                raise ExpressionError(f"'sleep': {error}") from None
        assert plan.until is not None
        value = plan.until.evaluate(variables)
        try:
            moment = datetime.fromisoformat(value)
        except (TypeError, ValueError):
            moment = None
        if moment is None or moment.tzinfo is None:
            raise ExpressionError(f"'until' must give a time such as 2030-01-31T08:00:00Z, not {value!r}")
        try:
            return utc(moment)
        except ValueError as error:
            raise ExpressionError(f"'until': {value} {error}") from None

    def take_signal(self, row: Row, plan: StepPlan, signal: Row) -> bool:
        """End a waiting step with a signal that was given; False where the signal is not for it."""
        assert plan.wait is not None
        given = json_of(signal.payload)
        if not plan.wait.accepts(given.get("by")):
            return False
        try:
            payload = payload_of(plan.wait, given["payload"])
        except InvalidRequest:
            return False
        self.run.signals = [one for one in self.run.signals if one is not signal]
        self.ledger.end(signal, Status.COMPLETED)
        result: Any = payload
        if plan.wait.approval:
            # Who gave it is what the request says, whatever its payload says.
            result = {**payload, "by": given.get("by"), "at": given.get("at")}
        self.completed(row, result, json_bytes(result))
        return True

    def wait_over(self, row: Row, plan: StepPlan) -> None:
        """The time of a waiting step has come."""
        if plan.wait is None:
            moment = time_text(row.run_after) if row.run_after else None
            self.completed(row, {"at": moment}, json_bytes({"at": moment}))
        elif plan.wait.continue_on_timeout:
            self.completed(row, None, b"null")
        else:
            path = self.run.path(row)
            message = f"step '{path}': nobody gave '{plan.wait.name}' within {plan.wait.timeout_seconds:g} s"
            self.step_failed(row, ErrorInfo(code=ErrorCode.TIMEOUT, message=message, step=path))

    def row(
        self,
        parent: Row,
        plan: StepPlan,
        *,
        iteration: int,
        status: Status,
        item: int = -1,
        role: Role = Role.STEP,
        task_id: UUID | None = None,
    ) -> Row:
        row = Row(
            root_task_id=self.run.root_task_id,
            task_id=task_id or step_task_id(parent.task_id, plan.name, iteration, item),
            parent_task_id=parent.task_id,
            step=plan.name,
            role=role,
            iteration=iteration,
            item=item,
            task_type=plan.shown_type,
            pinned_agent=plan.agent,
            status=status,
            timeout_seconds=plan.timeout_seconds or self.run.root.timeout_seconds,
            created_at=self.now,
        )
        self.ledger.make(row)
        return row


def payload_of(wait: WaitPlan, given: dict[str, Any]) -> dict[str, Any]:
    """What a signal holds, as the step that waits for it wants it. Raises InvalidRequest where it does not fit."""
    if wait.approval and not isinstance(given.get("approved"), bool):
        # Approvals and signals share their names, and `mesh.signal` may give either.
        raise InvalidRequest(f"'{wait.name}' is an approval: payload.approved must be true or false", field="payload")
    return given if wait.schema is None else wait.schema.read(given)


def json_of(text: bytes | None) -> dict[str, Any]:
    value = json.loads(text or b"{}")
    return value if isinstance(value, dict) else {}
