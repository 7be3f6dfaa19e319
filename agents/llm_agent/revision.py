"""A finished article changed as its review asks: sentences mended or dropped, parts reordered, length kept."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from pantheon.text.terms import terms
from pantheon.text.words import folded, plain

from .article import Article, Entry, Line, Paragraph, parse
from .composition import OPENING_PART
from .corpus import leans, strip_connective
from .form import add_missing_ends, lengthen, shorten, tidy
from .preferences import Preferences
from .ranking import cosine
from .selection import Selection

_SAME_SENTENCE = 0.9
_SAME_CLAIM = 0.55
"""A source's sentence this like a doubted one says what it should have said."""
_EXCERPT_OVERLAP = 0.7
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")


class Finding(Protocol):
    """What is read of a review's issue."""

    @property
    def kind(self) -> str: ...
    @property
    def line(self) -> int | None: ...
    @property
    def excerpt(self) -> str: ...
    @property
    def message(self) -> str: ...
    @property
    def suggestion(self) -> str: ...


@dataclass(slots=True)
class Revision:
    """The article under revision, and what was done to it, counted by kind."""

    article: Article
    entries: list[Entry]
    selection: Selection
    preferences: Preferences
    done: dict[str, int] = field(default_factory=dict)

    def count(self, what: str) -> None:
        self.done[what] = self.done.get(what, 0) + 1

    def report(self) -> str:
        return ", ".join(f"{what} ({times})" for what, times in self.done.items()) or "nothing had to change"


def revise(
    markdown: str,
    findings: Sequence[Finding],
    selection: Selection,
    preferences: Preferences,
    entries: list[Entry],
    title: str,
    length_words: int,
) -> Revision:
    """`markdown` with each finding dealt with, and everything else left as it is as far as that allows.

    `entries` are the request's sources; where there are none, the article's own list stands.
    """
    article, listed = parse(markdown)
    revision = Revision(article, entries or listed, selection, preferences)
    _recognise(revision)
    for finding in findings:
        _deal_with(revision, finding, title)
    if not article.title:
        article.title = title
        revision.count("title added")
    _mend_citations(revision)
    tidy(article, revision.count)
    asked = " ".join(
        f"{finding.message} {finding.suggestion}" for finding in findings if finding.kind == "structure"
    ).casefold()
    add_missing_ends(article, selection, asked, length_words, revision.count)
    lengthen(article, selection, length_words, revision.count)
    shorten(article, selection, length_words, revision.count)
    return revision


def _recognise(revision: Revision) -> None:
    """Give every line the source sentence that it is or was made from, so that none is taken twice."""
    selection = revision.selection
    exact = {folded(sentence.text): sentence.index for sentence in selection.corpus.sentences}
    exact.update({folded(strip_connective(s.text)): s.index for s in selection.corpus.sentences})
    for number, part in enumerate(revision.article.parts):
        for paragraph in part.paragraphs:
            for position, line in enumerate(paragraph.lines):
                origin = exact.get(folded(line.text))
                if origin is None:
                    likeness, nearest = nearest_sentence(selection, line.text)
                    origin = nearest if likeness >= _SAME_SENTENCE else None
                if origin is not None:
                    paragraph.lines[position] = replace(line, origin=origin)
                    selection.take([selection.corpus.sentences[origin]], number)


def nearest_sentence(selection: Selection, text: str) -> tuple[float, int | None]:
    """The source sentence most like `text`, and how much."""
    vector = selection.ranking.vector(terms(text))
    best, where = 0.0, None
    for index, other in enumerate(selection.ranking.vectors):
        likeness = cosine(vector, other)
        if likeness > best:
            best, where = likeness, index
    return best, where


def _deal_with(revision: Revision, finding: Finding, title: str) -> None:
    if (
        finding.excerpt
        and folded(finding.excerpt) == folded(revision.article.title)
        and finding.kind in ("tone", "structure")
    ):
        revision.article.title = title
        revision.count("title replaced")
        return
    for part in revision.article.parts:
        if finding.kind == "tone" and part.heading and folded(finding.excerpt) == folded(part.heading):
            part.heading = part.heading.rstrip("!?. ")
            revision.count("heading mended")
            return
    if finding.kind == "structure":
        return  # put right for the article as a whole, afterwards
    if finding.kind == "link":
        _unlink(revision, finding)
        return
    for paragraph, position in reversed(_positions(revision.article, finding)):
        _deal_with_line(revision, finding.kind, paragraph, position)


def _deal_with_line(revision: Revision, kind: str, paragraph: Paragraph, position: int) -> None:
    line = paragraph.lines[position]
    if kind == "citation":
        if line.origin is not None:
            source = revision.selection.corpus.sentences[line.origin].source
            paragraph.lines[position] = replace(line, cites=(source,))
        else:
            known = {entry.number for entry in revision.entries}
            paragraph.lines[position] = replace(line, cites=tuple(mark for mark in line.cites if mark in known))
        revision.count("citation mended")
        return
    if kind == "tone":
        calm = re.sub(r"!+", ".", line.text)
        if calm != line.text and not revision.preferences.breaks(calm):
            paragraph.lines[position] = replace(line, text=calm)
            revision.count("sentence mended")
            return
    if _replaced_by_source(revision, paragraph, position):
        revision.count("sentence replaced by its source's")
        return
    _drop(revision, paragraph, position)


def _replaced_by_source(revision: Revision, paragraph: Paragraph, position: int) -> bool:
    """Use the wording of the source, where the source speaks of the same in other words."""
    line, selection = paragraph.lines[position], revision.selection
    if line.origin is not None and folded(selection.corpus.sentences[line.origin].text) == folded(line.text):
        return False  # these are the source's words already, and the review objects to them
    likeness, nearest = nearest_sentence(selection, line.text)
    if nearest is None or likeness < _SAME_CLAIM or (nearest in selection.taken and nearest != line.origin):
        return False
    sentence = selection.corpus.sentences[nearest]
    if not sentence.usable or sentence.leans or revision.preferences.breaks(plain(sentence.text)):
        return False
    selection.take([sentence], OPENING_PART)
    paragraph.lines[position] = Line(strip_connective(sentence.text), (sentence.source,), origin=nearest)
    return True


def _drop(revision: Revision, paragraph: Paragraph, position: int) -> None:
    """Take a line out, with those after it that cannot stand without it."""
    while position < len(paragraph.lines):
        line = paragraph.lines.pop(position)
        if line.origin is not None:
            revision.selection.banned.add(line.origin)
        revision.count("sentence dropped")
        if position == len(paragraph.lines):
            return
        following = paragraph.lines[position]
        if not leans(following.text):
            paragraph.lines[position] = replace(following, text=strip_connective(following.text))
            return


def _positions(article: Article, finding: Finding) -> list[tuple[Paragraph, int]]:
    """The lines that a finding points at: by its excerpt, else by its line."""
    lines = [
        (paragraph, position)
        for part in article.parts
        for paragraph in part.paragraphs
        for position in range(len(paragraph.lines))
    ]
    excerpt = folded(re.sub(r"\[\d{1,3}\]", "", finding.excerpt).rstrip("\u2026. "))
    if excerpt:
        found = [entry for entry in lines if _holds(folded(entry[0].lines[entry[1]].text), excerpt)]
        if found:
            return found
    if finding.line is not None and not excerpt:
        numbers = [paragraph.lines[position].number for paragraph, position in lines]
        before = [number for number in numbers if 0 < number <= finding.line]
        if before:
            return [entry for entry, number in zip(lines, numbers, strict=True) if number == max(before)]
    return []


def _holds(text: str, excerpt: str) -> bool:
    if excerpt in text or (text in excerpt and len(text.split()) >= 3):
        return True
    excerpt_words, text_words = set(excerpt.split()), set(text.split())
    return len(excerpt_words) >= 4 and len(excerpt_words & text_words) >= _EXCERPT_OVERLAP * len(
        excerpt_words | text_words
    )


def _unlink(revision: Revision, finding: Finding) -> None:
    """Leave a link's words and take its address away."""
    address = re.search(r"\(([^)\s]+)\)", finding.excerpt)
    target = address.group(1) if address else finding.excerpt.strip()
    if not target:
        return
    for part in revision.article.parts:
        for paragraph in part.paragraphs:
            for position, line in enumerate(paragraph.lines):
                if target in line.text:
                    bare = _LINK.sub(
                        lambda match: match.group(1) if target in match.group() else match.group(), line.text
                    )
                    paragraph.lines[position] = replace(line, text=bare)
                    revision.count("link removed")
    for position, entry in enumerate(revision.entries):
        if entry.url and target in (entry.url, entry.url.rstrip("/")):
            revision.entries[position] = replace(entry, url=None)
            revision.count("link removed")


def _mend_citations(revision: Revision) -> None:
    """No mark without an entry. Entries without a citation fall away when the list is written."""
    known = {entry.number for entry in revision.entries}
    for part in revision.article.parts:
        for paragraph in part.paragraphs:
            for position, line in enumerate(paragraph.lines):
                if any(mark not in known for mark in line.cites):
                    cites = tuple(mark for mark in line.cites if mark in known)
                    paragraph.lines[position] = replace(line, cites=cites)
