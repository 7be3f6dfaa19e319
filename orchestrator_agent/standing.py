"""Standings: what this orchestrator has seen of each agent: answer times, failures, what it has at work; and circuits.

A circuit (closed, open, half-open) keeps tasks from an agent that only fails. Averages fade with time, so that an
agent that was mended is not judged by its past.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

# The weight of the newest answer in the moving averages: about the last twenty count.
WEIGHT = 0.1
# A circuit opens after this many failures in a row, and lets one task through after the wait to see.
OPEN_AFTER_FAILURES = 5
OPEN_SECONDS = 10.0
# A failure rate that nothing has confirmed halves in this time.
FORGET_HALF_SECONDS = 60.0

CircuitState = Literal["closed", "open", "half_open"]


@dataclass
class Circuit:
    """Failures in a row, and since when it is open. `probing`: one task is on its way to see whether it works again."""

    failures: int = 0
    opened_at: float | None = None
    probing: bool = False

    def state(self, now: float) -> CircuitState:
        if self.opened_at is None:
            return "closed"
        return "half_open" if now - self.opened_at >= OPEN_SECONDS else "open"

    def admits(self, now: float) -> bool:
        state = self.state(now)
        return state == "closed" or (state == "half_open" and not self.probing)

    def succeeded(self) -> None:
        self.failures, self.opened_at, self.probing = 0, None, False

    def failed(self, now: float) -> None:
        self.failures += 1
        self.probing = False
        if self.failures >= OPEN_AFTER_FAILURES:
            self.opened_at = now


@dataclass
class Standing:
    response_ms: dict[str, float] = field(default_factory=dict)
    failure_rate: float = 0.0
    judged_at: float = 0.0
    outstanding: int = 0
    circuit: Circuit = field(default_factory=Circuit)


class Standings:
    """One process's own experience; `clock` in seconds, for tests."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._standings: dict[str, Standing] = {}

    def of(self, agent: str) -> Standing:
        standing = self._standings.get(agent)
        if standing is None:
            standing = self._standings[agent] = Standing()
        return standing

    def dispatched(self, agent: str) -> None:
        standing = self.of(agent)
        standing.outstanding += 1
        if standing.circuit.state(self._clock()) == "half_open":
            standing.circuit.probing = True

    def answered(self, agent: str, task_type: str, milliseconds: float | None, *, failed: bool) -> None:
        """An attempt ended. `failed` is for failures that speak against the agent: not for a wrong payload."""
        standing = self.of(agent)
        standing.outstanding = max(0, standing.outstanding - 1)
        now = self._clock()
        standing.failure_rate = self._faded(standing, now) * (1 - WEIGHT) + (WEIGHT if failed else 0.0)
        standing.judged_at = now
        if failed:
            standing.circuit.failed(now)
            return
        standing.circuit.succeeded()
        if milliseconds is not None:
            before = standing.response_ms.get(task_type, milliseconds)
            standing.response_ms[task_type] = before * (1 - WEIGHT) + milliseconds * WEIGHT

    @staticmethod
    def _faded(standing: Standing, now: float) -> float:
        return float(standing.failure_rate * 0.5 ** ((now - standing.judged_at) / FORGET_HALF_SECONDS))

    def response_ms(self, agent: str, task_type: str) -> float | None:
        return self.of(agent).response_ms.get(task_type)

    def failure_rate(self, agent: str) -> float:
        return self._faded(self.of(agent), self._clock())

    def outstanding(self, agent: str) -> int:
        return self.of(agent).outstanding

    def admits(self, agent: str) -> bool:
        standing = self._standings.get(agent)
        return standing is None or standing.circuit.admits(self._clock())

    def circuit(self, agent: str) -> CircuitState:
        return self.of(agent).circuit.state(self._clock())
