"""Markdown read as blocks whose text is one line of clean inline Markdown each."""

import re
from dataclasses import dataclass
from functools import cache
from typing import Literal

from markdown_it import MarkdownIt
from markdown_it.token import Token

from pantheon.text.front_matter import without_front_matter

BlockKind = Literal["heading", "paragraph", "item", "other"]

_REFERENCE_MARK = re.compile(r"\s*\[\^?\d{1,3}(?:\s*[,;\-\u2013]\s*\d{1,3})*\](?!\()")
_PROSE_MIN_WORDS = 8


@dataclass(frozen=True, slots=True)
class Block:
    """A heading, a paragraph or a list item. `other` stands for what is no prose: code, tables, quotations, HTML."""

    kind: BlockKind
    text: str
    line: int
    level: int = 0


@cache
def _parser() -> MarkdownIt:
    return MarkdownIt("commonmark").enable("table")


def blocks_of(markdown: str, *, keep_marks: bool = False) -> list[Block]:
    """The blocks of a document in order, `line` counted from 1.

    Citation marks such as [3] belong to the document that carries its list, so they are left out unless
    `keep_marks` asks for them.
    """
    markdown = without_front_matter(markdown)
    blocks: list[Block] = []
    quoted = items = tables = 0
    for index, token in enumerate(tokens := _parser().parse(markdown)):
        match token.type:
            case "blockquote_open":
                quoted += 1
            case "blockquote_close":
                quoted -= 1
            case "list_item_open":
                items += 1
            case "list_item_close":
                items -= 1
            case "table_open":
                tables += 1
            case "table_close":
                tables -= 1
            case "inline":
                block = _inline_block(tokens[index - 1], token, keep_marks=keep_marks)
                if quoted or tables:
                    block = Block("other", block.text, block.line)
                elif items and block.kind == "paragraph":
                    block = Block("item", block.text, block.line)
                if block.text:
                    blocks.append(block)
            case "fence" | "html_block" | "hr":
                blocks.append(Block("other", "", _line(token)))
            case "code_block":
                # A paragraph of plain text with its first line indented reads as code in Markdown.
                prose = reads_as_prose(token.content)
                text = " ".join(token.content.split()) if prose else ""
                blocks.append(Block("paragraph" if prose else "other", text, _line(token)))
            case _:
                pass
    return blocks


def reads_as_prose(text: str) -> bool:
    letters = sum(character.isalpha() or character in " ,.'\n" for character in text)
    return len(text.split()) >= _PROSE_MIN_WORDS and letters >= 0.93 * len(text) and text.rstrip().endswith((".", "?"))


def _line(token: Token) -> int:
    return token.map[0] + 1 if token.map else 1


def _inline_block(opening: Token, token: Token, *, keep_marks: bool) -> Block:
    text = render_inline(token.children or [])
    if not keep_marks:
        text = _REFERENCE_MARK.sub("", text)
    text = " ".join(text.split())
    if opening.type == "heading_open":
        return Block("heading", text, _line(token), level=int(opening.tag[1:]))
    return Block("paragraph", text, _line(token))


def render_inline(children: list[Token]) -> str:
    """Inline tokens as Markdown again, without images, inline HTML and links that mean something only in their file."""
    parts: list[str] = []
    open_links: list[str] = []
    for child in children:
        match child.type:
            case "text":
                parts.append(_escaped(child.content))
            case "code_inline":
                fence = "``" if "`" in child.content else "`"
                parts.append(f"{fence}{child.content}{fence}")
            case "softbreak" | "hardbreak":
                parts.append(" ")
            case "em_open" | "em_close" | "strong_open" | "strong_close":
                parts.append(child.markup)
            case "link_open":
                target = str(child.attrGet("href") or "")
                target = target if target.startswith(("http://", "https://", "mailto:")) else ""
                open_links.append(target)
                parts.append("[" if target else "")
            case "link_close":
                target = open_links.pop()
                parts.append(f"]({target})" if target else "")
            case _:
                pass
    return "".join(parts)


def _escaped(text: str) -> str:
    return re.sub(r"([\\`*<])", r"\\\1", text)
