"""Planner: requests on `agent.orchestrator_agent.task` become new runs. Pure but for the parts that it is passed.

Everything with a readable id becomes a row, refused requests included: a task has one outcome, whatever is sent again.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from random import Random
from typing import Any
from uuid import UUID

from orchestrator_agent.engine.advance import start
from orchestrator_agent.engine.decisions import Decisions, Directory, Rules
from orchestrator_agent.engine.state import RootFacts, Row, Run, Scope, Status
from orchestrator_agent.intake.replay import RUN_AGAIN, Replayed, result_of, reused_rows
from orchestrator_agent.workflows.library import Library
from orchestrator_agent.workflows.plan import Plan
from protocol.errors import ErrorCode, ExpressionError, InvalidRequest, PantheonError
from protocol.messages import DEFAULT_TENANT, ErrorInfo, TaskRequest, json_bytes
from protocol.names import EXECUTE_DAG, MESH_PREFIX

# W3C Trace Context: version, trace, parent span, flags; later versions may have more after them.
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-[!-~]{0,200})?\Z")

# A task that runs again is planned like a workflow; orchestrator_agent.operations does the others.
OPERATIONS = (
    *RUN_AGAIN,
    "mesh.cancel",
    "mesh.pause",
    "mesh.resume",
    "mesh.signal",
    "mesh.approve",
    "mesh.redrive",
    "mesh.put_workflow",
)


@dataclass(frozen=True)
class Planner:
    """Makes runs of requests. `default_timeout_seconds` is of an attempt whose request names none; transitions draw
    from `random`."""

    library: Library
    directory: Directory
    rules: Rules
    default_timeout_seconds: float
    random: Random = field(default_factory=Random)

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
            run.root.task_type = replayed.root.task_type
            run.root.timeout_seconds = replayed.root.timeout_seconds
            run.facts.replay_of = replayed.task_id
        if run.facts.deadline_at is not None and run.facts.deadline_at <= now:
            message = f"the deadline {run.facts.deadline_at.isoformat()} had passed when the task arrived"
            return self.refuse(run, ErrorInfo(code=ErrorCode.DEADLINE_EXCEEDED, message=message), now)
        if replayed is None and request.task_type in OPERATIONS:
            run.root.payload = json_bytes(request.payload)
            return run, Decisions()
        try:
            plan, payload = self._choose(request) if replayed is None else (replayed.plan, replayed.payload)
            workflow_input = plan.read_input(payload)
            reused = [] if replayed is None else reused_rows(replayed)
        except PantheonError as error:
            return self.refuse(run, ErrorInfo.of(error), now)
        variables: dict[str, Any] = {"input": workflow_input}
        if run.root.task_type == EXECUTE_DAG:
            payload = request.payload if replayed is None else replayed.payload
            # Absent and null mean the same, also where the row is read.
            variables = {"input": payload.get("input") or {}}
            run.root.payload = json_bytes({**payload, **variables})
        else:
            run.root.payload = json_bytes(workflow_input)
        run.root.workflow_version = plan.version if replayed is None else replayed.root.workflow_version
        scope = Scope(row=run.root, plan=plan, variables=variables)
        run.scopes[run.root_task_id] = scope
        if plan.timeout_seconds is not None:
            end = now + timedelta(seconds=plan.timeout_seconds)
            run.facts.deadline_at = end if run.facts.deadline_at is None else min(end, run.facts.deadline_at)
        if plan.priority is not None and "priority" not in request.model_fields_set:
            run.facts.priority = plan.priority
        for row in reused:
            scope.variables[row.step or ""] = result_of(row)
        if plan.concurrency is not None:
            try:
                run.facts.concurrency_key = concurrency_key(plan, workflow_input, run.facts.tenant)
            except ExpressionError as error:
                return self.refuse(run, ErrorInfo.of(error), now)
            # It waits until its key admits it, which the database decides for all orchestrators at once.
            run.root.status = Status.WAITING
        decisions = start(run, directory=self.directory, rules=self.rules, now=now, random=self.random, reused=reused)
        return run, decisions

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
        """A message that is no TaskRequest, but has an id, or whose payload is not where its reference says: it has
        failed (docs/protocol.md, TaskRequest)."""
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
            plan, payload = self.library.inline(request.payload)
            self.library.refuse_agent_keys(plan)
            return plan, payload
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


def concurrency_key(plan: Plan, workflow_input: dict[str, Any], tenant: str) -> str:
    """What tasks of a workflow share when they count against one another: within a tenant, never across.

    Raises ExpressionError.
    """
    assert plan.concurrency is not None
    group: Any = None
    if plan.concurrency.group_by is not None:
        group = plan.concurrency.group_by.evaluate({"input": workflow_input})
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
    """W3C trace context, where it has its shape; anything else is ignored."""
    parent = headers.get("traceparent")
    if parent is None or _TRACEPARENT.match(parent) is None:
        return None, None
    state = headers.get("tracestate")
    return parent, state if state is not None and len(state) <= 512 and state.isprintable() else None
