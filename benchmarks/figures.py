"""Figures: medians, percentiles and ratios of what rounds measured. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` (0..1) of all values do not exceed (nearest rank)."""
    if not values:
        raise ValueError("there is no percentile of nothing")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@dataclass(frozen=True)
class Spread:
    """Rounds of one measure: the middle one, and how far they lie apart."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(median(values), min(values), max(values), len(values))


def pair_ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Ours by theirs, round by round: what disturbs the machine for a while disturbs both of a pair."""
    return [mine / other for mine, other in zip(ours, theirs, strict=False) if other > 0]


@dataclass
class Series:
    """What the rounds of one subject (`bare`, `chain`, `celery`) measured."""

    name: str
    title: str
    steps: int
    steps_per_s: list[float]
    p50_ms: list[float]
    p99_ms: list[float]
    # Processor milliseconds per step, by process, of the load rounds.
    cpu_ms_per_step: dict[str, list[float]]

    @classmethod
    def empty(cls, name: str, title: str, steps: int) -> "Series":
        return cls(name, title, steps, [], [], [], {})

    def add_load(self, workflows: int, seconds: float, cpu_seconds: Mapping[str, float]) -> None:
        steps = workflows * self.steps
        self.steps_per_s.append(steps / seconds)
        for process, used in cpu_seconds.items():
            self.cpu_ms_per_step.setdefault(process, []).append(used * 1e3 / steps)

    def add_idle(self, took_ms: Sequence[float]) -> None:
        self.p50_ms.append(percentile(took_ms, 0.5))
        self.p99_ms.append(percentile(took_ms, 0.99))

    @property
    def processor_ms(self) -> list[float]:
        """Of all processes together, per step, round by round."""
        return [sum(each) for each in zip(*self.cpu_ms_per_step.values(), strict=False)]

    def as_json(self, yardstick: "Series | None") -> dict[str, Any]:
        """Medians and spreads, and the ratios to the yardstick, pair by pair."""
        made: dict[str, Any] = {"title": self.title, "steps_per_workflow": self.steps}
        for measure in ("steps_per_s", "p50_ms", "p99_ms"):
            values = getattr(self, measure)
            if values:
                made[measure] = {**vars(Spread.of(values)), "all": [round(value, 3) for value in values]}
                others = getattr(yardstick, measure) if yardstick is not None and yardstick is not self else []
                if ratios := pair_ratios(values, others):
                    made[measure]["ratio_to_bare"] = {**vars(Spread.of(ratios)), "all": [round(r, 4) for r in ratios]}
        if self.cpu_ms_per_step:
            made["cpu_ms_per_step"] = {name: median(values) for name, values in self.cpu_ms_per_step.items()}
        return made
