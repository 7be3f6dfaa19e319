"""Rows of `tasks` to and from the engine's Run."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import UUID

from orchestrator_agent.engine.state import ENDED, FanOut, RootFacts, Row, Run, Scope, Status
from orchestrator_agent.workflows.plan import Plan, StepPlan
from protocol.errors import InvalidWorkflow
from protocol.messages import ErrorInfo, Usage

COLUMNS = (
    "root_task_id, task_id, parent_task_id, tenant, requester, step, iteration, item, task_type, workflow_version, "
    "pinned_agent, agent, instance_id, status, attempt, failures, priority, session_id, idempotency_key, reply_to, "
    "payload, result, error, usage, metadata, traceparent, tracestate, timeout_seconds, created_at, dispatched_at, "
    "dispatched_by, deadline_at, expires_at, run_after, completed_at, answered_at, duplicate_of, replay_of, version"
)

# asyncpg.Record, which has a mapping's look-ups without being one.
Record = Any


def row_of(record: Record) -> Row:
    def text(name: str) -> bytes | None:
        value = record[name]
        return None if value is None else value.encode()

    error, usage = record["error"], record["usage"]
    return Row(
        root_task_id=record["root_task_id"],
        task_id=record["task_id"],
        parent_task_id=record["parent_task_id"],
        step=record["step"],
        task_type=record["task_type"],
        status=Status(record["status"]),
        iteration=record["iteration"],
        item=record["item"],
        workflow_version=record["workflow_version"],
        pinned_agent=record["pinned_agent"],
        agent=record["agent"],
        instance_id=record["instance_id"],
        attempt=record["attempt"],
        failures=record["failures"],
        payload=text("payload"),
        result=text("result"),
        error=None if error is None else ErrorInfo.model_validate_json(error),
        usage=None if usage is None else Usage.model_validate_json(usage),
        timeout_seconds=record["timeout_seconds"],
        created_at=record["created_at"],
        dispatched_at=record["dispatched_at"],
        expires_at=record["expires_at"],
        run_after=record["run_after"],
        completed_at=record["completed_at"],
    )


def facts_of(record: Record) -> RootFacts:
    return RootFacts(
        tenant=record["tenant"],
        requester=record["requester"],
        reply_to=record["reply_to"],
        session_id=record["session_id"],
        priority=record["priority"],
        deadline_at=record["deadline_at"],
        metadata=json.loads(record["metadata"]) if record["metadata"] else {},
        traceparent=record["traceparent"],
        tracestate=record["tracestate"],
        idempotency_key=record["idempotency_key"],
        replay_of=record["replay_of"],
        duplicate_of=record["duplicate_of"],
        requested_by=record["parent_task_id"],
    )


def run_of(records: Sequence[Record], root_plan: Plan, plan_of_version: Callable[[str], Plan]) -> Run:
    """Rebuild a run from all rows of one root. Raises InvalidWorkflow when the rows and the plans do not fit."""
    rows = {record["task_id"]: row_of(record) for record in records}
    root_record = next(record for record in records if record["task_id"] == record["root_task_id"])
    root = rows[root_record["task_id"]]
    run = Run(root=root, facts=facts_of(root_record), version=root_record["version"], rows=rows)
    children: dict[UUID, list[Row]] = {}
    for row in rows.values():
        if row.parent_task_id is not None and row is not root:
            children.setdefault(row.parent_task_id, []).append(row)
    _build_scope(run, root, root_plan, plan_of_version, children, depth=0)
    for row in rows.values():
        if row.status is not Status.READY and row.status is not Status.WAITING and row.status is not Status.DISPATCHED:
            row.payload = None
    return run


def _build_scope(
    run: Run,
    row: Row,
    plan: Plan,
    plan_of_version: Callable[[str], Plan],
    children: Mapping[UUID, Sequence[Row]],
    *,
    depth: int,
) -> None:
    payload = json.loads(row.payload) if row.payload is not None else {}
    given = payload.get("input", {}) if depth == 0 and row.task_type == "execute_dag" else payload
    scope = Scope(row=row, plan=plan, variables={"input": given}, depth=depth)
    run.scopes[row.task_id] = scope
    for child in sorted(children.get(row.task_id, ()), key=lambda one: (one.step or "", one.iteration)):
        name = child.step or ""
        if name not in plan.steps:
            raise InvalidWorkflow(f"task {row.task_id}: its workflow has no step '{name}'")
        scope.rows[name] = child
        if child.status is not Status.RUNNING:
            # What has ended is only its result any more.
            continue
        if plan.steps[name].for_each is not None:
            _build_fan_out(run, child, scope, plan_of_version, children)
        else:
            inner = _inner_plan(child, plan.steps[name], plan_of_version)
            _build_scope(run, child, inner, plan_of_version, children, depth=depth + 1)
    for name, latest in scope.rows.items():
        if latest.status is Status.COMPLETED:
            scope.variables[name] = json.loads(latest.result) if latest.result is not None else None
            scope.ended.add(name)
        elif latest.status is Status.SKIPPED:
            scope.variables[name] = None
            scope.ended.add(name)
        elif plan.steps[name].repeat is not None:
            scope.variables[name] = None


def _inner_plan(row: Row, step: StepPlan, plan_of_version: Callable[[str], Plan]) -> Plan:
    inner = plan_of_version(row.workflow_version) if row.workflow_version is not None else step.sub
    if inner is None:
        raise InvalidWorkflow(f"task {row.task_id}: step '{step.name}' is no workflow")
    return inner


def _build_fan_out(
    run: Run,
    row: Row,
    scope: Scope,
    plan_of_version: Callable[[str], Plan],
    children: Mapping[UUID, Sequence[Row]],
) -> None:
    plan = scope.plan.steps[row.step or ""]
    items = json.loads(row.payload or b"{}").get("items", [])
    fan_out = FanOut(row=row, scope=scope, plan=plan, items=items, results=[None] * len(items))
    run.fan_outs[row.task_id] = fan_out
    for child in children.get(row.task_id, ()):
        fan_out.rows[child.item] = child
        # Items begin in order, so those that have rows are the first.
        fan_out.next = max(fan_out.next, child.item + 1)
        if child.status in ENDED:
            fan_out.ended += 1
            fan_out.results[child.item] = json.loads(child.result) if child.result is not None else None
            continue
        fan_out.active.add(child.item)
        if child.status is Status.RUNNING:
            inner = _inner_plan(child, plan, plan_of_version)
            _build_scope(run, child, inner, plan_of_version, children, depth=scope.depth + 1)
