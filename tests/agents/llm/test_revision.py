"""A revision has an effect on exactly what its issues point at."""

from typing import Any

import pytest

from agents.llm_agent.agent import generate_content
from agents.llm_agent.article import Entry, parse
from agents.llm_agent.model_output import article_of, summary_of
from agents.llm_agent.models import GenerateContent, Issue, Previous
from pantheon import TaskFailure
from pantheon.worker.context import LocalTaskContext

INVENTED = "Seventy-three companies in Norway proved it in 2019."
SOURCE = (
    "Sourdough bread is made with a starter of wild yeast and bacteria. The starter is fed with flour and water every "
    "day. Shaping gives the loaf its strength. The baker pulls the surface of the dough tight so that it holds the gas "
    "inside. A loose loaf spreads on the stone and bakes flat. Steam keeps the crust soft while the loaf expands."
)


async def revised(markdown: str, *issues: Issue, **fields: Any) -> str:
    values = {"topic": "Bread", "sources": [SOURCE], "length_words": 50, **fields}
    task = GenerateContent.model_validate(
        {**values, "previous": Previous(markdown=markdown, issues=list(issues)).model_dump()}
    )
    result = await generate_content(task, LocalTaskContext())
    assert result.offline
    assert result.note.startswith("Revised offline")
    return result.markdown


BASE = (
    "# Bread\n\nSourdough bread is made with a starter of wild yeast and bacteria [1]. The starter is fed with flour "
    "and water every day [1]. {0} Shaping gives the loaf its strength. The baker pulls the surface of the dough tight "
    "so that it holds the gas inside [1].\n\n## Sources\n\n1. Bread book\n"
)


async def test_an_unsupported_sentence_goes_and_the_others_stay() -> None:
    issue = Issue(kind="unsupported_claim", severity="high", line=3, excerpt=INVENTED, message="no source says so")
    markdown = await revised(BASE.format(INVENTED + " However, ovens differ."), issue)
    assert "Norway" not in markdown
    assert "Ovens differ." in markdown  # freed of the word that tied it to what is gone
    assert "Sourdough bread is made with a starter" in markdown
    assert "Shaping gives the loaf its strength" in markdown


async def test_what_leaned_on_a_dropped_sentence_goes_with_it() -> None:
    issue = Issue(kind="unsupported_claim", excerpt=INVENTED)
    markdown = await revised(BASE.format(INVENTED + " This surprised them."), issue)
    assert "surprised" not in markdown


async def test_a_claim_that_a_source_makes_otherwise_is_replaced_by_the_source_s_words() -> None:
    wrong = "Steam keeps the crust soft while the loaf expands by 400 percent [1]."
    issue = Issue(kind="unsupported_claim", excerpt="Steam keeps the crust soft while the loaf expands by 400 percent.")
    markdown = await revised(BASE.format(wrong), issue)
    assert "400" not in markdown
    assert "Steam keeps the crust soft while the loaf expands" in markdown


async def test_a_shouted_sentence_is_calmed() -> None:
    issue = Issue(kind="tone", excerpt="Bread is good!!")
    assert "Bread is good." in await revised(BASE.format("Bread is good!!"), issue)


async def test_a_sentence_with_a_word_the_guidelines_avoid_goes() -> None:
    issue = Issue(kind="tone", excerpt="Bread is a seamless joy.")
    assert "seamless" not in await revised(BASE.format("Bread is a seamless joy!"), issue, guidelines="Avoid: seamless")


async def test_a_sentence_is_found_by_its_line_when_nothing_is_quoted() -> None:
    text = "# Bread\n\nBread keeps long.\n\n" + INVENTED + "\n\nSteam helps the crust of a loaf."
    markdown = await revised(text, Issue(kind="unsupported_claim", line=5))
    assert "Norway" not in markdown
    assert "Bread keeps long" in markdown


async def test_a_wrong_mark_becomes_the_source_s_own_or_goes() -> None:
    text = BASE.format("Nobody knows why it works [9].").replace("bacteria [1]", "bacteria [9]")
    markdown = await revised(
        text, Issue(kind="citation", excerpt="Sourdough bread is made with a starter of wild yeast and bacteria [9].")
    )
    assert "[9]" not in markdown
    assert "every day [1]" in markdown


async def test_a_broken_link_leaves_its_words() -> None:
    text = BASE.format("Read [the book](http://bad host/x) on it. Or [this one](https://gone.example/x).")
    markdown = await revised(text, Issue(kind="link", excerpt="[this one](https://gone.example/x)"))
    assert "gone.example" not in markdown
    assert "Or this one" in markdown


async def test_titles_and_headings_are_mended() -> None:
    text = BASE.format("").replace("# Bread", "# You will not believe this bread!")
    text = text.replace("Shaping gives", "\n\n## Shape it!\n\nShaping gives")
    markdown = await revised(
        text,
        Issue(kind="tone", excerpt="You will not believe this bread!"),
        Issue(kind="tone", excerpt="Shape it!"),
    )
    assert markdown.startswith("# Bread\n")
    assert "## Shape it\n" in markdown


async def test_structure_is_put_in_order(example_request: dict[str, Any]) -> None:
    paragraph = "Agents that wait are cheap and durable in many ways of working."
    long = " ".join(
        f"Agent number {word} keeps a record of its own steps."
        for word in "one two three four five six seven eight".split()
    )
    text = f"## First\n\n{paragraph}\n\n#### Deep\n\n{long}\n\n## Empty\n\n## First\n\nA record of each step helps."
    issues = [
        Issue(kind="structure", message="the first section begins without an introduction"),
        Issue(kind="structure", message="there is no conclusion"),
    ]
    task = {
        **example_request,
        "length_words": 600,
        "previous": {"markdown": text, "issues": [i.model_dump() for i in issues]},
    }
    result = await generate_content(GenerateContent.model_validate(task), LocalTaskContext())
    article, _ = parse(result.markdown)
    assert article.title == "Why agents need durable execution"
    assert article.parts[0].words
    assert article.parts[-1].heading == "Conclusion"
    headings = [part.heading for part in article.parts]
    assert headings.count("First") == 1
    assert "Empty" not in headings
    assert next(part.level for part in article.parts if part.heading == "Deep") == 3
    assert max(len(paragraph.lines) for part in article.parts for paragraph in part.paragraphs) <= 6
    assert abs(result.word_count - 600) <= 90


async def test_an_article_too_long_is_cut_and_its_code_is_kept(example_request: dict[str, Any]) -> None:
    first = await generate_content(GenerateContent.model_validate(example_request), LocalTaskContext())
    text = first.markdown.replace("## Conclusion", "```python\nx = 1\n```\n\n## Conclusion")
    task = {**example_request, "length_words": 500, "previous": {"markdown": text, "issues": []}}
    result = await generate_content(GenerateContent.model_validate(task), LocalTaskContext())
    assert result.word_count <= 550
    assert "```python\nx = 1\n```" in result.markdown
    assert "cut for length" in result.note


async def test_an_article_without_fault_stays_as_it_is(example_request: dict[str, Any]) -> None:
    first = await generate_content(GenerateContent.model_validate(example_request), LocalTaskContext())
    task = {**example_request, "previous": {"markdown": first.markdown, "issues": []}}
    again = await generate_content(GenerateContent.model_validate(task), LocalTaskContext())
    assert again.markdown == first.markdown
    assert again.note == "Revised offline: nothing had to change."


async def test_a_revision_without_sources_can_still_drop() -> None:
    markdown = await revised(BASE.format(INVENTED), Issue(kind="unsupported_claim", excerpt=INVENTED), sources=[])
    assert "Norway" not in markdown
    assert "1. Bread book" in markdown


async def test_a_revision_that_leaves_nothing_says_so() -> None:
    with pytest.raises(TaskFailure) as caught:
        await revised(f"# Bread\n\n{INVENTED}", Issue(kind="unsupported_claim", excerpt=INVENTED), sources=[])
    assert caught.value.code == "nothing_to_write_from"


def test_a_model_s_response_is_brought_into_form() -> None:
    entries = [Entry(1, "One"), Entry(2, "Two", "https://example.org")]
    made = article_of("```markdown\nHere it is:\n# T\n\nA claim [2, 5]. `x[1]` stays [7].\n```", "Topic", entries)
    assert made.markdown == "# T\n\nA claim [2]. `x[1]` stays.\n\n## Sources\n\n- [2] [Two](https://example.org)\n"
    assert (made.title, made.cited) == ("T", [2])
    assert article_of("No title here.", "Topic", []).markdown == "# Topic\n\nNo title here.\n"


def test_a_model_s_summary_is_read_in_any_form() -> None:
    assert summary_of("**SUMMARY:**\nAll is well.\n\n**KEY POINTS:**\n1. One.\n2. Two.") == (
        "All is well.",
        ["One.", "Two."],
    )
    assert summary_of("Just prose. With two.") == ("Just prose. With two.", ["Just prose.", "With two."])
    assert summary_of("KEY POINTS:\n- One.") == ("One.", ["One."])
