"""Routing: which agent gets a task: scored by load, response time and failures, within what the step requires.

Scores are a function of what is known now; nothing here does I/O. Lower is better:
`load + response_time / RESPONSE_SCALE + FAILURE_WEIGHT * failure_rate`, then chance among near equals.
"""

import hashlib
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from orchestrator_agent.engine.decisions import Placement, Wanted
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
    """What has been seen of an agent: see `standing.Standings`."""

    def response_ms(self, agent: str, task_type: str) -> float | None: ...
    def failure_rate(self, agent: str) -> float: ...
    def outstanding(self, agent: str) -> int: ...
    def admits(self, agent: str) -> bool: ...
    def circuit(self, agent: str) -> str: ...
    def placed(self, agent: str) -> None: ...


class Admission(Protocol):
    """Flow control, as routing sees it: see `flow.gate.Gate`."""

    def admits(self, wanted: Wanted) -> bool: ...
    def room(self, agent: str) -> int: ...
    def passed(self, wanted: Wanted, agent: str) -> None: ...


class Open:
    """No flow control: everything passes."""

    def admits(self, wanted: Wanted) -> bool:
        return True

    def room(self, agent: str) -> int:
        return 1

    def passed(self, wanted: Wanted, agent: str) -> None: ...


# More than any window holds.
FREELY = 1_000_000
# Why an agent gets nothing now, but will take tasks again.
PAUSED = "it is paused"
OPEN_CIRCUIT = "its circuit is open"
FULL = "its window is full"
PASSING = (None, PAUSED, OPEN_CIRCUIT, FULL)


@dataclass(frozen=True)
class Candidate:
    """One agent that serves a task type, as a decision sees it. `excluded` says why it cannot be chosen."""

    agent: str
    capacity: int
    outstanding: int
    response_ms: float | None
    failure_rate: float
    excluded: str | None = None

    def score(self, avoid: str | None) -> float:
        load = self.outstanding / max(1, self.capacity)
        slow = (self.response_ms or 0.0) / RESPONSE_SCALE_MS
        penalty = AVOID_PENALTY if self.agent == avoid else 0.0
        return load + slow + FAILURE_WEIGHT * self.failure_rate + penalty

    def shown(self, avoid: str | None) -> dict[str, Any]:
        told: dict[str, Any] = {
            "agent": self.agent,
            "score": round(self.score(avoid), 3),
            "outstanding": self.outstanding,
            "capacity": self.capacity,
            "failure_rate": round(self.failure_rate, 3),
        }
        if self.response_ms is not None:
            told["response_ms"] = round(self.response_ms, 1)
        if self.excluded is not None:
            told["excluded"] = self.excluded
        return told


def choose(candidates: Sequence[Candidate], *, avoid: str | None, sticky: str | None, draw: float) -> Candidate | None:
    """The best candidate that is not excluded; with `sticky`, the one that the text always gives (rendezvous hashing,
    Thaler and Ravishankar 1998). `draw` in 0..1 decides among near equals."""
    if sticky is not None:
        # An agent that is only full is waited for.
        there = [one for one in candidates if one.excluded in (None, FULL)]
        chosen = max(there, key=lambda one: _weight(sticky, one.agent), default=None)
        return chosen if chosen is not None and chosen.excluded is None else None
    possible = [one for one in candidates if one.excluded is None]
    if not possible:
        return None
    scores = [(one.score(avoid), one) for one in possible]
    best = min(score for score, _ in scores)
    near = [one for score, one in scores if score <= best + NEAR]
    total = sum(one.capacity for one in near)
    mark = draw * total
    for one in near:
        mark -= one.capacity
        if mark < 0:
            return one
    return near[-1]


def _weight(sticky: str, agent: str) -> bytes:
    return hashlib.blake2b(f"{sticky}\0{agent}".encode(), digest_size=8).digest()


def unfit(requires: Requires, records: Collection[InstanceRecord], candidate: Candidate) -> str | None:
    """Why an agent does not meet what a step requires, or None."""
    if requires.model is not None and not any(one.metadata.get("model") == requires.model for one in records):
        return f"no instance has model '{requires.model}'"
    for tag in requires.tags:
        if not any(tag in _tags(one.metadata) for one in records):
            return f"no instance has tag '{tag}'"
    limit = requires.max_response_ms
    if limit is not None and candidate.response_ms is not None and candidate.response_ms > limit:
        return f"it answers in {candidate.response_ms:.0f} ms, {limit:.0f} ms are required"
    reliability = 1 - candidate.failure_rate
    if requires.min_reliability is not None and reliability < requires.min_reliability:
        return f"its reliability is {reliability:.2f}, {requires.min_reliability:.2f} is required"
    return None


def _tags(metadata: Mapping[str, str]) -> set[str]:
    return {one.strip() for one in metadata.get("tags", "").split(",")}


@dataclass
class Pauses:
    """Workflows and agents that people have paused; kept current by the reconciler, and by who pauses here."""

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
    """The engine's Directory over the registry, what has been seen of agents, and the library."""

    registry: LiveInstances
    library: Library
    experience: Experience
    pauses: Pauses = field(default_factory=Pauses)
    gate: Admission = field(default_factory=Open)

    def candidates(self, wanted: Wanted) -> list[Candidate]:
        found = []
        for agent in self.registry.serving(wanted.task_type):
            if agent == ORCHESTRATOR or (wanted.pinned_agent is not None and agent != wanted.pinned_agent):
                continue
            records = [one for one in self.registry.instances(agent) if wanted.task_type in one.task_types]
            ready = [one for one in records if one.status == "ready"] or records
            candidate = Candidate(
                agent=agent,
                capacity=sum(one.max_concurrency for one in ready),
                outstanding=self.experience.outstanding(agent),
                response_ms=self.experience.response_ms(agent, wanted.task_type),
                failure_rate=self.experience.failure_rate(agent),
            )
            excluded = None
            if agent in self.pauses.agents:
                excluded = PAUSED
            elif not self.experience.admits(agent):
                excluded = OPEN_CIRCUIT
            elif wanted.requires is not None:
                excluded = unfit(wanted.requires, ready, candidate)
            if excluded is None and self.gate.room(agent) <= 0:
                excluded = FULL
            found.append(candidate if excluded is None else _excluded(candidate, excluded))
        return found

    def place(self, wanted: Wanted) -> Placement | None:
        if wanted.workflow is not None and wanted.workflow in self.pauses.workflows:
            return None
        if not self.gate.admits(wanted):
            return None
        agents = self.registry.serving(wanted.task_type)
        if len(agents) == 1 and wanted.requires is None and not self.pauses.agents:
            # One agent and nothing to weigh: the common case costs no list of candidates.
            agent = agents[0]
            fits = agent != ORCHESTRATOR and wanted.pinned_agent in (None, agent)
            if not fits or not self.experience.admits(agent) or self.gate.room(agent) <= 0:
                return None
            self._placed(wanted, agent)
            return Placement(agent)
        candidates = self.candidates(wanted)
        chosen = choose(candidates, avoid=wanted.avoid, sticky=wanted.sticky, draw=random.random())
        if chosen is None:
            return None
        self._placed(wanted, chosen.agent)
        told = {"chosen": chosen.agent, "candidates": [one.shown(wanted.avoid) for one in candidates]}
        if wanted.avoid is not None:
            told["avoided"] = wanted.avoid
        if wanted.sticky is not None:
            told["sticky"] = wanted.sticky
        return Placement(chosen.agent, json_bytes(told) if len(candidates) > 1 or wanted.requires else None)

    def _placed(self, wanted: Wanted, agent: str) -> None:
        self.gate.passed(wanted, agent)
        self.experience.placed(agent)

    def served(self, wanted: Wanted) -> bool:
        if wanted.workflow is not None and wanted.workflow in self.pauses.workflows:
            return True
        # Busy, paused and broken agents will take tasks again; those that do not fit will not.
        return any(one.excluded in PASSING for one in self.candidates(wanted))

    def room(self, task_type: str, pinned_agent: str | None) -> int:
        """How many tasks of a type may find a place now."""
        return sum(
            max(0, min(self.gate.room(agent), 1 if self.experience.circuit(agent) == "half_open" else FREELY))
            for agent in self.registry.serving(task_type)
            if agent != ORCHESTRATOR
            and pinned_agent in (None, agent)
            and agent not in self.pauses.agents
            and self.experience.admits(agent)
        )

    def agents(self, task_type: str, pinned_agent: str | None) -> tuple[str, ...]:
        """Who serves a task type now."""
        return tuple(
            agent
            for agent in self.registry.serving(task_type)
            if agent != ORCHESTRATOR and pinned_agent in (None, agent)
        )

    def servable(self) -> frozenset[str]:
        """The task types of rows that may find a place now."""
        return self.registry.task_types()

    def workflow(self, name: str) -> Plan | None:
        return self.library.newest(name)


def _excluded(candidate: Candidate, reason: str) -> Candidate:
    return Candidate(
        agent=candidate.agent,
        capacity=candidate.capacity,
        outstanding=candidate.outstanding,
        response_ms=candidate.response_ms,
        failure_rate=candidate.failure_rate,
        excluded=reason,
    )
