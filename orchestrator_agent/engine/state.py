"""Run: one root task's tree as the engine sees it, rebuilt from rows or kept between batches.

Statuses and their transitions are declared here, once; the SQL of the store mirrors them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from orchestrator_agent.workflows.plan import Plan, StepPlan
from protocol.messages import ErrorInfo, Usage
from protocol.workflow import Retry


class Status(StrEnum):
    READY = "ready"  # waits for an agent, or for a slot at one -> dispatched, failed, cancelled
    DISPATCHED = "dispatched"  # an attempt is with an agent -> completed, failed, cancelled, waiting
    RUNNING = "running"  # a root, sub-workflow or fan-out at work -> paused (roots), compensating, an end
    WAITING = "waiting"  # for a time, a signal, admission, or the original of a duplicate -> ready, running, an end
    PAUSED = "paused"  # a root: what runs goes on, nothing new begins -> running, compensating, an end
    COMPENSATING = "compensating"  # a workflow compensates what it did -> failed, cancelled
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"  # the step's condition was false


ENDED = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.SKIPPED})

TRANSITIONS: dict[Status, frozenset[Status]] = {
    Status.READY: frozenset({Status.DISPATCHED, Status.FAILED, Status.CANCELLED}),
    Status.DISPATCHED: frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.WAITING}),
    Status.RUNNING: frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.PAUSED, Status.COMPENSATING}),
    Status.WAITING: frozenset({Status.READY, Status.RUNNING, *ENDED}),
    Status.PAUSED: frozenset({Status.RUNNING, Status.COMPENSATING, Status.COMPLETED, Status.FAILED, Status.CANCELLED}),
    Status.COMPENSATING: frozenset({Status.FAILED, Status.CANCELLED}),
    **{status: frozenset() for status in ENDED},
}


class Role(StrEnum):
    """What a row of a tree is there for."""

    STEP = ""  # a root, a step, a fan-out, an item of one
    FALLBACK = "fallback"  # stands in for a step that failed
    COMPENSATION = "compensation"  # compensates a step that completed
    SIGNAL = "signal"  # a signal that was received, kept until a step takes it
    DELEGATED = "delegated"  # a task that an agent delegated while it worked on another


@dataclass(slots=True)
class Row:
    """One task: a step's, a sub-workflow's or the root's. `payload` and `result` are JSON text, as they are stored."""

    root_task_id: UUID
    task_id: UUID
    parent_task_id: UUID | None
    step: str | None
    task_type: str
    status: Status
    role: Role = Role.STEP
    iteration: int = 0
    item: int = -1
    workflow_version: str | None = None
    pinned_agent: str | None = None
    agent: str | None = None
    instance_id: str | None = None
    attempt: int = 1
    failures: int = 0
    # Processes of agents that died while they worked on it.
    deaths: int = 0
    payload: bytes | None = None
    result: bytes | None = None
    error: ErrorInfo | None = None
    usage: Usage | None = None
    # Where the agent that delegated this task waits for its response.
    reply_to: str | None = None
    # Tasks with the same text go to the same agent, as long as it is there.
    sticky: str | None = None
    # Why the agent was chosen, as JSON, where there was a choice.
    routing: bytes | None = None
    timeout_seconds: float = 300.0
    created_at: datetime | None = None
    dispatched_at: datetime | None = None
    expires_at: datetime | None = None
    run_after: datetime | None = None
    completed_at: datetime | None = None
    _text: str = field(default="", init=False, repr=False, compare=False)
    # Its position in the tree, once it was needed (`Run.path`).
    path: str = field(default="", init=False, repr=False, compare=False)

    @property
    def text(self) -> str:
        """The id as text: messages and events hold it some ten times for each row."""
        if not self._text:
            self._text = str(self.task_id)
        return self._text

    def become(self, status: Status) -> None:
        """Change the status along TRANSITIONS; anything else is a mistake of the engine's."""
        if status not in TRANSITIONS[self.status]:
            raise AssertionError(f"task {self.task_id} cannot become {status} from {self.status}")
        self.status = status

    @property
    def ended(self) -> bool:
        return self.status in ENDED


def in_order(signals: Iterable[Row]) -> list[Row]:
    """Signals as they were received; of those received at once, always the same one first."""
    return sorted(signals, key=lambda row: (row.created_at is not None, row.created_at, row.task_id))


@dataclass(slots=True)
class PendingCompensation:
    """A completed step that is to be compensated: its row, its plan, the variables that its workflow had."""

    row: Row
    plan: StepPlan
    variables: dict[str, Any]


@dataclass(slots=True)
class Scope:
    """A workflow at work: its own row, its plan, its input, and how far each of its steps is."""

    row: Row
    plan: Plan
    variables: dict[str, Any]
    # Steps that have ended (well, or skipped); their results are in `variables`.
    ended: set[str] = field(default_factory=set)
    # The newest row of each step that has one.
    rows: dict[str, Row] = field(default_factory=dict)
    depth: int = 0
    # While it compensates: what is still to be compensated, the next one last, and the compensation at work.
    pending: list[PendingCompensation] = field(default_factory=list)
    compensation: Row | None = None

    def open_needs(self, step: str) -> bool:
        return not self.plan.steps[step].needs <= self.ended


@dataclass(slots=True)
class FanOut:
    """A step run once for each item of a list: its own row, and how far the items are. Results are in items' order."""

    row: Row
    scope: Scope
    plan: StepPlan
    items: list[Any]
    results: list[Any]
    # Items at work, items that have ended, the first that has not begun.
    active: set[int] = field(default_factory=set)
    ended: int = 0
    next: int = 0
    # While items are being begun, one that ends at once must not begin others by recursion.
    beginning: bool = False
    rows: dict[int, Row] = field(default_factory=dict)

    def claim_next(self) -> int | None:
        """The next item to begin, at work from now on; None where none is left, or the step's concurrency is used."""
        item = self.next
        if item >= len(self.items) or len(self.active) >= self.plan.concurrency:
            return None
        self.next += 1
        self.active.add(item)
        return item

    def variables_of(self, item: int) -> dict[str, Any]:
        """What an item's expressions may use."""
        return {**self.scope.variables, "item": self.items[item], "index": item}


@dataclass(slots=True)
class RootFacts:
    """What a root's row holds besides being a task: where the response goes, and what its sub-tasks inherit."""

    tenant: str
    requester: str | None
    reply_to: str | None
    session_id: str | None
    priority: int
    deadline_at: datetime | None
    metadata: dict[str, str]
    traceparent: str | None = None
    tracestate: str | None = None
    idempotency_key: str | None = None
    replay_of: UUID | None = None
    concurrency_key: str | None = None
    duplicate_of: UUID | None = None
    # Of the request's message in its stream: the same one, delivered again, is no other request.
    request_sequence: int | None = None


@dataclass(slots=True)
class Run:
    """The tree of one root. `version` is what the root's row holds in the database: the optimistic lock of the tree."""

    root: Row
    facts: RootFacts
    version: int = 0
    scopes: dict[UUID, Scope] = field(default_factory=dict)
    rows: dict[UUID, Row] = field(default_factory=dict)
    fan_outs: dict[UUID, FanOut] = field(default_factory=dict)
    # Compensations by their own id, signals that no step has taken, children by the task that delegated them.
    compensations: dict[UUID, PendingCompensation] = field(default_factory=dict)
    signals: list[Row] = field(default_factory=list)
    delegated: dict[UUID, list[Row]] = field(default_factory=dict)
    _usage: Usage | None = field(default=None, init=False, repr=False, compare=False)
    _summed: bool = field(default=False, init=False, repr=False, compare=False)

    @property
    def root_task_id(self) -> UUID:
        return self.root.task_id

    def parent_text(self, row: Row) -> str:
        """The id of the row's parent as text."""
        parent = (
            self.root if row.parent_task_id is self.root.task_id else self.rows.get(row.parent_task_id or row.task_id)
        )
        return parent.text if parent is not None else str(row.parent_task_id)

    def active(self) -> Iterator[Row]:
        """Rows that have not ended, the root's own excepted."""
        return (row for row in self.rows.values() if not row.ended and row is not self.root)

    def current(self, task_id: UUID, attempt: int) -> Row | None:
        """The row of an attempt, unless it is not the current one any more: attempts fence."""
        row = self.rows.get(task_id)
        if row is None or row.status is not Status.DISPATCHED or row.attempt != attempt:
            return None
        return row

    def reused(self, row: Row) -> bool:
        """Whether a step's row was taken over from an earlier run: it had ended before its root was there."""
        if self.facts.replay_of is None or not row.ended:
            return False
        made, began = row.created_at, self.root.created_at
        return made is not None and began is not None and made < began

    def compensates(self, row: Row) -> bool:
        """Whether a row is there to compensate: a compensation, or what one has delegated, however deep. It is bound by
        no budget and no deadline: a task that could not afford to clean up would leave a mess behind."""
        here: Row | None = row
        while here is not None and here is not self.root:
            if here.role is Role.COMPENSATION:
                return True
            here = self.rows.get(here.parent_task_id) if here.parent_task_id is not None else None
        return False

    def step_plan(self, row: Row) -> StepPlan:
        """The plan of the step that a row runs, stands in for or compensates."""
        assert row.parent_task_id is not None
        if (fan_out := self.fan_outs.get(row.parent_task_id)) is not None:
            return fan_out.plan
        if row.role is Role.COMPENSATION:
            return self.compensations[row.task_id].plan
        return self.scopes[row.parent_task_id].plan.steps[row.step or ""]

    def retry_of(self, row: Row) -> Retry:
        plan = self.step_plan(row)
        return plan.compensate.retry if row.role is Role.COMPENSATION and plan.compensate is not None else plan.retry

    @property
    def at_work(self) -> bool:
        """Whether new steps may begin."""
        return self.root.status in (Status.RUNNING, Status.COMPENSATING)

    def below(self, row: Row) -> list[Row]:
        """The newest rows of a sub-workflow's steps, a fan-out's items, and the tasks that an agent delegated."""
        found: list[Row] = []
        if (scope := self.scopes.get(row.task_id)) is not None:
            found += scope.rows.values()
            if scope.compensation is not None:
                found.append(scope.compensation)
        if (fan_out := self.fan_outs.get(row.task_id)) is not None:
            found += fan_out.rows.values()
        return found + self.delegated.get(row.task_id, [])

    def usage(self) -> Usage | None:
        """What all attempts of all steps consumed."""
        if not self._summed:
            self._summed = True
            for row in self.rows.values():
                if row.usage is not None and row is not self.root:
                    self._usage = row.usage if self._usage is None else self._usage + row.usage
        return self._usage

    def consumed(self, row: Row, usage: Usage) -> None:
        """Add what an attempt consumed to its row. A tree with a budget needs the sum at every step: it is kept."""
        total = self.usage()
        self._usage = usage if total is None else total + usage
        row.usage = usage if row.usage is None else row.usage + usage

    def path(self, row: Row) -> str:
        """A step's position in the tree, for people: `draft/review`, `notes[3]`."""
        if not row.path:
            row.path = self._path(row)
        return row.path

    def _path(self, row: Row) -> str:
        parts: list[str] = []
        here: Row | None = row
        while here is not None and here.step is not None:
            above = self.rows.get(here.parent_task_id) if here.parent_task_id is not None else None
            if here.item >= 0 and here.role is not Role.COMPENSATION:
                parts.append(f"{here.step}[{here.item}]")
                # The fan-out's own row has the same step.
                above = self.rows.get(above.parent_task_id) if above is not None and above.parent_task_id else None
            else:
                parts.append(here.step)
            here = above
        return "/".join(reversed(parts))
