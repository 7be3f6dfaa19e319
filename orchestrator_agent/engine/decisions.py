"""Decisions: what a transition comes to, and the ledger that gathers it while the transition runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from orchestrator_agent.engine.state import Row, Run, Status
from orchestrator_agent.workflows.plan import Plan
from protocol.errors import ErrorCode, ExpressionError
from protocol.large import DEFAULT_MAX_BYTES
from protocol.messages import ErrorInfo, json_bytes
from protocol.workflow import Requires

# Of an agent's error that is passed on: its message, and all of it.
MAX_ERROR_CHARS = 32_000
# Of the agents that could not take a task: as many are named in a sentence, and in an error's details.
SAID_AGENTS = 5
SHOWN_AGENTS = 20


# Tuples: one of each is made at every step, and a frozen dataclass takes several times as long to make.
class RouteRequest(NamedTuple):
    """A task that looks for an agent. `avoid` is the agent that its last attempt failed at."""

    task_type: str
    pinned_agent: str | None = None
    requires: Requires | None = None
    sticky: str | None = None
    avoid: str | None = None
    tenant: str = "default"
    requester: str | None = None
    workflow: str | None = None
    # Flow control: whose turn it is, is said of rows.
    task_id: UUID | None = None


class Placement(NamedTuple):
    """The agent chosen, and why, where there was a choice (JSON for people)."""

    agent: str
    routing: bytes | None = None


@dataclass(frozen=True)
class WaitReasons:
    """Why a task has no agent: what holds up the task whatever agent it might go to, how many instances serve its type,
    and what speaks against each of their agents."""

    task_type: str
    task: str | None = None
    instances: int = 0
    agents: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """One sentence, of a bounded length."""
        said = [] if self.task is None else [self.task]
        if not self.instances:
            said.append(f"nobody serves '{self.task_type}'")
        elif self.agents:
            instances = f"{self.instances} instance{'' if self.instances == 1 else 's'}"
            agents = f"{len(self.agents)} agent{'' if len(self.agents) == 1 else 's'}"
            serve = "serves" if self.instances == 1 else "serve"
            said.append(f"{instances} of {agents} {serve} '{self.task_type}'")
        said += [f"{agent}: {reason}" for agent, reason in islice(self.agents.items(), SAID_AGENTS)]
        if (more := len(self.agents) - SAID_AGENTS) > 0:
            said.append(f"and {more} more")
        return "; ".join(said)

    def shown(self) -> dict[str, Any]:
        """The same as values, for programs."""
        told: dict[str, Any] = {"task_type": self.task_type, "instances": self.instances}
        if self.task is not None:
            told["task"] = self.task
        told["agents"] = dict(islice(self.agents.items(), SHOWN_AGENTS))
        if (more := len(self.agents) - SHOWN_AGENTS) > 0:
            told["more"] = more
        return told


class Directory(Protocol):
    """What planning asks of the world: who serves a task type now, and which workflows there are."""

    def place(self, wanted: RouteRequest) -> Placement | None:
        """Where to send a task, or None while there is no place for it."""

    def served(self, wanted: RouteRequest) -> bool:
        """Whether anybody could take such a task, now or when there is a place again."""

    def wait_reasons(self, wanted: RouteRequest) -> WaitReasons:
        """Why nobody takes such a task now."""

    def workflow(self, name: str) -> Plan | None:
        """The newest version of a workflow, by name."""


@dataclass(frozen=True)
class Rules:
    """The settings that transitions follow. Sizes in bytes."""

    default_max_attempts: int = 4
    no_agent_wait_seconds: float = 30.0
    max_payload_bytes: int = DEFAULT_MAX_BYTES


@dataclass(slots=True)
class Decisions:
    """What one batch of happenings comes to, for one run."""

    made: list[Row] = field(default_factory=list)
    changed: dict[UUID, Row] = field(default_factory=dict)
    # Delegated tasks that ended: their agents wait for an answer.
    answers: list[Row] = field(default_factory=list)
    # What operations on this run are told: by the operation's id.
    outcomes: dict[UUID, dict[str, Any] | ErrorInfo] = field(default_factory=dict)
    # Rows whose attempt is to be published.
    dispatched: dict[UUID, Row] = field(default_factory=dict)
    # Flow control: agents at which a place was taken, and is not needed after all.
    unplaced: list[str] = field(default_factory=list)
    # Attempts whose agent is to be told to stop: agent, task, attempt, reason.
    stopped: list[tuple[str, UUID, int, str]] = field(default_factory=list)
    events: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    root_ended: bool = False
    # When all this happened.
    at: datetime | None = None
    # When somebody should look again, whatever happens: retries, waits for an agent, timeouts.
    wake_at: list[datetime] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        return not self.made and not self.changed


class DecisionBuilder:
    """Notes of a run's transition: rows made and changed, events, and how errors are worded."""

    def __init__(self, run: Run, rules: Rules, now: datetime) -> None:
        self.run = run
        self.rules = rules
        self.now = now
        self.decisions = Decisions(at=now)
        # By identity, which costs less than an id's hash.
        self._made: set[int] = set()

    def make(self, row: Row) -> None:
        self.run.rows[row.task_id] = row
        self.decisions.made.append(row)
        self._made.add(id(row))

    def change(self, row: Row) -> None:
        # A row that is made in this very transition is written once, as it is at the end.
        if id(row) not in self._made:
            self.decisions.changed[row.task_id] = row

    def end(self, row: Row, status: Status, error: ErrorInfo | None = None) -> None:
        row.become(status)
        row.error = error
        row.completed_at = self.now
        row.expires_at = None
        row.run_after = None
        self.change(row)

    def stop(self, row: Row, reason: str) -> None:
        """Tell the agent of a dispatched row that its attempt is not wanted any more."""
        if row.status is not Status.DISPATCHED or row.agent is None:
            return
        # Decided in this very transition, it was never published, and nobody need be told.
        if self.decisions.dispatched.pop(row.task_id, None) is None:
            self.decisions.stopped.append((row.agent, row.task_id, row.attempt, reason))
        else:
            self.decisions.unplaced.append(row.agent)

    def event(self, entity: str, name: str, data: dict[str, Any]) -> None:
        self.decisions.events.append((entity, name, data))

    def task_event(self, name: str, *, error: ErrorInfo | None = None, **more: Any) -> None:
        data: dict[str, Any] = {"task_id": self.run.root.text, "task_type": self.run.root.task_type, **more}
        if error is not None:
            data["error"] = error.model_dump(mode="json", exclude_defaults=True)
        self.event("task", name, data)

    def step_event(self, name: str, row: Row, *, error: ErrorInfo | None = None, **more: Any) -> None:
        data: dict[str, Any] = {
            "root_task_id": self.run.root.text,
            "task_id": row.text,
            "parent_task_id": self.run.parent_text(row),
            "step": self.run.path(row),
            "task_type": row.task_type,
            "iteration": row.iteration,
            "attempt": row.attempt,
            **more,
        }
        if row.item >= 0:
            data["item"] = row.item
        if error is not None:
            data["error"] = error.model_dump(mode="json", exclude_defaults=True)
        self.event("step", name, data)

    def step_failed(self, row: Row, error: ErrorInfo) -> ErrorInfo:
        """A step's error as its workflow's: the agent's own goes into details."""
        path = self.run.path(row)
        details = error.model_dump(mode="json", exclude_none=True)
        if len(error.message) > MAX_ERROR_CHARS or len(json_bytes(details)) > MAX_ERROR_CHARS:
            # It is told three times, by the task's answer among others, which must not be too large to be sent.
            details = {"code": error.code, "message": error.message[:MAX_ERROR_CHARS], "retryable": error.retryable}
        return ErrorInfo(
            code=ErrorCode.STEP_FAILED,
            message=f"step '{path}' failed: {error.message[:MAX_ERROR_CHARS]}",
            retryable=error.retryable,
            step=path,
            details=details,
        )

    def no_agent(self, row: Row, wait_reasons: WaitReasons) -> ErrorInfo:
        path = self.run.path(row)
        wanted = f"'{row.task_type}' of agent '{row.pinned_agent}'" if row.pinned_agent else f"'{row.task_type}'"
        took = f"no agent took {wanted} within {self.rules.no_agent_wait_seconds:g} s"
        return ErrorInfo(
            code=ErrorCode.NO_AGENT_AVAILABLE,
            message=f"step '{path}': {took}: {wait_reasons}",
            step=path,
            details=wait_reasons.shown(),
        )

    def expression_error(self, above: Row, name: str, error: ExpressionError) -> ErrorInfo:
        """`above` is the row of the workflow whose step `name` (or `output`) holds the expression."""
        prefix = self.run.path(above)
        path = f"{prefix}/{name}" if prefix else name
        return ErrorInfo(
            code=ErrorCode.EXPRESSION_ERROR,
            message=f"{'' if name == 'output' else 'step '}'{path}': {error.message}",
            step=path,
            details=error.details or None,
        )

    def too_large(self, row: Row, what: str, size_bytes: int) -> ErrorInfo:
        path = self.run.path(row)
        where = f"step '{path}': " if path else ""
        limit = self.rules.max_payload_bytes
        return ErrorInfo(
            code=ErrorCode.TOO_LARGE,
            message=f"{where}a {what} of {size_bytes} bytes exceeds the limit of {limit} bytes",
            step=path or None,
            details={"size_bytes": size_bytes, "limit_bytes": limit},
        )
