"""The enhancement agent's binding to the mesh."""

import asyncio
from functools import cache

from agents.enhancement_agent.corrector import correct
from agents.enhancement_agent.language import UNKNOWN, language_of
from agents.enhancement_agent.models import Change, EnhanceContent, EnhancedContent, Readability
from agents.enhancement_agent.readability import prose_text, readability
from agents.enhancement_agent.rewriter import RewriteFailed, changed_lines, rewrite
from agents.enhancement_agent.settings import EnhancementSettings
from pantheon import Agent, TaskContext, TaskFailure
from pantheon.language_model import require_models

NO_MODEL_NOTE = "no model is configured (LLM_MODEL), so rules alone corrected the text"

NOT_ENGLISH_NOTE = "the text does not look like English, so only white space was corrected by rules: name its language"


@cache
def _settings() -> EnhancementSettings:
    return EnhancementSettings.load()


def _metadata() -> dict[str, str]:
    return {"model": _settings().model or "none"}


agent = Agent(
    "enhancement_agent",
    version="1.0.0",
    description="Corrects spelling, style and readability of Markdown; code, links and citations stay as they are.",
    metadata=_metadata,
)


@agent.on_startup
async def _read_settings() -> None:
    if _settings().model:
        require_models("LLM_MODEL")


@agent.task("enhance_content")
async def enhance(task: EnhanceContent, ctx: TaskContext) -> EnhancedContent:
    """Correct a document by rules, and before them by a model where one is configured.

    A model's version counts only when code, links, citations, quotations, numbers and headings survived in it. A model
    that fails never fails the task: rules then work alone, and `note` states it.
    """
    if not task.markdown.strip():
        raise TaskFailure("empty_document", "markdown is empty: send the document to correct", retryable=False)
    settings = _settings()
    await ctx.progress(5, "measuring readability")
    language = task.language or await asyncio.to_thread(lambda: language_of(prose_text(task.markdown)))
    before = await asyncio.to_thread(readability, task.markdown, language)
    text, model, note = task.markdown, None, NO_MODEL_NOTE
    changes: list[Change] = []
    if settings.model:
        await ctx.progress(15, f"asking {settings.model}")
        text, note = await _polish(task, ctx, settings)
        model = settings.model if not note else None
        changes = changed_lines(task.markdown, text)
    await ctx.progress(60, "applying rules of spelling and style")
    corrected = await asyncio.to_thread(correct, text, requested_style=task.style, language=language)
    await ctx.progress(90, "measuring readability again")
    after = await asyncio.to_thread(readability, corrected.markdown, language)
    if language == UNKNOWN:
        note = f"{note}; {NOT_ENGLISH_NOTE}" if note else NOT_ENGLISH_NOTE
    await ctx.progress(100, f"{len(changes) + len(corrected.changes)} corrections")
    return EnhancedContent(
        markdown=corrected.markdown,
        changes=[*changes, *corrected.changes],
        readability=Readability(before=before, after=after),
        offline=model is None,
        model=model,
        note=note,
    )


async def _polish(task: EnhanceContent, ctx: TaskContext, settings: EnhancementSettings) -> tuple[str, str]:
    """The model's version and no note, or the original and why the model's was not taken."""
    try:
        version = await rewrite(
            task.markdown,
            style=task.style,
            language=task.language,
            settings=settings,
            on_usage=ctx.report_usage,
            deadline=ctx.deadline,
        )
    except RewriteFailed as error:
        ctx.log.warning("enhancement.model_failed", reason=str(error))
        return task.markdown, f"the model could not be asked ({error}), so rules alone corrected the text"
    if version.lost:
        ctx.log.warning("enhancement.answer_refused", lost=version.lost)
        return task.markdown, (
            f"the answer of {settings.model} was refused because it did not keep: {', '.join(version.lost)};"
            " rules alone corrected the text"
        )
    return version.markdown, ""
