"""One concept has one word: replaced words do not come back, and the walk through the code uses the glossary's."""

import re
from pathlib import Path

import pytest

from tests.docs.conftest import REPOSITORY
from tests.docs.words import files_of, hits_in, in_markdown, in_name, in_prose, in_python, packages

GLOSSARY = (REPOSITORY / "docs" / "glossary.md").read_text(encoding="utf-8")
ENTRIES = re.findall(r"^### (.*)\n\n((?:.+\n)+)", GLOSSARY, re.MULTILINE)
ARCHITECTURE = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
# In the walk these are plain English or parts of names, not the glossary's word.
PLAIN = {"run", "session"}


@pytest.mark.parametrize("package", packages())
def test_no_replaced_word_is_used(package: str) -> None:
    assert [str(hit) for hit in hits_in(package)] == []


def test_every_package_is_known_to_the_rule() -> None:
    known = [path for package in packages() for path in files_of(package)]
    assert len(known) == len(set(known))
    for top in ("protocol", "pantheon", "orchestrator_agent", "testkit", "agents", "benchmarks", "tests"):
        missing = {path for path in (REPOSITORY / top).rglob("*.py") if "node_modules" not in path.parts} - set(known)
        assert missing <= {REPOSITORY / "tests" / "docs" / "words.py"}, missing


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("answer", True),
        ("_flushAnswers", True),
        ("NobodyReads", True),
        ("given_out", True),
        ("LENT_LIMIT", True),
        ("answered_at", False),
        ("NO_ANSWER", False),
        ("placement", False),
        ("workflow", False),
        ("return_value", False),
        ("quietly", False),
        ("settle_in_turn", False),
        ("control_flow", False),
    ],
)
def test_a_name_is_judged_word_by_word(name: str, found: bool) -> None:
    assert bool(list(in_name(name))) is found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("the answer of an agent", [(0, "answer")]),
        ("a task that it gave\nout again", [(0, "gave out")]),
        ("the page\nis looked at", [(1, "looked")]),
        ("rows wait in\nline", [(0, "in line")]),
        ("the column `answered_at`, and `answer`", []),
        ("looked up by key, in place of a scan, in turn, of course", []),
        ("flow control, and the control flow of a workflow", []),
        ("returns the responses", []),
    ],
)
def test_prose_is_judged_without_what_is_in_backticks(text: str, found: list[tuple[int, str]]) -> None:
    assert [(line, word) for line, word, _ in in_prose(text)] == found


def test_comments_docstrings_and_loops_are_judged(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(
        '"""Whoever."""\n\n\ndef count(rows: list[int]) -> int:\n    # A turn of\n    # nobody.\n'
        '    return sum(one for one in rows if one != "answer")\n'
    )
    assert sorted((hit.line, hit.kind, hit.text) for hit in in_python(file)) == [
        (1, "docstring", "Whoever"),
        (5, "comment", "turn"),
        (6, "comment", "nobody"),
        (7, "loop", "one"),
    ]


def test_code_on_a_page_is_not_judged(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("An [answer](answer.md).\n\n```python\nanswer = 1\n```\n\nNobody.\n")
    assert [(hit.line, hit.text) for hit in in_markdown(page)] == [(1, "answer"), (7, "Nobody")]


@pytest.mark.parametrize(("word", "text"), ENTRIES)
def test_an_entry_of_the_glossary_is_two_sentences_and_a_module(word: str, text: str) -> None:
    explained, module, path = " ".join(text.split()).rpartition(" Module: ")
    assert module, word
    assert len(re.findall(r"[.?](?= [A-Z`]|$)", explained)) == 2, explained
    file = re.match(r"`([\w/]+\.py)`", path)
    assert file is not None, path
    assert (REPOSITORY / file[1]).exists(), file[1]
    named = re.search(r"\(`([\w.]+)`\)", path)
    assert named is None or re.search(rf"\b{named[1].rpartition('.')[2]}\b", (REPOSITORY / file[1]).read_text())


def test_the_walk_through_the_code_links_each_word_of_the_glossary_where_it_first_comes() -> None:
    walk = ARCHITECTURE.partition("## Follow a request\n")[2].partition("\n## ")[0]
    assert 0 < len(re.findall(r"^\d+\. ", walk, re.MULTILINE)) <= 8
    plain = re.sub(r"`[^`]*`", "", walk)
    for word, _ in ENTRIES:
        first = re.search(rf"(\[?)\b{re.escape(word)}s?\b", " ".join(plain.split()), re.IGNORECASE)
        if first is not None and word not in PLAIN:
            assert first[1] == "[", f"{word}: link its first use to the glossary"
