"""Writing without a model: every sentence of the result is a sentence of the sources, chosen, ordered and cited."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pantheon.text.words import plain

from .article import Article, Entry, Line, Paragraph, render
from .composition import compose
from .corpus import Corpus, Sentence, SourceText, leans, read_sources, strip_connective
from .preferences import read_preferences
from .ranking import Ranking
from .selection import Selection

_SUMMARY_WORDS = 60
_END_BONUS = 0.5
_FIGURE = re.compile(r"\d+(?:[.,]\d+)*")
_SAME_MATTER = 0.5
"""Share of two sentences' terms, figures left out, that both have: above it they are about the same thing."""
_DISAGREEMENTS_MAX = 3
_KEY_POINTS_MAX = 6
_WORDS_PER_KEY_POINT = 40
_ORDER_TO_WRITE = re.compile(
    r"^(?:please\s+)?(?:can you\s+|could you\s+)?(?:write|draft|create|compose|generate|prepare)\s+(?:me\s+)?"
    r"(?:an?|the|some)?\s*(?:[\w-]+\s+){0,3}?(?:article|post|blog post|essay|text|piece|report|brief|"
    r"overview|summary)\s+(?:about|on|of|explaining|describing)\s+",
    re.IGNORECASE,
)
_SMALL_WORDS = frozenset("a an and as at but by for from in nor of on or per the to via vs with".split())


class NothingToWriteFrom(ValueError):
    """The sources hold no sentence that could stand in an article."""


@dataclass(frozen=True, slots=True)
class Written:
    """An article and what belongs to it. `shortfall` says that the sources did not reach the length asked for."""

    article: Article
    markdown: str
    summary: str
    entries: list[Entry]
    shortfall: bool = False


@dataclass(frozen=True, slots=True)
class Summarized:
    summary: str
    key_points: list[str]
    title: str = ""


def title_of(topic: str) -> str:
    """A topic as a title: without the order to write about it, without a full stop, beginning with a capital."""
    title = _ORDER_TO_WRITE.sub("", " ".join(topic.split())).strip().rstrip(".;:,").strip("\"'\u201c\u201d# ")
    title = title or " ".join(topic.split())
    return title[:1].upper() + title[1:]


def open_selection(corpus: Corpus, topic: str, style: str, guidelines: str) -> Selection:
    preferences = read_preferences(style, guidelines)
    ranking = Ranking(corpus, topic)
    return Selection(corpus, ranking, bias=preferences.bias(corpus.sentences))


def entries_of(corpus: Corpus) -> list[Entry]:
    pairs = zip(corpus.titles, corpus.urls, strict=True)
    return [Entry(number, title, url) for number, (title, url) in enumerate(pairs, start=1)]


def write(selection: Selection, topic: str, length_words: int, style: str = "", guidelines: str = "") -> Written:
    """An article from the sources alone.

    Raises NothingToWriteFrom when no sentence of the sources can be used.
    """
    article = compose(selection, title_of(topic), length_words)
    if not article.words:
        raise NothingToWriteFrom("the sources hold no whole sentences")
    if read_preferences(style, guidelines).bullets:
        as_bullets(article)
    return finish(article, selection, entries_of(selection.corpus), length_words)


def finish(article: Article, selection: Selection, entries: list[Entry], length_words: int) -> Written:
    return Written(
        article=article,
        markdown=render(article, entries),
        summary=lead_summary(article, selection),
        entries=[entry for entry in entries if entry.number in set(article.cited())],
        shortfall=article.words < 0.85 * length_words,
    )


def as_bullets(article: Article) -> None:
    """Every sentence of the sections an item of its own, with those that lean on it."""
    for part in article.parts[1:] or article.parts:
        items: list[Paragraph] = []
        for paragraph in part.paragraphs:
            for position, line in enumerate(paragraph.lines):
                if position and (leans(line.text) or strip_connective(line.text) != line.text):
                    items[-1].lines.append(line)
                else:
                    items.append(Paragraph([line], bullet=True))
        part.paragraphs = items


def disagreements(selection: Selection) -> list[tuple[Sentence, Sentence]]:
    """Pairs of sentences of two sources that state the same with other figures, of which the article has one at least.

    No rule can decide which is right: the note names both for the reader.
    """
    sentences = selection.corpus.sentences
    figures = {sentence.index: set(_FIGURE.findall(plain(sentence.text))) for sentence in sentences if sentence.usable}
    found: list[tuple[float, Sentence, Sentence]] = []
    for index, mine in figures.items():
        for other, likeness in selection.ranking.likeness[index].items():
            theirs = figures.get(other, set())
            if (
                other > index
                and _same_matter(sentences[index], sentences[other])
                and sentences[index].source != sentences[other].source
                and mine - theirs
                and theirs - mine
                and {index, other} & selection.taken
            ):
                found.append((likeness, sentences[index], sentences[other]))
    found.sort(key=lambda pair: (-pair[0], pair[1].index, pair[2].index))
    return [(first, second) for _, first, second in found[:_DISAGREEMENTS_MAX]]


def _same_matter(sentence: Sentence, other: Sentence) -> bool:
    mine, theirs = ({term for term in item.terms if not term[0].isdigit()} for item in (sentence, other))
    return len(mine & theirs) >= _SAME_MATTER * len(mine | theirs)


def lead_summary(article: Article, selection: Selection, max_words: int = _SUMMARY_WORDS) -> str:
    """The article in a few of its own sentences: those nearest to the topic, of its introduction and end above all."""
    weighed: list[tuple[float, int, Line]] = []
    last = len(article.parts) - 1
    for number, part in enumerate(article.parts):
        for line in part.lines():
            weight = _weight(line, selection) + (_END_BONUS if number in (0, last) else 0.0)
            weighed.append((weight, len(weighed), line))
    chosen: list[tuple[int, Line]] = []
    size = 0
    for _, position, line in sorted(weighed, key=lambda item: (-item[0], item[1])):
        if not leans(line.text) and size + line.words <= max_words:
            chosen.append((position, line))
            size += line.words
    if not chosen and weighed:
        chosen = [(0, weighed[0][2])]
    return " ".join(plain(strip_connective(line.text)) for _, line in sorted(chosen, key=lambda item: item[0]))


def _weight(line: Line, selection: Selection) -> float:
    if line.origin is None:
        return 0.0
    return selection.score(line.origin) + 2 * selection.ranking.relevance[line.origin]


def summarize(sources: Sequence[SourceText], topic: str, max_words: int, style: str) -> Summarized:
    """The sentences with the most content, in the order of the sources, and key points that the summary does not
    repeat.

    Raises NothingToWriteFrom when no sentence of the sources can be used.
    """
    corpus = read_sources(sources)
    selection = open_selection(corpus, topic or " ".join(corpus.titles), style, "")
    chosen = selection.fill(corpus.sentences, max_words, 0)
    while len(chosen) > 1 and sum(sentence.words for sentence in chosen) > max_words:
        leaned_on = {sentence.index - 1 for sentence in chosen if sentence.leans}
        loose = [sentence for sentence in chosen if sentence.index not in leaned_on]
        chosen.remove(min(loose, key=lambda sentence: (selection.score(sentence.index), -sentence.index)))
    if not chosen:
        raise NothingToWriteFrom("the text holds no whole sentences")
    texts = []
    for position, sentence in enumerate(chosen):
        tied = position > 0 and chosen[position - 1].index == sentence.index - 1
        texts.append(sentence.text if tied else strip_connective(sentence.text))
    title = corpus.titles[0] if len(corpus.titles) == 1 else ""
    return Summarized(" ".join(texts), _key_points(selection, max_words), title)


def _key_points(selection: Selection, max_words: int) -> list[str]:
    """Single sentences that need no other, the weightiest of different matters first found, in the sources' order."""
    count = max(3, min(_KEY_POINTS_MAX, round(max_words / _WORDS_PER_KEY_POINT)))
    fresh = Selection(selection.corpus, selection.ranking, bias=selection.bias)
    points: list[int] = []
    candidates = [sentence for sentence in selection.corpus.sentences if sentence.usable and not sentence.leans]
    for sentence in sorted(candidates, key=lambda sentence: (-fresh.score(sentence.index), sentence.index)):
        if len(points) == count:
            break
        if fresh.nearest.get(sentence.index, 0.0) < 0.3:
            fresh.take([sentence], 0)
            points.append(sentence.index)
    return [strip_connective(selection.corpus.sentences[index].text) for index in sorted(points)]
