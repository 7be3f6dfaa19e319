"""Router: which agent gets a task: scored by load, response time and failures, within what the step requires.

Scores are a function of what is known now; nothing here does I/O. Lower is better:
`load + response_time / RESPONSE_SCALE + FAILURE_WEIGHT * failure_rate`, then chance among near equals.
"""

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from random import Random
from typing import Any, Protocol

from orchestrator_agent.engine.decisions import Placement, RouteRequest, WaitReasons
from orchestrator_agent.workflows.library import Library
from orchestrator_agent.workflows.plan import Plan
from protocol.discovery import InstanceRecord
from protocol.messages import json_bytes
from protocol.names import ORCHESTRATOR
from protocol.workflow import Requires

# A second of response time counts as much as a fully loaded agent; a failure rate of one half as much again.
RESPONSE_SCALE_MS = 1000.0
FAILURE_WEIGHT = 2.0
# An agent that the last attempt failed at is taken again only if the others are this much worse.
AVOID_PENALTY = 10.0
# Scores this near to the best are equals: without chance among them, every orchestrator would choose the same one.
NEAR = 0.05


class LiveInstances(Protocol):
    """What routing reads of discovery's registry."""

    def serving(self, task_type: str) -> Sequence[str]: ...
    def instances(self, agent: str | None = None) -> Sequence[InstanceRecord]: ...
    def task_types(self) -> frozenset[str]: ...


class Experience(Protocol):
    """What this process has seen of an agent: see `agent_health.AgentHealth`."""

    def response_ms(self, agent: str, task_type: str) -> float | None: ...
    def failure_rate(self, agent: str) -> float: ...
    def admits(self, agent: str) -> bool: ...
    def circuit(self, agent: str) -> str: ...
    def open_for(self, agent: str) -> float: ...
    def assigned(self, agent: str) -> None: ...


class AdmissionPolicy(Protocol):
    """Flow control, as routing sees it: see `admission.Admission`."""

    def admits(self, request: RouteRequest) -> bool: ...
    def limited(self, request: RouteRequest) -> bool: ...
    def room(self, agent: str) -> int: ...
    def full(self, agent: str) -> str: ...
    def at_work(self, agent: str) -> int: ...
    def assigned(self, request: RouteRequest, agent: str) -> None: ...


class AdmitAll:
    """No flow control: every task is admitted."""

    def admits(self, request: RouteRequest) -> bool:
        return True

    def limited(self, request: RouteRequest) -> bool:
        return False

    def room(self, agent: str) -> int:
        return 1

    def full(self, agent: str) -> str:
        return ""

    def at_work(self, agent: str) -> int:
        return 0

    def assigned(self, request: RouteRequest, agent: str) -> None: ...


# Of what an agent publishes of itself, which may be long, this much is shown.
SHOWN_CHARS = 60


class Bar(Enum):
    """What keeps an agent from a task."""

    UNFIT = auto()  # it does not meet what the step requires
    # It will take such tasks again, so they wait for it.
    PAUSED = auto()
    BROKEN = auto()  # its circuit is open
    FULL = auto()  # its slots are taken, or its rate limit is reached


@dataclass(frozen=True)
class Candidate:
    """An agent that serves a task type, as a decision sees it. `excluded` is why it cannot be chosen."""

    agent: str
    capacity: int
    outstanding: int
    response_ms: float | None
    failure_rate: float
    bar: Bar | None = None
    excluded: str | None = None

    def barred(self, bar: Bar, reason: str) -> "Candidate":
        return replace(self, bar=bar, excluded=reason)

    def score(self, avoid: str | None) -> float:
        load = self.outstanding / max(1, self.capacity)
        slow = (self.response_ms or 0.0) / RESPONSE_SCALE_MS
        penalty = AVOID_PENALTY if self.agent == avoid else 0.0
        return load + slow + FAILURE_WEIGHT * self.failure_rate + penalty

    def shown(self, avoid: str | None) -> dict[str, Any]:
        values: dict[str, Any] = {
            "agent": self.agent,
            "score": round(self.score(avoid), 3),
            "outstanding": self.outstanding,
            "capacity": self.capacity,
            "failure_rate": round(self.failure_rate, 3),
        }
        if self.response_ms is not None:
            values["response_ms"] = round(self.response_ms, 1)
        if self.excluded is not None:
            values["excluded"] = self.excluded
        return values


def choose(candidates: Sequence[Candidate], *, avoid: str | None, sticky: str | None, draw: float) -> Candidate | None:
    """The best candidate that is not excluded; with `sticky`, the one that the text always leads to (rendezvous
    hashing, Thaler and Ravishankar 1998). `draw` in 0..1 decides among near equals."""
    if sticky is not None:
        # The task waits for an agent that is only full.
        there = [candidate for candidate in candidates if candidate.bar in (None, Bar.FULL)]
        chosen = max(there, key=lambda candidate: _weight(sticky, candidate.agent), default=None)
        return chosen if chosen is not None and chosen.bar is None else None
    possible = [candidate for candidate in candidates if candidate.bar is None]
    if not possible:
        return None
    scores = [(candidate.score(avoid), candidate) for candidate in possible]
    best = min(score for score, _ in scores)
    near = [candidate for score, candidate in scores if score <= best + NEAR]
    mark = draw * sum(candidate.capacity for candidate in near)
    for candidate in near:
        mark -= candidate.capacity
        if mark < 0:
            return candidate
    return near[-1]


def _weight(sticky: str, agent: str) -> bytes:
    return hashlib.blake2b(f"{sticky}\0{agent}".encode(), digest_size=8).digest()


def unfit(requires: Requires, records: Collection[InstanceRecord], candidate: Candidate) -> str | None:
    """Why an agent does not meet what a step requires, or None."""
    models = {record.metadata["model"] for record in records if "model" in record.metadata}
    if requires.model is not None and requires.model not in models:
        has = f"its model is {_quoted(models)}" if models else "it names no model"
        return f"{has}, '{requires.model}' is required"
    for tag in requires.tags:
        if not any(tag in _tags(record.metadata) for record in records):
            tags = {own for record in records for own in _tags(record.metadata)}
            has = f"its tags are {_quoted(tags)}" if tags else "it has no tags"
            return f"{has}, '{tag}' is required"
    limit = requires.max_response_ms
    if limit is not None and candidate.response_ms is not None and candidate.response_ms > limit:
        return f"it answers in {candidate.response_ms:.0f} ms, {limit:.0f} ms are required"
    reliability = 1 - candidate.failure_rate
    if requires.min_reliability is not None and reliability < requires.min_reliability:
        return f"its reliability is {reliability:.2f}, {requires.min_reliability:.2f} is required"
    return None


def _tags(metadata: Mapping[str, str]) -> set[str]:
    return {tag for text in metadata.get("tags", "").split(",") if (tag := text.strip())}


def _quoted(texts: Collection[str]) -> str:
    quoted = ", ".join(f"'{text}'" for text in sorted(texts))
    return quoted if len(quoted) <= SHOWN_CHARS else quoted[:SHOWN_CHARS] + "…"


@dataclass
class Pauses:
    """Workflows and agents that people have paused; kept current by the reconciler, and by operations in this
    process."""

    workflows: frozenset[str] = frozenset()
    agents: frozenset[str] = frozenset()

    def add(self, kind: str, name: str) -> None:
        if kind == "workflow":
            self.workflows |= {name}
        else:
            self.agents |= {name}

    def remove(self, kind: str, name: str) -> None:
        if kind == "workflow":
            self.workflows -= {name}
        else:
            self.agents -= {name}


@dataclass
class Router:
    """The engine's Directory, over the registry, what this process has seen of agents, and the library."""

    registry: LiveInstances
    library: Library
    experience: Experience
    pauses: Pauses = field(default_factory=Pauses)
    admission: AdmissionPolicy = field(default_factory=AdmitAll)
    random: Random = field(default_factory=Random)

    def candidates(self, request: RouteRequest) -> list[Candidate]:
        found = []
        for agent in self.agents(request.task_type, request.pinned_agent):
            records = [record for record in self.registry.instances(agent) if request.task_type in record.task_types]
            ready = [record for record in records if record.status == "ready"] or records
            candidate = Candidate(
                agent=agent,
                capacity=sum(record.max_concurrency for record in ready),
                outstanding=self.admission.at_work(agent),
                response_ms=self.experience.response_ms(agent, request.task_type),
                failure_rate=self.experience.failure_rate(agent),
            )
            found.append(self._judged(request, candidate, ready))
        return found

    def _judged(self, request: RouteRequest, candidate: Candidate, records: Collection[InstanceRecord]) -> Candidate:
        agent = candidate.agent
        # First what will not change: no task should wait for the end of a pause that would not help it.
        if request.requires is not None and (reason := unfit(request.requires, records, candidate)) is not None:
            return candidate.barred(Bar.UNFIT, reason)
        if agent in self.pauses.agents:
            return candidate.barred(Bar.PAUSED, "it is paused")
        if not self.experience.admits(agent):
            if self.experience.circuit(agent) == "open":
                seconds = math.ceil(self.experience.open_for(agent))
                return candidate.barred(Bar.BROKEN, f"its circuit is open for {seconds} s more")
            return candidate.barred(Bar.BROKEN, "its circuit is half open, and one task tries it")
        if self.admission.room(agent) <= 0:
            return candidate.barred(Bar.FULL, self.admission.full(agent))
        return candidate

    def choose(self, request: RouteRequest) -> Placement | None:
        if request.workflow is not None and request.workflow in self.pauses.workflows:
            return None
        if not self.admission.admits(request):
            return None
        agents = self.registry.serving(request.task_type)
        if len(agents) == 1 and request.requires is None and not self.pauses.agents:
            # One agent and nothing to weigh: the common case costs no list of candidates.
            agent = agents[0]
            fits = agent != ORCHESTRATOR and request.pinned_agent in (None, agent)
            if not fits or not self.experience.admits(agent) or self.admission.room(agent) <= 0:
                return None
            self._assign(request, agent)
            return Placement(agent)
        candidates = self.candidates(request)
        chosen = choose(candidates, avoid=request.avoid, sticky=request.sticky, draw=self.random.random())
        if chosen is None:
            return None
        self._assign(request, chosen.agent)
        reasons = {"chosen": chosen.agent, "candidates": [candidate.shown(request.avoid) for candidate in candidates]}
        if request.avoid is not None:
            reasons["avoided"] = request.avoid
        if request.sticky is not None:
            reasons["sticky"] = request.sticky
        return Placement(chosen.agent, json_bytes(reasons) if len(candidates) > 1 or request.requires else None)

    def _assign(self, request: RouteRequest, agent: str) -> None:
        self.admission.assigned(request, agent)
        self.experience.assigned(agent)

    def served(self, request: RouteRequest) -> bool:
        if request.workflow is not None and request.workflow in self.pauses.workflows:
            return True
        # Busy, paused and broken agents will take tasks again; those that do not fit will not.
        return any(candidate.bar is not Bar.UNFIT for candidate in self.candidates(request))

    def wait_reasons(self, request: RouteRequest) -> WaitReasons:
        """See `engine.decisions.Directory`."""
        serving = self.agents(request.task_type, None)
        records = (record for agent in serving for record in self.registry.instances(agent))
        instances = sum(request.task_type in record.task_types for record in records)
        # Free, and not chosen: other rows are before this one in its queue, or its text leads to another agent.
        free = "it has a place for who is next in line" if request.sticky is None else "the task keeps to another one"
        reasons = {candidate.agent: candidate.excluded or free for candidate in self.candidates(request)}
        if request.pinned_agent is not None:
            named = f"the step names '{request.pinned_agent}'"
            reasons |= {agent: named for agent in serving if agent != request.pinned_agent}
        return WaitReasons(request.task_type, self._holds_up(request, serving), instances, reasons)

    def _holds_up(self, request: RouteRequest, serving: Collection[str]) -> str | None:
        """What keeps a task from every agent."""
        if request.workflow is not None and request.workflow in self.pauses.workflows:
            return f"the workflow '{request.workflow}' is paused"
        if self.admission.limited(request):
            return "the rate limit of its requester is reached"
        pinned = request.pinned_agent
        if pinned is None or pinned in serving:
            return None
        there = self.registry.instances(pinned)
        return f"'{pinned}' does not serve it" if there else f"no instance of '{pinned}' is there"

    def room(self, task_type: str, pinned_agent: str | None) -> int:
        """How many tasks of a type may be dispatched now."""
        room = 0
        for agent in self.agents(task_type, pinned_agent):
            if agent not in self.pauses.agents and self.experience.admits(agent):
                slots = max(0, self.admission.room(agent))
                room += min(1, slots) if self.experience.circuit(agent) == "half_open" else slots
        return room

    def agents(self, task_type: str, pinned_agent: str | None) -> tuple[str, ...]:
        """The agents that serve a task type now."""
        return tuple(
            agent
            for agent in self.registry.serving(task_type)
            if agent != ORCHESTRATOR and pinned_agent in (None, agent)
        )

    def servable(self) -> frozenset[str]:
        """The task types of rows that may be dispatched now."""
        return self.registry.task_types()

    def workflow(self, name: str) -> Plan | None:
        return self.library.newest(name)
