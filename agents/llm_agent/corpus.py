"""The sources taken apart: sections with their sentences, each with its position."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pantheon.text.sentences import split_sentences
from pantheon.text.terms import terms
from pantheon.text.words import count_words, plain

from .markdown import blocks_of

_MIN_SENTENCE_WORDS = 5
_MAX_SENTENCE_WORDS = 60
_TITLE_MAX_WORDS = 14
_CHUNK_WORDS = 260
"""A source without headings is cut into sections of about this size, where its paragraphs allow."""
_SMALL_SECTION_WORDS = 40

BOILERPLATE = re.compile(
    r"^(?:references?|bibliography|sources|further reading|see also|links|(?:table of )?contents|change ?log|"
    r"licen[cs]e|acknowledge?ments?|about the authors?|about this (?:document|note|text)|footnotes|notes|contact)$",
    re.IGNORECASE,
)
CLOSING = re.compile(
    r"^(?:in )?(?:conclusions?|concluding remarks|summary|in short|in brief|to sum up|wrap(?:ping)?[- ]up|takeaways?|"
    r"key takeaways|closing(?: thoughts| remarks)?|final thoughts|what follows from (?:it|this|all this))\b",
    re.IGNORECASE,
)
OPENING = re.compile(r"^(?:introduction|intro|overview|abstract|background|preface|foreword)$", re.IGNORECASE)

# Words that lean on the sentence before. The first group cannot stand without it; the second can be taken off.
_LEANING = re.compile(
    r"^(?:this|these|those|that|it|its|they|their|them|he|she|his|her|such|both|neither|either|another|others|here|"
    r"each of (?:these|them)|(?:one|some|all|none|most|many|several|few) of (?:these|them|those)|"
    r"the (?:former|latter|same|other|others|two|three)|"
    # "The price is time" leans, "The price of coffee rose" does not; "the first is" does, "the first shop" does not.
    r"the (?:result|answer|reason|difference|alternative|difficulty|remedy|cure|price|rest|exception|effect|"
    r"consequence|lesson|point|trick|catch)(?! (?:of|for|in|between|to|at|on|why) (?!(?:this|that|it|these|those)\b))|"
    r"the (?:first|second|third|last)(?:,| (?:is|are|was|were|has|had|does|did|can|one|ones|two|of (?:these|them)))|"
    r"for example|for instance|or|then|otherwise|in other words|that is|even so|even then|if so|if not|"
    r"in (?:this|that|such|both|either|these|those) \w+|at (?:this|that) \w+|"
    r"(?:first|second|third|next|last|finally|similarly|likewise)(?:ly)?,|likewise|what is more|the more|"
    r"yes|no|not so|so (?:do|does|is|are|did|can)|nor|with (?:it|them|this|that|these|those)|"
    r"of (?:these|those|them)|among (?:these|those|them)|without (?:it|them|this|that)|"
    r"(?:for|to|in|by|with|at|on) (?:\w+ ){1,2}(?:it|they|this|these)|from (?:there|this|that|it)|"
    r"after (?:this|that)|because of (?:this|that|it)|to do (?:so|this|that))\b",
    re.IGNORECASE,
)
# Counted things that were counted out in the sentence before: "meets all four".
_COUNTED = re.compile(
    r"(?<=\w )all (?:two|three|four|five|six|seven|eight|nine|ten|twelve|twenty|thirty|forty|fifty|hundred)\b|"
    r"\b(?:the other|of the|these|the) (?:two|three|four|five|six)\b(?! \w+s\b)",
    re.IGNORECASE,
)
_CONNECTIVE = re.compile(
    r"^(?:(?:however|moreover|furthermore|also|therefore|thus|hence|consequently|meanwhile|instead|nevertheless|"
    r"nonetheless|besides|still|again|in addition|in contrast|by contrast|on the other hand|as a result|of course|"
    r"in fact|indeed|accordingly|conversely|in turn|in practice|worse|better|additionally),\s+|"
    r"(?:but|and|yet|so|thus)\s+(?!(?:do|does|is|are|did|can|far|much|many|long)\b))",
    re.IGNORECASE,
)
_DEICTIC = re.compile(
    r"^(?:\[?(?:see|read|click|refer to|visit|scroll)\b)|\b(?:as (?:shown|described|mentioned|seen|noted|"
    r"discussed) (?:above|below|before|earlier)|(?:see|shown|listed) "
    r"(?:above|below)|the following (?:table|figure|list|example|listing|code|section|steps)|"
    r"(?:table|figure|listing) \d|(?:this|the (?:next|previous|last)) "
    r"(?:section|chapter|article|post|page|paper|note|document|guide)|click here)\b",
    re.IGNORECASE,
)


class SourceText(Protocol):
    """What a source must offer to be read here."""

    @property
    def title(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def url(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence of a source. `index` is its position in the whole corpus, `paragraph` a number unique there too."""

    index: int
    text: str
    source: int
    section: int
    paragraph: int
    position: int
    words: int
    terms: tuple[str, ...]
    usable: bool

    @property
    def leans(self) -> bool:
        """Whether it cannot be understood without the sentence before it."""
        return leans(self.text)


@dataclass(slots=True)
class Section:
    """A heading of a source and what stands under it. `role` is `body`, `opening` or `closing`."""

    index: int
    source: int
    heading: str
    level: int
    role: str
    sentences: list[Sentence] = field(default_factory=list)

    @property
    def words(self) -> int:
        return sum(sentence.words for sentence in self.sentences)


@dataclass(slots=True)
class Corpus:
    """All sources of a request. Source numbers count from 1, as citations do."""

    titles: list[str]
    urls: list[str | None]
    sections: list[Section]
    sentences: list[Sentence]

    @property
    def words(self) -> int:
        return sum(sentence.words for sentence in self.sentences if sentence.usable)

    def predecessor(self, sentence: Sentence) -> Sentence | None:
        """The sentence before it in the same section."""
        if sentence.index == 0:
            return None
        before = self.sentences[sentence.index - 1]
        return before if before.section == sentence.section else None


def leans(text: str) -> bool:
    bare = plain(strip_connective(text))
    return _LEANING.match(bare) is not None or _COUNTED.search(bare) is not None


def strip_connective(text: str) -> str:
    """A sentence without the word that ties it to the one before: "However, it works" as "It works"."""
    bare = _CONNECTIVE.sub("", text, count=1)
    return bare[:1].upper() + bare[1:] if bare != text else text


def read_sources(sources: Sequence[SourceText]) -> Corpus:
    corpus = Corpus(titles=[], urls=[], sections=[], sentences=[])
    paragraph = 0
    for number, source in enumerate(sources, start=1):
        title, sections = _sections_of(number, source)
        corpus.titles.append(title)
        corpus.urls.append(source.url)
        for section, paragraphs in sections:
            section.index = len(corpus.sections)
            for texts in paragraphs:
                for position, text in enumerate(texts):
                    sentence = Sentence(
                        index=len(corpus.sentences),
                        text=text,
                        source=number,
                        section=section.index,
                        paragraph=paragraph,
                        position=position,
                        words=count_words(text),
                        terms=tuple(terms(text)),
                        usable=is_usable(text),
                    )
                    corpus.sentences.append(sentence)
                    section.sentences.append(sentence)
                paragraph += 1
            if section.sentences:
                corpus.sections.append(section)
    return corpus


_Draft = tuple[Section, list[list[str]]]


def _sections_of(number: int, source: SourceText) -> tuple[str, list[_Draft]]:
    title = " ".join(source.title.split())
    drafts: list[_Draft] = [(Section(0, number, "", 0, "opening"), [])]
    skipping_below: int | None = None
    for block in blocks_of(source.text):
        if block.kind == "heading":
            heading = clean_heading(block.text)
            if skipping_below is not None and block.level > skipping_below:
                continue
            skipping_below = block.level if BOILERPLATE.match(heading) else None
            if skipping_below is not None:
                continue
            if not title and not drafts[0][1] and len(drafts) == 1:
                title = heading
            if heading.casefold() == title.casefold() and len(drafts) == 1:
                continue  # the document's own title: what follows is its opening
            role = "closing" if CLOSING.match(heading) else "opening" if OPENING.match(heading) else "body"
            drafts.append((Section(0, number, heading, block.level, role), []))
        elif block.kind in ("paragraph", "item") and skipping_below is None:
            if not title and len(drafts) == 1 and not drafts[0][1] and _is_title_line(block.text):
                title = clean_heading(block.text)
            elif texts := split_sentences(block.text):
                drafts[-1][1].append(texts)
    if len(drafts) == 1:
        drafts = _chunks(number, drafts[0][1])
    drafts = _without_crumbs([draft for draft in drafts if draft[1]])
    return title or _first_words(drafts) or f"Source {number}", drafts


def _is_title_line(text: str) -> bool:
    return len(text.split()) <= _TITLE_MAX_WORDS and not text.rstrip().endswith((".", "!", "?", ":", ";", ","))


def _first_words(drafts: list[_Draft]) -> str:
    if not drafts:
        return ""
    first = plain(drafts[0][1][0][0]).split()
    return " ".join(first[:8]).rstrip(".,;:!?") + ("\u2026" if len(first) > 8 else "")


def _chunks(number: int, paragraphs: list[list[str]]) -> list[_Draft]:
    """Sections without headings, for a text that has none; they are named later by what they speak of."""
    drafts: list[_Draft] = []
    words = 0
    for texts in paragraphs:
        if not drafts or words >= _CHUNK_WORDS:
            drafts.append((Section(0, number, "", 2, "opening" if not drafts else "body"), []))
            words = 0
        drafts[-1][1].append(texts)
        words += sum(len(text.split()) for text in texts)
    return drafts


def _without_crumbs(drafts: list[_Draft]) -> list[_Draft]:
    """Small sub-sections joined to the section they belong to: a heading must carry more than a sentence."""
    kept: list[_Draft] = []
    for section, paragraphs in drafts:
        words = sum(len(text.split()) for texts in paragraphs for text in texts)
        parent = kept[-1][0] if kept else None
        deeper = parent is not None and parent.heading != "" and section.level > parent.level
        if deeper and (words < _SMALL_SECTION_WORDS or section.level >= 4) and section.role == "body":
            kept[-1][1].extend(paragraphs)
        else:
            kept.append((section, list(paragraphs)))
    return kept


def clean_heading(text: str) -> str:
    heading = re.sub(r"^(?:(?:chapter|section|part)\s+)?(?:\d+(?:\.\d+)*|[IVX]+)[.):]?\s+", "", plain(text))
    return heading.strip().rstrip(".:;#").strip()


def is_usable(text: str, min_words: int = _MIN_SENTENCE_WORDS) -> bool:
    """Whether a sentence may stand in an article: whole, of sane length, not pointing at a layout it leaves behind."""
    bare = plain(text)
    size = count_words(text)
    letters = sum(character.isalpha() for character in bare)
    return (
        min_words <= size <= _MAX_SENTENCE_WORDS
        and re.search(r"[.!?\u2026\u3002\uff01\uff1f][\"'\u201d\u2019)*_]*$", bare) is not None
        and (
            bare.lstrip("\"'\u201c\u2018(")[:1].isupper()
            or bare[:1].isdigit()
            or not bare[:1].isascii()
            or text[:1] == "`"
        )
        and letters >= 0.6 * len(bare)
        and bare.count("(") == bare.count(")")
        and bare.count('"') % 2 == 0
        and _DEICTIC.search(bare) is None
    )
