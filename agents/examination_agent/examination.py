"""The rules' review of an article, and how a model's findings join it."""

from collections.abc import Sequence
from dataclasses import dataclass

from .claims import SourceText, check_claims
from .document import Document, read_document
from .language import folded
from .models import Issue, ReviewContent, ReviewedContent
from .references import check_citations, check_links
from .structure import check_structure
from .tone import check_tone, distinct, read_rules
from .verdict import score_of, summary_of, verdict_of


@dataclass(frozen=True, slots=True)
class Examined:
    """What the rules found, and what the verdict needs beside the issues."""

    document: Document
    issues: list[Issue]
    claims: int


def examine(task: ReviewContent) -> Examined:
    """All checks by rules: no model, no network."""
    document = read_document(task.markdown)
    unsupported, claims = check_claims(document, task.sources, task.topic)
    issues = [
        *check_structure(document, task.length_words, task.topic),
        *unsupported,
        *check_tone(document, read_rules(task.guidelines, task.style)),
        *check_citations(document, sum(1 for source in task.sources if source.text.strip())),
        *check_links(document),
    ]
    return Examined(document, distinct(issues), claims)


def merge(rules: Sequence[Issue], model: Sequence[Issue], markdown: str, sources: Sequence[SourceText]) -> list[Issue]:
    """The rules' issues, and those of the model that stand: at a position that exists, and not found by the rules.

    A model's doubt about a sentence that stands word for word in a source is dropped.
    """
    rows = markdown.splitlines()
    whole = folded(markdown)
    source_words = " ".join(folded(source.text) for source in sources)
    merged = list(rules)
    for issue in model:
        wording = folded(issue.excerpt)
        if wording and wording not in whole:
            continue
        if issue.kind == "unsupported_claim" and wording and wording in source_words:
            continue
        line = _line_of(wording, rows)
        if line is None and issue.line is not None and 1 <= issue.line <= len(rows) and not wording:
            line = issue.line
        if any(_same(issue.kind, wording, other) for other in merged):
            continue
        merged.append(issue.model_copy(update={"line": line}))
    return distinct(merged)


def _line_of(wording: str, rows: Sequence[str]) -> int | None:
    if not wording:
        return None
    for number, row in enumerate(rows, start=1):
        if wording in folded(row):
            return number
    first = " ".join(wording.split()[:4])
    return next((number for number, row in enumerate(rows, start=1) if first in folded(row)), None)


def _same(kind: str, wording: str, other: Issue) -> bool:
    if kind != other.kind or not wording or not other.excerpt:
        return False
    theirs = folded(other.excerpt)
    return wording in theirs or theirs in wording


def conclude(
    examined: Examined, issues: Sequence[Issue], *, model: str | None = None, notes: Sequence[str] = ()
) -> ReviewedContent:
    """The result of the task."""
    words = examined.document.words
    score = score_of(issues, words)
    verdict = verdict_of(issues, score, words, examined.claims)
    return ReviewedContent(
        verdict=verdict,
        score=0 if not words else score,
        issues=list(issues),
        summary=summary_of(verdict, 0 if not words else score, issues, notes),
        offline=model is None,
        model=model,
    )
