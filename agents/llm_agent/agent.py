"""The llm agent's binding to the mesh: generate_content and summarize_content, by a model or offline."""

import asyncio
from collections.abc import Sequence
from functools import cache

from pantheon import Agent, TaskContext, TaskFailure
from pantheon.language_model import LanguageModel, Prompt, require_models
from pantheon.text.words import count_words

from . import offline
from .article import Entry
from .corpus import read_sources
from .model_output import article_of, summary_of
from .models import Citation, GenerateContent, GeneratedContent, SummarizeContent, SummarizedContent
from .preferences import read_preferences
from .prompts import SUMMARIZER, summarizer_prompt, writer_instructions, writer_prompt
from .revision import revise
from .settings import settings

_TOKENS_PER_WORD = 2.5
"""Generous: room for Markdown, marks and languages whose words are several tokens."""
_TOKENS_FLOOR = 2_000
_TASK_TIMEOUT_SECONDS = 900

agent = Agent(
    "llm_agent",
    version="1.0.0",
    description="Writes and summarizes: by a language model of any vendor, or from the sources alone.",
    metadata=lambda: {"model": settings().model or "offline"},
)


@agent.on_startup
async def read_settings() -> None:
    """Refuse to start with settings that cannot be read, rather than fail at the first task."""
    if settings().model:
        require_models("LLM_MODEL")


@cache
def language_model() -> LanguageModel:
    return LanguageModel(settings())


@agent.task("generate_content", timeout_seconds=_TASK_TIMEOUT_SECONDS)
async def generate_content(task: GenerateContent, ctx: TaskContext) -> GeneratedContent:
    """Write an article about a topic from sources, or revise an article as its review asks."""
    if settings().model:
        return await _generate_by_model(task, ctx)
    if task.previous is None and not any(source.text.strip() for source in task.sources):
        raise TaskFailure(
            "nothing_to_write_from",
            "there are no sources and no model is configured: give `sources` (texts to write from), "
            "or configure a language model by LLM_MODEL (for example openai:gpt-5, with its key in LLM_API_KEY)",
            retryable=False,
        )
    return await _generate_offline(task, ctx)


async def _generate_offline(task: GenerateContent, ctx: TaskContext) -> GeneratedContent:
    await ctx.progress(5, f"reading {_counted(len(task.sources), 'source')}")
    corpus = await asyncio.to_thread(read_sources, task.sources)
    await ctx.progress(25, f"ranking {_counted(len(corpus.sentences), 'sentence')}")
    selection = await asyncio.to_thread(offline.open_selection, corpus, task.topic, task.style, task.guidelines)
    note = "Written offline: every sentence comes from the sources; no language model took part."
    try:
        if task.previous is not None:
            await ctx.progress(60, f"revising: {_counted(len(task.previous.issues), 'issue')}")
            revision = await asyncio.to_thread(
                revise,
                task.previous.markdown,
                task.previous.issues,
                selection,
                read_preferences(task.style, task.guidelines),
                offline.entries_of(corpus),
                offline.title_of(task.topic),
                task.length_words,
            )
            if not revision.article.words:
                raise offline.NothingToWriteFrom(
                    "the revision left nothing of the article, and the sources add nothing"
                )
            written = offline.finish(revision.article, selection, revision.entries, task.length_words)
            note = f"Revised offline: {revision.report()}."
        else:
            await ctx.progress(60, f"composing about {task.length_words} words")
            written = await asyncio.to_thread(
                offline.write, selection, task.topic, task.length_words, task.style, task.guidelines
            )
    except offline.NothingToWriteFrom as error:
        raise TaskFailure(
            "nothing_to_write_from",
            f"{error}: give `sources` with prose in them, or configure a language model by LLM_MODEL",
            retryable=False,
        ) from error
    if written.shortfall:
        note += f" The sources reach for {written.article.words} of the {task.length_words} words asked for."
    for first, second in await asyncio.to_thread(offline.disagreements, selection):
        note += (
            f" Sources [{first.source}] and [{second.source}] may disagree: "
            f"\u201c{first.text}\u201d, \u201c{second.text}\u201d."
        )
    for block in written.markdown.splitlines(keepends=True):
        await ctx.stream(block)
    await ctx.progress(100, f"{written.article.words} words written")
    return GeneratedContent(
        title=written.article.title,
        markdown=written.markdown,
        summary=written.summary,
        word_count=written.article.words,
        citations=_citations(written.entries),
        offline=True,
        model=None,
        note=note,
    )


async def _generate_by_model(task: GenerateContent, ctx: TaskContext) -> GeneratedContent:
    corpus = await asyncio.to_thread(read_sources, task.sources)
    await ctx.progress(5, f"asking {settings().model}")
    expected = max(_TOKENS_FLOOR, round(task.length_words * _TOKENS_PER_WORD))
    prompt = _prompt(writer_instructions(task), writer_prompt(task, corpus.titles), expected)
    text = await _ask(ctx, prompt, expected_words=task.length_words)
    entries = offline.entries_of(corpus)
    article = article_of(text, offline.title_of(task.topic), entries)
    model = settings().model
    if not article.word_count:
        raise TaskFailure("model_answer_unusable", f"{model} answered without an article", retryable=True)
    await ctx.progress(100, f"{article.word_count} words written")
    note = "The model cited none of the sources." if entries and not article.cited else ""
    return GeneratedContent(
        title=article.title,
        markdown=article.markdown,
        summary=article.summary,
        word_count=article.word_count,
        citations=_citations([entry for entry in entries if entry.number in article.cited]),
        offline=False,
        model=model,
        note=note,
    )


@agent.task("summarize_content", timeout_seconds=_TASK_TIMEOUT_SECONDS)
async def summarize_content(task: SummarizeContent, ctx: TaskContext) -> SummarizedContent:
    """Summarize sources or a text, with key points."""
    sources = task.all_sources()
    if settings().model:
        corpus = await asyncio.to_thread(read_sources, sources)
        await ctx.progress(5, f"asking {settings().model}")
        expected = max(_TOKENS_FLOOR, round(task.max_words * _TOKENS_PER_WORD))
        prompt = _prompt(SUMMARIZER, summarizer_prompt(task, sources, corpus.titles), expected)
        summary, points = summary_of(await _ask(ctx, prompt, expected_words=task.max_words))
        if not summary:
            message = f"{settings().model} answered without a summary"
            raise TaskFailure("model_answer_unusable", message, retryable=True)
        result = SummarizedContent(
            summary=summary,
            key_points=points,
            word_count=count_words(summary),
            title=corpus.titles[0] if len(corpus.titles) == 1 else "",
            offline=False,
            model=settings().model,
        )
    else:
        await ctx.progress(10, f"reading {_counted(len(sources), 'source')}")
        try:
            made = await asyncio.to_thread(offline.summarize, sources, task.topic, task.max_words, task.style)
        except offline.NothingToWriteFrom as error:
            raise TaskFailure(
                "nothing_to_write_from",
                f"{error}: give prose to summarize, or configure a language model by LLM_MODEL",
                retryable=False,
            ) from error
        await ctx.stream(made.summary)
        result = SummarizedContent(
            summary=made.summary,
            key_points=made.key_points,
            title=made.title,
            word_count=count_words(made.summary),
            offline=True,
            model=None,
        )
    await ctx.progress(100, f"{result.word_count} words")
    return result


def _prompt(instructions: str, text: str, max_output_tokens: int) -> Prompt:
    return Prompt(instructions, text, max_output_tokens, temperature=settings().temperature)


async def _ask(ctx: TaskContext, prompt: Prompt, *, expected_words: int) -> str:
    """The model's text, streamed and with progress while it comes, its usage reported."""
    received = 0

    async def on_text(piece: str) -> None:
        nonlocal received
        received += len(piece.split())
        await ctx.stream(piece)
        await ctx.progress(min(95.0, 5 + 90 * received / expected_words))

    return await language_model().stream(prompt, on_text, on_usage=ctx.report_usage, deadline=ctx.deadline)


def _citations(entries: Sequence[Entry]) -> list[Citation]:
    return [Citation(number=entry.number, title=entry.title, url=entry.url) for entry in entries]


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
