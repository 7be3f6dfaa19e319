"""What can happen to a run: the inputs of `advance`. Values, in any order, any number of times."""

from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from protocol.messages import ErrorInfo, Usage


@dataclass(frozen=True, slots=True)
class Answered:
    """An agent answered one attempt. `result` is Python of JSON."""

    root_task_id: UUID
    task_id: UUID
    attempt: int
    status: Literal["completed", "failed", "cancelled"]
    result: object = None
    error: ErrorInfo | None = None
    usage: Usage | None = None
    instance_id: str | None = None


@dataclass(frozen=True, slots=True)
class Expired:
    """An attempt's time is over."""

    root_task_id: UUID
    task_id: UUID
    attempt: int


@dataclass(frozen=True, slots=True)
class Due:
    """A row's time has come: a retry whose wait is over, a ready row that may find an agent now, or never did."""

    root_task_id: UUID
    task_id: UUID


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    """The whole task's time is over."""

    root_task_id: UUID


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """Somebody wants the whole task ended."""

    root_task_id: UUID
    reason: str = "cancelled"


@dataclass(frozen=True, slots=True)
class Reattached:
    """The requester sent the same task again, and wants its copy of the answer elsewhere."""

    root_task_id: UUID
    reply_to: str


@dataclass(frozen=True, slots=True)
class OriginalEnded:
    """The task that this one is a duplicate of has ended; this one ends the same way."""

    root_task_id: UUID
    status: Literal["completed", "failed", "cancelled"]
    result: bytes | None = None
    error: ErrorInfo | None = None


@dataclass(frozen=True, slots=True)
class Broken:
    """The engine itself cannot go on with this run (a mistake of ours, or rows that do not fit their workflow)."""

    root_task_id: UUID
    error: ErrorInfo


Happening = Answered | Expired | Due | DeadlinePassed | CancelRequested | Reattached | OriginalEnded | Broken
