"""Rows of a task's tree, as a query returns them: which is the root, the path of each, what a step waits for."""

from collections.abc import Mapping, Sequence
from typing import Any


def root_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return next(row for row in rows if row["task_id"] == row["root_task_id"])


def is_wait(row: Mapping[str, Any]) -> bool:
    """Whether a row is a step that waits for a time or a signal, and not for its next attempt."""
    first = row.get("status") == "waiting" and int(row.get("attempt") or 1) == 1
    return first and row.get("step") is not None and not row.get("role")


def awaited(row: Mapping[str, Any]) -> str:
    """The signal or approval that a step waits for, where the row has its payload; else an empty text."""
    payload = row.get("payload")
    if is_wait(row) and isinstance(payload, Mapping):
        for kind in ("signal", "approval"):
            if isinstance(payload.get(kind), str):
                return f"{kind} '{payload[kind]}'"
    return ""


def paths_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The path of each row, `draft/review` or `notes[3]`, by task_id; the root's is empty."""
    by_id = {str(row["task_id"]): row for row in rows}
    paths: dict[str, str] = {}
    for task_id in by_id:
        parts: list[str] = []
        here: str | None = task_id
        seen: set[str] = set()
        while here is not None and here in by_id and here not in seen:
            seen.add(here)
            row = by_id[here]
            if row.get("step") is None:
                break
            parent = by_id.get(str(row.get("parent_task_id")))
            item = row.get("item")
            if isinstance(item, int) and item >= 0 and row.get("role") != "compensation":
                parts.append(f"{row['step']}[{item}]")
                # The fan-out's own row has the same step.
                parent = by_id.get(str(parent.get("parent_task_id"))) if parent is not None else None
            else:
                parts.append(str(row["step"]))
            here = str(parent["task_id"]) if parent is not None else None
        paths[task_id] = "/".join(reversed(parts))
    return paths
