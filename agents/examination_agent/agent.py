"""The examination agent's binding to the mesh: review_content, by rules and, when configured, by a model too."""

import asyncio
from functools import cache

from pantheon import Agent, TaskContext
from pantheon.language_model import require_models

from .examination import conclude, examine, merge
from .link_check import check_addresses
from .model_review import Reviewer
from .models import ReviewContent, ReviewedContent
from .prompts import REVIEWER, review_prompt
from .references import addresses
from .settings import settings
from .tone import distinct

_TASK_TIMEOUT_SECONDS = 900

agent = Agent(
    "examination_agent",
    version="1.0.0",
    description="Reviews articles: claims against their sources, tone against guidelines, structure, links, citations.",
    metadata=lambda: {"model": settings().model or "offline"},
)


@agent.on_startup
async def read_settings() -> None:
    """Refuse to start with settings that cannot be read, rather than fail at the first task."""
    if settings().model:
        require_models("EXAMINATION_MODEL")


@cache
def reviewer() -> Reviewer:
    return Reviewer(settings())


@agent.task("review_content", timeout_seconds=_TASK_TIMEOUT_SECONDS)
async def review_content(task: ReviewContent, ctx: TaskContext) -> ReviewedContent:
    """Approve an article, return it for revision with issues that name passage and mistake, or reject it."""
    own = settings()
    notes: list[str] = []
    await ctx.progress(5, "reading the article")
    examined = await asyncio.to_thread(examine, task)
    issues = examined.issues
    if not any(source.text.strip() for source in task.sources):
        notes.append("Claims could not be checked: there are no sources.")
    await ctx.progress(50, f"{examined.claims} claims held against {len(task.sources)} sources")
    if task.check_links:
        found = addresses(examined.document)
        if len(found) > own.max_links:
            notes.append(f"Only the first {own.max_links} of {len(found)} links were asked for.")
            found = found[: own.max_links]

        async def on_checked(done: int) -> None:
            await ctx.progress(50 + 20 * done / len(found))

        await ctx.progress(50, f"asking for {len(found)} links")
        issues = distinct(
            issues
            + await check_addresses(
                found, timeout_seconds=own.link_timeout_seconds, concurrency=own.link_concurrency, on_checked=on_checked
            )
        )
    if own.model and examined.document.words:
        await ctx.progress(70, f"asking {own.model}")
        judged = await reviewer().review(
            REVIEWER, review_prompt(task, issues), on_usage=ctx.report_usage, deadline=ctx.deadline
        )
        issues = merge(issues, judged, task.markdown, task.sources)
    review = conclude(examined, issues, model=own.model or None, notes=notes)
    await ctx.progress(100, f"{review.verdict}, score {review.score}")
    return review
