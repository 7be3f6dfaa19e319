"""Replay: what a `mesh.retry` or a `mesh.replay` (with `input`, a fork) makes of the task that it names.

Functions of values: their caller has read the rows of that task, from Postgres or from a test's memory.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from orchestrator_agent.engine.compensation import compensation_id
from orchestrator_agent.engine.state import ENDED, Role, Row, Status
from orchestrator_agent.store.records import row_of
from orchestrator_agent.store.run_builder import plan_of
from orchestrator_agent.workflows.library import Library
from orchestrator_agent.workflows.plan import Plan
from protocol.errors import ExpressionError, InvalidRequest
from protocol.messages import TaskRequest
from protocol.names import EXECUTE_DAG, MESH_PREFIX

REPLAY = "mesh.replay"
RETRY = "mesh.retry"
# A task run again from its rows is planned as a workflow is.
RUN_AGAIN = (REPLAY, RETRY)

_REUSABLE = (Status.COMPLETED, Status.SKIPPED)


@dataclass(frozen=True)
class ReplayRequest:
    """What is asked for: the task to run again; `retry`: everything that completed is reused; `from_step`: what does
    not depend on that step; `input`: what a fork changes of the old input, any JSON until `make_replay` has checked it.
    """

    task_id: UUID
    retry: bool
    from_step: str | None = None
    input: object = None


@dataclass(frozen=True)
class Replayed:
    """What a new run is planned from: the old root's row, all rows of its tree, the plan that it ran on.

    `payload` is what the new task has, `old_input` the input that the old one had: a fork's differ. `keep_completed` (a
    retry): everything that completed is reused; `from_step`: what does not depend on that step.
    """

    root: Row
    rows: Sequence[Row]
    plan: Plan
    payload: dict[str, Any]
    old_input: Mapping[str, Any]
    from_step: str | None
    keep_completed: bool = False

    @property
    def task_id(self) -> UUID:
        return self.root.task_id


def read_replay_request(request: TaskRequest) -> ReplayRequest:
    """The payload of a `mesh.replay` or `mesh.retry`: `{"task_id": id, "from": step, "input": {…}}`.

    Raises InvalidRequest.
    """
    from_step = request.payload.get("from")
    try:
        task_id = UUID(str(request.payload.get("task_id")))
    except ValueError:
        raise InvalidRequest("payload.task_id: must be the id of a task", field="payload.task_id") from None
    if not isinstance(from_step, str | None):
        raise InvalidRequest("payload.from: must be a step's name", field="payload.from")
    return ReplayRequest(task_id, request.task_type == RETRY, from_step, request.payload.get("input"))


def root_to_replay(task_id: UUID, records: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The root's row among all rows of a tree (none: there is no such task). Raises InvalidRequest for a task that
    cannot run again."""
    if not records:
        raise InvalidRequest(f"payload.task_id: there is no task {task_id}", field="payload.task_id")
    root = next(record for record in records if record["task_id"] == task_id)
    if root["task_type"].startswith(MESH_PREFIX):
        raise InvalidRequest(
            f"payload.task_id: {task_id} is a {root['task_type']}, which is not run again: send it as a new task",
            field="payload.task_id",
        )
    if root["payload"] is not None:
        return root
    # It never began, so there is nothing to run again.
    if root["duplicate_of"] is not None:
        reason = f"ends as {root['duplicate_of']} does, whose idempotency key it came with: name that one"
    else:
        reason = "was refused before it began: send it again as a new task"
    raise InvalidRequest(f"payload.task_id: task {task_id} {reason}", field="payload.task_id")


def make_replay(replay_request: ReplayRequest, records: Sequence[Mapping[str, Any]], library: Library) -> Replayed:
    """What the new run is planned from. `records` are all rows of the old tree; the library has the version that it ran
    on.

    Raises InvalidRequest, InvalidWorkflow.
    """
    task_id = replay_request.task_id
    root = root_to_replay(task_id, records)
    plan = plan_of(root, library)
    if replay_request.retry and root["status"] not in (Status.FAILED, Status.CANCELLED):
        raise InvalidRequest(
            f"payload.task_id: task {task_id} is {root['status']}: only a failed or cancelled one can be retried",
            field="payload.task_id",
        )
    payload: dict[str, Any] = json.loads(root["payload"])
    old_input = dict((payload.get("input") or {}) if root["task_type"] == EXECUTE_DAG else payload)
    return Replayed(
        root=row_of(root),
        rows=[row_of(record) for record in records],
        plan=plan,
        payload=_forked(payload, replay_request.input, root["task_type"]),
        old_input=old_input,
        from_step=replay_request.from_step,
        keep_completed=replay_request.retry,
    )


def _forked(payload: dict[str, Any], changes: object, task_type: str) -> dict[str, Any]:
    """The old payload with a fork's input laid over its own, top-level key by key. Raises InvalidRequest."""
    if changes is None:
        return payload
    if not isinstance(changes, dict):
        raise InvalidRequest("payload.input: must be an object", field="payload.input")
    if task_type == EXECUTE_DAG:
        return {**payload, "input": {**(payload.get("input") or {}), **changes}}
    return {**payload, **changes}


def reused_rows(replayed: Replayed) -> list[Row]:
    """Completed steps that depend neither on the step to begin from, nor on one that is not kept itself.

    Raises InvalidRequest.
    """
    plan, begin = replayed.plan, replayed.from_step
    if begin is None and not replayed.keep_completed:
        return []
    if begin is not None and begin not in plan.steps:
        known = ", ".join(plan.steps)
        raise InvalidRequest(f"payload.from: there is no step '{begin}'; there is {known}", field="payload.from")
    newest = _newest(replayed)
    compensated = _compensated(replayed)
    again = {begin} if begin is not None else set(plan.steps.keys() - newest.keys())
    again |= {
        name
        for name, row in newest.items()
        if name in compensated or row.status not in _REUSABLE or _would_repeat(replayed, row, newest)
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


def _compensated(replayed: Replayed) -> set[str]:
    """The top-level steps whose work, or part of it, was compensated when the old task ended, however deep it was done.

    What a sub-workflow compensated when it failed by itself is part of how its step ended. What the old task had taken
    over from a still older one stands: the old task did not compensate it.
    """
    rows = {row.task_id: row for row in replayed.rows}
    by_compensation = {compensation_id(row): row for row in replayed.rows}
    found: set[str] = set()
    for row in replayed.rows:
        if row.role is not Role.COMPENSATION or row.parent_task_id != replayed.task_id:
            continue
        here = by_compensation.get(row.task_id)
        while here is not None and here.parent_task_id not in (None, replayed.task_id):
            here = rows.get(here.parent_task_id)
        if here is not None and here.step is not None:
            found.add(here.step)
    return found


def _would_repeat(replayed: Replayed, row: Row, newest: Mapping[str, Row]) -> bool:
    """Whether a repeated step would have run once more, had its workflow not ended: between two iterations, or because
    `until` or the payload of the next one could not be evaluated."""
    plan = replayed.plan.steps.get(row.step or "")
    if (
        plan is None
        or plan.repeat is None
        or row.status is not Status.COMPLETED
        or row.iteration + 1 >= plan.repeat.max
    ):
        return False
    variables = {name: result_of(row) for name, row in newest.items() if row.status in ENDED}
    try:
        return not plan.repeat.until.condition({"input": replayed.old_input, **variables})
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


def result_of(row: Row) -> Any:
    """The result that a reused row has, as JSON gives it."""
    return json.loads(row.result) if row.result is not None else None
