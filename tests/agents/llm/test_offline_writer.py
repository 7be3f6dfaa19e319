"""The offline writer: an article of the sources' own sentences."""

import re
import time
from typing import Any

import pytest
from pydantic import ValidationError

from agents.llm_agent import composition, offline
from agents.llm_agent.agent import agent, generate_content, read_settings, summarize_content
from agents.llm_agent.article import parse
from agents.llm_agent.corpus import leans, read_sources
from agents.llm_agent.markdown import blocks_of
from agents.llm_agent.models import GenerateContent, SummarizeContent
from agents.llm_agent.preferences import read_preferences
from agents.llm_agent.ranking import cosine
from pantheon import TaskFailure
from pantheon.text.sentences import split_sentences
from pantheon.text.sources import Source
from pantheon.worker.context import LocalTaskContext

BREAD = """\
Sourdough bread is made with a starter of wild yeast and bacteria. The starter is fed with flour and water every day. \
Because the bacteria make acid, the bread keeps longer than bread made with baker's yeast.

The dough ferments slowly. A cool kitchen may need twelve hours for the first rise, while a warm one needs about five. \
Bakers therefore watch the dough and not the clock. However, beginners often stop too early, and the crumb stays dense.

Shaping gives the loaf its strength. The baker pulls the surface of the dough tight so that it holds the gas inside. \
This takes practice. A loose loaf spreads on the stone and bakes flat.
"""


def sentences_of(text: str) -> set[str]:
    return {
        sentence
        for block in blocks_of(text)
        if block.kind in ("paragraph", "item")
        for sentence in split_sentences(block.text)
    }


@pytest.mark.parametrize("length", [60, 150, 250, 400, 900, 1500, 2200])
async def test_the_length_is_kept_within_fifteen_percent(example_request: dict[str, Any], length: int) -> None:
    task = GenerateContent.model_validate({**example_request, "length_words": length})
    result = await generate_content(task, LocalTaskContext())
    assert abs(result.word_count - length) <= 0.15 * length
    assert (result.offline, result.model) == (True, None)


async def test_every_sentence_is_one_of_the_source_it_cites(example_request: dict[str, Any]) -> None:
    task = GenerateContent.model_validate(example_request)
    result = await generate_content(task, LocalTaskContext())
    article, entries = parse(result.markdown)
    originals = [sentences_of(source.text) for source in task.sources]
    lines = [line for part in article.parts for line in part.lines()]
    assert len(lines) > 30
    for line in lines:
        (cited,) = line.cites
        own = originals[cited - 1]
        assert line.text in own or any(sentence.endswith(line.text[1:]) for sentence in own), line.text
    assert [entry.title for entry in entries] == [source.title for source in task.sources]


async def test_the_article_has_the_form_of_one(example_request: dict[str, Any]) -> None:
    result = await generate_content(GenerateContent.model_validate(example_request), LocalTaskContext())
    assert result.markdown.startswith("# Why agents need durable execution\n\n")
    article, _ = parse(result.markdown)
    headings = [part.heading for part in article.parts]
    assert headings[0] == ""
    assert headings[-1] == "Conclusion"
    assert 4 <= len(headings) <= 9
    assert len(set(headings)) == len(headings)
    for part in article.parts:
        for paragraph in part.paragraphs:
            assert 1 <= len(paragraph.lines) <= 6
    # Sentences that need the one before are never put first in a section.
    assert not [part.heading for part in article.parts if leans(part.paragraphs[0].lines[0].text)]
    assert re.search(r"## Sources\n\n1\. How agent work fails\n2\. ", result.markdown)
    assert "Agents need durable execution because" in result.summary


async def test_the_same_request_gives_the_same_article(example_request: dict[str, Any]) -> None:
    task = GenerateContent.model_validate(example_request)
    first = await generate_content(task, LocalTaskContext())
    assert await generate_content(task, LocalTaskContext()) == first


async def test_progress_names_its_stages_and_the_text_is_streamed(example_request: dict[str, Any]) -> None:
    ctx = LocalTaskContext()
    result = await generate_content(GenerateContent.model_validate(example_request), ctx)
    expected = [message.message.split()[0] for message in ctx.progress_messages]
    assert expected == ["reading", "ranking", "composing", str(result.word_count)]
    percents = [message.percent or 0 for message in ctx.progress_messages]
    assert percents == sorted(percents)
    assert ctx.streamed == result.markdown


async def test_sources_too_short_give_what_they_have_and_say_so() -> None:
    result = await generate_content(GenerateContent(topic="bread", sources=[Source(text=BREAD)]), LocalTaskContext())
    assert 80 < result.word_count < 150
    assert "of the 800 words asked for" in result.note
    assert result.markdown.startswith("# Bread\n")


async def test_plain_strings_are_sources_and_keep_their_numbers() -> None:
    task = GenerateContent.model_validate({"topic": "bread", "sources": ["", BREAD], "length_words": 60})
    result = await generate_content(task, LocalTaskContext())
    assert "[2]" in result.markdown
    # A list that Markdown counts by itself would call the second source the first.
    assert "## Sources\n\n- [2] Sourdough bread is made with a starter of\u2026" in result.markdown
    assert [(citation.number, citation.url) for citation in result.citations] == [(2, None)]


@pytest.mark.parametrize("sources", [[], [Source(text="  \n")], [Source(text="```\ncode only\n```")]])
async def test_nothing_to_write_from_says_what_would_help(sources: list[Source]) -> None:
    with pytest.raises(TaskFailure) as caught:
        await generate_content(GenerateContent(topic="bread", sources=sources), LocalTaskContext())
    assert (caught.value.code, caught.value.retryable) == ("nothing_to_write_from", False)
    assert "`sources`" in str(caught.value)
    assert "LLM_MODEL" in str(caught.value)


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        ({}, "topic"),
        ({"topic": "  "}, "topic"),
        ({"topic": "x", "length_words": 10}, "length_words"),
        ({"topic": "x", "sources": [{"title": "no text"}]}, "text"),
        ({"topic": "x", "sources": ["a" * 4_000_001]}, "characters"),
    ],
)
def test_a_wrong_request_names_its_field(payload: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        GenerateContent.model_validate(payload)


def test_unknown_fields_are_ignored_and_the_schema_takes_strings() -> None:
    assert GenerateContent.model_validate({"topic": "x", "colour": 1}).topic == "x"
    assert {"type": "string"} in GenerateContent.model_json_schema()["properties"]["sources"]["items"]["anyOf"]


@pytest.mark.parametrize(
    ("topic", "title"),
    [
        ("write a blog post about durable execution.", "Durable execution"),
        ("Please draft me a short article on X", "X"),
        ("why bread rises", "Why bread rises"),
        ('"Quoted"', "Quoted"),
    ],
)
def test_the_title_is_the_topic_without_the_order_to_write(topic: str, title: str) -> None:
    assert offline.title_of(topic) == title


def test_what_is_said_twice_is_taken_once() -> None:
    corpus = read_sources([Source(text=BREAD), Source(text=BREAD)])
    written = offline.write(offline.open_selection(corpus, "bread", "", ""), "bread", 400)
    lines = [line.text for part in written.article.parts for line in part.lines()]
    assert len(lines) == len(set(lines))


def test_sources_without_headings_get_sections_named_by_their_matter() -> None:
    paragraph = (
        "Clocks of type {0} drift because crystal {0} warms. Engineers correct drift of crystal {0} with a signal. "
        "Every {0} clock needs a {0} service twice a year. Owners of a {0} clock forget that service."
    )
    kinds = "quartz atomic pendulum marine tower pocket station kitchen garden wrist".split()
    text = "\n\n".join(paragraph.format(kind) for kind in kinds)
    corpus = read_sources([Source(text=text)])
    written = offline.write(offline.open_selection(corpus, "clocks", "", ""), "clocks", 250)
    headings = [part.heading for part in written.article.parts if part.heading]
    assert headings
    assert all(heading and "\u2026" not in heading for heading in headings)


def test_guidelines_and_style_choose_among_the_sentences() -> None:
    text = (
        BREAD + "\n\nThis amazing bread is seamless in every way today! We love our bread more than any bread we know."
    )
    corpus = read_sources([Source(text=text)])
    guidelines = "No exclamation marks. Avoid: seamless, amazing. No first person."
    written = offline.write(offline.open_selection(corpus, "bread", "plain", guidelines), "bread", 80)
    assert "!" not in written.markdown
    assert "We love" not in written.markdown
    preferences = read_preferences("technical", guidelines)
    assert preferences.avoided == ("seamless", "amazing")
    assert preferences.technical
    assert read_preferences("", "Never use the words 'foo' or 'bar baz'. No rhetorical questions.").avoided == (
        "foo",
        "bar baz",
    )
    assert not read_preferences("", "Avoid long sentences").avoided


async def test_a_summary_is_short_and_of_the_text() -> None:
    result = await summarize_content(SummarizeContent(text=BREAD, topic="bread", max_words=40), LocalTaskContext())
    assert 20 <= result.word_count <= 40
    assert {*split_sentences(result.summary), *result.key_points} <= sentences_of(BREAD)
    assert 2 <= len(result.key_points) <= 6
    assert (result.offline, result.model) == (True, None)


async def test_a_summary_of_several_sources_hears_them_all(example_sources: list[Source]) -> None:
    result = await summarize_content(SummarizeContent(sources=example_sources, max_words=200), LocalTaskContext())
    assert 150 <= result.word_count <= 200
    received = [
        any(sentence in source.text.replace("\n", " ") for sentence in split_sentences(result.summary))
        for source in example_sources
    ]
    assert sum(received) >= 3


async def test_nothing_to_summarize_is_a_clear_error() -> None:
    with pytest.raises(ValidationError, match="nothing to summarize"):
        SummarizeContent.model_validate({"sources": [" "]})
    with pytest.raises(TaskFailure) as caught:
        await summarize_content(SummarizeContent(text="Just words"), LocalTaskContext())
    assert caught.value.code == "nothing_to_write_from"


def test_fifty_pages_take_seconds_at_most() -> None:
    parts = [
        f"## Part {number}\n\n"
        + " ".join(
            f"Subject {number} drives engine {count % 37} to valley {(number * count) % 91} if reason{count} holds."
            for count in range(14)
        )
        for number in range(130)
    ]
    started = time.process_time()
    corpus = read_sources([Source(text="\n\n".join(parts))])
    offline.write(offline.open_selection(corpus, "engine valley", "", ""), "engine valley", 5_000)
    assert corpus.words > 20_000
    # Some seconds, and ten where coverage counts each line: a fault that grows with the square takes minutes.
    assert time.process_time() - started < 60


async def test_the_agent_declares_its_tasks_and_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    await read_settings()
    assert agent.task_types == ("generate_content", "summarize_content")
    assert agent.metadata == {"model": "offline"}


SMALL_SECTIONS = """\
# Growing coffee

Arabica grows best between 1,200 and 2,000 metres above sea level. At that height nights are cool, cherries ripen \
slowly, and the beans become denser. Dense beans hold more sugar and acids, which is why buyers pay more for them.

## Harvest

Cherries are picked by hand, usually in three passes. Each pass takes only the red cherries of the tree. A good picker \
gathers 80 to 100 kg a day.

## Washing

Washed processing uses between 10 and 40 litres of water per kilogram of green coffee.

## Drying

Natural processing dries the whole cherry in the sun for several weeks, turned by hand every few hours.
"""
PRICES = """\
Coffee prices and the weather

The price of arabica rose by 70 percent in 2024. Drought in Brazil and heavy rain in Vietnam were the main causes. \
Roasters passed about half of the increase on to customers within six months. Small roasters had fewer reserves.

The first coffee house of Vienna opened in 1685. The result of the drought was a poor harvest in two countries.

Robusta grows in the lowlands, below 800 metres, and tolerates heat better than arabica. Breeders in Costa Rica are \
crossing the two species to get plants that stand heat and still taste good. Growers react to the heat by moving \
uphill, by planting shade trees, and by changing varieties.
"""


async def _written(topic: str, *texts: str, length_words: int, style: str = "") -> tuple[str, str]:
    task = GenerateContent(
        topic=topic, sources=[Source(text=text) for text in texts], length_words=length_words, style=style
    )
    made = await generate_content(task, LocalTaskContext())
    return made.markdown, made.note


def test_a_noun_that_is_told_of_does_not_lean_on_the_sentence_before() -> None:
    assert leans("The price is paid in time.")
    assert leans("The first is cheaper.")
    assert not leans("The price of arabica rose by 70 percent in 2024.")
    assert not leans("The first coffee house of Vienna opened in 1685.")
    assert leans("The result of this was a poor harvest.")


async def test_small_sections_are_not_lost_where_the_length_needs_them() -> None:
    markdown, note = await _written("Coffee", SMALL_SECTIONS, PRICES, length_words=240)
    assert "The price of arabica rose by 70 percent in 2024." in markdown
    assert "Cherries are picked by hand" in markdown
    assert "asked for" not in note


async def test_sources_that_give_other_figures_for_the_same_are_named() -> None:
    other = "The price of arabica fell by 20 percent in 2023. Traders had expected a rise after the frost."
    _, note = await _written("The price of arabica", PRICES, other, length_words=200)
    assert "Sources [1] and [2] may disagree" in note
    _, note = await _written("The price of arabica", PRICES, SMALL_SECTIONS, length_words=200)
    assert "disagree" not in note


async def test_a_style_of_bullet_points_gives_them() -> None:
    markdown, _ = await _written("Coffee", SMALL_SECTIONS, PRICES, length_words=240, style="short bullet points")
    assert "\n- The price of arabica rose by 70 percent in 2024" in markdown
    assert not markdown.split("\n\n")[1].startswith("- ")
    plain_markdown, _ = await _written("Coffee", SMALL_SECTIONS, PRICES, length_words=240, style="no bullets")
    assert "\n- " not in plain_markdown


async def test_scripts_without_spaces_are_written_from() -> None:
    text = "# 緑茶の歴史\n\n緑茶は奈良時代に中国から日本へ伝わりました。最初は薬として僧侶に飲まれていました。"
    markdown, _ = await _written("緑茶", text, length_words=60)
    assert "飲まれていました [1]。" in markdown


async def test_a_summary_names_its_one_source() -> None:
    made = await summarize_content(SummarizeContent(text=SMALL_SECTIONS), LocalTaskContext())
    assert made.title == "Growing coffee"
    both = SummarizeContent(sources=[Source(text=SMALL_SECTIONS), Source(text=PRICES)])
    assert (await summarize_content(both, LocalTaskContext())).title == ""


def test_a_source_of_many_sections_costs_no_more_than_each_pair_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    # Every pair was compared again for each section taken: 300 KB took a minute.
    compared = 0

    def counted(one: Any, other: Any) -> float:
        nonlocal compared
        compared += 1
        return cosine(one, other)

    sections = 60
    text = "\n\n".join(
        f"## Matter {number}\n\n{BREAD}".replace("starter", f"thing{number}") for number in range(sections)
    )
    corpus = read_sources([Source(text=text)])
    selection = offline.open_selection(corpus, "bread", "", "")
    monkeypatch.setattr(composition, "cosine", counted)
    offline.write(selection, "bread", 800)
    assert compared <= 2 * sections**2
