"""A payload from `key=value` arguments: what each form means, and what a workflow's schema decides."""

from pathlib import Path
from typing import Any

import pytest

from pantheon.cli.exit_codes import CommandError, ExitCode
from pantheon.cli.input.arguments import Argument, parse, payload_of, read_input


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("k=hello", "hello"),
        ("k=", ""),
        ("k=a=b", "a=b"),
        ("k=12", 12),
        ("k=-1.5e3", -1500.0),
        ("k=true", True),
        ("k=null", None),
        ("k=[1,2]", [1, 2]),
        ('k={"a":1}', {"a": 1}),
        # A quoted text is a text as it was written; who wants the JSON string says so.
        ('k="x"', '"x"'),
        ('k:="x"', "x"),
        # Not JSON, whatever Python thinks.
        ("k=NaN", "NaN"),
        ("k=Infinity", "Infinity"),
        ("k=[1,", "[1,"),
        ("k=007", "007"),
    ],
)
def test_a_value_is_json_where_it_is_one_and_a_text_elsewhere(argument: str, value: Any) -> None:
    assert payload_of([parse(argument)]) == {"k": value}


def test_files_are_read_as_text_json_and_yaml(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# A é", encoding="utf-8")
    (tmp_path / "d.json").write_text('{"x": [1]}')
    (tmp_path / "d.yaml").write_text("x: [1]\nday: 2024-01-02\n")
    values = [parse(f"text=@{tmp_path}/a.md"), parse(f"j:=@{tmp_path}/d.json"), parse(f"y:=@{tmp_path}/d.yaml")]
    assert payload_of(values) == {"text": "# A é", "j": {"x": [1]}, "y": {"x": [1], "day": "2024-01-02"}}


def test_a_file_that_looks_like_json_stays_a_text(tmp_path: Path) -> None:
    (tmp_path / "n.txt").write_text("12")
    assert payload_of([parse(f"text=@{tmp_path}/n.txt")]) == {"text": "12"}


def test_a_folder_is_a_list_of_its_files_texts(tmp_path: Path) -> None:
    for name in ("b.md", "a.md", ".hidden"):
        (tmp_path / name).write_text(name)
    assert payload_of([parse(f"texts=@{tmp_path}"), parse("texts=more")]) == {"texts": ["a.md", "b.md", "more"]}


def test_standard_input_is_a_text_or_json() -> None:
    assert parse("k=@-", stdin=lambda: "12").value == "12"
    assert parse("k:=@-", stdin=lambda: "[1]").value == [1]


def test_a_key_given_again_makes_a_list_and_brackets_make_one_of_one() -> None:
    assert payload_of([parse("k=a"), parse("k=2")]) == {"k": ["a", 2]}
    assert payload_of([parse("k[]=a")]) == {"k": ["a"]}
    assert payload_of([parse("k[]:=1"), parse("k=x")]) == {"k": [1, "x"]}


def test_arguments_win_over_the_input_file() -> None:
    assert payload_of([parse("a=1")], base={"a": 0, "b": 2}) == {"a": 1, "b": 2}


SCHEMA = {
    "properties": {
        "topic": {"type": "string"},
        "maybe": {"type": ["string", "null"]},
        "count": {"type": "integer"},
        "share": {"type": "number"},
        "texts": {"type": "array", "items": {"type": "string"}},
        "sources": {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "object"}]}},
        "either": {"anyOf": [{"type": "array"}, {"type": "string"}]},
        "free": {},
    }
}


@pytest.mark.parametrize(
    ("arguments", "payload"),
    [
        (["topic=2026"], {"topic": "2026"}),
        (["topic=true"], {"topic": "true"}),
        (["maybe=null"], {"maybe": None}),
        (["count=3", "share=3"], {"count": 3, "share": 3}),
        # Wrong all the same: the orchestrator says so better than a guess would.
        (["count=x"], {"count": "x"}),
        (["texts=1"], {"texts": ["1"]}),
        (["texts=1", "texts=b"], {"texts": ["1", "b"]}),
        (['texts=["a", "b"]'], {"texts": ["a", "b"]}),
        (["texts:=[1]"], {"texts": [1]}),
        (['sources={"text":"x"}'], {"sources": [{"text": "x"}]}),
        (["either=x"], {"either": "x"}),
        (["free=1", "unknown=1"], {"free": 1, "unknown": 1}),
    ],
)
def test_a_schema_decides_between_a_text_and_what_it_looks_like(arguments: list[str], payload: dict[str, Any]) -> None:
    assert payload_of([parse(each) for each in arguments], schema=SCHEMA) == payload


ODD_SCHEMAS: list[Any] = [
    None,
    {},
    {"properties": "odd"},
    {"properties": {"k": True}},
    {"properties": {"k": {"type": 3}}},
]


@pytest.mark.parametrize("schema", ODD_SCHEMAS)
def test_a_schema_that_says_nothing_changes_nothing(schema: Any) -> None:
    assert payload_of([Argument("k", 1, text="1")], schema=schema) == {"k": 1}


@pytest.mark.parametrize(
    ("argument", "words", "code"),
    [
        ("novalue", "no key=value", ExitCode.USAGE),
        ("=x", "no key=value", ExitCode.USAGE),
        ("[]=x", "no key=value", ExitCode.USAGE),
        ("k:={", "is not JSON", ExitCode.USAGE),
        ("k:=NaN", "is not JSON", ExitCode.USAGE),
        ("k=@/nowhere/x", "cannot read /nowhere/x (No such file", ExitCode.NOT_FOUND),
        ("k=@\0", "cannot read", ExitCode.NOT_FOUND),
        ("k=@{folder}/latin", "is not UTF-8", ExitCode.USAGE),
        ("k=@{folder}/empty", "has no files", ExitCode.USAGE),
        ("k:=@{folder}/bad.yaml", "bad.yaml:3:1: ", ExitCode.USAGE),
        ("k:=@{folder}/bad.json", "is not JSON", ExitCode.USAGE),
        ("k:=@{folder}/self.yaml", "message can carry", ExitCode.USAGE),
    ],
)
def test_a_mistake_names_the_argument_and_what_is_wrong(
    tmp_path: Path, argument: str, words: str, code: ExitCode
) -> None:
    (tmp_path / "latin").write_bytes(b"\xe9")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.yaml").write_text("a: 1\nb: [\n")
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "self.yaml").write_text("a: &a\n  b: *a\n")
    argument = argument.replace("{folder}", str(tmp_path))
    with pytest.raises(CommandError) as raised:
        parse(argument)
    assert words in raised.value.message
    assert raised.value.exit_code is code


def test_an_input_file_holds_an_object(tmp_path: Path) -> None:
    (tmp_path / "in.yaml").write_text("topic: x\n1: y\n")
    assert read_input(str(tmp_path / "in.yaml")) == {"topic": "x", "1": "y"}
    assert read_input("-", stdin=lambda: '{"a": 1}') == {"a": 1}
    for text, kind in (("[1]", "a list"), ('"x"', "a text"), ("null", "nothing"), ("3", "a int")):
        with pytest.raises(CommandError, match=kind):
            read_input("-", stdin=lambda text=text: text)  # type: ignore[misc]
