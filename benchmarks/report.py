"""Report: what a run measured, as tables for people, as JSON, and as panels of the chart."""

import os
import platform
from collections.abc import Mapping
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.chart import Bar, Panel
from benchmarks.figures import Series, Spread
from benchmarks.peers.peer import PEERS
from benchmarks.rounds import BARE

CHAIN = "chain"
# Goals, as ratios of the 5-step chain to the subject of the same name in the same run.
GOALS: Mapping[str, tuple[str, float]] = {
    BARE: ("steps_per_s", 0.70),
    "celery": ("steps_per_s", 8.0),
    "taskiq": ("steps_per_s", 6.0),
    "dbos": ("steps_per_s", 25.0),
}
IDLE_GOAL = 0.75


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
        "subjects": {name: one.as_json(yardstick) for name, one in series.items()},
        "goals": goals(series),
        **more,
    }


def goals(series: Mapping[str, Series]) -> list[dict[str, Any]]:
    """Each goal that this run could judge: the ratio reached, the one wanted, whether it is met."""
    ours = series.get(CHAIN)
    if ours is None:
        return []
    made: list[dict[str, Any]] = []

    def judge(goal: str, other: Series | None, measure: str, wanted: float, *, at_least: bool) -> None:
        if other is None or not getattr(other, measure) or not getattr(ours, measure):
            return
        pairs = zip(getattr(ours, measure), getattr(other, measure), strict=False)
        reached = Spread.of([mine / its for mine, its in pairs]).median
        met = reached >= wanted if at_least else reached <= wanted
        made.append({"goal": goal, "ratio": round(reached, 3), "wanted": wanted, "met": met})

    for name, (measure, wanted) in GOALS.items():
        judge(f"steps/s of {name}, at least {wanted:g}x", series.get(name), measure, wanted, at_least=True)
    judge(f"idle p50 of bare, at most {IDLE_GOAL:g}x", series.get(BARE), "p50_ms", IDLE_GOAL, at_least=False)
    for name, one in series.items():
        if name in PEERS:
            judge(f"idle p50 below {name}'s", one, "p50_ms", 1.0, at_least=False)
    return made


def show(console: Console, series: Mapping[str, Series]) -> None:
    """The tables: subjects, processor time, goals."""
    yardstick = series.get(BARE)
    table = Table(title="Medians of rounds (lowest to highest); ratios to the bare loop, pair by pair")
    for column in ("", "steps/s", "× bare", "idle p50 ms", "× bare", "idle p99 ms"):
        table.add_column(column, justify="left" if not column else "right")
    for one in series.values():
        made = one.as_json(yardstick)
        table.add_row(
            one.title,
            _cell(made.get("steps_per_s"), ",.0f"),
            _cell(made.get("steps_per_s", {}).get("ratio_to_bare"), ".2f"),
            _cell(made.get("p50_ms"), ".1f"),
            _cell(made.get("p50_ms", {}).get("ratio_to_bare"), ".2f"),
            _cell(made.get("p99_ms"), ".1f"),
        )
    console.print(table)
    used = Table(title="Processor time per step under load, ms (median of rounds)")
    used.add_column("")
    used.add_column("all", justify="right")
    used.add_column("by process")
    for one in series.values():
        if one.cpu_ms_per_step:
            each = {name: Spread.of(values).median for name, values in one.cpu_ms_per_step.items()}
            text = ", ".join(f"{name} {value:.3f}" for name, value in each.items())
            used.add_row(one.title, f"{sum(each.values()):.3f}", text)
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
    """Two panels: steps a second, and how long an idle workflow takes."""
    made = []
    for measure, title, unit in (
        ("steps_per_s", "Durable steps under load", "steps/s, more is better"),
        ("p50_ms", "One workflow on an idle mesh, median", "ms, less is better"),
    ):
        bars = []
        for one in series.values():
            if values := getattr(one, measure):
                spread = Spread.of(values)
                kind = "yardstick" if one.name == BARE else "other" if one.name in PEERS else "ours"
                bars.append(Bar(one.title, spread.median, spread.low, spread.high, kind))
        if bars:
            made.append(Panel(title, unit, bars))
    return made
