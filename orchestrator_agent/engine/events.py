"""Run events: what can happen to a run, the inputs of `advance`. Values, in any order, any number of times."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple
from uuid import UUID

from orchestrator_agent.workflows.plan import Plan
from protocol.ids import step_task_id
from protocol.messages import ErrorInfo, Usage


class ResponseReceived(NamedTuple):
    """An agent responded to one attempt. `result` is Python of JSON. A tuple: it is the event of every step, and a
    frozen dataclass takes several times as long to make."""

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
    """An attempt's time is over. `broker_was_down`: for part of it, so that the agent is not to blame."""

    root_task_id: UUID
    task_id: UUID
    attempt: int
    broker_was_down: bool = False


@dataclass(frozen=True, slots=True)
class AttemptAbandoned:
    """An attempt will get no response: its agent is gone, or takes nothing from its queue any more. `process_died`: the
    agent's process died while it had the attempt, which may be why."""

    root_task_id: UUID
    task_id: UUID
    attempt: int
    agent: str
    reason: str
    process_died: bool = False


@dataclass(frozen=True, slots=True)
class Due:
    """A row's time has come: its wait for a retry is over, an agent may have a slot for it now, or none has come."""

    root_task_id: UUID
    task_id: UUID


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    """The whole task's time is over."""

    root_task_id: UUID


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """The whole task is to end. `operation`: the id of the mesh operation that requests it and receives the outcome."""

    root_task_id: UUID
    reason: str = "cancelled"
    operation: UUID | None = None


@dataclass(frozen=True, slots=True)
class PauseRequested:
    """What runs goes on, nothing new begins."""

    root_task_id: UUID
    operation: UUID | None = None


@dataclass(frozen=True, slots=True)
class ResumeRequested:
    root_task_id: UUID
    operation: UUID | None = None


@dataclass(frozen=True, slots=True)
class SignalReceived:
    """A signal or an approval was sent; `operation` is its id, so that a second one with that id changes nothing.
    `waiting_id`: for that row alone, while it waits."""

    root_task_id: UUID
    operation: UUID
    name: str
    payload: dict[str, Any]
    giver: str | None
    waiting_id: UUID | None = None

    @property
    def row_id(self) -> UUID:
        """The id of the row that it becomes (ADR 0009)."""
        return step_task_id(self.root_task_id, f"signal:{self.name}", 0, self.operation.int % 2**31)


@dataclass(frozen=True, slots=True)
class Delegated:
    """An agent delegated a task while it works on another one of this tree. `plan` is what runs it."""

    root_task_id: UUID
    parent_task_id: UUID
    task_id: UUID
    task_type: str
    payload: dict[str, Any]
    plan: Plan
    reply_to: str | None = None
    timeout_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Begin:
    """A root that its concurrency key has admitted may begin."""

    root_task_id: UUID


@dataclass(frozen=True, slots=True)
class OperationEnded:
    """A mesh operation, a root of its own, has been performed."""

    root_task_id: UUID
    result: dict[str, Any] | None = None
    error: ErrorInfo | None = None


@dataclass(frozen=True, slots=True)
class Reattached:
    """The requester sent the same task again, with another reply subject for the response."""

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


RunEvent = (
    ResponseReceived
    | Expired
    | AttemptAbandoned
    | Due
    | DeadlinePassed
    | CancelRequested
    | PauseRequested
    | ResumeRequested
    | SignalReceived
    | Delegated
    | Begin
    | OperationEnded
    | Reattached
    | OriginalEnded
    | Broken
)
