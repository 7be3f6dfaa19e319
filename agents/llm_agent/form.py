"""The form of an article under revision: parts in order, an introduction and an end, the length that was asked for."""

from collections.abc import Callable

from .article import Article, Line, Paragraph, Part
from .composition import FIRST_BODY_PART, Group, name_groups, paragraphs_of, take_closing, take_opening
from .corpus import CLOSING, leans
from .selection import Selection

_TOO_SHORT, _TOO_LONG = 0.92, 1.1
_MIN_NEW_PART_WORDS = 40
_LONG_PARAGRAPH_SENTENCES, _LONG_PARAGRAPH_WORDS = 6, 140

Count = Callable[[str], None]
"""Called at each change, with its kind."""


def tidy(article: Article, count: Count) -> None:
    """No empty paragraph or part, no heading twice, levels one below the other, no paragraph without end."""
    parts: list[Part] = []
    seen: set[str] = {article.title.casefold()}
    level = 1
    for number, part in enumerate(article.parts):
        part.paragraphs = [
            piece
            for paragraph in part.paragraphs
            if paragraph.lines or paragraph.verbatim
            for piece in _split(paragraph)
        ]
        if number and not part.paragraphs and not _has_child(article.parts, number):
            count("empty section removed")
            continue
        if part.heading and part.heading.casefold() in seen and parts:
            parts[-1].paragraphs.extend(part.paragraphs)
            count("repeated heading removed")
            continue
        if number:
            level = part.level = max(2, min(part.level, level + 1))
        seen.add(part.heading.casefold())
        parts.append(part)
    article.parts = parts or [Part("")]


def _has_child(parts: list[Part], number: int) -> bool:
    following = parts[number + 1] if number + 1 < len(parts) else None
    return following is not None and following.level > parts[number].level and bool(following.paragraphs)


def _split(paragraph: Paragraph) -> list[Paragraph]:
    lines = paragraph.lines
    size = sum(line.words for line in lines)
    if (
        paragraph.bullet
        or len(lines) < 4
        or (len(lines) <= _LONG_PARAGRAPH_SENTENCES and size <= _LONG_PARAGRAPH_WORDS)
    ):
        return [paragraph]
    breaks = [position for position in range(2, len(lines) - 1) if not leans(lines[position].text)]
    if not breaks:
        return [paragraph]
    middle = min(breaks, key=lambda position: abs(position - len(lines) / 2))
    return [piece for half in (lines[:middle], lines[middle:]) for piece in _split(Paragraph(half))]


def add_missing_ends(article: Article, selection: Selection, asked: str, length_words: int, count: Count) -> None:
    lead = article.parts[0]
    if "introduction" in asked and not lead.heading and not lead.words:
        lead.paragraphs = paragraphs_of(take_opening(selection, length_words))
        if lead.paragraphs:
            count("introduction added")
    if "conclusion" in asked and not CLOSING.match(article.parts[-1].heading):
        paragraphs = paragraphs_of(take_closing(selection, length_words))
        if paragraphs:
            article.parts.append(Part("Conclusion", paragraphs))
            count("conclusion added")


def lengthen(article: Article, selection: Selection, length_words: int, count: Count) -> None:
    """What the article lacks of its length, first to sections that speak of the same, then as sections of its own."""
    closing = len(article.parts) > 1 and bool(CLOSING.match(article.parts[-1].heading))
    bodies = article.parts[1:-1] if closing else article.parts[1:]
    sections = selection.corpus.sections
    for number, part in enumerate(bodies or article.parts[:1], start=FIRST_BODY_PART):
        origins = {selection.corpus.sentences[line.origin].section for line in part.lines() if line.origin is not None}
        candidates = [sentence for section in sections if section.index in origins for sentence in section.sentences]
        gained = selection.fill(candidates, _missing(article, length_words), _fresh_part(number))
        if gained:
            part.paragraphs.extend(paragraphs_of(gained))
            count("section extended")
    for section in sections:
        missing = _missing(article, length_words)
        if missing < _MIN_NEW_PART_WORDS:
            return
        group = Group([section])
        chosen = selection.fill(group.sentences, missing, _fresh_part(len(sections) + section.index))
        if sum(sentence.words for sentence in chosen) < _MIN_NEW_PART_WORDS:
            for sentence in chosen:
                selection.drop(sentence)
            continue
        name_groups([group], selection.corpus, selection.ranking, article.title, {p.heading for p in article.parts})
        article.parts.insert(len(article.parts) - int(closing), Part(group.heading, paragraphs_of(chosen)))
        count("section added")


def _fresh_part(number: int) -> int:
    # Parts of the old article are numbered from 0; new ones must not be taken for them.
    return 10_000 + number


def _missing(article: Article, length_words: int) -> int:
    return length_words - article.words if article.words < _TOO_SHORT * length_words else 0


def shorten(article: Article, selection: Selection, length_words: int, count: Count) -> None:
    """Drop what weighs least until the length is kept: not from the introduction, nothing that others lean on."""
    while article.words > _TOO_LONG * length_words:
        loose = [
            (_weight(selection, paragraph.lines[position]), number, paragraph, position)
            for number, part in enumerate(article.parts)
            if number or len(article.parts) == 1
            for paragraph in part.paragraphs
            for position in range(len(paragraph.lines))
            if position + 1 == len(paragraph.lines) or not leans(paragraph.lines[position + 1].text)
        ]
        if len(loose) < 2:
            return
        _, _, paragraph, position = min(loose, key=lambda item: (item[0], -item[1], -item[3]))
        paragraph.lines.pop(position)
        count("sentence cut for length")
        tidy(article, count)


def _weight(selection: Selection, line: Line) -> float:
    return selection.score(line.origin) if line.origin is not None else 0.0
