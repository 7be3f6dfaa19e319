"""What a rewrite of a Markdown document must keep: code, links, citations, HTML, quotations, numbers, headings."""

import re
from collections import Counter
from functools import cache

from markdown_it import MarkdownIt
from markdown_it.token import Token

from agents.enhancement_agent.prose import front_matter_length

_CITATION = re.compile(r"\[\^?[\w-]+\]")
_NUMBER = re.compile(r"\d+(?:[.,:/]\d+)*")
_QUOTATION = re.compile(r"\u201c[^\u201c\u201d]*\u201d|\"[^\"\n]*\"")

KeptParts = dict[str, list[str]]


@cache
def _parser() -> MarkdownIt:
    return MarkdownIt("commonmark").enable("table")


def kept_parts(markdown: str) -> KeptParts:
    """Everything that must survive, by kind, in order of appearance."""
    start = front_matter_length(markdown)
    parts: KeptParts = {
        name: [] for name in ("code", "links", "html", "headings", "citations", "quotations", "numbers")
    }
    parts["front matter"] = [markdown[:start]]
    text: list[str] = []
    heading = False
    environment: dict[str, dict[str, dict[str, object]]] = {}
    for token in _parser().parse(markdown[start:], environment):
        heading = token.type == "heading_open" or (heading and token.type != "heading_close")
        if token.type in ("fence", "code_block"):
            parts["code"].append(f"{token.info}\n{token.content}")
        elif token.type == "html_block":
            parts["html"].append(token.content)
        elif token.type == "heading_open":
            parts["headings"].append(token.tag)
        for child in token.children or []:
            _sort(child, parts, text)
        text.append("\n")
    parts["links"] += sorted(str(reference.get("href")) for reference in environment.get("references", {}).values())
    prose = "".join(text)
    parts["citations"] = _CITATION.findall(prose)
    parts["quotations"] = _QUOTATION.findall(prose)
    parts["numbers"] = _NUMBER.findall(prose)
    return parts


def _sort(token: Token, parts: KeptParts, text: list[str]) -> None:
    match token.type:
        case "code_inline":
            parts["code"].append(token.content)
        case "html_inline":
            parts["html"].append(token.content)
        case "link_open":
            parts["links"].append(f"{token.attrGet('href')} {token.attrGet('title') or ''}")
        case "image":
            parts["links"].append(f"{token.attrGet('src')} {token.content}")
        case "text" | "text_special":
            text.append(token.content)
        case "softbreak" | "hardbreak":
            text.append("\n")
        case _:
            pass


def lost_parts(before: str, after: str, *, in_order: bool = True) -> list[str]:
    """The kinds of parts that differ between two versions; not `in_order`, only their sets and counts count."""
    old, new = kept_parts(before), kept_parts(after)
    if in_order:
        return [kind for kind in old if old[kind] != new[kind]]
    return [kind for kind in old if Counter(old[kind]) != Counter(new[kind])]
