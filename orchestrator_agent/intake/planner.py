"""Intake: what arrives on `agent.orchestrator_agent.task`, planned into new runs. Pure but for what it is handed.

Everything with a readable id becomes a row, refused requests included: a task has one outcome, whoever asks again.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from orchestrator_agent.engine.advance import start
from orchestrator_agent.engine.decisions import Decisions, Directory, Rules
from orchestrator_agent.engine.endings import compensation_id
from orchestrator_agent.engine.state import ENDED, Role, RootFacts, Row, Run, Scope, Status
from orchestrator_agent.workflows.library import Library
from orchestrator_agent.workflows.plan import Plan
from protocol.errors import ErrorCode, ExpressionError, InvalidRequest, PantheonError
from protocol.messages import DEFAULT_TENANT, ErrorInfo, TaskRequest, json_bytes
from protocol.names import EXECUTE_DAG, MESH_PREFIX

# W3C Trace Context: version, trace, parent span, flags; later versions may say more behind them.
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-[!-~]{0,200})?\Z")

REPLAY = "mesh.replay"
RETRY = "mesh.retry"
# A task run again from the database is a workflow; the others are done by orchestrator_agent.operations.operations.
AGAIN = (REPLAY, RETRY)
OPERATIONS = (
    *AGAIN,
    "mesh.cancel",
    "mesh.pause",
    "mesh.resume",
    "mesh.signal",
    "mesh.approve",
    "mesh.redrive",
    "mesh.put_workflow",
)


@dataclass(frozen=True)
class Replayed:
    """What a `mesh.replay` or `mesh.retry` goes by: the old root's row, all rows of its tree, the plan that it ran on.

    `payload` is what the new task has, `given` the input that the old one had: a fork's differ. `keep_completed` (a
    retry): everything that completed is reused; `from_step`: what does not depend on that step.
    """

    task_id: UUID
    task_type: str
    payload: dict[str, Any]
    plan: Plan
    workflow_version: str | None
    rows: Sequence[Row]
    given: Mapping[str, Any]
    from_step: str | None
    timeout_seconds: float
    keep_completed: bool = False


@dataclass(frozen=True)
class Planner:
    """Makes runs of requests. `default_timeout_seconds` is of an attempt whose request names none."""

    library: Library
    directory: Directory
    rules: Rules
    default_timeout_seconds: float

    def plan(
        self,
        request: TaskRequest,
        *,
        headers: Mapping[str, str] | None,
        now: datetime,
        replayed: Replayed | None = None,
    ) -> tuple[Run, Decisions]:
        """A new run with its first decisions; one that cannot start has ended already, with the reason."""
        run = self._run(request, headers, now)
        if replayed is not None:
            run.root.task_type = replayed.task_type
            run.root.timeout_seconds = replayed.timeout_seconds
            run.facts.replay_of = replayed.task_id
        if run.facts.deadline_at is not None and run.facts.deadline_at <= now:
            message = f"the deadline {run.facts.deadline_at.isoformat()} had passed when the task arrived"
            return self.refuse(run, ErrorInfo(code=ErrorCode.DEADLINE_EXCEEDED, message=message), now)
        if replayed is None and request.task_type in OPERATIONS:
            run.root.payload = json_bytes(request.payload)
            return run, Decisions()
        try:
            plan, given = self._choose(request) if replayed is None else (replayed.plan, replayed.payload)
            given = plan.read_input(given)
            reused = [] if replayed is None else _reused(replayed)
        except PantheonError as error:
            return self.refuse(run, ErrorInfo.of(error), now)
        variables: dict[str, Any] = {"input": given}
        if run.root.task_type == EXECUTE_DAG:
            payload = request.payload if replayed is None else replayed.payload
            # Absent and null mean the same, also to whoever reads the row.
            variables = {"input": payload.get("input") or {}}
            run.root.payload = json_bytes({**payload, **variables})
        else:
            run.root.payload = json_bytes(given)
        run.root.workflow_version = plan.version if replayed is None else replayed.workflow_version
        scope = Scope(row=run.root, plan=plan, variables=variables)
        run.scopes[run.root_task_id] = scope
        if plan.timeout_seconds is not None:
            end = now + timedelta(seconds=plan.timeout_seconds)
            run.facts.deadline_at = end if run.facts.deadline_at is None else min(end, run.facts.deadline_at)
        if plan.priority is not None and "priority" not in request.model_fields_set:
            run.facts.priority = plan.priority
        for row in reused:
            scope.variables[row.step or ""] = _value(row)
        if plan.concurrency is not None:
            try:
                run.facts.concurrency_key = concurrency_key(plan, given, run.facts.tenant)
            except ExpressionError as error:
                return self.refuse(run, ErrorInfo.of(error), now)
            # It waits for its turn; who is next is decided by the database, for all orchestrators at once.
            run.root.status = Status.WAITING
        return run, start(run, directory=self.directory, rules=self.rules, now=now, reused=reused)

    def refused(
        self, request: TaskRequest, error: ErrorInfo, *, headers: Mapping[str, str] | None, now: datetime
    ) -> tuple[Run, Decisions]:
        """A request that cannot be planned at all."""
        return self.refuse(self._run(request, headers, now), error, now)

    def refuse(self, run: Run, error: ErrorInfo, now: datetime) -> tuple[Run, Decisions]:
        """The run has ended `failed` before it began."""
        run.root.status = Status.FAILED
        run.root.error = error
        run.root.completed_at = now
        data = {
            "task_id": str(run.root_task_id),
            "task_type": run.root.task_type,
            "error": error.model_dump(mode="json", exclude_defaults=True),
        }
        return run, Decisions(root_ended=True, events=[("task", "failed", data)])

    def unreadable(self, known: Mapping[str, Any], error: PantheonError, now: datetime) -> tuple[Run, Decisions]:
        """A message that is no TaskRequest, but has an id (PROTOCOL.md: answered `failed`, `invalid_request`), or whose
        payload is not where it says."""
        root = _root(known["task_id"], known.get("task_type", ""), known.get("attempt", 1), now)
        facts = RootFacts(
            tenant=DEFAULT_TENANT,
            requester=None,
            reply_to=known.get("reply_to"),
            session_id=None,
            priority=5,
            deadline_at=None,
            metadata={},
        )
        run = Run(root=root, facts=facts, rows={root.task_id: root})
        return self.refuse(run, ErrorInfo.of(error), now)

    def duplicate(
        self, request: TaskRequest, original: UUID, *, headers: Mapping[str, str] | None, now: datetime
    ) -> tuple[Run, Decisions]:
        """A task whose idempotency key another has: it waits for that one's outcome."""
        run = self._run(request, headers, now)
        run.root.status = Status.WAITING
        run.facts.duplicate_of = original
        return run, Decisions()

    def _run(self, request: TaskRequest, headers: Mapping[str, str] | None, now: datetime) -> Run:
        root = _root(request.task_id, request.task_type, request.attempt, now)
        named = "timeout_seconds" in request.model_fields_set
        root.timeout_seconds = request.timeout_seconds if named else self.default_timeout_seconds
        root.parent_task_id = request.parent_task_id
        trace = _trace(headers or {})
        facts = RootFacts(
            tenant=request.tenant,
            requester=request.requester,
            reply_to=request.reply_to,
            session_id=request.session_id,
            priority=request.priority,
            deadline_at=request.deadline,
            metadata=request.metadata,
            traceparent=trace[0],
            tracestate=trace[1],
            idempotency_key=request.idempotency_key,
        )
        return Run(root=root, facts=facts, rows={root.task_id: root})

    def _choose(self, request: TaskRequest) -> tuple[Plan, dict[str, Any]]:
        if request.task_type == EXECUTE_DAG:
            plan, given = self.library.inline(request.payload)
            self.library.refuse_agent_keys(plan)
            return plan, given
        if request.task_type.startswith(MESH_PREFIX):
            known = ", ".join(OPERATIONS)
            error = InvalidRequest(
                f"the mesh has no operation '{request.task_type}'; it has {known}", field="task_type"
            )
            error.code = ErrorCode.UNKNOWN_TASK_TYPE
            raise error
        plan = self.library.newest(request.task_type) or self.library.single(request.task_type)
        self.library.refuse_agent_keys(plan)
        return plan, request.payload


def refuse_to_run_again(root: Mapping[str, Any]) -> None:
    """Raises InvalidRequest for the row of a root that never began: there is nothing to go by."""
    if root["payload"] is not None:
        return
    if root["duplicate_of"] is not None:
        reason = f"ends as {root['duplicate_of']} does, whose idempotency key it came with: name that one"
    else:
        reason = "was refused before it began: send it again as a new task"
    raise InvalidRequest(f"payload.task_id: task {root['task_id']} {reason}", field="payload.task_id")


def input_of(payload: Mapping[str, Any], task_type: str) -> dict[str, Any]:
    """What a root's payload gives to its workflow: of an inline graph, what stands beside it."""
    return dict((payload.get("input") or {}) if task_type == EXECUTE_DAG else payload)


def lay_over(payload: dict[str, Any], given: Any, task_type: str) -> None:
    """Lay a fork's input over that of the task it is of, top-level key by key. Raises InvalidRequest."""
    if given is None:
        return
    if not isinstance(given, dict):
        raise InvalidRequest("payload.input: must be an object", field="payload.input")
    if task_type == EXECUTE_DAG:
        payload["input"] = {**(payload.get("input") or {}), **given}
    else:
        payload.update(given)


def concurrency_key(plan: Plan, given: dict[str, Any], tenant: str) -> str:
    """What tasks of a workflow share when they count against one another: within a tenant, never across.

    Raises ExpressionError.
    """
    assert plan.concurrency is not None
    group: Any = None
    if plan.concurrency.group_by is not None:
        group = plan.concurrency.group_by.evaluate({"input": given})
    whose = "" if tenant == DEFAULT_TENANT else f":{json_bytes(tenant).decode()}"
    return f"{plan.name}:{json_bytes(group).decode()}{whose}"


def _root(task_id: UUID, task_type: str, attempt: int, now: datetime) -> Row:
    return Row(
        root_task_id=task_id,
        task_id=task_id,
        parent_task_id=None,
        step=None,
        task_type=task_type,
        status=Status.RUNNING,
        attempt=attempt,
        created_at=now,
    )


def _trace(headers: Mapping[str, str]) -> tuple[str | None, str | None]:
    """W3C trace context, where it has its shape; anything else is nobody's trace."""
    parent = headers.get("traceparent")
    if parent is None or _TRACEPARENT.match(parent) is None:
        return None, None
    state = headers.get("tracestate")
    return parent, state if state is not None and len(state) <= 512 and state.isprintable() else None


def _reused(replayed: Replayed) -> list[Row]:
    """Completed steps that depend neither on the step to begin from, nor on one that is not kept itself."""
    plan, begin = replayed.plan, replayed.from_step
    if begin is None and not replayed.keep_completed:
        return []
    if begin is not None and begin not in plan.steps:
        known = ", ".join(plan.steps)
        raise InvalidRequest(f"payload.from: there is no step '{begin}'; there is {known}", field="payload.from")
    newest = _newest(replayed)
    undone = _undone(replayed)
    again = {begin} if begin is not None else set(plan.steps.keys() - newest.keys())
    again |= {
        name
        for name, row in newest.items()
        if name in undone or row.status not in _REUSABLE or _goes_on(replayed, row, newest)
    }
    queue = list(again)
    while queue:
        for dependant in plan.dependants.get(queue.pop(), ()):
            if dependant not in again:
                again.add(dependant)
                queue.append(dependant)
    kept = [row for name, row in newest.items() if name not in again and name in plan.steps]
    if begin is None:
        return kept
    reusable = {name for name, row in newest.items() if row.status in _REUSABLE}
    # What failed, and was borne, runs again.
    reusable |= {name for name in newest if name in plan.steps and plan.steps[name].on_error == "continue"}
    if missing := plan.steps[begin].needs - reusable:
        raise InvalidRequest(
            f"payload.from: step '{begin}' needs {', '.join(sorted(missing))}, which did not complete in that task",
            field="payload.from",
        )
    return kept


_REUSABLE = (Status.COMPLETED, Status.SKIPPED)


def _undone(replayed: Replayed) -> set[str]:
    """The top-level steps whose work, or part of it, was undone when the old task ended, however deep it was done.

    What a sub-workflow undid when it failed by itself is part of how its step ended. What the old task had taken over
    from a still older one stands: it did not undo it.
    """
    rows = {row.task_id: row for row in replayed.rows}
    by_compensation = {compensation_id(row): row for row in replayed.rows}
    found: set[str] = set()
    for made in replayed.rows:
        here = by_compensation.get(made.task_id)
        if made.role is not Role.COMPENSATION or made.parent_task_id != replayed.task_id:
            continue
        while here is not None and here.parent_task_id not in (None, replayed.task_id):
            here = rows.get(here.parent_task_id)
        if here is not None and here.step is not None:
            found.add(here.step)
    return found


def _goes_on(replayed: Replayed, row: Row, newest: Mapping[str, Row]) -> bool:
    """Whether a repeated step would have run once more, had its workflow not ended: between two iterations, or because
    `until` or what the next one was given could not be evaluated."""
    plan = replayed.plan.steps.get(row.step or "")
    if (
        plan is None
        or plan.repeat is None
        or row.status is not Status.COMPLETED
        or row.iteration + 1 >= plan.repeat.max
    ):
        return False
    variables = {name: _value(one) for name, one in newest.items() if one.status in ENDED}
    try:
        return not plan.repeat.until.condition({"input": replayed.given, **variables})
    except ExpressionError:
        return True


def _newest(replayed: Replayed) -> dict[str, Row]:
    newest: dict[str, Row] = {}
    for row in replayed.rows:
        name = row.step or ""
        if row.parent_task_id != replayed.task_id or row.role not in (Role.STEP, Role.FALLBACK):
            continue
        if name not in newest or newest[name].iteration <= row.iteration:
            if name in newest and newest[name].iteration == row.iteration and row.role is Role.STEP:
                # The fallback of the same iteration is what the step came to.
                continue
            # Which process worked on it, and what it consumed, is the old task's.
            newest[name] = replace(row, instance_id=None, usage=None)
    return newest


def _value(row: Row) -> Any:
    return json.loads(row.result) if row.result is not None else None
