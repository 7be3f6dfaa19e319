"""load_agent: an Agent by the name a person gives it, and one line for whatever keeps it from being found."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pantheon.process.loading import AgentNotLoaded, load_agent

ONE = 'from pantheon import Agent\nagent = Agent("one_agent")\n'
TWO = 'from pantheon import Agent\nfirst = Agent("first_agent")\nsecond = Agent("second_agent")\nother = 3\n'


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_file_a_module_and_an_attribute_name_an_agent(folder: Path) -> None:
    (folder / "load_one.py").write_text(ONE)
    (folder / "load_two.py").write_text(TWO)
    assert load_agent("load_one.py").name == "one_agent"
    assert load_agent(str(folder / "load_one.py")).name == "one_agent"
    assert load_agent("load_one").name == "one_agent"
    assert load_agent("load_two:second").name == "second_agent"
    assert load_agent("load_two.py:first").name == "first_agent"


def test_a_package_is_looked_into(folder: Path) -> None:
    (folder / "load_package").mkdir()
    (folder / "load_package" / "__init__.py").write_text("")
    (folder / "load_package" / "agent.py").write_text(ONE)
    assert load_agent("load_package").name == "one_agent"
    assert load_agent("agents.llm_agent").name == "llm_agent"


def test_the_only_agent_of_a_module_needs_no_name_and_two_names_of_one_are_one(folder: Path) -> None:
    (folder / "load_only.py").write_text(
        'from pantheon import Agent\nmine = Agent("mine_agent")\nalias = mine\n',
    )
    assert load_agent("load_only").name == "mine_agent"


def test_a_file_finds_its_neighbours_and_takes_nobodys_name(folder: Path) -> None:
    (folder / "load_beside.py").write_text("NAME = 'beside_agent'\n")
    (folder / "json.py").write_text("from load_beside import NAME\nfrom pantheon import Agent\nagent = Agent(NAME)\n")
    assert load_agent("json.py").name == "beside_agent"
    import json

    assert json.loads("[1]") == [1]


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("nowhere.py", "nowhere.py: there is no such file"),
        ("load_nowhere", "there is no module 'load_nowhere'"),
        ("load_nowhere.inner", "there is no module 'load_nowhere'"),
        ("not a module", "neither a module's name"),
        ("", "give a module's name"),
        ("load_two", "several Agents (first, second): say which, as in load_two:first"),
        ("load_two:other", "'other' is int, not an Agent"),
        ("load_two:third", "no attribute 'third'"),
        ("load_none", "no Agent in it"),
        ("load_bad.py", "load_bad.py:2: "),
        ("load_raises.py", "importing it raised ValueError: two lines (load_raises.py, line 2)"),
        ("load_exits", "importing it raised SystemExit"),
        ("load_needs", "importing it raised ModuleNotFoundError: No module named 'missing_library'"),
    ],
)
def test_what_is_wrong_is_one_line(folder: Path, target: str, words: str) -> None:
    (folder / "load_two.py").write_text(TWO)
    (folder / "load_none.py").write_text("x = 1\n")
    (folder / "load_bad.py").write_text("x = 1\ndef broken(:\n")
    (folder / "load_raises.py").write_text("x = 1\nraise ValueError('two\\nlines')\n")
    (folder / "load_exits.py").write_text("raise SystemExit(3)\n")
    (folder / "load_needs.py").write_text("import missing_library\n")
    with pytest.raises(AgentNotLoaded) as raised:
        load_agent(target)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
    assert raised.value.target == target
