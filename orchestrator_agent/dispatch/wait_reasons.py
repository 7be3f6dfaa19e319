"""Wait reasons: why steps that are ready have no agent yet, for people who ask. No decision depends on them."""

from dataclasses import replace
from typing import Any

from orchestrator_agent.engine.assignment import route_request_of
from orchestrator_agent.engine.decisions import Directory, RouteRequest
from orchestrator_agent.engine.state import Run, Status


def waiting_of(run: Run, directory: Directory) -> list[dict[str, Any]]:
    """The ready rows of a task, in groups that wait for the same; the reason as text, and by agent."""
    if run.root_task_id not in run.scopes:
        return []
    groups: dict[tuple[object, ...], tuple[RouteRequest, list[str]]] = {}
    for row in run.active():
        if row.status is Status.READY:
            request = route_request_of(run, row)
            kind = (request.task_type, request.pinned_agent, request.requires, request.sticky is None)
            groups.setdefault(kind, (request, []))[1].append(str(row.task_id))
    found = []
    for request, task_ids in groups.values():
        wait_reasons = directory.wait_reasons(request)
        if run.root.status is Status.PAUSED:
            wait_reasons = replace(wait_reasons, task="the task is paused")
        found.append({"task_ids": task_ids, "reason": str(wait_reasons), **wait_reasons.shown()})
    return found
