"""Structure, tone, citations and links: each fault is found at its place, and good form passes."""

import pytest

from agents.examination_agent.document import read_document
from agents.examination_agent.models import Issue
from agents.examination_agent.references import addresses, check_citations, check_links
from agents.examination_agent.structure import check_structure
from agents.examination_agent.tone import check_tone, read_rules

FILL = "Each of these words is here to fill a section with text. "


def structure(markdown: str, length: int | None = None, topic: str = "") -> list[tuple[str, int | None, str]]:
    return [(i.severity, i.line, i.message) for i in check_structure(read_document(markdown), length, topic)]


def tone(markdown: str, guidelines: str = "", style: str = "") -> list[Issue]:
    return check_tone(read_document(markdown), read_rules(guidelines, style))


def test_good_form_passes() -> None:
    section = (
        "## Part {0}\n\n" + "Sentence {0} says something that is its own. " + "Another of part {0} says more. " + "\n\n"
    )
    sections = "".join(section.format(number) for number in range(4))
    assert structure(f"# A title\n\nAn introduction stands here.\n\n{sections}## Conclusion\n\nThat was it.\n") == []


@pytest.mark.parametrize(
    ("markdown", "fault"),
    [
        ("", ("high", 1, "there is no text")),
        ("```\ncode\n```", ("high", 1, "there is no text")),
        ("Text.", ("medium", 1, "no title")),
        ("# A\n\nText.\n\n# B\n\nText two.", ("medium", 5, "second title")),
        ("# Untitled\n\nText.", ("medium", 1, "title says nothing")),
        ("Text.\n\n# A\n\nMore.", ("low", 3, "not the first line")),
        ("# A\n\nText.\n\n### B\n\nMore.", ("low", 5, "level 3 under one of level 1")),
        ("# A\n\n## B\n\n### C\n\n#### D\n\n##### E\n\nText.", ("low", 9, "too deep")),
        ("# A\n\nText.\n\n## B\n\nOne.\n\n## B\n\nTwo.", ("medium", 9, "heading of line 5 again")),
        ("# A\n\nText.\n\n## B\n\n## C\n\nTwo.", ("medium", 5, "empty section")),
        ("# A\n\n" + FILL * 20, ("medium", 3, "a paragraph of 240 words")),
        ("# A\n\n" + FILL * 15, ("low", 3, "a paragraph of 180 words")),
        ("# A\n\n" + "word " * 70 + "end.", ("low", 3, "a sentence of 71 words")),
        ("# A\n\n" + (FILL * 10 + "\n\n") * 5, ("medium", None, "600 words without a heading")),
        ("# A\n\n## B\n\n" + (FILL * 10 + "\n\n") * 3, ("medium", 3, "without an introduction")),
        ("# A\n\nIntro.\n\n## B\n\n" + (FILL * 10 + "\n\n") * 5, ("low", 5, "no conclusion")),
        ("# A\n\nThe very same sentence stands here twice. The very same sentence stands here twice.",
         ("medium", 3, "sentence of line 3 again")),
    ],
)  # fmt: skip
def test_each_fault_of_structure_is_found(markdown: str, fault: tuple[str, int | None, str]) -> None:
    severity, line, expected = fault
    assert [found for found in structure(markdown) if found[:2] == (severity, line) and expected in found[2]]


@pytest.mark.parametrize(
    ("asked", "severity"), [(12, None), (10, "low"), (9, "medium"), (5, "high"), (30, "high"), (16, "low")]
)
def test_the_length_is_held_against_what_was_asked(asked: int, severity: str | None) -> None:
    found = [issue for issue in structure(f"# A\n\n{FILL}", asked) if "were asked for" in issue[2]]
    assert [issue[0] for issue in found] == ([severity] if severity else [])


def test_sections_of_code_or_with_sub_sections_are_not_empty() -> None:
    text = "# A\n\nText.\n\n## B\n\n### C\n\n```\nx\n```\n\n## D\n\n| a |\n|---|\n| 1 |\n"
    assert not [found for found in structure(text) if "empty" in found[2]]


def test_an_article_on_something_else_is_off_its_topic() -> None:
    assert [f for f in structure("# Bread\n\nBread is baked.", topic="durable execution for agents") if f[0] == "high"]
    assert not structure("# Bread\n\nBread is baked.", topic="baking bread")


@pytest.mark.parametrize(
    ("text", "guidelines", "severity", "expected"),
    [
        ("It works!", "", "low", "an exclamation mark"),
        ("It works!", "No exclamation marks.", "medium", "guidelines want no exclamation"),
        ("It works!!", "", "medium", "shout"),
        ("This is VERY IMPORTANT NEWS for all.", "", "medium", "capitals"),
        ("A revolutionary tool.", "", "low", "'revolutionary'"),
        ("A revolutionary tool.", "Avoid: revolutionary, magic", "medium", "guidelines avoid 'revolutionary'"),
        ("We leverage synergy here.", 'Never use the words "leverage" or "utilize".', "medium", "'leverage'"),
        ("We write this.", "No first person.", "medium", "first person"),
        ("The team writes. I do too.", "Write in the third person.", "medium", "first person"),
        ("You should try.", "Do not address the reader.", "medium", "second person"),
        ("Tools help.", "Use the second person.", "medium", "ask for the second person"),
        ("Tools help.", "Write in first person plural.", "medium", "ask for the first person"),
        ("Is it good? Yes.", "No rhetorical questions.", "medium", "no questions"),
        ("It doesn't work.", "Avoid contractions.", "low", "contraction"),
        ("It doesn't work.", "Formal tone.", "low", "contraction"),
        ("Fine \U0001f600 indeed.", "No emojis please", "medium", "emoji"),
        ("One two three four five six seven.", "Keep sentences under 5 words.", "low", "7 words"),
        ("Tools help.", "Must mention: durability", "medium", "'durability'"),
    ],
)
def test_each_fault_of_tone_is_found(text: str, guidelines: str, severity: str, expected: str) -> None:
    assert [
        issue
        for issue in tone(f"# A\n\n{text}", guidelines)
        if issue.severity == severity and expected in issue.message
    ]


@pytest.mark.parametrize(
    ("text", "guidelines"),
    [
        ("It is good. You can use HTTP and JSON with the NATS API in the US.", "Informal, second person is fine."),
        ('He said "we won" to all.', "No first person."),
        ("Long sentences are fine here.", "Avoid long sentences"),
        ("Is it good? Yes.", "No questions in headings."),
        ("Part I. of the work", "No first person."),
    ],
)
def test_what_no_rule_forbids_passes(text: str, guidelines: str) -> None:
    assert [
        issue for issue in tone(f"# A\n\n{text}", guidelines) if "first person" not in issue.message or "we won" in text
    ] == []


def test_headings_bait_ask_and_shout_at_their_own_line() -> None:
    found = tone(
        "# 7 reasons you must read this!\n\nText.\n\n## Why?\n\nText.",
        "No exclamation marks. No questions in headings.",
    )
    assert sorted((issue.line, issue.severity) for issue in found) == [(1, "medium"), (1, "medium"), (5, "medium")]


def test_the_demo_s_guidelines_are_understood() -> None:
    rules = read_rules(
        "- No exclamation marks, no rhetorical questions in headings.\n"
        "- Avoid: revolutionary, game changer, unlock\n- No first person."
    )
    assert rules.avoided == ("revolutionary", "game changer", "unlock")
    assert (rules.no_exclamations, rules.no_heading_questions, rules.no_questions, rules.no_first_person) == (
        True, True, False, True,
    )  # fmt: skip


def citations(markdown: str, sources: int = 2) -> list[tuple[str, int | None, str]]:
    return [(i.severity, i.line, i.message) for i in check_citations(read_document(markdown), sources)]


def test_citations_in_order_pass() -> None:
    assert citations("# A\n\nOne [1]. Two. [2]\n\n## Sources\n\n1. One\n2. [Two](https://example.org)\n") == []
    assert citations("# A\n\nOne [2, 1].\n\n## References\n\n- [1] One\n- [2] Two\n") == []
    assert citations("# A\n\nCode `a[3]` is no mark.", 0) == []


@pytest.mark.parametrize(
    ("markdown", "severity", "line", "expected"),
    [
        ("# A\n\nOne [3].\n\n## Sources\n\n1. One\n", "high", 3, "[3] has no entry"),
        ("# A\n\nOne [1].\n\n## Sources\n\n1. One\n2. Two\n", "low", 8, "entry 2 is never cited"),
        ("# A\n\nOne [1].\n\n## Sources\n\n- [1] One\n- [1] Two\n", "medium", 8, "2 entries are numbered 1"),
        ("# A\n\nOne [1].", "medium", None, "no list of sources"),
        ("# A\n\nOne [5].", "high", 3, "[5] has no entry"),
        ("# A\n\nOne.", "medium", None, "nothing is cited"),
    ],
)
def test_each_fault_of_citation_is_found(markdown: str, severity: str, line: int | None, expected: str) -> None:
    assert [f for f in citations(markdown) if f[:2] == (severity, line) and expected in f[2]]


def links(markdown: str) -> list[tuple[str, int | None, str, str]]:
    return [(i.severity, i.line, i.excerpt, i.message) for i in check_links(read_document(markdown))]


def test_good_links_pass() -> None:
    assert links(
        "# The Title\n\n[a](https://example.org/x?y=1#z), [b](#the-title), [c](mailto:a@b.c), <https://example.org>, "
        "https://example.org/page. `[x](bad url)` and [d](http://127.0.0.1:80/), [e](https://m\u00fcnchen.example/)\n"
    ) == []  # fmt: skip


@pytest.mark.parametrize(
    ("link", "severity", "expected"),
    [
        ("[a]()", "medium", "no address"),
        ("[a](#nowhere)", "medium", "no heading has the anchor"),
        ("[a](http://bad host/x)", "medium", "malformed"),
        ("[a](https://)", "medium", "no valid host"),
        ("[a](http://exa$mple.org)", "medium", "no valid host"),
        ("[a](http://example.org:99999/)", "medium", "cannot be read"),
        ("[a](http://[::1/)", "medium", "cannot be read"),
        ("[a](htp://example.org)", "medium", "no scheme"),
        ("[a](www.example.org)", "medium", "lacks `https://`"),
        ("[a](other.md)", "low", "relative"),
        ("[a](mailto:nobody)", "medium", "no address"),
        ("![a](pictures/x.png)", "low", "relative"),
        ("htp://example.org/x", "medium", "no scheme"),
    ],
)
def test_each_fault_of_a_link_is_found(link: str, severity: str, expected: str) -> None:
    assert [
        found
        for found in links(f"# T\n\nfirst line\n{link} end")
        if found[0] == severity and expected in found[3] and found[1] == 4
    ]


def test_an_anchor_that_two_headings_share_is_doubtful() -> None:
    (found,) = [f for f in links("# T\n\n[a](#part)\n\n## Part\n\nx\n\n## Part\n\ny") if "share" in f[3]]
    assert found[0] == "low"
    assert links("# T\n\n[a](#part-1)\n\n## Part\n\nx\n\n## Part\n\ny") == []


def test_addresses_are_those_of_text_and_sources_once_each() -> None:
    text = (
        "# T\n\n[a](https://a.example) https://b.example/x.\n\n[a](https://a.example) [b](http://bad host)\n\n"
        "## Sources\n\n1. C, https://c.example/y.\n"
    )
    assert addresses(read_document(text)) == [
        ("https://a.example", 3),
        ("https://b.example/x", 3),
        ("https://c.example/y", 9),
    ]


def test_lines_count_from_the_file_s_first_front_matter_included() -> None:
    document = read_document("---\ntitle: x\n---\n\n# T\n\n> A quotation.\n\n- item [1]\n")
    assert [(heading.text, heading.line) for heading in document.headings] == [("T", 5)]
    assert [(paragraph.kind, paragraph.line) for paragraph in document.paragraphs] == [("quotation", 7), ("item", 9)]
    assert document.marks[0].line == 9


def test_footnotes_are_citations_and_not_claims() -> None:
    text = (
        "# T\n\nRobusta holds more.[^1] Another one.[^9]\n\n```\n[^x]: code[^x]\n```\n\n"
        "[^1]: A paper, <htp://x.example/1>.\n    It goes on.\n[^2]: Nobody refers to it.\n"
    )
    document = read_document(text)
    assert [sentence.text for sentence in document.sentences] == ["Robusta holds more.", "Another one."]
    found = [(issue.severity, issue.line, issue.message) for issue in check_citations(document, 2)]
    assert found == [
        ("high", 3, "[^9] has no footnote"),
        ("low", 11, "nothing refers to the footnote [^2]"),
    ]


def test_a_reference_that_no_line_defines_is_a_broken_link() -> None:
    text = "# T\n\nA [good][a] and a [bad one][nope], an index[i][j] and two marks [1][2].\n\n[a]: https://x.example\n"
    (issue,) = check_links(read_document(text))
    assert (issue.line, issue.excerpt) == (3, "[bad one][nope]")
    assert "[nope]" in issue.message


def test_lists_of_sources_have_names_in_other_languages() -> None:
    document = read_document("# T\n\nEin Satz [1].\n\n## Quellen\n\n1. Ein Buch\n")
    assert [entry.number for entry in document.entries] == [1]
