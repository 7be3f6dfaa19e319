"""Decisions: what a transition comes to, and what it asks of the world outside of its run: agents, workflows, rules."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from orchestrator_agent.engine.state import Row
from orchestrator_agent.workflows.plan import Plan
from protocol.large import DEFAULT_MAX_BYTES
from protocol.messages import ErrorInfo
from protocol.workflow import Requires

# Of the agents that could not take a task: how many a sentence names, and an error's details.
SENTENCE_AGENTS = 5
DETAILS_AGENTS = 20


# Tuples: one of each is made at every step, and a frozen dataclass takes several times as long to make.
class RouteRequest(NamedTuple):
    """A task that needs an agent. `avoid` is the agent that its last attempt failed at."""

    task_type: str
    pinned_agent: str | None = None
    requires: Requires | None = None
    sticky: str | None = None
    avoid: str | None = None
    tenant: str = "default"
    requester: str | None = None
    workflow: str | None = None
    # Flow control admits rows, by their ids.
    task_id: UUID | None = None
    # Processes died while they worked on it, more than once.
    suspect: bool = False


class Placement(NamedTuple):
    """The agent chosen, and why, where there was a choice (JSON for people)."""

    agent: str
    routing: bytes | None = None


@dataclass(frozen=True)
class WaitReasons:
    """Why a task has no agent: what holds up the task whatever agent it might go to, how many instances serve its type,
    and what speaks against each of their agents; against `more` agents, no reason is given."""

    task_type: str
    task: str | None = None
    instances: int = 0
    agents: Mapping[str, str] = field(default_factory=dict)
    more: int = 0

    def __str__(self) -> str:
        """One sentence, of a bounded length."""
        parts = [] if self.task is None else [self.task]
        if not self.instances:
            parts.append(f"nobody serves '{self.task_type}'")
        elif self.agents:
            instances = f"{self.instances} instance{'' if self.instances == 1 else 's'}"
            serving = len(self.agents) + self.more
            agents = f"{serving} agent{'' if serving == 1 else 's'}"
            serve = "serves" if self.instances == 1 else "serve"
            parts.append(f"{instances} of {agents} {serve} '{self.task_type}'")
        parts += [f"{agent}: {reason}" for agent, reason in islice(self.agents.items(), SENTENCE_AGENTS)]
        if (more := len(self.agents) - SENTENCE_AGENTS + self.more) > 0:
            parts.append(f"and {more} more")
        return "; ".join(parts)

    def shown(self) -> dict[str, Any]:
        """The same as values, for programs."""
        values: dict[str, Any] = {"task_type": self.task_type, "instances": self.instances}
        if self.task is not None:
            values["task"] = self.task
        values["agents"] = dict(islice(self.agents.items(), DETAILS_AGENTS))
        if (more := len(self.agents) - DETAILS_AGENTS + self.more) > 0:
            values["more"] = more
        return values


class Directory(Protocol):
    """What a transition asks of the world: which agent gets a task now, and which workflows there are."""

    def choose(self, request: RouteRequest) -> Placement | None:
        """The agent to send a task to, or None while none has a slot for it."""

    def served(self, request: RouteRequest) -> bool:
        """Whether any agent could take such a task, now or when it has a slot again."""

    def responsive(self, request: RouteRequest) -> bool:
        """Whether an agent that takes tasks from its queue could take such a task."""

    def wait_reasons(self, request: RouteRequest) -> WaitReasons:
        """Why no agent takes such a task now."""

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
    """What one batch of run events comes to, for one run."""

    made: list[Row] = field(default_factory=list)
    changed: dict[UUID, Row] = field(default_factory=dict)
    # Delegated tasks that ended: the agents that delegated them wait for the responses.
    responses: list[Row] = field(default_factory=list)
    # The outcomes of operations on this run, by the operation's id.
    outcomes: dict[UUID, dict[str, Any] | ErrorInfo] = field(default_factory=dict)
    # Rows whose attempt is to be published.
    dispatched: dict[UUID, Row] = field(default_factory=dict)
    # Flow control: agents at which a slot was taken, and is not needed after all.
    released: list[str] = field(default_factory=list)
    # Attempts to be stopped at their agents: agent, task, attempt, reason.
    stopped: list[tuple[str, UUID, int, str]] = field(default_factory=list)
    events: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    root_ended: bool = False
    # When all this happened.
    at: datetime | None = None
    # When the run is to be checked again, whatever happens until then: retries, waits for an agent, timeouts.
    wake_at: list[datetime] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        return not self.made and not self.changed
