"""The rules on whole documents: what they change, what they leave, and that a second run changes nothing."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.enhancement_agent.corrector import correct
from agents.enhancement_agent.preservation import kept_parts

PROTECTED = [
    "`teh  code`",
    "``a ` recieve  b``",
    "[teh  link](http://x.example/teh  'recieve  it')",
    "[teh  link](http://x.example/teh 'recieve')",
    "![teh  alt](data:image/png;base64,recieve==)",
    "<https://x.example/teh>",
    "https://x.example/recieve,teh",
    "<kbd>teh  key</kbd>",
    "<!-- teh  comment -->",
    "$teh  + x$",
    "$$recieve\n teh$$",
    "[1]",
    "[^teh]",
    "[@teh2020]",
    '"teh  quote"',
    "\u201cin order to  recieve\u201d",
    "\u00abteh  quote\u00bb",
    "\\*teh\\*_x",
    "&nbsp;&amp;",
    "{.teh  #recieve}",
    "${teh.value}",
    "snake_teh_case",
    "teh/recieve/path",
    "recieve()",
    "v1.2.3-teh",
]


@pytest.mark.parametrize("part", PROTECTED)
def test_what_is_protected_survives_byte_for_byte(part: str) -> None:
    made = correct(f"We recieve {part} here, due to the fact that it works.\n").markdown
    assert made == f"We receive {part} here, because it works.\n"


BLOCKS = [
    "```python\nteh  = recieve  # in order to\n```\n",
    "~~~\nteh  ~~~ recieve\n~~~\n",
    "    teh  indented  code\n",
    "> teh  quotation in order to\n",
    "<div>\nteh  html\n</div>\n",
    "| teh  a | recieve |\n|---|---|\n| teh  x | in order to |\n",
    "[teh]: http://x.example/teh 'recieve  it'\n",
    "::: teh  warning\n:::\n",
]


@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_that_are_not_prose_survive_byte_for_byte(block: str) -> None:
    made = correct(f"We recieve it.\n\n{block}\nWe recieve it.\n").markdown
    assert made == f"We receive it.\n\n{block}\nWe receive it.\n"


def test_front_matter_and_the_list_of_sources_survive() -> None:
    document = (
        "---\ntitle: Teh  thing\n---\n# Teh title\n\nWe recieve.\n\n"
        "## Sources\n\n1. Teh  paper, recieve\n\n## After\n\nTeh end.\n"
    )
    made = correct(document)
    assert made.markdown == document.replace("# Teh title", "# The title").replace("We recieve", "We receive").replace(
        "Teh end", "The end"
    )
    assert [change.line for change in made.changes] == [4, 6, 14]


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        ("It works in order to win.", "It works to win.", "style"),
        ("In order to win, work.", "To win, work.", "style"),
        ("Due to the fact that it rains, wait.", "Because it rains, wait.", "style"),
        ("We utilize it.", "We use it.", "style"),
        ("It is important to note that dogs bark.", "Dogs bark.", "style"),
        ("This is an absolutely essential part.", "This is an essential part.", "style"),
        ("It is an end, a completely eliminate thing.", "It is an end, an eliminate thing.", "style"),
        ("We saw the the cat.", "We saw the cat.", "style"),
        ("The the cat.", "The cat.", "style"),
        ("We saw the\nthe cat.", "We saw the\ncat.", "style"),
        ("Two  spaces   here.", "Two spaces here.", "whitespace"),
        ("Wait , what ?", "Wait, what?", "punctuation"),
        (
            "It isn\u2019t so, it isn\u2019t and it isn't.",
            "It isn\u2019t so, it isn\u2019t and it isn\u2019t.",
            "punctuation",
        ),
        ("It ended. then it began.", "It ended. Then it began.", "capitalization"),
        ("the cat sat.", "The cat sat.", "capitalization"),
        ("And i think i'm right.", "And I think I'm right.", "capitalization"),
    ],
)
def test_each_rule_does_its_one_thing(before: str, after: str, kind: str) -> None:
    made = correct(before + "\n")
    assert made.markdown == after + "\n"
    assert {change.kind for change in made.changes} == {kind}


@pytest.mark.parametrize(
    "prose",
    [
        "He said that that was fine, and had had enough.",
        "Use etc. and so on, e.g. the dog, i.e. the cat, vs. the bird.",
        "We run .NET and wait ... for it.",
        "npm installs it. npm is fast.",
        "- the list item stays\n- in lower case",
        "A hard break  \nstays two spaces.",
        "The API endpoint, the CPU and iPhone stay.",
        "For i in range, do it.",
        "don't mix it's and that's",
    ],
)
def test_what_only_looks_wrong_stays(prose: str) -> None:
    assert correct(prose + "\n").markdown == prose + "\n"


LONG = (
    "The orchestrator keeps the state of all the running tasks in one large database with many tables and many columns"
)


def test_a_very_long_sentence_is_split_between_two_clauses() -> None:
    rest = "it can start again at any moment without the loss of a single one of those many tasks"
    assert correct(f"{LONG}, and {rest}.\n").markdown == f"{LONG}. It{rest[2:]}.\n"
    assert correct(f"{LONG}; {rest}.\n").markdown == f"{LONG}. It{rest[2:]}.\n"


@pytest.mark.parametrize(
    "sentence",
    [
        # A condition governs both halves.
        f"When {LONG.lower()}, and it is able to find them all again when it needs them in the dark of night, rest.",
        # The second half has no verb of its own.
        f"{LONG}, and the rest of the things that nobody has ever looked at in all those many years of hard work.",
        f"{LONG} (which is good; it is the way that all of the others do it too in all of their many programs).",
    ],
)
def test_a_long_sentence_that_may_not_be_split_stays_whole(sentence: str) -> None:
    made = correct(sentence + "\n").markdown
    assert made.count(". ") == 0
    assert "clarity" not in {change.kind for change in correct(sentence + "\n").changes}


def test_a_formal_style_writes_contractions_out() -> None:
    text = "We don't know, can't say, and it's not done. Isn't it? Don't you see?\n"
    assert correct(text, requested_style="formal").markdown == (
        "We do not know, cannot say, and it's not done. Isn't it? Don't you see?\n"
    )
    assert correct(text, requested_style="informal").markdown == text
    assert correct(text).markdown == text


def test_headings_keep_their_words_when_something_links_to_them() -> None:
    text = "# Teh  heading in order to\n\nSee [it](#teh-heading).\n"
    assert correct(text).markdown == text
    assert correct("# Teh  heading in order to\n").markdown == "# The  heading in order to\n"


def test_changes_say_kind_place_and_reason() -> None:
    change = correct("Fine.\n\nAlso fine.\nWe recieve it.\n").changes[0]
    assert (change.kind, change.line, change.before, change.after) == ("spelling", 4, "recieve", "receive")
    assert change.reason == '"recieve" is a misspelling'


def test_windows_line_ends_and_byte_order_marks_survive() -> None:
    assert correct("We recieve\r\nit.\r\n\r\nTeh end.\r\n").markdown == "We receive\r\nit.\r\n\r\nThe end.\r\n"
    assert correct("\ufeffWe recieve it.\n").markdown == "\ufeffWe receive it.\n"


def test_other_languages_get_only_their_spaces_corrected() -> None:
    made = correct("Qu'est-ce que  c'est ? in order to\n", language="fr")
    assert made.markdown == "Qu'est-ce que c'est ? in order to\n"


_WORDS = st.sampled_from(
    "teh the recieve in order to due to the fact that it it's"
    " don't isn\u2019t , . ; and we the the is able to  i think e.g. databse"
    " * ** _ ' \" ( ) [ ] < > # - 1. \\ | ` ~ $ & { }".split(" ")
)
_PIECES = st.one_of(
    _WORDS, st.sampled_from(PROTECTED), st.sampled_from(["\n", "\n\n", "  \n", *[f"\n\n{b}\n" for b in BLOCKS]])
)


@settings(max_examples=150)
@given(st.lists(_PIECES, max_size=40))
def test_any_document_keeps_its_parts_and_is_done_after_one_run(pieces: list[str]) -> None:
    document = " ".join(pieces)
    made = correct(document)
    assert kept_parts(made.markdown) == kept_parts(document)
    again = correct(made.markdown)
    assert again.markdown == made.markdown
    assert again.changes == []
    assert made.markdown.count("\n") == document.count("\n")


@settings(max_examples=150)
@given(st.text(max_size=300))
def test_any_text_at_all_is_safe(document: str) -> None:
    made = correct(document)
    assert kept_parts(made.markdown) == kept_parts(document)
    assert correct(made.markdown).changes == []
    assert re.findall(r"\d", made.markdown) == re.findall(r"\d", document)


def test_front_matter_in_toml_stays() -> None:
    text = "+++\nrecieve = true\n+++\n\nWe recieve it.\n"
    assert correct(text).markdown == "+++\nrecieve = true\n+++\n\nWe receive it.\n"
