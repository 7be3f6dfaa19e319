"""An article in Markdown as its reviewer sees it: headings, sentences, links, citation marks, each with its line."""

import re
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Literal

from markdown_it import MarkdownIt
from markdown_it.token import Token

from pantheon.text.front_matter import without_front_matter

from .language import count_words, plain, sentence_spans

_MARK = re.compile(r"\s*\[(\d{1,3}(?:\s*[,;]\s*\d{1,3})*)\](?![(:])")
_SOURCES = re.compile(
    r"^(?:sources|references|bibliography|citations|works cited|quellen|literatur(?:verzeichnis)?|fuentes|referencias|"
    r"r\u00e9f\u00e9rences|fonti|bronnen|\u0438\u0441\u0442\u043e\u0447\u043d\u0438\u043a\u0438|"
    r"\u043b\u0438\u0442\u0435\u0440\u0430\u0442\u0443\u0440\u0430|\u53c2\u8003\u6587\u732e|\u51fa\u5178)$",
    re.IGNORECASE,
)
_NOTE = re.compile(r"^ {0,3}\[\^([^\]\s]+)\]:[ \t]*(.*(?:\n(?: {2,}|\t).*\S.*)*)", re.MULTILINE)
_NOTE_MARK = re.compile(r"\[\^([^\]\s]+)\](?!:)")
_FENCED = re.compile(r"^ {0,3}(`{3,}|~{3,}).*?(?:^ {0,3}\1|\Z)", re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"`+[^`]*`+")
_ENTRY = re.compile(r"^\s*(?:[-*+]\s+)?(?:\[(\d{1,3})\]:?|(\d{1,3})[.)])\s+(\S.*?)\s*$")
_UNPARSED_LINK = re.compile(r"\[([^\]\n]+)\]\(([^)\n]*)\)")
_UNDEFINED_REFERENCE = re.compile(r"(?<![\w\]])\[([^\[\]^]+)\]\[((?!\d+\])[^\[\]^]+)\]")
_BARE_ADDRESS = re.compile(
    r"(?<![\w/(<\[\"'])(?:https?|ftp|htp|htps|hxxps?|http)(?::/{0,3}|/{2})[^\s<>)\]\"']*", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Sentence:
    """`text` without citation marks; `cites` those of the run of sentences that it belongs to."""

    text: str
    line: int
    cites: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Paragraph:
    line: int
    section: int
    kind: Literal["paragraph", "item", "quotation"]
    sentences: tuple[Sentence, ...]

    @property
    def words(self) -> int:
        return sum(count_words(sentence.text) for sentence in self.sentences)


@dataclass(frozen=True, slots=True)
class Heading:
    level: int
    text: str
    line: int
    slug: str


@dataclass(frozen=True, slots=True)
class Link:
    target: str
    text: str
    line: int
    parsed: bool = True
    image: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    number: int
    line: int
    excerpt: str


@dataclass(frozen=True, slots=True)
class Entry:
    number: int
    text: str
    line: int


@dataclass(slots=True)
class Document:
    """Section 0 is what stands before the first heading; section n belongs to `headings[n - 1]`."""

    headings: list[Heading] = field(default_factory=list)
    paragraphs: list[Paragraph] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)
    """The footnotes, and the line of each."""
    note_marks: dict[str, Mark] = field(default_factory=dict)
    """Where each footnote is first referred to; the numbers of these marks are the footnotes' order."""
    anchors: set[str] = field(default_factory=set)
    other_blocks: dict[int, int] = field(default_factory=dict)
    """How many blocks of code, tables and so on each section holds."""

    @property
    def sentences(self) -> list[Sentence]:
        return [sentence for paragraph in self.paragraphs for sentence in paragraph.sentences]

    @property
    def words(self) -> int:
        """Words of the text, headings and the list of sources not counted."""
        return sum(paragraph.words for paragraph in self.paragraphs)

    @property
    def title(self) -> Heading | None:
        return next((heading for heading in self.headings if heading.level == 1), None)

    def section_words(self, section: int) -> int:
        return sum(paragraph.words for paragraph in self.paragraphs if paragraph.section == section)


@cache
def _parser() -> MarkdownIt:
    return MarkdownIt("commonmark").enable("table")


def read_document(markdown: str) -> Document:
    """Parse an article. Lines count from 1 in `markdown`, front matter included."""
    markdown = without_front_matter(markdown)
    document = Document()
    rows = markdown.splitlines()
    markdown = _without_notes(document, markdown)
    tokens = _parser().parse(markdown)
    in_sources, quoted, items, tables = False, 0, 0, 0
    for index, token in enumerate(tokens):
        line = token.map[0] + 1 if token.map else 1
        match token.type:
            case "blockquote_open" | "blockquote_close":
                quoted += token.nesting
            case "list_item_open" | "list_item_close":
                items += token.nesting
            case "table_open" | "table_close":
                tables += token.nesting
                _count_other(document, token, kind="table_open")
            case "fence" | "code_block" | "html_block":
                _count_other(document, token, kind=token.type)
                document.anchors.update(re.findall(r"(?:id|name)=[\"']([^\"']+)", token.content))
            case "inline" if tokens[index - 1].type == "heading_open":
                heading = _heading(document, tokens[index - 1], token, line)
                document.headings.append(heading)
                in_sources = _SOURCES.match(heading.text) is not None
                if not in_sources:
                    document.links += _links(token, line)
            case "inline":
                document.links += _links(token, line)
                _note_marks(document, token.content, line)
                if in_sources or tables:
                    continue
                kind: Literal["paragraph", "item", "quotation"] = (
                    "quotation" if quoted else "item" if items else "paragraph"
                )
                paragraph, marks = _paragraph(token.content, line, len(document.headings), kind)
                document.marks += marks
                if paragraph.sentences:
                    document.paragraphs.append(paragraph)
            case _:
                pass
    document.entries = _entries(document, rows)
    document.anchors |= {heading.slug for heading in document.headings}
    return document


def _without_notes(document: Document, markdown: str) -> str:
    """The text with blank lines where its footnotes stood, so that every line number stays true."""
    code = [match.span() for match in _FENCED.finditer(markdown)]

    def taken_out(match: re.Match[str]) -> str:
        if any(start <= match.start() < end for start, end in code):
            return match.group()
        line = markdown.count("\n", 0, match.start()) + 1
        document.notes.setdefault(match.group(1), line)
        for token in _parser().parseInline(match.group(2)):
            document.links += _links(token, line)
        return "\n" * match.group().count("\n")

    return _NOTE.sub(taken_out, markdown)


def _note_marks(document: Document, content: str, line: int) -> None:
    for match in _NOTE_MARK.finditer(_CODE.sub(lambda code: " " * len(code.group()), content)):
        at = line + content.count("\n", 0, match.start())
        excerpt = content[content.rfind("\n", 0, match.start()) + 1 : match.end()]
        document.note_marks.setdefault(match.group(1), Mark(len(document.note_marks) + 1, at, excerpt))


def _count_other(document: Document, token: Token, *, kind: str) -> None:
    if token.type == kind:
        section = len(document.headings)
        document.other_blocks[section] = document.other_blocks.get(section, 0) + 1


def _heading(document: Document, opening: Token, token: Token, line: int) -> Heading:
    text = " ".join(plain(token.content).split())
    slug = re.sub(r"[^\w\- ]", "", text.casefold()).replace(" ", "-")
    same = sum(1 for heading in document.headings if heading.text.casefold() == text.casefold())
    return Heading(int(opening.tag[1:]), text, line, f"{slug}-{same}" if same else slug)


def _paragraph(
    content: str, line: int, section: int, kind: Literal["paragraph", "item", "quotation"]
) -> tuple[Paragraph, list[Mark]]:
    # Code is no prose: a mark in it is an index.
    masked = _CODE.sub(lambda match: re.sub(r"[\[\]]", "x", match.group()), content)
    for mark in reversed(list(_NOTE_MARK.finditer(masked))):
        gap = " " * len(mark.group())
        masked = masked[: mark.start()] + gap + masked[mark.end() :]
        content = content[: mark.start()] + gap + content[mark.end() :]
    marks: list[Mark] = []
    sentences: list[Sentence] = []
    for start, end in sentence_spans(masked):
        at = line + content.count("\n", 0, start + len(content[start:end]) - len(content[start:end].lstrip()))
        numbers: list[int] = []
        kept, position = [], start
        for match in _MARK.finditer(masked, start, end):
            kept.append(content[position : match.start()])
            position = match.end()
            numbers += [int(number) for number in re.split(r"\s*[,;]\s*", match.group(1))]
        text = " ".join(("".join(kept) + content[position:end]).split())
        excerpt = " ".join(content[start:end].split())
        marks += [Mark(number, at, excerpt) for number in numbers]
        leading = re.match(r"\s*(?:\[\d{1,3}\]\s*)+(?=\S)", masked[start:end])
        if leading and sentences and leading.end() < end - start:
            # Marks behind the full stop belong to the sentence before.
            own = [int(number) for number in re.findall(r"\d+", leading.group())]
            sentences[-1] = Sentence(sentences[-1].text, sentences[-1].line, (*sentences[-1].cites, *own))
            numbers = numbers[len(own) :]
        if not re.search(r"\w", text):
            if sentences and numbers:
                sentences[-1] = Sentence(sentences[-1].text, sentences[-1].line, (*sentences[-1].cites, *numbers))
            continue
        sentences.append(Sentence(text, at, tuple(dict.fromkeys(numbers))))
    for position in range(len(sentences) - 2, -1, -1):  # a mark speaks for the run of sentences that it closes
        if not sentences[position].cites:
            sentences[position] = Sentence(
                sentences[position].text, sentences[position].line, sentences[position + 1].cites
            )
    return Paragraph(line, section, kind, tuple(sentences)), marks


def _links(token: Token, line: int) -> list[Link]:
    found: list[Link] = []
    children = token.children or []
    at = line
    depth = 0
    for position, child in enumerate(children):
        if child.type in ("softbreak", "hardbreak"):
            at += 1
        elif child.type == "link_open":
            depth += 1
            text = "".join(inner.content for inner in children[position + 1 : _closing(children, position)])
            found.append(Link(str(child.attrGet("href") or ""), text, at))
        elif child.type == "link_close":
            depth -= 1
        elif child.type == "image":
            found.append(Link(str(child.attrGet("src") or ""), child.content, at, image=True))
        elif child.type == "text" and not depth:
            unparsed = _UNPARSED_LINK.finditer(child.content)
            found += [Link(match.group(2), match.group(1), at, parsed=False) for match in unparsed]
            rest = _UNPARSED_LINK.sub("", child.content)
            undefined = _UNDEFINED_REFERENCE.finditer(rest)
            found += [Link(f"[{match.group(2)}]", match.group(1), at, parsed=False) for match in undefined]
            found += [Link(match.group().rstrip(".,;:!?"), "", at) for match in _BARE_ADDRESS.finditer(rest)]
    return found


def _closing(children: list[Token], opening: int) -> int:
    return next(
        (position for position in range(opening + 1, len(children)) if children[position].type == "link_close"),
        len(children),
    )


def _entries(document: Document, rows: list[str]) -> list[Entry]:
    """The list of sources: the rows under its heading that carry a number."""
    found: list[Entry] = []
    for position, heading in enumerate(document.headings):
        if not is_sources(heading):
            continue
        last = position + 1 == len(document.headings)
        end = len(rows) if last else document.headings[position + 1].line - 1
        for number, row in enumerate(rows[heading.line : end], start=heading.line + 1):
            if entry := _ENTRY.match(row):
                found.append(Entry(int(entry.group(1) or entry.group(2)), entry.group(3), number))
    return found


def is_sources(heading: Heading) -> bool:
    return _SOURCES.match(heading.text) is not None


def level_jumps(document: Document) -> list[tuple[Heading, Heading]]:
    """Headings more than one level below the heading before them."""
    return [(upper, lower) for upper, lower in pairwise(document.headings) if lower.level > upper.level + 1]
