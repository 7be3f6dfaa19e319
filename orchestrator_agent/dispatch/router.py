"""Router: which agent gets a task: scored by load, response time and failures, within what the step requires.

Scores are a function of what is known now; nothing here does I/O. Lower is better:
`load + response_time / RESPONSE_SCALE + FAILURE_WEIGHT * failure_rate`, then chance among near equals. Where many
agents serve a type, some of those that have slots are scored (`shortlist`), so that a decision costs the same whatever
their number.
"""

import bisect
import hashlib
import heapq
import math
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from itertools import islice
from random import Random
from typing import Protocol

from orchestrator_agent.dispatch.shortlist import ALL, Shortlist
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
# A note of why an agent was chosen has so many others, at most so many bytes, and so much of a sticky text; a wait's
# reasons name so many agents.
NOTED_OTHERS = 3
NOTE_BYTES = 1024
NOTED_CHARS = 200
SHOWN_AGENTS = 20
# Texts of sticky tasks whose agents are remembered, and how many agents for each: the first that can take tasks counts.
STICKY_TEXTS = 4096
STICKY_AGENTS = 8
# Shortlists that are kept: one for each task type and requirements.
SHORTLISTS = 256
# Agents whose instances are remembered as they are listed.
KNOWN_AGENTS = 20_000
# Of room, more than a batch of rows is not needed.
ROOM_LIMIT = 256


class LiveInstances(Protocol):
    """What routing reads of discovery's registry."""

    def serving(self, task_type: str) -> Sequence[str]: ...
    def instances(self, agent: str | None = None) -> Sequence[InstanceRecord]: ...
    def task_types(self) -> frozenset[str]: ...


class Experience(Protocol):
    """What this process has seen of an agent: see `agent_health.AgentHealth`."""

    def response_ms(self, agent: str, task_type: str) -> float | None: ...
    def failure_rate(self, agent: str, task_type: str) -> float: ...
    def admits(self, agent: str, task_type: str) -> bool: ...
    def circuit(self, agent: str, task_type: str) -> str: ...
    def open_for(self, agent: str, task_type: str) -> float: ...
    def assigned(self, agent: str, task_type: str) -> None: ...


class AdmissionPolicy(Protocol):
    """Flow control, as routing sees it: see `admission.Admission`."""

    def admits(self, request: RouteRequest) -> bool: ...
    def limited(self, request: RouteRequest) -> bool: ...
    def room(self, agent: str) -> int: ...
    def full(self, agent: str) -> str: ...
    def has_suspect(self, agent: str) -> bool: ...
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

    def has_suspect(self, agent: str) -> bool:
        return False

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
    UNRESPONSIVE = auto()  # it takes nothing from its queue


@dataclass(slots=True)
class Candidate:
    """An agent that serves a task type, as a decision sees it. `excluded` is why it cannot be chosen."""

    agent: str
    capacity: int
    outstanding: int
    response_ms: float | None
    failure_rate: float
    bar: Bar | None = None
    excluded: str | None = None

    @property
    def barred(self) -> bool:
        return self.bar is not None

    def barred_by(self, bar: Bar, reason: str) -> "Candidate":
        return replace(self, bar=bar, excluded=reason)

    def score(self, avoid: str | None) -> float:
        load = self.outstanding / max(1, self.capacity)
        slow = (self.response_ms or 0.0) / RESPONSE_SCALE_MS
        penalty = AVOID_PENALTY if self.agent == avoid else 0.0
        return load + slow + FAILURE_WEIGHT * self.failure_rate + penalty

    def shown(self, score: float) -> str:
        """JSON, put together by hand, as it is made at each decision: the name of an agent needs no escapes."""
        slow = "" if self.response_ms is None else f',"response_ms":{self.response_ms:.1f}'
        why = "" if self.excluded is None else f',"excluded":{json_bytes(self.excluded).decode()}'
        return (
            f'{{"agent":"{self.agent}","score":{score:.3f},"outstanding":{self.outstanding},'
            f'"capacity":{self.capacity},"failure_rate":{self.failure_rate:.3f}{slow}{why}}}'
        )


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


def _note(
    request: RouteRequest,
    chosen: Candidate,
    candidates: Sequence[Candidate],
    serving: int,
    requires: Requires | None,
    unmet: str | None,
) -> bytes:
    """Why an agent was chosen: the others that were weighed, best first, as far as `NOTE_BYTES`, and of how many; of
    requirements that are soft, whether it meets them."""
    avoid = request.avoid
    others = [(candidate.barred, candidate.score(avoid), candidate) for candidate in candidates]
    others.sort(key=_rank)
    shown = [chosen.shown(chosen.score(avoid))]
    shown += [candidate.shown(score) for _, score, candidate in others if candidate is not chosen][:NOTED_OTHERS]
    end = "" if avoid is None else f',"avoided":"{avoid}"'
    if request.sticky is not None:
        end += f',"sticky":{json_bytes(request.sticky[:NOTED_CHARS]).decode()}'
    if requires is not None and not requires.strict:
        end += ',"met":true' if unmet is None else f',"met":false,"unmet":{json_bytes(unmet[:NOTED_CHARS]).decode()}'
    while True:
        number = f',"serving":{serving}' if serving > len(shown) else ""
        note = f'{{"chosen":"{chosen.agent}","candidates":[{",".join(shown)}]{number}{end}}}'.encode()
        if len(note) <= NOTE_BYTES or not shown:
            return note
        shown.pop()


def _rank(candidate: tuple[bool, float, Candidate]) -> tuple[bool, float]:
    return candidate[:2]


def _among(names: Sequence[str], name: str) -> bool:
    """Whether a name is one of the sorted `names`."""
    at = bisect.bisect_left(names, name)
    return at < len(names) and names[at] == name


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
    """The engine's Directory, over the registry, what this process has seen of agents, and the library.

    `unresponsive` agents are registered and take nothing from their queues, with the reason: see `lost_agents`.
    """

    registry: LiveInstances
    library: Library
    experience: Experience
    pauses: Pauses = field(default_factory=Pauses)
    admission: AdmissionPolicy = field(default_factory=AdmitAll)
    random: Random = field(default_factory=Random)
    unresponsive: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Those of each agent, as the registry lists them now, and what they are by task type.
        self._instances: dict[
            str, tuple[Sequence[InstanceRecord], dict[str, tuple[int, Sequence[InstanceRecord]]]]
        ] = {}
        self._shortlists: OrderedDict[tuple[str, str | None], Shortlist[Candidate]] = OrderedDict()
        self._sticky: OrderedDict[tuple[str, str], tuple[Sequence[str], list[str]]] = OrderedDict()

    def candidates(self, request: RouteRequest) -> Iterator[Candidate]:
        """Every agent that serves the task's type, one after the other."""
        for agent in self.agents(request.task_type, request.pinned_agent):
            yield self._candidate(request, agent)

    def _candidate(self, request: RouteRequest, agent: str) -> Candidate:
        task_type = request.task_type
        capacity, ready = self._ready(agent, task_type)
        candidate = Candidate(
            agent,
            capacity,
            self.admission.at_work(agent),
            self.experience.response_ms(agent, task_type),
            self.experience.failure_rate(agent, task_type),
        )
        return self._judged(request, candidate, ready)

    def _ready(self, agent: str, task_type: str) -> tuple[int, Sequence[InstanceRecord]]:
        """The instances of an agent that take tasks of a type, and how many tasks they work on at once; draining ones
        where there are no others."""
        listed = self.registry.instances(agent)
        known = self._instances.get(agent)
        if known is None or known[0] is not listed:
            if len(self._instances) >= KNOWN_AGENTS:
                # Names that are gone: those that are there are known again at once.
                self._instances.clear()
            known = self._instances[agent] = listed, {}
        found = known[1].get(task_type)
        if found is None:
            records = [record for record in listed if task_type in record.task_types]
            ready = [record for record in records if record.status == "ready"] or records
            found = known[1][task_type] = sum(record.max_concurrency for record in ready), ready
        return found

    def _scored(self, request: RouteRequest) -> tuple[list[Candidate], int]:
        """The candidates that a decision weighs, and of how many."""
        agents = self.agents(request.task_type, request.pinned_agent)
        if len(agents) <= ALL:
            return [self._candidate(request, agent) for agent in agents], len(agents)
        if request.sticky is not None:
            ranked = self._ranked(request.task_type, request.sticky, agents)
            found = [self._candidate(request, agent) for agent in ranked]
            if any(candidate.bar in (None, Bar.FULL) for candidate in found):
                return found, len(agents)
            return [self._candidate(request, agent) for agent in agents], len(agents)
        return self._shortlist(request, agents).draw(lambda agent: self._candidate(request, agent)), len(agents)

    def _ranked(self, task_type: str, sticky: str, agents: Sequence[str]) -> list[str]:
        """The agents that a sticky text leads to, the first choice first."""
        key = (task_type, sticky)
        known = self._sticky.get(key)
        if known is not None and known[0] is agents:
            self._sticky.move_to_end(key)
            return known[1]
        ranked = heapq.nlargest(STICKY_AGENTS, agents, key=lambda agent: _weight(sticky, agent))
        self._sticky[key] = agents, ranked
        if len(self._sticky) > STICKY_TEXTS:
            self._sticky.popitem(last=False)
        return ranked

    def _shortlist(self, request: RouteRequest, agents: Sequence[str]) -> Shortlist[Candidate]:
        key = (request.task_type, None if request.requires is None else request.requires.model_dump_json())
        known = self._shortlists.get(key)
        if known is not None and known.names is agents:
            self._shortlists.move_to_end(key)
            return known
        made = self._shortlists[key] = Shortlist(agents, self.random)
        if len(self._shortlists) > SHORTLISTS:
            self._shortlists.popitem(last=False)
        return made

    def slot_freed(self, agent: str) -> None:
        """A slot of an agent is free again."""
        for shortlist in self._shortlists.values():
            shortlist.slot_freed(agent)

    def _judged(self, request: RouteRequest, candidate: Candidate, records: Collection[InstanceRecord]) -> Candidate:
        agent = candidate.agent
        # First what will not change: no task should wait for the end of a pause that would not help it.
        if request.requires is not None and (reason := unfit(request.requires, records, candidate)) is not None:
            return candidate.barred_by(Bar.UNFIT, reason)
        if agent in self.pauses.agents:
            return candidate.barred_by(Bar.PAUSED, "it is paused")
        if (reason := self.unresponsive.get(agent)) is not None:
            return candidate.barred_by(Bar.UNRESPONSIVE, reason)
        task_type = request.task_type
        if not self.experience.admits(agent, task_type):
            if self.experience.circuit(agent, task_type) == "open":
                seconds = math.ceil(self.experience.open_for(agent, task_type))
                return candidate.barred_by(Bar.BROKEN, f"its circuit is open for {seconds} s more")
            return candidate.barred_by(Bar.BROKEN, "its circuit is half open, and one task tries it")
        if self.admission.room(agent) <= 0:
            return candidate.barred_by(Bar.FULL, self.admission.full(agent))
        if request.suspect and self.admission.has_suspect(agent):
            return candidate.barred_by(Bar.FULL, "it works on another task that processes died on")
        return candidate

    def choose(self, request: RouteRequest) -> Placement | None:
        if request.workflow is not None and request.workflow in self.pauses.workflows:
            return None
        if not self.admission.admits(request):
            return None
        requires = request.requires
        agents = self.registry.serving(request.task_type)
        if len(agents) == 1 and requires is None and not (self.pauses.agents or self.unresponsive or request.suspect):
            # One agent and nothing to weigh: the common case costs no list of candidates.
            agent = agents[0]
            fits = agent != ORCHESTRATOR and request.pinned_agent in (None, agent)
            if not fits or not self.experience.admits(agent, request.task_type) or self.admission.room(agent) <= 0:
                return None
            self._assign(request, agent)
            return Placement(agent)
        placement = self._chosen(request, requires)
        if placement is None and requires is not None and not requires.strict:
            placement = self._chosen(request._replace(requires=None), requires)
        return placement

    def _chosen(self, request: RouteRequest, requires: Requires | None) -> Placement | None:
        """`requires` is what the step asks for, `request.requires` what holds for this choice."""
        candidates, serving = self._scored(request)
        chosen = choose(candidates, avoid=request.avoid, sticky=request.sticky, draw=self.random.random())
        if chosen is None:
            return None
        self._assign(request, chosen.agent)
        if serving == 1 and requires is None:
            return Placement(chosen.agent)
        unmet = None
        if requires is not None and request.requires is None:
            unmet = unfit(requires, self._ready(chosen.agent, request.task_type)[1], chosen)
        return Placement(chosen.agent, _note(request, chosen, candidates, serving, requires, unmet))

    def _assign(self, request: RouteRequest, agent: str) -> None:
        self.admission.assigned(request, agent)
        self.experience.assigned(agent, request.task_type)

    def served(self, request: RouteRequest) -> bool:
        if request.workflow is not None and request.workflow in self.pauses.workflows:
            return True
        if request.requires is None or not request.requires.strict:
            return bool(self.agents(request.task_type, request.pinned_agent))
        # Busy, paused and broken agents will take tasks again; those that do not fit will not.
        return any(candidate.bar is not Bar.UNFIT for candidate in self.candidates(request))

    def responsive(self, request: RouteRequest) -> bool:
        """See `engine.decisions.Directory`."""
        if request.requires is not None and not request.requires.strict:
            request = request._replace(requires=None)
        return any(candidate.bar not in (Bar.UNFIT, Bar.UNRESPONSIVE) for candidate in self.candidates(request))

    def wait_reasons(self, request: RouteRequest) -> WaitReasons:
        """See `engine.decisions.Directory`."""
        if request.requires is not None and not request.requires.strict:
            request = request._replace(requires=None)
        serving = self.agents(request.task_type, None)
        records = (record for agent in serving for record in self.registry.instances(agent))
        instances = sum(request.task_type in record.task_types for record in records)
        # Free, and not chosen: other rows are before this one in its queue, or its text leads to another agent.
        free = "it has a place for who is next in line" if request.sticky is None else "the task keeps to another one"
        shown = islice(self.candidates(request), SHOWN_AGENTS)
        reasons = {candidate.agent: candidate.excluded or free for candidate in shown}
        if request.pinned_agent is not None:
            named = f"the step names '{request.pinned_agent}'"
            others = (agent for agent in serving if agent != request.pinned_agent)
            reasons |= dict.fromkeys(islice(others, SHOWN_AGENTS - len(reasons)), named)
        more = len(serving) - len(reasons)
        return WaitReasons(request.task_type, self._holds_up(request, serving), instances, reasons, more)

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
        """How many tasks of a type may be dispatched now; of very many agents, as far as `ROOM_LIMIT`."""
        agents = self.agents(task_type, pinned_agent)
        if len(agents) <= ALL:
            return sum(self._room_of(agent, task_type) for agent in agents)
        shortlist = self._shortlist(RouteRequest(task_type), agents)
        return shortlist.room(lambda agent: self._room_of(agent, task_type), ROOM_LIMIT)

    def _room_of(self, agent: str, task_type: str) -> int:
        if agent in self.pauses.agents or agent in self.unresponsive or not self.experience.admits(agent, task_type):
            return 0
        slots = max(0, self.admission.room(agent))
        return min(1, slots) if self.experience.circuit(agent, task_type) == "half_open" else slots

    def agents(self, task_type: str, pinned_agent: str | None) -> Sequence[str]:
        """The agents that serve a task type now; the same tuple as long as they are the same."""
        serving = self.registry.serving(task_type)
        if pinned_agent is not None:
            return (pinned_agent,) if _among(serving, pinned_agent) and pinned_agent != ORCHESTRATOR else ()
        if _among(serving, ORCHESTRATOR):
            return tuple(agent for agent in serving if agent != ORCHESTRATOR)
        return serving

    def servable(self) -> frozenset[str]:
        """The task types of rows that may be dispatched now."""
        return self.registry.task_types()

    def workflow(self, name: str) -> Plan | None:
        return self.library.newest(name)
