"""Finds the prose of a Markdown document: where a correction may be made, and what within it must not be touched."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

from markdown_it import MarkdownIt

MASK = "\ue000"
"""Stands for every protected character; in no class of characters (not a word, not a space), so rules pass by it."""

BlockKind = Literal["paragraph", "heading", "list_item"]

_LINE_END = re.compile(r"\r\n?|\n")
_FRONT_MATTER = re.compile(
    r"\A(?:---[ \t]*\r?\n.*?^(?:---|\.\.\.)|\+\+\+[ \t]*\r?\n.*?^\+\+\+)[ \t]*\r?$\n?", re.DOTALL | re.MULTILINE
)
_SOURCES_HEADING = re.compile(
    r"(?i)^\W*(sources?|references|bibliography|works cited|further reading|quellen|literatur|fuentes|bronnen)\W*$"
)
_HTML_INLINE = re.compile(
    r"<!--.*?-->|<\?.*?\?>|<!\[CDATA\[.*?\]\]>|</?[A-Za-z][A-Za-z0-9-]*(?:\s[^<>]*)?/?>|<[A-Za-z][A-Za-z0-9+.-]{1,31}:[^\s<>]*>"
    r"|<[^\s<>@]+@[^\s<>@]+>",
    re.DOTALL,
)
_OPENING_VERBATIM_TAG = re.compile(r"(?i)<(code|kbd|samp|var|pre|a|q|cite|math|svg|script|style|sub|sup)\b")
_MATH = re.compile(r"\$\$.+?\$\$|\$(?!\s)[^$\n]+?(?<!\s)\$(?!\d)", re.DOTALL)
_ADDRESS = re.compile(r"(?i)(?:[a-z][a-z0-9+.-]*://|www\.|mailto:)\S+|[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
_BRACES = re.compile(r"\$?\{+[^{}\n]*\}+")
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_ESCAPABLE = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
_TOKEN = re.compile(r"[^\s\ue000]+")
_TECHNICAL = re.compile(
    r"[_/\\@#=~^|<>%+]|::|\d[A-Za-z]|[A-Za-z]\d|[a-z][A-Z]|[A-Z]{2}|\w\.\w|^\.\w|^--?\w|:\w+:", re.ASCII
)
_CALL = re.compile(r"\w\(\)")
_CLOSING_QUOTE = {"\u201c": "\u201d", "\u00ab": "\u00bb", "\u201e": "\u201c\u201d", "\u300c": "\u300d"}


@dataclass(frozen=True, slots=True)
class Block:
    """A run of prose: its text without list and quote markers, the same text masked, and where each line lies."""

    kind: BlockKind
    text: str
    masked: str
    lines: tuple[tuple[int, int, int], ...]
    """Per line: offset in `text`, offset in the document, line number in the document from 1."""

    def locate(self, offset: int) -> tuple[int, int]:
        """The document offset and line number of an offset in `text`."""
        best = self.lines[0]
        for line in self.lines:
            if line[0] > offset:
                break
            best = line
        return best[1] + offset - best[0], best[2]


@cache
def _parser() -> MarkdownIt:
    return MarkdownIt("commonmark").enable("table")


def front_matter_length(markdown: str) -> int:
    """How many characters at the start are YAML front matter."""
    match = _FRONT_MATTER.match(markdown)
    return match.end() if match else 0


def blocks(markdown: str) -> list[Block]:
    """A document's prose in order: paragraphs, headings, list items; no quotes, tables, code or lists of sources."""
    start = front_matter_length(markdown)
    first_line = len(_LINE_END.findall(markdown[:start]))
    body = markdown[start:]
    line_starts = [0, *(match.end() for match in _LINE_END.finditer(body))]
    ends = [match.start() for match in _LINE_END.finditer(body)] + [len(body)]
    found = []
    for kind, (top, bottom), content in _inline_contents(body):
        located = []
        offset = 0
        for index, line in enumerate(content.split("\n")):
            number = top + index
            if number >= bottom or number >= len(ends):
                break
            source = body[line_starts[number] : ends[number]]
            text = line.rstrip()
            at = source.rfind(text) if kind == "heading" else len(source.rstrip()) - len(text)
            if at < 0 or source[at : at + len(text)] != text:
                break
            located.append((offset, start + line_starts[number] + at, first_line + number + 1))
            offset += len(line) + 1
        if len(located) == content.count("\n") + 1:
            found.append(Block(kind, content, mask(content), tuple(located)))
    return found


def _inline_contents(body: str) -> Iterator[tuple[BlockKind, tuple[int, int], str]]:
    quotes = tables = items = 0
    heading_level: int | None = None
    sources_level: int | None = None
    for token in _parser().parse(body):
        match token.type:
            case "blockquote_open":
                quotes += 1
            case "blockquote_close":
                quotes -= 1
            case "table_open":
                tables += 1
            case "table_close":
                tables -= 1
            case "list_item_open":
                items += 1
            case "list_item_close":
                items -= 1
            case "heading_open":
                heading_level = int(token.tag[1])
                if sources_level is not None and heading_level <= sources_level:
                    sources_level = None
            case "heading_close":
                heading_level = None
            case "inline" if token.map is not None and not quotes and not tables:
                if heading_level is not None and _SOURCES_HEADING.match(token.content):
                    sources_level = heading_level
                if sources_level is not None or any(line.startswith(":::") for line in token.content.split("\n")):
                    continue
                kind: BlockKind = "heading" if heading_level is not None else "list_item" if items else "paragraph"
                yield kind, (token.map[0], token.map[1]), token.content


def mask(text: str) -> str:
    """`text` with code, links, citations, HTML, math, addresses, quotations and identifiers replaced by MASK."""
    characters = list(text)
    position = 0
    while position < len(text):
        end = _protected_end(text, position)
        if end > position:
            for index in range(position, end):
                if text[index] != "\n":
                    characters[index] = MASK
            position = end
        else:
            position += 1
    masked = "".join(characters)
    for token in _TOKEN.finditer(masked):
        core = token[0].strip("*()[],;:!?\"'\u2019\u2018.\u2026\u2014\u2013")
        if core and (_TECHNICAL.search(core) or _CALL.search(token[0])):
            at = token.start() + token[0].index(core)
            masked = masked[:at] + MASK * len(core) + masked[at + len(core) :]
    return masked


def _protected_end(text: str, start: int) -> int:
    """Where what is protected and starts at `start` ends; `start` itself when nothing does."""
    character = text[start]
    word_before = start > 0 and (text[start - 1].isalnum() or text[start - 1] == "_")
    match character:
        case "\\":
            return start + 2 if text[start + 1 : start + 2] in _ESCAPABLE and start + 1 < len(text) else start + 1
        case "`":
            return _code_end(text, start)
        case "<":
            return _html_end(text, start)
        case "[":
            return _bracket_end(text, start)
        case "!" if text[start + 1 : start + 2] == "[":
            end = _bracket_end(text, start + 1)
            return end if end > start + 1 else start
        case "$":
            found = _MATH.match(text, start) or _BRACES.match(text, start)
            return found.end() if found else start
        case "{":
            found = _BRACES.match(text, start)
            return found.end() if found else start
        case "&":
            found = _ENTITY.match(text, start)
            return found.end() if found else start
        case '"':
            end = text.find('"', start + 1)
            return len(text) if end < 0 else end + 1
        case "\u201c" | "\u00ab" | "\u201e" | "\u300c":
            ends = [text.find(closing, start + 1) for closing in _CLOSING_QUOTE[character]]
            return min((end + 1 for end in ends if end >= 0), default=len(text))
        case "'" | "\u2018" if not word_before and text[start + 1 : start + 2].strip():
            found = re.compile(r"(?<=\S)['\u2019](?!\w)").search(text, start + 1)
            return found.end() if found else start
        case _ if character.isalnum() and not word_before:
            found = _ADDRESS.match(text, start)
            return start + len(found[0].rstrip(".,;:!?)*")) if found else start
        case _:
            return start


def _code_end(text: str, start: int) -> int:
    run = len(text) - start - len(text[start:].lstrip("`"))
    for closing in re.finditer(r"`+", text[start + run :]):
        if len(closing[0]) == run:
            return start + run + closing.end()
    return start + run


def _html_end(text: str, start: int) -> int:
    found = _HTML_INLINE.match(text, start)
    if not found:
        return start
    verbatim = _OPENING_VERBATIM_TAG.match(found[0])
    if verbatim and not found[0].endswith("/>"):
        closing = re.compile(rf"(?i)</{verbatim[1]}\s*>").search(text, found.end())
        if closing:
            return closing.end()
    return found.end()


def _bracket_end(text: str, start: int) -> int:
    """The end of a link, image, reference, citation or footnote mark whose `[` is at `start`."""
    end = _balanced_end(text, start, "[", "]")
    if end == start:
        return start
    follower = text[end : end + 1]
    if follower == "(":
        return max(end, _balanced_end(text, end, "(", ")"))
    if follower == "[":
        return max(end, _balanced_end(text, end, "[", "]"))
    return end


def _balanced_end(text: str, start: int, opening: str, closing: str) -> int:
    depth = 0
    position = start
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 2
            continue
        if character == "`":
            position = _code_end(text, position)
            continue
        if character == "<" and (found := _HTML_INLINE.match(text, position)):
            position = found.end()
            continue
        depth += (character == opening) - (character == closing)
        position += 1
        if depth == 0:
            return position
    return start
