"""Third parties' agents: named by themselves, run by the command line, and refused with the reason."""

import sys
from pathlib import Path

import pytest

from pantheon.stack import AgentLoadError, AgentSpec, find_agent
from pantheon.stack.agents import orchestrator

_AGENT = """
from pantheon import Agent

print("a module may print what it likes")
agent = Agent("translation_agent")
"""


def test_the_orchestrator_runs_as_a_module() -> None:
    assert orchestrator(2) == AgentSpec("orchestrator_agent", (sys.executable, "-m", "orchestrator_agent"), 2)


async def test_an_agent_in_a_file_is_named_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "anything.py").write_text(_AGENT)
    monkeypatch.chdir(tmp_path)
    spec = await find_agent("anything.py")
    command = (sys.executable, "-m", "pantheon", "agent", "run", "anything.py")
    assert spec == AgentSpec("translation_agent", command)


async def test_an_agent_in_a_module_is_named_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "theirs.py").write_text(_AGENT)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parent.parent.parent}")
    spec = await find_agent("theirs", instances=3)
    assert spec.name == "translation_agent"
    assert spec.arguments[-3:] == ("agent", "run", "theirs")
    assert spec.instances == 3


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import no_such_package", "No module named 'no_such_package'"),
        ("this is no Python at all", "invalid syntax"),
        ("nothing = 'here'", "Agent"),
        ("import sys; sys.exit('no key is set')", "no key is set"),
        ("import os; os._exit(5)", "exit status 5"),
    ],
)
async def test_an_agent_that_does_not_load_says_why_in_one_line(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "theirs.py").write_text(text)
    with pytest.raises(AgentLoadError) as caught:
        await find_agent(str(tmp_path / "theirs.py"))
    assert reason in str(caught.value).partition("cannot be loaded: ")[2]
    assert str(caught.value).startswith(f"agent {tmp_path}/theirs.py cannot be loaded: ")
    assert "\n" not in str(caught.value)


async def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(AgentLoadError, match=r"missing\.py cannot be loaded: .*no such file"):
        await find_agent(str(tmp_path / "missing.py"))


async def test_an_agent_that_hangs_at_import_is_given_up(tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text("import time; time.sleep(60)")
    with pytest.raises(AgentLoadError, match="importing it took longer than"):
        await find_agent(str(tmp_path / "theirs.py"), load_seconds=0.5)
