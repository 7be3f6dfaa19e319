"""Layers as values: files of three forms, the environment, trees of a KV store."""

from pathlib import Path

import pytest

from pantheon.config import AgentConfig
from pantheon.config.layers import environment_layer, merge, parse_file, parse_tree, unknown_keys
from protocol.errors import SettingsError

YAML = b"max_concurrency: 4\noptions: {tone: dry, size: 2}\nagents:\n  llm_agent:\n    options: {tone: warm}\n"
TOML = b'max_concurrency = 4\n[options]\ntone = "dry"\nsize = 2\n[agents.llm_agent.options]\ntone = "warm"\n'
JSON = (
    b'{"max_concurrency": 4, "options": {"tone": "dry", "size": 2},'
    b' "agents": {"llm_agent": {"options": {"tone": "warm"}}}}'
)


@pytest.mark.parametrize(("name", "content"), [("a.yaml", YAML), ("a.yml", YAML), ("a.toml", TOML), ("a.JSON", JSON)])
def test_a_file_sets_for_all_agents_and_for_one(name: str, content: bytes) -> None:
    layer = parse_file(Path(name), content, "llm_agent")
    assert {key: setting.value for key, setting in layer.items()} == {
        "max_concurrency": 4,
        "options.tone": "warm",
        "options.size": 2,
    }
    assert layer["options.tone"].source == f"{name}, agents.llm_agent"
    assert parse_file(Path(name), content, "other_agent")["options.tone"].value == "dry"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.ini", b"", "must end in"),
        ("a.yaml", b"a: [1", "cannot be read"),
        ("a.toml", b"a = ", "cannot be read"),
        ("a.json", b"{", "cannot be read"),
        ("a.json", b"\xff\xfe\xff", "cannot be read"),
        ("a.json", b"[" * 200_000, "cannot be read"),
        ("a.yaml", b"- 1", "not list"),
        ("a.yaml", b"agents: [1]", "for each agent's name"),
        ("a.yaml", b"agents: {llm_agent: 3}", "for each agent's name"),
        ("a.yaml", b" " * 2_000_000, "2000000 bytes"),
    ],
)
def test_a_file_of_wrong_form_is_an_error_of_one_line(name: str, content: bytes, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        parse_file(Path(name), content, "llm_agent")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"), [("a.yaml", b""), ("a.toml", b""), ("a.json", b""), ("a.yaml", b"agents:")]
)
def test_an_empty_file_sets_nothing(name: str, content: bytes) -> None:
    assert parse_file(Path(name), content, "llm_agent") == {}


def test_the_environment_sets_by_the_meshs_names() -> None:
    environ = {
        "MAX_CONCURRENCY": "3",
        "AGENT_TIMEOUT_SECONDS": "9",
        "LOG_LEVEL": "",
        "AGENT_OPTIONS": '{"tone": "dry"}',
    }
    layer = environment_layer(AgentConfig, environ)
    assert {key: (setting.value, setting.source) for key, setting in layer.items()} == {
        "max_concurrency": ("3", "MAX_CONCURRENCY"),
        "task_timeout_seconds": ("9", "AGENT_TIMEOUT_SECONDS"),
        "options.tone": ("dry", "AGENT_OPTIONS"),
    }
    for wrong in ("{", "[1]"):
        with pytest.raises(SettingsError, match=r"AGENT_OPTIONS=.* must be a JSON object"):
            environment_layer(AgentConfig, {"AGENT_OPTIONS": wrong})


def test_a_tree_holds_an_object_single_values_or_both() -> None:
    tree = {
        "config/a": b'{"max_concurrency": 1, "options": {"tone": "dry"}}',
        "config/a/": b"",
        "config/a/max_concurrency": b"7",
        "config/a/log_level": b"debug\n",
        "config/a/options/tone": b"warm",
        "config/a/options/url": b"http://x",
        "config/a/options/list": b"a: [",
        "config/a/options/bad": b"\xff",
    }
    layer, refused = parse_tree("config/a", "/", tree)
    assert {key: setting.value for key, setting in layer.items()} == {
        "max_concurrency": 7,
        "log_level": "debug",
        "options.tone": "warm",
        "options.url": "http://x",
        "options.list": "a: [",
    }
    assert refused == {"config/a/options/bad": "it is not UTF-8 text"}
    assert parse_tree("a", ".", {"a": b"max_concurrency: 3\nlog_level: debug"})[0]["max_concurrency"].value == 3
    assert parse_tree("a", ".", {"a": b"7"})[1] == {"a": "it must hold a JSON or YAML object"}


def test_later_layers_win_and_unknown_keys_are_named() -> None:
    low, _ = parse_tree("a", ".", {"a.max_concurrency": b"1", "a.options.x": b"1"})
    high, _ = parse_tree(
        "b", ".", {"b.max_concurrency": b"2", "b.name": b"z", "b.nonsense": b"1", "b.log_level.x": b"1"}
    )
    merged = merge({"low": low, "high": high})
    assert (merged["max_concurrency"][0], merged["options.x"][0]) == ("high", "low")
    reasons = unknown_keys(AgentConfig, high)
    assert sorted(reasons) == ["log_level.x", "name", "nonsense"]
    assert "by the agent itself" in reasons["name"]
    assert "max_concurrency" in reasons["nonsense"]
