"""TaskTree: the state of a task and its steps, from events, progress messages and rows; no terminal, no network.

Events may be lost, and may arrive before or after the rows of the same step. Of two messages about a step the one
further in its life wins, by attempt and then by how far that attempt is.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pantheon.cli.progress.task_rows import awaited, is_wait, paths_of
from pantheon.cli.render.units import parse_time

ENDED = frozenset({"completed", "failed", "cancelled", "skipped"})
_EVENT_STATUS = {
    "ready": "ready",
    "dispatched": "dispatched",
    "retrying": "waiting",
    "completed": "completed",
    "failed": "failed",
    "cancelled": "cancelled",
    "skipped": "skipped",
    "waiting": "waiting",
    "compensating": "compensating",
}
# The status after an event of the root task, except for those that end it.
_TASK_STATUS = {"paused": "paused", "resumed": "running", "compensating": "compensating"}
# Rows of these roles are not steps of the workflow itself: they do not count as progress.
_NO_STEP_ROLES = frozenset({"compensation", "signal", "delegated"})
# How far an attempt is. A wait for the next attempt counts as the beginning of that attempt, as in the database.
_RANK = {"planned": -2, "waiting": -1, "ready": 0, "dispatched": 1, "running": 1, "paused": 2, "compensating": 2}
_ENDED_RANK = 9


@dataclass
class Node:
    """A step of an iteration, or the root task."""

    task_id: str
    path: str
    parent_id: str | None = None
    task_type: str = ""
    status: str = "planned"
    # Empty for a step, else `fallback`, `compensation`, `signal` or `delegated`.
    role: str = ""
    iteration: int = 0
    attempt: int = 1
    agent: str | None = None
    percent: float | None = None
    message: str = ""
    streamed_chars: int = 0
    error: str = ""
    error_code: str = ""
    started_at: datetime | None = None
    ended_at: datetime | None = None
    retry_at: datetime | None = None
    # For a step that only waits: what it waits for (`signal 'go'`; empty: a time), and until when at most.
    waits: bool = False
    waits_for: str = ""
    waits_until: datetime | None = None

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def is_item(self) -> bool:
        """Whether it is an item of a fan-out, `notes[3]`."""
        return self.path.endswith("]")

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    @property
    def is_step(self) -> bool:
        """Whether it is a step of its workflow, or the fallback of one."""
        return self.role not in _NO_STEP_ROLES

    def seconds(self, now: datetime) -> float | None:
        """How long it has taken or takes, waits and retries included."""
        if self.started_at is None or self.status == "skipped":
            return None
        return max(0.0, ((self.ended_at or now) - self.started_at).total_seconds())

    def _life(self) -> tuple[int, int]:
        return self.attempt, _ENDED_RANK if self.ended else _RANK.get(self.status, 0)


@dataclass(frozen=True)
class Change:
    """What a message changed, for a display that writes lines instead of drawing."""

    node: Node
    kind: str
    text: str = ""


@dataclass
class TaskTree:
    """The task and its steps. `planned` are the workflow's own steps by name, where it is known."""

    task_id: str
    task_type: str = ""
    planned: Sequence[str] = ()
    root: Node = field(init=False)
    nodes: dict[str, Node] = field(init=False, default_factory=dict)
    # Steps by parent, computed at the first use after a change: a picture needs it many times.
    _below: dict[str, list[Node]] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.root = Node(self.task_id, "", task_type=self.task_type, status="running")

    # -- input ----------------------------------------------------------------------------------------------

    def apply_message(self, kind: str, data: Mapping[str, Any], at: datetime) -> list[Change]:
        """Apply an event (`step.completed`, `task.failed`) or a progress message (`progress`)."""
        if kind == "progress":
            return self._progress(data)
        entity, _, name = kind.partition(".")
        if entity == "task":
            return self._task(name, data, at)
        status = _EVENT_STATUS.get(name)
        if entity != "step" or status is None or not isinstance(data.get("task_id"), str):
            return []
        node = self._node(data, at)
        if name == "waiting":
            node.waits = True
            node.waits_for = f"'{data['waits_for']}'" if isinstance(data.get("waits_for"), str) else node.waits_for
        attempt = int(data.get("attempt") or 1)
        # The event is about the attempt that failed.
        return self._step(node, status, attempt + 1 if name == "retrying" else attempt, data, at)

    def apply_rows(self, rows: Sequence[Mapping[str, Any]]) -> list[Change]:
        """Apply the task's rows as the orchestrator's database has them."""
        changes: list[Change] = []
        paths = paths_of(rows)
        for row in sorted(rows, key=lambda row: (str(row.get("created_at", "")), paths[str(row["task_id"])])):
            if row["task_id"] != self.task_id:
                changes += self._row(row, paths[str(row["task_id"])])
        # The root last: its end is the last change that is shown.
        for row in rows:
            if row["task_id"] == self.task_id:
                changes += self._root_row(row)
        return changes

    def _node(self, data: Mapping[str, Any], at: datetime) -> Node:
        self._below = None
        task_id = str(data["task_id"])
        node = self.nodes.get(task_id)
        if node is None:
            node = self.nodes[task_id] = Node(task_id, str(data.get("step") or task_id))
        parent_id = data.get("parent_task_id")
        if isinstance(parent_id, str):
            node.parent_id = parent_id
            if parent_id != self.task_id and parent_id not in self.nodes:
                # A running sub-workflow: no event is published when it begins.
                self.nodes[parent_id] = Node(parent_id, _above(node.path), status="running", started_at=at)
        node.task_type = str(data.get("task_type") or node.task_type)
        node.iteration = int(data.get("iteration") or 0)
        node.role = str(data.get("role") or node.role)
        return node

    def _step(self, node: Node, status: str, attempt: int, data: Mapping[str, Any], at: datetime) -> list[Change]:
        after = Node("", "", status=status, attempt=attempt)
        if node.status != "planned" and after._life() <= node._life():
            return []
        node.status, node.attempt = status, attempt
        if isinstance(data.get("agent"), str):
            node.agent = data["agent"]
        _take_error(node, data.get("error"))
        if status in ("dispatched", "completed"):
            node.error = node.error_code = ""
        if status in ("dispatched", "waiting"):
            node.percent, node.message, node.streamed_chars = None, "", 0
        if node.started_at is None and not node.ended:
            # For a step whose first event is its end, only the rows know when it began.
            node.started_at = at
        if node.ended:
            node.ended_at = at
        return [Change(node, status)]

    def _progress(self, data: Mapping[str, Any]) -> list[Change]:
        node = self.nodes.get(str(data.get("task_id")))
        if node is None or node.ended:
            return []
        percent = data.get("percent")
        if isinstance(percent, int | float):
            node.percent = min(100.0, max(0.0, float(percent)))
        text = data.get("text")
        if isinstance(text, str):
            node.streamed_chars += len(text)
        message = data.get("message")
        if isinstance(message, str) and message:
            node.message = " ".join(message.split())
        return [Change(node, "progress", node.message)]

    def items(self, node: Node) -> tuple[int, int]:
        """How many items of a fan-out have ended, and how many have begun; zeros for any other step."""
        items = [child for child in self.children(node.task_id) if child.is_item and child.is_step]
        return sum(item.ended for item in items), len(items)

    def _task(self, name: str, data: Mapping[str, Any], at: datetime) -> list[Change]:
        if data.get("task_id") != self.task_id or self.root.ended:
            return []
        self.root.task_type = str(data.get("task_type") or self.root.task_type)
        if name in _TASK_STATUS:
            self.root.status = _TASK_STATUS[name]
            _take_error(self.root, data.get("error"))
            return [Change(self.root, name)]
        if name == "signalled":
            by = f" by {data['by']}" if data.get("by") else ""
            return [Change(self.root, name, f"'{data.get('signal')}' given{by}")]
        if name not in ENDED:
            self.root.started_at = self.root.started_at or at
            return []
        self.root.status, self.root.ended_at = name, at
        _take_error(self.root, data.get("error"))
        return [Change(self.root, name)]

    def _root_row(self, row: Mapping[str, Any]) -> list[Change]:
        root, before = self.root, self.root.status
        root.task_type = str(row.get("task_type") or root.task_type)
        root.status = str(row.get("status") or root.status)
        root.attempt = int(row.get("attempt") or 1)
        root.started_at = parse_time(row.get("created_at")) or root.started_at
        root.ended_at = parse_time(row.get("completed_at")) or root.ended_at
        _take_error(root, row.get("error"))
        return [Change(root, root.status)] if root.ended and root.status != before else []

    def _row(self, row: Mapping[str, Any], path: str) -> list[Change]:
        task_id, status = str(row["task_id"]), str(row.get("status") or "ready")
        attempt = int(row.get("attempt") or 1)
        self._below = None
        node = self.nodes.setdefault(task_id, Node(task_id, path))
        node.path = path
        node.parent_id = str(row.get("parent_task_id") or self.task_id)
        node.task_type = str(row.get("task_type") or node.task_type)
        node.iteration = int(row.get("iteration") or 0)
        node.role = str(row.get("role") or "")
        after = Node("", "", status=status, attempt=attempt)
        if after._life() < node._life():
            return []
        changed = (node.status, node.attempt) != (status, attempt)
        node.status, node.attempt = status, attempt
        node.agent = row.get("agent") or node.agent
        node.started_at = parse_time(row.get("created_at")) or node.started_at
        node.ended_at = parse_time(row.get("completed_at")) if node.ended else None
        node.waits = is_wait(row)
        until = parse_time(row.get("run_after")) if status == "waiting" else None
        node.retry_at, node.waits_until = (None, until) if node.waits else (until, None)
        node.waits_for = awaited(row) or node.waits_for
        node.error = node.error_code = ""
        _take_error(node, row.get("error"))
        return [Change(node, status)] if changed else []

    # -- output ------------------------------------------------------------------------------------------------

    def children(self, parent_id: str) -> list[Node]:
        """The steps below a task, in the order of the workflow, then of their beginning; planned ones last."""
        if self._below is None:
            self._below = {}
            for node in self.nodes.values():
                self._below.setdefault(node.parent_id or self.task_id, []).append(node)
        found = list(self._below.get(parent_id, ()))
        order = {name: index for index, name in enumerate(self.planned)} if parent_id == self.task_id else {}
        if parent_id == self.task_id:
            names = {node.name for node in found if node.is_step}
            found += [
                Node(f"planned:{name}", name) for name in self.planned if name not in names and not self.root.ended
            ]
        position = {node.task_id: index for index, node in enumerate(found)}
        # Compensations, signals and delegated tasks come after the steps.
        return sorted(
            found,
            key=lambda node: (
                order.get(node.name, len(order)) if node.is_step else len(order) + 1,
                position[node.task_id],
                node.iteration,
            ),
        )

    def walk(self) -> Iterator[tuple[Node, tuple[bool, ...]]]:
        """Every step with, for each level above it and for its own, whether it is the last of its siblings."""
        yield from self._walk(self.task_id, ())

    def _walk(self, parent_id: str, above: tuple[bool, ...]) -> Iterator[tuple[Node, tuple[bool, ...]]]:
        children = self.children(parent_id)
        for index, node in enumerate(children):
            here = (*above, index == len(children) - 1)
            yield node, here
            yield from self._walk(node.task_id, here)

    def counts(self) -> tuple[int, int]:
        """How many of the task's own steps have ended, and how many there are as far as is known."""
        children = [node for node in self.children(self.task_id) if node.is_step]
        names = {node.name for node in children}
        ended = {name for name in names if all(node.ended for node in children if node.name == name)}
        return len(ended), len(names)

    def fraction(self) -> float:
        """How much of the task is done, 0 to 1: steps count alike, a running step by its reported progress."""
        if self.root.status == "completed":
            return 1.0
        children = [node for node in self.children(self.task_id) if node.is_step]
        return sum(self._share(node) for node in children) / len(children) if children else 0.0

    def _share(self, node: Node) -> float:
        if node.ended:
            return 1.0
        inner = self.children(node.task_id)
        if inner:
            # More steps may follow than have begun, so a running sub-workflow never counts as done.
            return min(0.95, sum(self._share(child) for child in inner) / (len(inner) + 1))
        return min(0.95, (node.percent or 0.0) / 100)


def _take_error(node: Node, error: Any) -> None:
    if isinstance(error, Mapping):
        details = error.get("details")
        if node.path and error.get("code") == "step_failed" and isinstance(details, Mapping) and details.get("message"):
            # The picture names the step, so the agent's own message is enough.
            error = details
        node.error = " ".join(str(error.get("message") or "").split())
        node.error_code = str(error.get("code") or "")


def _above(path: str) -> str:
    """The path of a step's parent: `notes` of `notes[3]`, `notes[3]` of `notes[3]/summarize`."""
    if path.endswith("]"):
        return path.rpartition("[")[0]
    return path.rpartition("/")[0]
