"""Report: what a run measured, as tables for people, as JSON, and as panels of the chart."""

import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.chart import Bar, Panel
from benchmarks.figures import Series, Spread, pair_ratios
from benchmarks.peers.peer import PEERS
from benchmarks.rounds import BARE

CHAIN = "chain"
# Goals, as ratios of the 5-step chain to the subject of the same name in the same run.
GOALS: Mapping[str, tuple[str, float]] = {
    BARE: ("steps_per_s", 0.85),
    "celery": ("steps_per_s", 8.0),
    "taskiq": ("steps_per_s", 6.0),
    "dbos": ("steps_per_s", 25.0),
    "restate_calls": ("steps_per_s", 8.0),
    "restate_runs": ("steps_per_s", 2.5),
}
IDLE_GOAL = 0.75
# Of sub-workflows to the bare loop, steps a second; and processor time a step of the chain to the bare loop's.
SUB_WORKFLOWS_GOAL = 0.75
PROCESSOR_GOAL = 1.15
# A workflow of so many steps takes so much longer than the others that it gets a panel of its own.
WIDE_STEPS = 100


def machine() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "load_average_1_min": os.getloadavg()[0],
    }


def as_json(series: Mapping[str, Series], more: Mapping[str, Any]) -> dict[str, Any]:
    yardstick = series.get(BARE)
    return {
        "machine": machine(),
        "subjects": {name: subject.as_json(yardstick) for name, subject in series.items()},
        "goals": goals(series),
        "chain_to_peers": {
            name: {measure: vars(spread) for measure, spread in ratios.items()}
            for name, ratios in against_peers(series).items()
        },
        **more,
    }


def goals(series: Mapping[str, Series]) -> list[dict[str, Any]]:
    """Each goal that this run could judge: the ratio reached, the one required, whether it is met."""
    ours = series.get(CHAIN)
    if ours is None:
        return []
    made: list[dict[str, Any]] = []

    def judge(
        goal: str, mine: Sequence[float], its: Sequence[float] | None, required: float, *, at_least: bool
    ) -> None:
        ratios = pair_ratios(mine, its or ())
        if not ratios:
            return
        reached = Spread.of(ratios).median
        met = reached >= required if at_least else reached <= required
        made.append({"goal": goal, "ratio": round(reached, 3), "required": required, "met": met})

    bare = series.get(BARE)
    for name, (measure, required) in GOALS.items():
        other = getattr(series[name], measure) if name in series else None
        judge(f"steps/s of {name}, at least {required:g}x", getattr(ours, measure), other, required, at_least=True)
    if bare is not None:
        judge(f"idle p50 of bare, at most {IDLE_GOAL:g}x", ours.p50_ms, bare.p50_ms, IDLE_GOAL, at_least=False)
        goal = f"processor time a step of bare, at most {PROCESSOR_GOAL:g}x"
        judge(goal, ours.processor_ms, bare.processor_ms, PROCESSOR_GOAL, at_least=False)
    if bare is not None and (subs := series.get("sub_workflows")) is not None:
        goal = f"steps/s of sub-workflows to bare, at least {SUB_WORKFLOWS_GOAL:g}x"
        judge(goal, subs.steps_per_s, bare.steps_per_s, SUB_WORKFLOWS_GOAL, at_least=True)
    for name, subject in series.items():
        if name in PEERS:
            judge(f"idle p50 below {name}'s", ours.p50_ms, subject.p50_ms, 1.0, at_least=False)
    return made


def against_peers(series: Mapping[str, Series]) -> dict[str, dict[str, Spread]]:
    """Our 5-step chain by each peer's, round by round: steps a second (more is better), idle p50 and p99 (less is)."""
    ours = series.get(CHAIN)
    made: dict[str, dict[str, Spread]] = {}
    for name, subject in series.items():
        if ours is None or name not in PEERS:
            continue
        ratios = {
            measure: pair_ratios(getattr(ours, measure), getattr(subject, measure))
            for measure in ("steps_per_s", "p50_ms", "p99_ms")
        }
        made[name] = {measure: Spread.of(values) for measure, values in ratios.items() if values}
    return made


def show(console: Console, series: Mapping[str, Series], left_out: Mapping[str, str] | None = None) -> None:
    """The tables: subjects, processor time, goals. `left_out`: why peers were not measured, by their names."""
    if not series:
        return
    yardstick = series.get(BARE)
    table = Table(title="Medians of rounds (lowest to highest); ratios to the bare loop, pair by pair")
    for column in ("", "steps/s", "× bare", "idle p50 ms", "× bare", "idle p99 ms"):
        table.add_column(column, justify="left" if not column else "right")
    for subject in series.values():
        made = subject.as_json(yardstick)
        table.add_row(
            _label(subject, series.values()),
            _cell(made.get("steps_per_s"), ",.0f"),
            _cell(made.get("steps_per_s", {}).get("ratio_to_bare"), ".2f"),
            _cell(made.get("p50_ms"), ".1f"),
            _cell(made.get("p50_ms", {}).get("ratio_to_bare"), ".2f"),
            _cell(made.get("p99_ms"), ".1f"),
        )
    for name, reason in (left_out or {}).items():
        table.add_row(f"{PEERS[name].title}: {reason}")
    console.print(table)
    if compared := against_peers(series):
        ratios = Table(title="Our 5-step chain by theirs, pair by pair, medians (lowest to highest)")
        for column in ("", "steps/s, ours / theirs", "idle p50, ours / theirs", "idle p99, ours / theirs"):
            ratios.add_column(column, justify="left" if not column else "right")
        for name, measures in compared.items():
            cells = [_cell(vars(measures[measure]), ".2f") for measure in ("steps_per_s", "p50_ms", "p99_ms")]
            ratios.add_row(series[name].title, *cells)
        console.print(ratios)
    used = Table(title="Processor time per step under load, ms (median of rounds)")
    used.add_column("")
    used.add_column("all", justify="right")
    used.add_column("by process")
    for subject in series.values():
        if subject.cpu_ms_per_step:
            each = {name: Spread.of(values).median for name, values in subject.cpu_ms_per_step.items()}
            text = ", ".join(f"{name} {value:.3f}" for name, value in each.items())
            used.add_row(subject.title, f"{sum(each.values()):.3f}", text)
    console.print(used)
    for goal in goals(series):
        mark = "met" if goal["met"] else "MISSED"
        console.print(f"{mark:>6}  {goal['goal']}: {goal['ratio']:g}")


def _cell(spread: Mapping[str, Any] | None, form: str) -> str:
    if spread is None:
        return ""
    middle, low, high = (format(spread[part], form) for part in ("median", "low", "high"))
    return f"{middle} ({low} to {high})"


def panels(series: Mapping[str, Series]) -> list[Panel]:
    """Steps a second, how long an idle workflow takes, and how long one of a great many steps does."""
    every = list(series.values())
    less = "ms, less is better"

    def wide(subject: Series) -> bool:
        return subject.steps >= WIDE_STEPS

    made = (
        _panel("Durable steps under load", "steps/s, more is better", "steps_per_s", every, lambda _: True),
        _panel("One workflow on an idle mesh, median", less, "p50_ms", every, lambda subject: not wide(subject)),
        _panel("One wide workflow on an idle mesh, median", less, "p50_ms", every, wide),
    )
    return [panel for panel in made if panel.bars]


def _label(subject: Series, others: Iterable[Series]) -> str:
    """A title, with the number of rounds where it is fewer than another subject's: it was left out."""
    rounds, most = len(subject.steps_per_s), max(len(other.steps_per_s) for other in others)
    return subject.title if rounds == most else f"{subject.title}, {rounds} of {most}"


def _panel(title: str, unit: str, measure: str, series: Sequence[Series], shown: Callable[[Series], bool]) -> Panel:
    bars = []
    for subject in filter(shown, series):
        if values := getattr(subject, measure):
            spread = Spread.of(values)
            kind = "yardstick" if subject.name == BARE else "other" if subject.name in PEERS else "ours"
            bars.append(Bar(_label(subject, series), spread.median, spread.low, spread.high, kind))
    return Panel(title, unit, bars)
