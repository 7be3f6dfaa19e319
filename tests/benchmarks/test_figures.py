"""The pure parts of the benchmark: figures, goals, chart, stacks, command line."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from benchmarks.__main__ import amounts_of, parse, sizes_of
from benchmarks.chart import Bar, Panel, draw
from benchmarks.figures import Series, Spread, pair_ratios, percentile
from benchmarks.profile import read_stacks
from benchmarks.report import against_peers, goals, panels
from benchmarks.rig import spent
from benchmarks.rounds import relevant
from benchmarks.shapes import SHAPES
from orchestrator_agent.service import load_library


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.5, 2.0),  # of four values, the second has half of them at or below it
        (0.99, 4.0),
        (0.0, 1.0),
        (1.0, 4.0),
    ],
)
def test_a_percentile_is_the_nearest_rank(share: float, expected: float) -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], share) == expected


def test_a_percentile_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="of nothing"):
        percentile([], 0.5)


def test_a_spread_has_the_middle_and_the_ends() -> None:
    assert Spread.of([3.0, 1.0, 8.0]) == Spread(median=3.0, low=1.0, high=8.0, rounds=3)


def test_ratios_are_of_adjacent_rounds_and_leave_out_what_has_no_partner() -> None:
    assert pair_ratios([50.0, 30.0, 7.0], [100.0, 40.0]) == [0.5, 0.75]


def _series(name: str, steps_per_s: list[float], p50_ms: list[float]) -> Series:
    series = Series.empty(name, name, 5)
    series.steps_per_s += steps_per_s
    series.p50_ms += p50_ms
    return series


def test_steps_and_processor_time_are_counted_per_step() -> None:
    series = Series.empty("chain", "5-step chain", 5)
    series.add_load(100, 0.25, {"nats": 0.05})
    series.add_idle([1.0, 9.0, 2.0])
    made = series.as_json(None)
    assert made["steps_per_s"]["median"] == 2000
    assert made["cpu_ms_per_step"]["nats"] == pytest.approx(0.1)
    assert (made["p50_ms"]["median"], made["p99_ms"]["median"]) == (2.0, 9.0)


def test_goals_are_judged_by_ratios_pair_by_pair() -> None:
    series = {
        "bare": _series("bare", [100.0, 200.0, 100.0], [10.0, 20.0, 10.0]),
        "chain": _series("chain", [80.0, 120.0, 71.0], [8.0, 14.0, 9.0]),
        "celery": _series("celery", [20.0, 5.0, 5.0], [30.0, 1.0, 30.0]),
    }
    judged = {goal["goal"]: (goal["ratio"], goal["met"]) for goal in goals(series)}
    assert judged == {
        "steps/s of bare, at least 0.85x": (0.71, False),
        "steps/s of celery, at least 8x": (14.2, True),
        "idle p50 of bare, at most 0.75x": (0.8, False),
        "idle p50 below celery's": (0.3, True),
    }


def test_without_our_own_chain_there_is_nothing_to_judge() -> None:
    assert goals({"bare": _series("bare", [1.0], [1.0])}) == []


def test_a_chart_is_well_formed_and_its_bars_are_to_scale() -> None:
    panel = Panel("a <b> & c", "ms", [Bar("one", 200.0, 150.0, 250.0), Bar("two", 100.0, 100.0, 100.0, "yardstick")])
    root = ElementTree.fromstring(draw("title", [panel], "foot"))
    bars = [node for node in root.iter() if node.tag.endswith("rect") and node.get("rx")]
    assert float(bars[0].get("width", 0)) == pytest.approx(2 * float(bars[1].get("width", 0)), rel=0.01)
    assert "a <b> & c (ms)" in "".join(root.itertext())


def test_the_panels_of_a_run_leave_out_what_was_not_measured() -> None:
    made = panels({"chain": _series("chain", [5.0], [])})
    assert [(panel.title, [bar.label for bar in panel.bars]) for panel in made] == [
        ("Durable steps under load", ["chain"])
    ]


def test_a_wide_workflow_has_a_panel_of_its_own_for_how_long_it_takes() -> None:
    wide = Series.empty("fan_out", "fan-out of 1000", 1000)
    wide.steps_per_s, wide.p50_ms = [4000.0], [300.0]
    made = panels({"chain": _series("chain", [5.0], [9.0]), "fan_out": wide})
    assert [(panel.unit[:2], [bar.value for bar in panel.bars]) for panel in made] == [
        ("st", [5.0, 4000.0]),
        ("ms", [9.0]),
        ("ms", [300.0]),
    ]


def test_a_subject_with_fewer_rounds_than_the_others_is_labelled() -> None:
    series = {"chain": _series("chain", [5.0, 6.0], [9.0, 9.0]), "celery": _series("celery", [1.0], [9.0])}
    assert [bar.label for bar in panels(series)[0].bars] == ["chain", "celery, 1 of 2"]


def test_peers_are_compared_with_our_chain_pair_by_pair() -> None:
    series = {
        "bare": _series("bare", [100.0, 100.0], [10.0, 10.0]),
        "chain": _series("chain", [80.0, 60.0], [8.0, 9.0]),
        "celery": _series("celery", [10.0, 20.0], [16.0, 9.0]),
    }
    made = against_peers(series)
    assert set(made) == {"celery"}
    assert made["celery"]["steps_per_s"] == Spread(median=5.5, low=3.0, high=8.0, rounds=2)
    assert made["celery"]["p50_ms"] == Spread(median=0.75, low=0.5, high=1.0, rounds=2)


def test_sizes_of_the_growth_run_follow_the_command_line_and_default_to_the_full_ones() -> None:
    full, smaller = sizes_of(parse([])), sizes_of(parse(["--quick", "--instances", "7"]))
    assert (full.finished, full.waiting, full.instances, full.orchestrators) == (1_000_000, 100_000, 10_000, 3)
    assert (smaller.finished, smaller.instances) == (50_000, 7)


def test_stacks_are_counted_once_for_each_function_of_a_stack() -> None:
    lines = ["run (/x/a.py:1);f (/y/b.py:2);f (/y/b.py:9) 3", "run (/x/a.py:1) 1", "no count here", ""]
    profile = read_stacks(lines)
    assert profile.samples == 4
    assert profile.alone == {"f (y/b.py)": 3, "run (x/a.py)": 1}
    assert profile.within == {"f (y/b.py)": 3, "run (x/a.py)": 4}


def test_only_processes_at_work_in_a_round_are_accounted() -> None:
    used = spent({"nats": 1.0}, {"nats": 1.5, "bare_agent": 0.1, "echo_agent": 0.2, "orchestrator-1": 0.3})
    assert relevant(used, bare=True) == {"nats": 0.5, "bare_agent": 0.1}
    assert relevant(used, bare=False) == {"nats": 0.5, "echo_agent": 0.2, "orchestrator-1": 0.3}


@pytest.mark.parametrize("name", SHAPES)
def test_each_shape_is_a_workflow_that_the_orchestrator_takes(name: str) -> None:
    plan, _ = load_library([]).inline(dict(SHAPES[name]().payload))
    assert plan.steps


def test_amounts_follow_the_command_line() -> None:
    arguments = parse(["--quick", "--rounds", "2", "--only", "bare", "chain", "--json", "x/y.json"])
    amounts = amounts_of(arguments)
    assert (amounts.rounds, amounts.load_workflows, arguments.json) == (2, 2000, Path("x/y.json"))
    assert amounts.workflows(SHAPES["fan_out"]()) == 10


@pytest.mark.parametrize("wrong", [["--only", "nothing"], ["--rounds", "0"], ["--workflows", "many"]])
def test_a_wrong_command_line_is_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(wrong)
    assert ended.value.code == 2
    assert wrong[0] in capsys.readouterr().err
