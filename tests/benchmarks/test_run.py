"""One tiny run from end to end: real servers, real processes, a handful of workflows."""

import json
from pathlib import Path

from rich.console import Console

from benchmarks.__main__ import parse, run


async def test_a_tiny_run_measures_bare_loop_and_chain_side_by_side(tmp_path: Path) -> None:
    figures, chart = tmp_path / "bench.json", tmp_path / "bench.svg"
    sizes = ("--rounds", "1", "--workflows", "10", "--idle", "3")
    arguments = parse(["--only", "bare", "chain", *sizes, "--json", str(figures), "--chart", str(chart)])
    with (tmp_path / "output.txt").open("w") as output:
        await run(arguments, Console(file=output, width=140))
    made = json.loads(figures.read_text())
    assert set(made["subjects"]) == {"bare", "chain"}
    for subject in made["subjects"].values():
        assert subject["steps_per_s"]["median"] > 0
        assert subject["p50_ms"]["median"] > 0
    assert made["subjects"]["chain"]["steps_per_s"]["ratio_to_bare"]["rounds"] == 1
    assert len(made["goals"]) == 3
    assert chart.read_text().startswith("<svg")
    assert "5-step chain" in (tmp_path / "output.txt").read_text()
