"""Peers: their environments, one that cannot be made is left out, and one measured from end to end."""

import os
import sys
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.figures import Series
from benchmarks.peers import PEERS, Contest
from benchmarks.peers.environment import MADE_FROM, python_of
from benchmarks.peers.peer import Peer
from benchmarks.report import show
from benchmarks.rig import BenchError, rig
from benchmarks.rounds import Amounts

TINY = Amounts(rounds=1, load_workflows=10, idle_workflows=4)
NOT_TO_BE_HAD = "pantheon-bench-there-is-no-such-distribution==1.0"


@pytest.mark.parametrize("name", PEERS)
def test_each_peer_has_a_program_and_pins_all_that_it_is_installed_from(name: str) -> None:
    peer = PEERS[name]
    assert peer.program.is_file()
    assert all("==" in requirement for requirement in peer.requirements)


async def test_an_environment_with_the_right_requirements_is_used_again(tmp_path: Path) -> None:
    peer = Peer("any", "Any", ("nothing==1",), workers=())
    python = tmp_path / "any" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    (tmp_path / "any" / MADE_FROM).write_text("nothing==1\n")
    assert await python_of(peer, tmp_path) == python
    assert python.is_symlink()


async def test_an_environment_that_cannot_be_made_names_the_reason_and_is_not_used(tmp_path: Path) -> None:
    peer = Peer("any", "Any", (NOT_TO_BE_HAD,), workers=())
    with pytest.raises(BenchError, match=r"environment of any could not be made: .*no-such-distribution"):
        await python_of(peer, tmp_path)
    assert not (tmp_path / "any" / MADE_FROM).exists()


PROGRAM = """
import json, sys
print(json.dumps({"ready": 1}), flush=True)
for line in sys.stdin:
    order = json.loads(line)
    load = order["what"] == "load"
    print(json.dumps({"seconds": 0.5} if load else {"took_ms": [2.0] * order["workflows"]}), flush=True)
"""


async def test_a_peer_that_fails_is_logged_and_left_out_and_the_others_are_measured(tmp_path: Path) -> None:
    for name, text in (("good", PROGRAM), ("bad", "raise SystemExit(3)")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "program.py").write_text(text)
    made = {
        name: Peer(name, name, ("x==1",), workers=(), load_divisor=1, programs=tmp_path)
        for name in ("good", "bad", "absent")
    }

    async def python(peer: Peer) -> Path:
        if peer.name == "absent":
            raise BenchError("it could not be installed")
        return Path(sys.executable)

    series: dict[str, Series] = {}
    logged: list[str] = []
    async with rig(valkey=True) as servers:
        contest = Contest(list(made), servers, TINY, series, logged.append, peers=made, find_python=python)
        await contest.prepare()
        await contest.round()
        await contest.round()
        assert servers.processes == []
    assert set(series) == {"good"}
    assert series["good"].steps_per_s == [100.0, 100.0]
    assert series["good"].p50_ms == [2.0, 2.0]
    assert sorted(line.split(" ")[0] for line in logged) == ["absent", "bad"]
    assert contest.as_json()["good"]["error"] is None
    assert "could not be installed" in contest.as_json()["absent"]["error"]


if os.environ.get("PANTHEON_TEST_PEERS") == "1":
    # Other people's products, downloaded into environments of their own: collected only with PANTHEON_TEST_PEERS=1.

    @pytest.mark.parametrize("name", PEERS)
    async def test_a_peer_runs_the_chain_from_end_to_end(name: str) -> None:
        series: dict[str, Series] = {}
        async with rig(valkey=True) as servers:
            contest = Contest([name], servers, TINY, series, lambda _: None)
            await contest.prepare()
            await contest.round()
        assert contest.failed == {}
        assert series[name].steps_per_s[0] > 0
        assert series[name].p50_ms[0] > 0


async def test_a_peer_that_npm_brings_says_so_where_npm_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BenchError, match="Restate, five calls is installed by npm, which is not on PATH"):
        await python_of(PEERS["restate_calls"], tmp_path)


def test_the_table_has_a_row_for_a_peer_that_was_left_out(tmp_path: Path) -> None:
    series = {"bare": Series("bare", "bare loop", 5, [100.0], [2.0], [3.0], {})}
    with (tmp_path / "output.txt").open("w") as output:
        show(Console(file=output, width=160), series, {"restate_runs": "npm is not on PATH"})
    assert "Restate, five ctx.run: npm is not on PATH" in (tmp_path / "output.txt").read_text()
