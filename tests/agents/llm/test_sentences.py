"""Cutting prose into sentences, and Markdown into blocks."""

import pytest

from agents.llm_agent.corpus import leans, read_sources, strip_connective
from agents.llm_agent.markdown import blocks_of
from pantheon.text.sentences import split_sentences
from pantheon.text.sources import Source
from pantheon.text.terms import stem, terms
from pantheon.text.words import count_words, plain


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three? Four\u2026 Five", ["One.", "Two!", "Three?", "Four\u2026", "Five"]),
        ("Dr. Smith paid 3.5 dollars. He left.", ["Dr. Smith paid 3.5 dollars.", "He left."]),
        ("It met at 5 p.m. on Jan. 5. Then it left.", ["It met at 5 p.m. on Jan. 5.", "Then it left."]),
        ("J. R. Tolkien wrote. So did I. We read.", ["J. R. Tolkien wrote.", "So did I.", "We read."]),
        (
            "The U.S. Army came. In the U.S. The law differs.",
            ["The U.S. Army came.", "In the U.S.", "The law differs."],
        ),
        ("We use e.g. NATS or i.e. a broker. Good.", ["We use e.g. NATS or i.e. a broker.", "Good."]),
        ("See https://example.org/a.b?c=d. Then go.", ["See https://example.org/a.b?c=d.", "Then go."]),
        ("Call `a. B()` first. Then [the. Docs](http://x.y/A. B).", None),
        ("It ended (see the note. It is long.) well. Next.", ["It ended (see the note. It is long.) well.", "Next."]),
        ('"Is it?" she asked. "Yes." He left.', ['"Is it?" she asked.', '"Yes."', "He left."]),
        ("Version 2.0 is out. See v1.2 too.", ["Version 2.0 is out.", "See v1.2 too."]),
        ("No. 5 is alive. No. That is all.", ["No. 5 is alive.", "No.", "That is all."]),
        ("St. John came. He lives in the 3rd St. now.", ["St. John came.", "He lives in the 3rd St. now."]),
        ("Acme Inc. was first. It won.", ["Acme Inc. was first.", "It won."]),
        ("\u4eca\u65e5\u306f\u3002\u660e\u65e5\u3082\u3002", ["\u4eca\u65e5\u306f\u3002", "\u660e\u65e5\u3082\u3002"]),
        ("", []),
    ],
)
def test_sentences_end_where_a_reader_ends_them(text: str, sentences: list[str] | None) -> None:
    found = split_sentences(text)
    if sentences is None:
        assert found[0] == "Call `a. B()` first."
    else:
        assert found == sentences


def test_nothing_is_lost_in_the_cutting() -> None:
    text = "A (b. C) d. E `f. G` h! I? J.\nK  l. (M n.) O."
    assert "".join("".join(split_sentences(text)).split()) == "".join(text.split())


def test_blocks_are_prose_without_code_tables_quotations_marks_and_local_links() -> None:
    blocks = blocks_of(
        "---\ntitle: x\n---\n# A *title*\n\nText [1] with [a link](https://example.org), [a file](b.md), "
        "![image](c.png)\nand `code`.\n\n```\nx = 1. Y\n```\n\n"
        "> quoted\n\n- item one.\n\n| a |\n|---|\n| 1 |\n\n<div>html</div>\n"
    )
    assert [(block.kind, block.text, block.line) for block in blocks if block.kind != "other"] == [
        ("heading", "A *title*", 4),
        ("paragraph", "Text with [a link](https://example.org), a file, and `code`.", 6),
        ("item", "item one.", 15),
    ]
    assert "quoted" in [block.text for block in blocks if block.kind == "other"]


def test_an_indented_first_line_of_plain_text_is_no_code() -> None:
    prose, code = "    It was a long day, and nobody knew when it would end.", "    x = call(1); y[2] = {3}"
    assert [block.kind for block in blocks_of(prose)] == ["paragraph"]
    assert [block.kind for block in blocks_of(code)] == ["other"]


def test_characters_that_markdown_would_take_for_markup_stay_escaped() -> None:
    text = blocks_of(r"Two \* three and \`tick\` and a\\b.")[0].text
    assert text == r"Two \* three and \`tick\` and a\\b."
    assert plain(text) == r"Two * three and `tick` and a\b."


def test_words_are_counted_as_a_reader_sees_them() -> None:
    assert count_words("A [link](https://example.org/long/path) and **bold** well-known 3.5 `code`.") == 7


@pytest.mark.parametrize(
    ("one", "other"), [("retries", "retry"), ("retried", "retry"), ("agents", "agent"), ("stopped", "stop")]
)
def test_forms_of_a_word_meet(one: str, other: str) -> None:
    assert stem(one) == stem(other)


def test_terms_leave_out_what_every_text_has() -> None:
    assert terms("The agents of the mesh") == ["agent", "mesh"]


@pytest.mark.parametrize(
    "text", ["This fails.", "However, they fail.", "A record answers all four.", "For agents it has a price."]
)
def test_sentences_that_lean_on_another_are_known(text: str) -> None:
    assert leans(text)


@pytest.mark.parametrize("text", ["Agents fail.", "However, agents fail.", "All four wheels turn."])
def test_sentences_that_stand_alone_are_known(text: str) -> None:
    assert not leans(text)


def test_a_connective_is_taken_off_with_its_capital_given_on() -> None:
    assert strip_connective("However, agents fail.") == "Agents fail."
    assert strip_connective("But agents fail.") == "Agents fail."
    assert strip_connective("So do agents.") == "So do agents."


def test_a_source_s_title_is_its_own_its_heading_or_its_first_words() -> None:
    texts = [
        "# Heading\n\nA text of some words here.",
        "A Plain Title\n\nA text of some words here.",
        "A text of some words.",
    ]
    corpus = read_sources([Source(title="Given", text=texts[0]), *(Source(text=text) for text in [*texts, ""])])
    assert corpus.titles == ["Given", "Heading", "A Plain Title", "A text of some words", "Source 5"]


def test_reference_lists_of_sources_are_no_material() -> None:
    text = (
        "# T\n\nA real sentence stands here.\n\n## References\n\nA book of great length is cited.\n\n"
        "### Deeper\n\nAnother one of those is cited.\n\n## Next\n\nAnother real sentence is here."
    )
    corpus = read_sources([Source(text=text)])
    assert [sentence.text for sentence in corpus.sentences] == [
        "A real sentence stands here.",
        "Another real sentence is here.",
    ]


def test_a_small_sub_section_joins_its_parent() -> None:
    corpus = read_sources(
        [
            Source(
                text="# T\n\n## Big\n\n"
                + "Every word counts here today. " * 12
                + "\n\n### Small\n\nOne small thing is said."
            )
        ]
    )
    assert [section.heading for section in corpus.sections] == ["Big"]
