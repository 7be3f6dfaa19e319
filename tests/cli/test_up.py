"""`pantheon up` as a process: what it says, what it refuses, and that it ends whatever it began."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import AGENT, WORKFLOW, Running, Shell
from tests.processes import processes_of

# A mesh without agents is up within two seconds; these tests look at the command, not at the agents.
BARE = ("up", "--no-agents")


@pytest.fixture
def up(other_shell: Shell) -> Iterator[Running]:
    """A bare mesh in a folder of its own."""
    (other_shell.folder / "words.py").write_text(AGENT)
    running = other_shell.start(*BARE, "--agent", "words.py", "--data", "deep/data", "--orchestrators", "2")
    yield running
    running.kill()


def pids(data: Path, name: str) -> list[int]:
    found: list[int] = json.loads((data / "endpoints.json").read_text())["processes"][name]
    return found


def test_up_prints_a_table_then_what_happens_and_ends_with_nothing_left(up: Running, other_shell: Shell) -> None:
    data = other_shell.folder / "deep" / "data"
    table = up.wait_for("the mesh is up", stream="stdout")
    assert table.splitlines()[0].split() == ["part", "pid", "address"]
    for part in ("nats", "postgres", "valkey", "orchestrator_agent", "words_agent"):
        assert f"\n{part} " in table
    assert ":***@" in table or "//***@" in table
    assert len(pids(data, "orchestrator_agent")) == 2
    [agent] = pids(data, "words_agent")
    os.kill(agent, signal.SIGKILL)
    up.wait_for("words_agent: died")
    up.wait_for("words_agent: started again")
    assert other_shell("run", "uppercase", "text=x", "-q").json == {"text": "X"}
    busy = other_shell(*BARE, "--data", "deep/data")
    assert busy.code == 3
    assert "is in use by a running `pantheon up`" in busy.last_error
    done = up.end(signal.SIGINT)
    assert done.code == 0
    assert "words_agent: stopped" in done.err
    assert processes_of(other_shell.folder) == []
    assert not (data / "endpoints.json").exists()


def test_a_signal_during_the_start_ends_what_was_begun(other_shell: Shell) -> None:
    running = other_shell.start(*BARE)
    try:
        running.wait_for("started")
        assert running.end(signal.SIGTERM).code == 0
        assert processes_of(other_shell.folder) == []
    finally:
        running.kill()


@pytest.mark.parametrize(
    ("arguments", "env", "code", "words"),
    [
        (("up",), {"MAX_AGENTS": "4"}, 2, "MAX_AGENTS=4 allows 4 agent processes, and 5 were asked for (llm_agent,"),
        ((*BARE, "--agent", "words.py", "--agent", "b.py"), {"MAX_AGENTS": "1"}, 2, "allows 1 agent process, and 2"),
        (("up",), {"MAX_AGENTS": "many"}, 2, "MAX_AGENTS='many' is not allowed"),
        ((*BARE, "--agent", "nowhere.py"), {}, 3, "agent nowhere.py cannot be loaded: there is no such file"),
        ((*BARE, "--agent", "empty.py"), {}, 3, "no Agent in it"),
        ((*BARE, "--workflows", "nowhere"), {}, 4, "--workflows nowhere: there is no such folder"),
        ((*BARE, "--workflows", "bad"), {}, 2, "bad.yaml:1:1: "),
        ((*BARE, "--consul", "/bin/nowhere"), {}, 3, "is no Consul program"),
        ((*BARE, "--data", "words.py"), {}, 3, "is not a folder"),
        ((*BARE, "--orchestrators", "0"), {}, 2, "Invalid value for '--orchestrators'"),
    ],
)
def test_what_cannot_start_is_one_line(
    other_shell: Shell, arguments: tuple[str, ...], env: dict[str, str], code: int, words: str
) -> None:
    (other_shell.folder / "words.py").write_text(AGENT)
    (other_shell.folder / "empty.py").write_text("")
    (other_shell.folder / "bad").mkdir()
    (other_shell.folder / "bad" / "bad.yaml").write_text("x: 1\n")
    (other_shell.folder / "bad" / "good.yaml").write_text(WORKFLOW)
    done = other_shell(*arguments, env=env)
    assert done.code == code, done.err
    assert words in done.last_error
    assert processes_of(other_shell.folder) == []


def test_another_meshs_addresses_in_the_environment_change_nothing(other_shell: Shell) -> None:
    foreign = {
        "NATS_URL": "nats://127.0.0.1:9",
        "NATS_TOKEN": "x",
        "DATABASE_URL": "postgresql://127.0.0.1:9/x",
        "CONSUL_HTTP_ADDR": "127.0.0.1:9",
        "INSTANCE_ID": "one-for-all",
    }
    shell = Shell(other_shell.folder, env=foreign)
    running = shell.start(*BARE, "--json")
    try:
        endpoints = json.loads(running.wait_for("\n}\n", stream="stdout"))
        assert endpoints["nats_url"] != foreign["NATS_URL"]
        listed = other_shell("agents", "--json").json
        assert [row["name"] for row in listed] == ["orchestrator_agent"]
        assert listed[0]["instance_id"] != "one-for-all"
        done = running.end(signal.SIGTERM)
        assert done.code == 0
        assert json.loads(done.err.splitlines()[-1])["kind"] == "stopped"
    finally:
        running.kill()
