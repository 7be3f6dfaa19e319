"""Form: a title, headings in order, sections that hold something, paragraphs and a whole of sane length."""

import re

from .document import Document, is_sources, level_jumps
from .language import count_words, folded, plain, terms
from .models import Issue, Severity

_EXCERPT_CHARACTERS = 120
LONG_PARAGRAPH_WORDS, VERY_LONG_PARAGRAPH_WORDS = 160, 230
LONG_SENTENCE_WORDS = 60
DEEPEST_LEVEL = 4
WANTS_SECTIONS_FROM_WORDS = 500
WANTS_INTRODUCTION_FROM_WORDS = 300
WANTS_CONCLUSION_FROM_WORDS = 500
LENGTH_TOLERANCES: tuple[tuple[float, Severity], ...] = ((0.5, "high"), (0.3, "medium"), (0.18, "low"))
_TOPIC_SHARE = 0.34
_CONCLUSION = re.compile(
    r"^(?:in )?(?:conclusions?|concluding remarks|summary|short|brief|outlook|to sum up|wrapping up|takeaways?|"
    r"key takeaways|closing(?: thoughts)?|final thoughts|what (?:next|follows)|next steps|fazit|schluss)\b",
    re.IGNORECASE,
)
_EMPTY_TITLE = re.compile(r"^(?:untitled|title|article|draft|todo|tbd)$", re.IGNORECASE)


def check_structure(document: Document, length_words: int | None = None, topic: str = "") -> list[Issue]:
    if not document.words:
        return [_issue("high", 1, "", "there is no text to review", "Write the article.")]
    return [
        *_check_title(document),
        *_check_headings(document),
        *_check_sections(document),
        *_check_paragraphs(document),
        *_check_ends(document),
        *_check_length(document, length_words),
        *_check_topic(document, topic),
    ]


def _issue(
    severity: Severity, line: int | None, excerpt: str, message: str, suggestion: str, kind: str = "structure"
) -> Issue:
    return Issue(
        kind=kind,
        severity=severity,
        line=line,
        excerpt=excerpt[:_EXCERPT_CHARACTERS],
        message=message,
        suggestion=suggestion,
    )


def _check_title(document: Document) -> list[Issue]:
    titles = [heading for heading in document.headings if heading.level == 1]
    if not titles:
        return [_issue("medium", 1, "", "the article has no title", "Begin with one line `# Title`.")]
    issues = [
        _issue("medium", extra.line, extra.text, "a second title", "Make it a section (`##`).") for extra in titles[1:]
    ]
    if not titles[0].text or _EMPTY_TITLE.match(titles[0].text):
        issues.append(_issue("medium", titles[0].line, titles[0].text, "the title says nothing", "Name the subject."))
    if document.headings[0] is not titles[0] or any(p.line < titles[0].line for p in document.paragraphs):
        issues.append(_issue("low", titles[0].line, titles[0].text, "the title is not the first line", "Put it first."))
    return issues


def _check_headings(document: Document) -> list[Issue]:
    issues = [
        _issue(
            "low", low.line, low.text, f"a heading of level {low.level} under one of level {high.level}",
            f"Make it level {high.level + 1}.",
        )
        for high, low in level_jumps(document)
    ]  # fmt: skip
    issues += [
        _issue("low", heading.line, heading.text, f"a heading of level {heading.level} is too deep", "Join sections.")
        for heading in document.headings
        if heading.level > DEEPEST_LEVEL
    ]
    seen: dict[str, int] = {}
    for heading in document.headings:
        key = heading.text.casefold()
        if key in seen:
            message = f"the heading of line {seen[key]} again: links to it find only the first"
            issues.append(_issue("medium", heading.line, heading.text, message, "Name it for what is new in it."))
        seen.setdefault(key, heading.line)
    if document.words >= WANTS_SECTIONS_FROM_WORDS and not [
        heading for heading in document.headings if heading.level > 1 and not is_sources(heading)
    ]:
        message = f"{document.words} words without a heading"
        issues.append(_issue("medium", None, "", message, "Divide the text into sections."))
    return issues


def _check_sections(document: Document) -> list[Issue]:
    issues = []
    for number, heading in enumerate(document.headings, start=1):
        if is_sources(heading) or heading.level == 1:
            continue
        following = document.headings[number] if number < len(document.headings) else None
        parent = following is not None and following.level > heading.level
        if not document.section_words(number) and not document.other_blocks.get(number) and not parent:
            issues.append(_issue("medium", heading.line, heading.text, "an empty section", "Fill it or take it out."))
    return issues


def _check_paragraphs(document: Document) -> list[Issue]:
    issues = []
    seen: dict[str, int] = {}
    for paragraph in document.paragraphs:
        size = paragraph.words
        first = paragraph.sentences[0].text
        if size > LONG_PARAGRAPH_WORDS:
            severity: Severity = "medium" if size > VERY_LONG_PARAGRAPH_WORDS else "low"
            message = f"a paragraph of {size} words"
            issues.append(_issue(severity, paragraph.line, first, message, "Break it where the matter changes."))
        for sentence in paragraph.sentences:
            long = count_words(sentence.text)
            if long > LONG_SENTENCE_WORDS:
                message = f"a sentence of {long} words"
                issues.append(_issue("low", sentence.line, sentence.text, message, "Make two sentences of it."))
            key = folded(sentence.text)
            if len(key.split()) >= 6 and key in seen:
                message = f"the sentence of line {seen[key]} again"
                issues.append(_issue("medium", sentence.line, sentence.text, message, "Say it once."))
            seen.setdefault(key, sentence.line)
    return issues


def _check_ends(document: Document) -> list[Issue]:
    issues = []
    sections = [
        (number, heading)
        for number, heading in enumerate(document.headings, start=1)
        if heading.level > 1 and not is_sources(heading)
    ]
    if not sections:
        return []
    if document.words >= WANTS_INTRODUCTION_FROM_WORDS:
        first, heading = sections[0]
        lead = sum(document.section_words(number) for number in range(first))
        opens = re.match(r"^(?:introduction|overview|intro|einleitung)\b", heading.text, re.IGNORECASE) is not None
        if not lead and not opens:
            message = "the first section begins without an introduction"
            issues.append(_issue("medium", heading.line, heading.text, message, "Say first what the article is about."))
    last = sections[-1][1]
    if document.words >= WANTS_CONCLUSION_FROM_WORDS and not _CONCLUSION.match(last.text):
        issues.append(_issue("low", last.line, last.text, "there is no conclusion", "Add a section `## Conclusion`."))
    return issues


def _check_length(document: Document, length_words: int | None) -> list[Issue]:
    if length_words is None:
        return []
    off = (document.words - length_words) / length_words
    for tolerance, severity in LENGTH_TOLERANCES:
        if abs(off) > tolerance:
            too = "too long" if off > 0 else "too short"
            message = f"{document.words} words where {length_words} were asked for: {too} by {abs(off):.0%}"
            return [
                _issue(
                    severity, None, "", message, "Cut what matters least." if off > 0 else "Say more from the sources."
                )
            ]
    return []


def _check_topic(document: Document, topic: str) -> list[Issue]:
    topic_terms = set(terms(topic))
    if not topic_terms:
        return []
    text = " ".join([heading.text for heading in document.headings] + [plain(s.text) for s in document.sentences])
    share = len(topic_terms & set(terms(text))) / len(topic_terms)
    if share >= _TOPIC_SHARE:
        return []
    message = f"the article has {share:.0%} of the topic's words: it speaks of something else"
    return [_issue("high", None, topic, message, "Write about the topic.", kind="topic")]
