"""Waiting: why steps that are ready have no agent yet, for people who ask. Nothing waits by what is said here."""

from dataclasses import replace
from typing import Any

from orchestrator_agent.engine.attempts import wanted_of
from orchestrator_agent.engine.decisions import Directory, Wanted
from orchestrator_agent.engine.state import Run, Status


def waiting_of(run: Run, directory: Directory) -> list[dict[str, Any]]:
    """The ready rows of a task, those together that wait for the same; the reason as text, and by agent."""
    if run.root_task_id not in run.scopes:
        return []
    groups: dict[tuple[object, ...], tuple[Wanted, list[str]]] = {}
    for row in run.active():
        if row.status is Status.READY:
            wanted = wanted_of(run, row)
            kind = (wanted.task_type, wanted.pinned_agent, wanted.requires, wanted.sticky is None)
            groups.setdefault(kind, (wanted, []))[1].append(str(row.task_id))
    told = []
    for wanted, task_ids in groups.values():
        obstacles = directory.obstacles(wanted)
        if run.root.status is Status.PAUSED:
            obstacles = replace(obstacles, task="the task is paused")
        told.append({"task_ids": task_ids, "reason": str(obstacles), **obstacles.shown()})
    return told
