"""Run builder: a run of the engine, rebuilt from the rows of its tree.

It can be built whatever state the tree is in, so that every process can go on with every task.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol
from uuid import UUID

from orchestrator_agent.engine.compensation import compensation_id, pending_compensations
from orchestrator_agent.engine.state import FanOut, Role, Row, Run, Scope, Status, in_order
from orchestrator_agent.store.records import Record, facts_of, row_of
from orchestrator_agent.workflows.plan import Plan, StepPlan
from protocol.errors import InvalidWorkflow
from protocol.names import EXECUTE_DAG

# What a root does in any other status, it does without its workflow.
_WITH_WORKFLOW = frozenset({Status.RUNNING, Status.PAUSED, Status.COMPENSATING})


class Plans(Protocol):
    """Where a row's workflow is found."""

    def version(self, version: str) -> Plan:
        """Raises InvalidWorkflow where that version is not known."""

    def single(self, task_type: str) -> Plan: ...

    def inline(self, payload: Mapping[str, Any]) -> tuple[Plan, dict[str, Any]]: ...


def root_of(records: Sequence[Record]) -> Record:
    """The root's among all rows of a tree."""
    return next(record for record in records if record["task_id"] == record["root_task_id"])


def needs_workflow(root: Record) -> bool:
    """Whether a tree's run cannot be built without the workflows of its rows."""
    return root["duplicate_of"] is None and Status(root["status"]) in _WITH_WORKFLOW


def plan_of(root: Record, plans: Plans) -> Plan:
    """The plan that a root was started on. Raises InvalidWorkflow."""
    if root["workflow_version"] is not None:
        return plans.version(root["workflow_version"])
    if root["task_type"] == EXECUTE_DAG:
        return plans.inline(json.loads(root["payload"] or "{}"))[0]
    return plans.single(root["task_type"])


def bare_run(records: Sequence[Record]) -> Run:
    """A run without its workflow: enough to respond, to end, to be a duplicate."""
    root = root_of(records)
    rows = {record["task_id"]: row_of(record) for record in records}
    return Run(root=rows[root["task_id"]], facts=facts_of(root), version=root["version"], rows=rows)


def run_of(records: Sequence[Record], plans: Plans) -> Run:
    """A run from all rows of its tree. Raises InvalidWorkflow when the rows and the plans do not fit."""
    root_record = root_of(records)
    run = bare_run(records)
    if not needs_workflow(root_record):
        return run
    _Builder(run, plans).build(plan_of(root_record, plans))
    for row in run.rows.values():
        # What has ended is only its result any more.
        if row.ended and row is not run.root:
            row.payload = None
    return run


class _Builder:
    """Puts the rows of a tree back into the scopes and fan-outs that they came from."""

    def __init__(self, run: Run, plans: Plans) -> None:
        self.run = run
        self.plans = plans
        self.compensates = False
        self.children: dict[UUID, list[Row]] = {}
        for row in run.rows.values():
            if row.parent_task_id is not None and row is not run.root:
                self.children.setdefault(row.parent_task_id, []).append(row)
        for below in self.children.values():
            # The newest row of a step last: later iterations, and a fallback after what it replaces.
            below.sort(key=lambda row: (row.step or "", row.item, row.iteration, row.role is Role.FALLBACK))

    def build(self, root_plan: Plan) -> None:
        root = self.run.root
        versions = {row.workflow_version for row in self.run.rows.values() if row.workflow_version is not None}
        # What has ended can still matter where anything in the tree, however deep, may have to be compensated.
        self.compensates = root_plan.compensates or any(self.plans.version(version).compensates for version in versions)
        payload = json.loads(root.payload) if root.payload is not None else {}
        scope_input = (payload.get("input") or {}) if root.task_type == EXECUTE_DAG else payload
        self._build_scope(root, root_plan, scope_input, depth=0)
        for scope in self.run.scopes.values():
            if scope.row.status is Status.COMPENSATING:
                self._resume_compensation(scope)

    def _build_scope(self, row: Row, plan: Plan, scope_input: dict[str, Any], *, depth: int) -> None:
        scope = Scope(row=row, plan=plan, variables={"input": scope_input}, depth=depth)
        self.run.scopes[row.task_id] = scope
        below = self.children.get(row.task_id, ())
        if row is self.run.root:
            kept = (child for child in below if child.role is Role.SIGNAL and child.status is Status.WAITING)
            self.run.signals = in_order(kept)
        before: dict[str, Row] = {}
        for child in below:
            if child.role is Role.SIGNAL:
                continue
            if child.role is Role.COMPENSATION:
                self._below_compensation(child, scope)
                continue
            name = child.step or ""
            if name not in plan.steps:
                raise InvalidWorkflow(f"task {row.task_id}: its workflow has no step '{name}'")
            if name in scope.rows and scope.rows[name].iteration < child.iteration:
                before[name] = scope.rows[name]
            scope.rows[name] = child
            self._below_step(child, plan.steps[name], scope)
        for name, latest in scope.rows.items():
            self._set_result(scope, name, latest, before.get(name))

    def _below_compensation(self, row: Row, scope: Scope) -> None:
        """What a compensation has below it, which is a task of an agent, or a workflow by its name."""
        if row.workflow_version is None:
            self._below_attempt(row, scope.depth)
        elif self._matters(row):
            plan = self.plans.version(row.workflow_version)
            self._build_scope(row, plan, json.loads(row.payload or b"{}"), depth=scope.depth + 1)

    def _below_step(self, row: Row, plan: StepPlan, scope: Scope) -> None:
        """What a step's row has below it, as far as it can still matter: at work, or to be compensated."""
        if plan.for_each is not None and row.role is Role.STEP:
            if not row.ended or self.compensates:
                self._build_fan_out(row, plan, scope)
            return
        self._below_item(row, plan, scope)

    def _matters(self, row: Row) -> bool:
        """Whether anything can still come of a workflow's row; one that was refused before it began has no payload."""
        return not row.ended or (self.compensates and row.payload is not None)

    def _below_attempt(self, row: Row, depth: int) -> None:
        """The tasks that an agent delegated while it worked on this one."""
        for child in self.children.get(row.task_id, ()):
            if child.role is not Role.DELEGATED:
                continue
            self.run.delegated.setdefault(row.task_id, []).append(child)
            if not self._matters(child):
                continue
            scope_input = json.loads(child.payload or b"{}")
            if child.workflow_version is not None:
                plan = self.plans.version(child.workflow_version)
            elif child.task_type == EXECUTE_DAG:
                plan, scope_input = self.plans.inline(scope_input)
            else:
                plan = self.plans.single(child.task_type)
            self._build_scope(child, plan, scope_input, depth=depth + 1)

    def _build_fan_out(self, row: Row, plan: StepPlan, scope: Scope) -> None:
        items = json.loads(row.payload or b"{}").get("items", [])
        fan_out = FanOut(row=row, scope=scope, plan=plan, items=items, results=[None] * len(items))
        self.run.fan_outs[row.task_id] = fan_out
        for child in self.children.get(row.task_id, ()):
            # Items begin in order, so those that have rows are the first; a fallback comes after what failed.
            fan_out.rows[child.item] = child
            fan_out.next = max(fan_out.next, child.item + 1)
        for item, child in fan_out.rows.items():
            if child.ended:
                fan_out.ended += 1
                fan_out.results[item] = json.loads(child.result) if child.result is not None else None
            else:
                fan_out.active.add(item)
        for child in self.children.get(row.task_id, ()):
            self._below_item(child, plan, scope)

    def _below_item(self, row: Row, plan: StepPlan, scope: Scope) -> None:
        # The fallback of a sub-workflow is a task, or a workflow by its name.
        inner = plan.sub if row.role is Role.STEP else None
        if row.workflow_version is not None:
            inner = self.plans.version(row.workflow_version)
        if inner is None:
            self._below_attempt(row, scope.depth)
        elif self._matters(row):
            self._build_scope(row, inner, json.loads(row.payload or b"{}"), depth=scope.depth + 1)

    @staticmethod
    def _set_result(scope: Scope, name: str, latest: Row, before: Row | None) -> None:
        plan = scope.plan.steps[name]
        if latest.status is Status.COMPLETED:
            scope.variables[name] = json.loads(latest.result) if latest.result is not None else None
            scope.ended.add(name)
        elif latest.status is Status.SKIPPED or (latest.status is Status.FAILED and plan.on_error == "continue"):
            scope.variables[name] = None
            scope.ended.add(name)
        elif plan.repeat is not None:
            # Until it ends, its name stands for the result of the iteration before.
            kept = before.result if before is not None else None
            scope.variables[name] = json.loads(kept) if kept is not None else None

    def _resume_compensation(self, scope: Scope) -> None:
        for pending in pending_compensations(self.run, scope, include_made=True):
            made = self.run.rows.get(compensation_id(pending.row))
            if made is not None:
                self.run.compensations[made.task_id] = pending
                if not made.ended and made.parent_task_id == scope.row.task_id:
                    scope.compensation = made
        scope.pending = pending_compensations(self.run, scope)
