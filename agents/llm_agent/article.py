"""An article as parts, paragraphs and cited lines, and its Markdown both ways."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from pantheon.text.sentences import split_sentences
from pantheon.text.words import count_words

from .markdown import blocks_of

SOURCES_HEADING = "Sources"
_MARK = re.compile(r"\s*\[(\d{1,3})\](?!\()")
_CLOSE = re.compile(r"^(.*?)([.!?\u2026\u3002\uff01\uff1f]+)$", re.DOTALL)
_SOURCES = re.compile(r"^(?:sources|references|bibliography|citations)$", re.IGNORECASE)
_ENTRY = re.compile(r"^\s*(?:[-*]\s+)?(?:\[(\d{1,3})\]|(\d{1,3})[.)])\s+(.*\S)\s*$")
_ENTRY_LINK = re.compile(r"^\[([^\]]*)\]\(([^)\s]*)\)\s*$")


@dataclass(frozen=True, slots=True)
class Line:
    """One sentence of an article. `origin` is its sentence's index in the corpus, where it is known."""

    text: str
    cites: tuple[int, ...] = ()
    origin: int | None = None
    number: int = 0

    @property
    def words(self) -> int:
        return count_words(self.text)


@dataclass(slots=True)
class Paragraph:
    """Lines that belong together; `verbatim` stands for a block that is kept as it is, such as code or a table."""

    lines: list[Line] = field(default_factory=list)
    bullet: bool = False
    verbatim: str = ""


@dataclass(slots=True)
class Part:
    """A section of an article; the first one, without a heading, is its introduction."""

    heading: str
    paragraphs: list[Paragraph] = field(default_factory=list)
    level: int = 2

    @property
    def words(self) -> int:
        return sum(line.words for line in self.lines())

    def lines(self) -> Iterable[Line]:
        return (line for paragraph in self.paragraphs for line in paragraph.lines)


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the list of sources."""

    number: int
    title: str
    url: str | None = None


@dataclass(slots=True)
class Article:
    title: str
    parts: list[Part]

    @property
    def words(self) -> int:
        """Words of the text: headings and the list of sources are not counted."""
        return sum(part.words for part in self.parts)

    def cited(self) -> list[int]:
        return sorted({number for part in self.parts for line in part.lines() for number in line.cites})


def cite(text: str, numbers: Sequence[int]) -> str:
    """The sentence with its marks before the full stop: "It runs once [1]." """
    if not numbers:
        return text
    marks = "".join(f" [{number}]" for number in numbers)
    end = _CLOSE.match(text)
    return f"{end.group(1)}{marks}{end.group(2)}" if end else f"{text}{marks}"


def render(article: Article, entries: Sequence[Entry]) -> str:
    """The article in Markdown, with the entries of the sources that it cites."""
    blocks = [f"# {article.title}"]
    for part in article.parts:
        if part.heading:
            blocks.append(f"{'#' * part.level} {part.heading}")
        bullets: list[str] = []
        for paragraph in part.paragraphs:
            text = paragraph.verbatim or _render_lines(paragraph.lines)
            if paragraph.bullet:
                bullets.append(f"- {text}")
                continue
            if bullets:
                blocks.append("\n".join(bullets))
                bullets = []
            blocks.append(text)
        if bullets:
            blocks.append("\n".join(bullets))
    if listing := render_sources(entries, article.cited()):
        blocks.append(listing)
    return "\n\n".join(blocks) + "\n"


def render_sources(entries: Sequence[Entry], cited: Iterable[int]) -> str:
    numbers = set(cited)
    chosen = [entry for entry in sorted(entries, key=lambda entry: entry.number) if entry.number in numbers]
    if not chosen:
        return ""
    # A Markdown list counts on by itself: with a gap, numbers must be written out to match the marks.
    counted = [entry.number for entry in chosen] == list(range(1, len(chosen) + 1))
    lines = []
    for entry in chosen:
        title = entry.title.replace("[", "(").replace("]", ")")
        label = f"[{title}]({entry.url})" if entry.url else title
        lines.append(f"{entry.number}. {label}" if counted else f"- [{entry.number}] {label}")
    return f"## {SOURCES_HEADING}\n\n" + "\n".join(lines)


def _render_lines(lines: Sequence[Line]) -> str:
    """One paragraph. Sentences in a row from the same source share the mark that stands after the last of them."""
    texts = []
    for position, line in enumerate(lines):
        following = lines[position + 1] if position + 1 < len(lines) else None
        shared = following is not None and following.cites == line.cites
        texts.append(line.text if shared else cite(line.text, line.cites))
    return " ".join(texts)


def parse(markdown: str) -> tuple[Article, list[Entry]]:
    """An article written by anyone, taken apart; `Line.number` is the line on which a sentence's block starts."""
    rows = markdown.splitlines()
    article = Article("", [Part("")])
    entries: list[Entry] = []
    in_sources = False
    blocks = blocks_of(markdown, keep_marks=True)
    for position, block in enumerate(blocks):
        if block.kind == "heading":
            in_sources = _SOURCES.match(block.text) is not None
            if in_sources:
                continue
            if block.level == 1 and not article.title:
                article.title = block.text
            else:
                article.parts.append(Part(block.text, level=max(2, block.level)))
        elif in_sources:
            continue
        elif block.kind == "other":
            following = blocks[position + 1].line - 1 if position + 1 < len(blocks) else len(rows)
            if text := "\n".join(rows[block.line - 1 : following]).strip():
                article.parts[-1].paragraphs.append(Paragraph(verbatim=text))
        else:
            lines = _cited_lines(block.text, block.line)
            article.parts[-1].paragraphs.append(Paragraph(lines, bullet=block.kind == "item"))
    for row in _source_rows(rows):
        if found := _ENTRY.match(row):
            number, label = int(found.group(1) or found.group(2)), found.group(3)
            link = _ENTRY_LINK.match(label)
            entries.append(Entry(number, link.group(1), link.group(2)) if link else Entry(number, label))
    return article, entries


def _source_rows(rows: Sequence[str]) -> list[str]:
    for position in range(len(rows) - 1, -1, -1):
        if _SOURCES.match(rows[position].lstrip("# ").strip()) and rows[position].startswith("#"):
            return list(rows[position + 1 :])
    return []


def _cited_lines(text: str, number: int) -> list[Line]:
    lines: list[Line] = []
    for sentence in split_sentences(text):
        cites = tuple(dict.fromkeys(int(mark) for mark in _MARK.findall(sentence)))
        bare = _MARK.sub("", sentence).strip()
        if not bare.strip(".!? "):  # marks standing behind the full stop belong to the sentence before
            if lines:
                lines[-1] = replace(lines[-1], cites=(*lines[-1].cites, *cites))
            continue
        leading = re.match(r"^((?:\s*\[\d{1,3}\](?!\())+)\s+\S", sentence)
        if leading and lines:
            before = tuple(int(mark) for mark in _MARK.findall(leading.group(1)))
            lines[-1] = replace(lines[-1], cites=(*lines[-1].cites, *before))
            cites = tuple(mark for mark in cites if mark not in before)
        lines.append(Line(bare, cites, number=number))
    # A mark closes the run of sentences before it.
    for position in range(len(lines) - 2, -1, -1):
        if not lines[position].cites:
            lines[position] = replace(lines[position], cites=lines[position + 1].cites)
    return lines
