"""AgentHealth: what this orchestrator has seen of each agent, by task type: response times, failures, circuits.

A circuit (closed, open, half-open) keeps tasks of a type from an agent that only fails at them; its other types go on,
and a probe is a task of the failing type. Averages fade with time, so that an agent that was repaired is not judged by
its past.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from protocol.messages import TaskResponse

# The weight of the newest response in the moving averages: about the last twenty count.
WEIGHT = 0.1
# A circuit opens after this many failures in a row, and after this wait lets one task through, to see.
OPEN_AFTER_FAILURES = 5
OPEN_SECONDS = 10.0
# A failure rate that nothing has confirmed halves in this time. A response time is good for as long, and halves in it
# then: an agent that was slow once (a model that was loaded) would get nothing any more that could show it to be fast.
FORGET_HALF_SECONDS = 60.0

# An instance that did well within this time is taken to do well, while it does not only fail.
WELL_SECONDS = 60.0
# More instances than these are forgotten when they are old.
MANY_INSTANCES = 256

CircuitState = Literal["closed", "open", "half_open"]


@dataclass
class Circuit:
    """Failures in a row, and since when it is open; for `open_seconds` it admits nothing. `probed_at`: when a task was
    let through to see whether it works again; if no response comes, another is."""

    open_seconds: float = OPEN_SECONDS
    failures: int = 0
    opened_at: float | None = None
    probed_at: float | None = None

    def state(self, now: float) -> CircuitState:
        if self.opened_at is None:
            return "closed"
        return "half_open" if now - self.opened_at >= self.open_seconds else "open"

    def admits(self, now: float) -> bool:
        state = self.state(now)
        if state == "half_open":
            return self.probed_at is None or now - self.probed_at >= self.open_seconds
        return state == "closed"

    def succeeded(self) -> None:
        self.failures, self.opened_at, self.probed_at = 0, None, None

    def failed(self, now: float, *, may_open: bool = True) -> None:
        """`may_open`: the agent fails, not one of its instances alone."""
        self.failures += 1
        self.probed_at = None
        if self.failures >= OPEN_AFTER_FAILURES and may_open:
            self.opened_at = now


@dataclass
class ResponseTime:
    """A moving average, and when it was last confirmed."""

    milliseconds: float
    at: float

    def remembered(self, now: float) -> float:
        """How much of it still counts, 0 to 1."""
        unconfirmed = now - self.at - FORGET_HALF_SECONDS
        return 1.0 if unconfirmed <= 0.0 else float(0.5 ** (unconfirmed / FORGET_HALF_SECONDS))

    def learn(self, milliseconds: float, now: float) -> None:
        kept = (1 - WEIGHT) * self.remembered(now)
        self.milliseconds, self.at = self.milliseconds * kept + milliseconds * (1 - kept), now


# What health is kept by: an agent, and a task type that it serves.
HealthKey = tuple[str, str]


@dataclass
class TaskTypeHealth:
    circuit: Circuit
    response_ms: ResponseTime | None = None
    failure_rate: float = 0.0
    judged_at: float = 0.0
    # When each instance last did well, and how often each has failed since.
    well: dict[str, float] = field(default_factory=dict)
    failing: dict[str, int] = field(default_factory=dict)

    def others_do_well(self, instance: str, now: float) -> bool:
        """Whether another instance of the agent did well not long ago, and does not only fail since."""
        return any(
            now - at < WELL_SECONDS and self.failing.get(other, 0) < OPEN_AFTER_FAILURES
            for other, at in self.well.items()
            if other != instance
        )

    def forget_old(self, now: float) -> None:
        self.well = {instance: at for instance, at in self.well.items() if now - at < WELL_SECONDS}
        self.failing = {instance: count for instance, count in self.failing.items() if instance in self.well}


class Probes(Protocol):
    """Which process lets a task through a half-open circuit, for all of them: see `shared_circuits.ProbeClaims`."""

    def may_probe(self, key: HealthKey) -> bool: ...
    def probed(self, key: HealthKey) -> None: ...


class CircuitNews:
    """Circuits that this process opened or closed, by what it saw itself, until other processes have been informed."""

    def __init__(self) -> None:
        self.states: dict[HealthKey, CircuitState] = {}
        self.changed = asyncio.Event()

    def note(self, key: HealthKey, state: CircuitState) -> None:
        self.states[key] = state
        self.changed.set()


class AgentHealth:
    """One process's own experience; `clock` in seconds, for tests. Without `probes` each process probes for itself."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        probes: Probes | None = None,
        open_seconds: float = OPEN_SECONDS,
    ) -> None:
        self._open_seconds = open_seconds
        self._clock = clock
        self._probes = probes
        self.news = CircuitNews()
        self._health: dict[HealthKey, TaskTypeHealth] = {}

    def _of(self, agent: str, task_type: str) -> TaskTypeHealth:
        key = agent, task_type
        health = self._health.get(key)
        if health is None:
            health = self._health[key] = TaskTypeHealth(Circuit(self._open_seconds))
        return health

    def assigned(self, agent: str, task_type: str) -> None:
        """A task was assigned to the agent; where the circuit is half open, it is the only one."""
        health = self._health.get((agent, task_type))
        if health is None or health.circuit.opened_at is None:
            return
        if health.circuit.state(self._clock()) == "half_open":
            health.circuit.probed_at = self._clock()
            if self._probes is not None:
                self._probes.probed((agent, task_type))

    def judge(self, response: TaskResponse) -> None:
        """Note what a response shows of its agent. That an attempt was stopped, or had a wrong payload, shows nothing
        against the agent, and how fast it refused shows nothing of how fast it works."""
        if response.status == "cancelled":
            return
        took = None
        if response.status == "completed" and response.started_at is not None and response.completed_at is not None:
            took = (response.completed_at - response.started_at).total_seconds() * 1000
        failed = response.status == "failed" and response.error is not None and response.error.retryable
        self.responded(response.agent, response.task_type, took, failed=failed, instance=response.instance_id or "")

    def responded(
        self, agent: str, task_type: str, milliseconds: float | None, *, failed: bool, instance: str = ""
    ) -> None:
        """An attempt ended. `failed` is for failures that speak against the agent: not for a wrong payload. A circuit
        opens when the agent fails, not when one instance does beside others that work: that one takes few by itself."""
        health = self._of(agent, task_type)
        now = self._clock()
        health.failure_rate = self._faded(health, now) * (1 - WEIGHT) + (WEIGHT if failed else 0.0)
        health.judged_at = now
        if failed:
            health.failing[instance] = health.failing.get(instance, 0) + 1
            health.circuit.failed(now, may_open=not health.others_do_well(instance, now))
            if health.circuit.opened_at == now:
                self.news.note((agent, task_type), "open")
            return
        if health.circuit.opened_at is not None:
            self.news.note((agent, task_type), "closed")
        health.circuit.succeeded()
        if health.failing:
            health.failing.pop(instance, None)
        health.well[instance] = now
        if len(health.well) > MANY_INSTANCES:
            health.forget_old(now)
        if milliseconds is not None:
            if health.response_ms is None:
                health.response_ms = ResponseTime(milliseconds, now)
            health.response_ms.learn(milliseconds, now)

    @staticmethod
    def _faded(health: TaskTypeHealth, now: float) -> float:
        if health.failure_rate == 0.0:
            return 0.0
        return float(health.failure_rate * 0.5 ** ((now - health.judged_at) / FORGET_HALF_SECONDS))

    def response_ms(self, agent: str, task_type: str) -> float | None:
        health = self._health.get((agent, task_type))
        if health is None or health.response_ms is None:
            return None
        return health.response_ms.milliseconds * health.response_ms.remembered(self._clock())

    def failure_rate(self, agent: str, task_type: str) -> float:
        health = self._health.get((agent, task_type))
        return 0.0 if health is None else self._faded(health, self._clock())

    def admits(self, agent: str, task_type: str) -> bool:
        health = self._health.get((agent, task_type))
        if health is None or health.circuit.opened_at is None:
            return True
        if not health.circuit.admits(self._clock()):
            return False
        return self._probes is None or self._probes.may_probe((agent, task_type))

    def circuit(self, agent: str, task_type: str) -> CircuitState:
        health = self._health.get((agent, task_type))
        return "closed" if health is None else health.circuit.state(self._clock())

    # -- what other orchestrators found out ---------------------------------------------------------------------------

    def open_for(self, agent: str, task_type: str) -> float:
        """For how many seconds more news of a circuit are worth sharing."""
        opened_at = self._of(agent, task_type).circuit.opened_at
        return self._open_seconds if opened_at is None else max(0.001, self._open_seconds - (self._clock() - opened_at))

    def learn_open(self, agent: str, task_type: str, seconds: float) -> None:
        """Another process has opened a circuit, for so many seconds more."""
        circuit = self._of(agent, task_type).circuit
        if circuit.state(self._clock()) != "open":
            circuit.opened_at = self._clock() - self._open_seconds + min(seconds, self._open_seconds)
            circuit.failures = max(circuit.failures, OPEN_AFTER_FAILURES)
            circuit.probed_at = None

    def learn_closed(self, agent: str, task_type: str) -> bool:
        """Another process has seen an agent work again; whether that is news."""
        health = self._health.get((agent, task_type))
        news = health is not None and health.circuit.opened_at is not None
        if health is not None and news:
            health.circuit.succeeded()
        return news
