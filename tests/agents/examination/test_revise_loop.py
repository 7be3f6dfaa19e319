"""Writer and reviewer together, by their payloads alone: what is sent back comes back better."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from agents.examination_agent.agent import review_content
from agents.examination_agent.models import ReviewContent, ReviewedContent
from agents.llm_agent.agent import generate_content
from agents.llm_agent.models import GenerateContent, GeneratedContent
from agents.llm_agent.settings import settings as writer_settings
from pantheon.worker.context import LocalTaskContext

EXAMPLE = Path(__file__).parents[3] / "examples" / "blog"


@pytest.fixture(autouse=True)
def offline() -> None:
    writer_settings.cache_clear()


@pytest.fixture
def request_payload() -> dict[str, Any]:
    payload: dict[str, Any] = yaml.safe_load((EXAMPLE / "request.yaml").read_text())
    payload["sources"] = [{"title": s["title"], "text": (EXAMPLE / s["file"]).read_text()} for s in payload["sources"]]
    payload["guidelines"] = (EXAMPLE / payload.pop("guidelines_file")).read_text()
    return payload


async def write(payload: dict[str, Any], previous: dict[str, Any] | None = None) -> GeneratedContent:
    return await generate_content(GenerateContent.model_validate({**payload, "previous": previous}), LocalTaskContext())


async def review(payload: dict[str, Any], markdown: str) -> ReviewedContent:
    return await review_content(ReviewContent.model_validate({**payload, "markdown": markdown}), LocalTaskContext())


@pytest.mark.parametrize("length", [100, 300, 900, 1500, 2200])
async def test_the_offline_writer_s_article_is_approved(request_payload: dict[str, Any], length: int) -> None:
    payload = {**request_payload, "length_words": length}
    result = await review(payload, (await write(payload)).markdown)
    assert (result.verdict, [i for i in result.issues if i.severity != "low"]) == ("approve", [])


async def test_what_the_review_finds_the_revision_mends(request_payload: dict[str, Any]) -> None:
    good = (await write(request_payload)).markdown
    bad = (
        good.replace("# Why agents need durable execution", "# Agents: you won't believe what happens next!")
        .replace("## Steps, records and a conductor", "## Nothing here\n\n## Steps, records and a conductor")
        .replace("After each step", "In 2021, Contoso Systems saved 4,200,000 dollars with it! After each step")
        .replace(
            "## Conclusion\n\n", "## Conclusion\n\nThis SEAMLESS REVOLUTIONARY game changer will supercharge you!! "
        )
        .replace("[2].", "[7].", 1)
        + "\nRead [more](http://no host/at all).\n"
    )
    first = await review(request_payload, bad)
    assert first.verdict == "revise"
    assert {"unsupported_claim", "tone", "citation"} <= {issue.kind for issue in first.issues}

    revised = await write(request_payload, {"markdown": bad, "issues": [issue.model_dump() for issue in first.issues]})
    second = await review(request_payload, revised.markdown)
    assert second.verdict == "approve", second.issues
    assert second.score > first.score
    for gone in ("Contoso", "SEAMLESS", "you won't believe", "[7]", "no host", "Nothing here"):
        assert gone not in revised.markdown
    # What nobody found fault with stays.
    assert "Starting a failed task from the beginning looks simple" in revised.markdown


async def test_an_article_far_too_short_comes_back_at_its_length(request_payload: dict[str, Any]) -> None:
    short = (await write({**request_payload, "length_words": 250})).markdown
    first = await review(request_payload, short)
    assert first.verdict == "revise"
    revised = await write(
        request_payload, {"markdown": short, "issues": [issue.model_dump() for issue in first.issues]}
    )
    second = await review(request_payload, revised.markdown)
    assert second.verdict == "approve", second.issues
    assert abs(revised.word_count - request_payload["length_words"]) <= 0.15 * request_payload["length_words"]
