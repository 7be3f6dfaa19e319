"""A document between reading and writing: pandoc's syntax tree, made safe and ready for every format."""

import base64
import binascii
import copy
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

Node = dict[str, Any]

SOURCES_HEADING = re.compile(r"(?i)^\W*(sources?|references|bibliography|works cited|quellen|fuentes)\W*$")
MIN_HEADINGS_FOR_CONTENTS = 4
MAX_NESTED_QUOTES = 8
"""Deeper quotes have no room on a page, and typst limits nesting."""
MAX_NESTED_LISTS = 16
"""The items of deeper lists join those above, for the same reason."""
_TITLE_ANCHOR = "_title"
"""No heading's own id begins so."""
_NOT_IN_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_CITATION = re.compile(r"\[(\d{1,3})\]")
_SAFE_LINK = re.compile(r"(?i)^(?:https?:|mailto:|tel:|ftp:|#|[^:]*$|[^:]*[/?#])")
_DATA_IMAGE = re.compile(r"(?i)^data:image/(png|jpe?g|gif);base64,([A-Za-z0-9+/=\s%]+)$")
_KEPT_ATTRIBUTES = frozenset(("width", "height", "startFrom"))
_LINE_BREAK_TAG = re.compile(r"(?i)^<br\s*/?>$")


@dataclass(frozen=True, slots=True)
class Image:
    """A picture that the document carries in itself, and the name it gets beside it."""

    name: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Document:
    """The cleaned tree, what was found out about it, and its pictures by their data address."""

    tree: Node
    title: str
    fields: dict[str, str]
    keywords: list[str]
    headings: int
    images: dict[str, Image]

    @property
    def has_contents(self) -> bool:
        """Whether it is long enough for a table of contents."""
        return self.headings >= MIN_HEADINGS_FOR_CONTENTS


def plain_text(value: Any) -> str:
    """The words of any part of a tree."""
    if isinstance(value, list):
        return "".join(plain_text(item) for item in value)
    if not isinstance(value, dict):
        return ""
    match value.get("t"):
        case "Str" | "MetaString":
            return str(value["c"])
        case "Space" | "SoftBreak" | "LineBreak":
            return " "
        case "Code" | "Math":
            return str(value["c"][1])
        case "Quoted":
            return f"\u201c{plain_text(value['c'][1])}\u201d"
        case "Note" | "RawInline" | "RawBlock":
            return ""
        case "Para" | "Plain":
            return plain_text(value["c"]) + "\n"
        case _:
            return plain_text(value.get("c", []))


def inlines(text: str) -> list[Node]:
    """Text as inline nodes."""
    nodes: list[Node] = []
    for index, word in enumerate(text.split()):
        nodes += [{"t": "Space"}] if index else []
        nodes.append({"t": "Str", "c": word})
    return nodes


def clean(tree: Node, *, title: str = "") -> Document:
    """A document from pandoc's tree of a Markdown text.

    Raw HTML becomes text, pictures of other servers become links, unsafe links and attributes go, links into the
    document hold only when their target exists, headings start at level 1 below the title, and [n] links to the n-th
    source.
    """
    meta: Node = tree.get("meta", {})
    cleaner = _Cleaner()
    blocks: list[Node] = cleaner.walk(tree["blocks"])
    found_title = title.strip() or plain_text(meta.get("title", {})).strip()
    heading_title = _title_heading(blocks)
    if heading_title is not None and (not found_title or _same(heading_title, found_title)):
        found_title = found_title or heading_title
        blocks = _without_first_heading(blocks, cleaner.ids)
    _level_headings(blocks)
    sources = _mark_sources(blocks, cleaner.ids)
    blocks = _Linker(cleaner.ids, sources).walk(blocks)
    listed = meta.get("keywords", {})
    keywords = [plain_text(item).strip() for item in listed.get("c", [])] if listed.get("t") == "MetaList" else []
    fields: dict[str, str] = {
        name: plain_text(meta[name]).strip()
        for name in ("author", "date", "lang", "description", "subtitle", "abstract")
        if name in meta and meta[name].get("t") != "MetaList"
    }
    if meta.get("author", {}).get("t") == "MetaList":
        fields["author"] = ", ".join(plain_text(item).strip() for item in meta["author"]["c"])
    return Document(
        {**tree, "meta": {}, "blocks": blocks},
        found_title,
        fields,
        [keyword for keyword in keywords if keyword],
        sum(block["t"] == "Header" and block["c"][0] <= 3 for block in blocks),
        cleaner.images,
    )


def with_image_files(tree: Node, images: dict[str, Image]) -> Node:
    """A copy of the tree whose pictures are files by name rather than data addresses."""

    def walk(value: Any) -> Any:
        if isinstance(value, list):
            return [walk(item) for item in value]
        if isinstance(value, dict):
            if value.get("t") == "Image" and value["c"][2][0] in images:
                attributes, alt, (address, caption) = value["c"]
                return {"t": "Image", "c": [attributes, walk(alt), [images[address].name, caption]]}
            return {key: walk(item) for key, item in value.items()}
        return value

    copied: Node = walk(tree)
    return copied


def _same(title: str, other: str) -> bool:
    return re.sub(r"\W+", " ", title).strip().casefold() == re.sub(r"\W+", " ", other).strip().casefold()


def _title_heading(blocks: list[Node]) -> str | None:
    """The text of the first heading, when it opens the document and stands above all others."""
    levels = [block["c"][0] for block in blocks if block["t"] == "Header"]
    if not blocks or blocks[0]["t"] != "Header" or (levels.count(1) > 1 and levels[0] == 1) or levels[0] > min(levels):
        return None
    return plain_text(blocks[0]["c"][2]).strip() if levels.count(levels[0]) == 1 else None


def _without_first_heading(blocks: list[Node], ids: set[str]) -> list[Node]:
    """The heading becomes the title, and links to it lead to the first paragraph instead.

    Not under the heading's own id: an EPUB uses that for the title of the first chapter.
    """
    identifier = blocks[0]["c"][1][0]
    rest = copy.deepcopy(blocks[1:])
    ids.discard(identifier)
    if rest and rest[0]["t"] in ("Para", "Plain") and _redirected(rest, f"#{identifier}", f"#{_TITLE_ANCHOR}"):
        rest[0]["c"] = [{"t": "Span", "c": [[_TITLE_ANCHOR, [], []], []]}, *rest[0]["c"]]
        ids.add(_TITLE_ANCHOR)
    return rest


def _redirected(value: Any, address: str, new: str) -> bool:
    """Whether any link led to `address`; all such links lead to `new` now."""
    if isinstance(value, list):
        return sum(_redirected(item, address, new) for item in value) > 0
    if not isinstance(value, dict):
        return False
    found = False
    if value.get("t") == "Link" and value["c"][2][0] == address:
        value["c"][2][0] = new
        found = True
    return _redirected(value.get("c"), address, new) or found


def _level_headings(blocks: list[Node]) -> None:
    levels = [block["c"][0] for block in blocks if block["t"] == "Header"]
    if levels:
        shift = min(levels) - 1
        for block in blocks:
            if block["t"] == "Header":
                block["c"][0] -= shift


def _mark_sources(blocks: list[Node], ids: set[str]) -> set[int]:
    """Sets ids on the items of the list below a heading "Sources", and returns their numbers."""
    numbers: set[int] = set()
    in_sources = False
    for block in blocks:
        if block["t"] == "Header":
            in_sources = bool(SOURCES_HEADING.match(plain_text(block["c"][2])))
        elif in_sources and block["t"] == "OrderedList" and not numbers:
            first = int(block["c"][0][0])
            for number, item in enumerate(block["c"][1], first):
                if item and item[0]["t"] in ("Para", "Plain") and f"source-{number}" not in ids:
                    item[0]["c"] = [{"t": "Span", "c": [[f"source-{number}", [], []], item[0]["c"]]}]
                    numbers.add(number)
                    ids.add(f"source-{number}")
    return numbers


@dataclass(slots=True)
class _Cleaner:
    ids: set[str] = field(default_factory=set)
    images: dict[str, Image] = field(default_factory=dict)
    in_link: bool = False
    quotes: int = 0
    lists: int = 0

    def walk(self, value: Any) -> Any:
        if isinstance(value, list):
            if _is_attributes(value):
                return self._attributes(value)
            walked: list[Any] = []
            for item in value:
                if isinstance(item, dict) and "t" in item:
                    walked += self._node(item)
                else:
                    walked.append(self.walk(item))
            return walked
        return _NOT_IN_XML.sub("", value) if isinstance(value, str) else value

    def _attributes(self, value: list[Any]) -> list[Any]:
        identifier = re.sub(r"[^\w.-]+", "-", value[0])
        if identifier in self.ids:
            identifier = ""
        if identifier:
            self.ids.add(identifier)
        classes = [name for name in value[1] if re.fullmatch(r"[\w+#-]+", name)]
        kept = [pair for pair in value[2] if pair[0] in _KEPT_ATTRIBUTES and re.fullmatch(r"[\w.%]+", pair[1])]
        return [identifier, classes, kept]

    def _node(self, node: Node) -> list[Node]:
        match node["t"]:
            case "RawInline":
                return [{"t": "LineBreak"}] if _LINE_BREAK_TAG.match(node["c"][1]) else []
            case "RawBlock":
                return [{"t": "Para", "c": inlines(text)} for text in html_paragraphs(node["c"][1])]
            case "Link":
                return self._link(node)
            case "Image":
                return self._image(node)
            case "BlockQuote":
                self.quotes += 1
                quoted: list[Node] = self.walk(node["c"])
                self.quotes -= 1
                return [{"t": "BlockQuote", "c": quoted}] if self.quotes < MAX_NESTED_QUOTES else quoted
            case "BulletList":
                return self._list(node["c"], lambda items: {"t": "BulletList", "c": items})
            case "OrderedList":
                return self._list(node["c"][1], lambda items: {"t": "OrderedList", "c": [node["c"][0], items]})
            case "Header" if not plain_text(node["c"][2]).strip():
                words = self.walk(node["c"][2])  # it has nothing that a table of contents could show
                return [{"t": "Para", "c": words}] if words else []
            case _ if "c" in node:
                return [{**node, "c": self.walk(node["c"])}]
            case _:
                return [node]

    def _list(self, items: list[list[Node]], made: Callable[[list[list[Node]]], Node]) -> list[Node]:
        self.lists += 1
        walked = [self._list_item(item) for item in items]
        self.lists -= 1
        return [made(walked)] if self.lists < MAX_NESTED_LISTS else [block for item in walked for block in item]

    def _list_item(self, item: list[Node]) -> list[Node]:
        walked: list[Node] = self.walk(item)
        if walked and walked[0]["t"] in ("Para", "Plain"):
            words = walked[0]["c"]
            lead = "".join(plain_text([word]) for word in words[:3])
            if lead == "[ ]":
                words[:3] = [{"t": "Str", "c": "\u2610"}]
            elif words and words[0] in ({"t": "Str", "c": "[x]"}, {"t": "Str", "c": "[X]"}):
                words[0] = {"t": "Str", "c": "\u2612"}
        return walked

    def _link(self, node: Node) -> list[Node]:
        attributes, text, (address, caption) = node["c"]
        outer, self.in_link = self.in_link, True
        words: list[Node] = self.walk(text)
        self.in_link = outer
        if outer or not _SAFE_LINK.match(address.strip()) or not address.strip():
            return words
        return [{"t": "Link", "c": [self.walk(attributes), words or inlines(address), [address.strip(), caption]]}]

    def _image(self, node: Node) -> list[Node]:
        attributes, alt, (address, caption) = node["c"]
        words: list[Node] = self.walk(alt)
        data = _DATA_IMAGE.match(address)
        if data:
            try:
                content = base64.b64decode(re.sub(r"\s|%0A|%0D", "", data[2]), validate=True)
            except binascii.Error:
                return words
            if not _is_picture(content):
                return words  # one broken picture must not cost the whole document
            kind = data[1].lower().replace("jpeg", "jpg")
            self.images[address] = Image(f"image-{hashlib.sha256(content).hexdigest()[:16]}.{kind}", content)
            return [{"t": "Image", "c": [self.walk(attributes), words, [address, caption]]}]
        words = words or inlines(caption) or [{"t": "Str", "c": "image"}]
        if self.in_link or not re.match(r"(?i)https?://", address):
            return [{"t": "Emph", "c": words}]
        return [{"t": "Link", "c": [["", [], []], words, [address, caption]]}]


@dataclass(slots=True)
class _Linker:
    """Second walk, when all ids are known."""

    ids: set[str]
    sources: set[int]

    def walk(self, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        walked: list[Any] = []
        for item in value:
            if isinstance(item, dict) and "t" in item:
                walked += self._node(item)
            else:
                walked.append(self.walk(item))
        return walked

    def _node(self, node: Node) -> list[Node]:
        match node["t"]:
            case "Link":
                address = node["c"][2][0]
                if address.startswith("#") and address[1:] not in self.ids:
                    return list(node["c"][1])
                return [node]
            case "Str":
                return self._citations(node["c"])
            case "Header" | "Code" | "CodeBlock" | "Math" | "Image":
                return [node]
            case _ if "c" in node:
                return [{**node, "c": self.walk(node["c"])}]
            case _:
                return [node]

    def _citations(self, text: str) -> list[Node]:
        nodes: list[Node] = []
        position = 0
        for match in _CITATION.finditer(text):
            if int(match[1]) in self.sources:
                before = text[position : match.start()]
                nodes += [{"t": "Str", "c": before}] if before else []
                link = [["", ["citation"], []], [{"t": "Str", "c": match[0]}], [f"#source-{match[1]}", ""]]
                nodes.append({"t": "Link", "c": link})
                position = match.end()
        rest = text[position:]
        return [*nodes, {"t": "Str", "c": rest}] if rest or not nodes else nodes


def _is_picture(content: bytes) -> bool:
    """Whether the bytes begin and end as a PNG, a JPEG or a GIF does."""
    return (
        (content.startswith(b"\x89PNG\r\n\x1a\n") and b"IEND" in content[-16:])
        or (content.startswith(b"\xff\xd8\xff") and b"\xff\xd9" in content[-64:])
        or (content.startswith((b"GIF87a", b"GIF89a")) and content.rstrip(b"\0").endswith(b";"))
    )


def _is_attributes(value: list[Any]) -> bool:
    return (
        len(value) == 3
        and isinstance(value[0], str)
        and isinstance(value[1], list)
        and all(isinstance(name, str) for name in value[1])
        and isinstance(value[2], list)
        and all(isinstance(pair, list) and len(pair) == 2 for pair in value[2])
    )


class _Text(HTMLParser):
    _BREAKS = frozenset(
        "p div br li tr h1 h2 h3 h4 h5 h6 section article details summary table ul ol blockquote".split()
    )
    _HIDDEN = frozenset(("script", "style", "template", "head", "noscript", "iframe", "object"))

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.text = ""
        self.hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.hidden += tag in self._HIDDEN
        self.text += "\n" if tag in self._BREAKS else " " if tag in ("td", "th") else ""

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in self._HIDDEN and self.hidden > 0
        self.text += "\n" if tag in self._BREAKS else ""

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.text += data


def html_paragraphs(html: str) -> list[str]:
    """The words of a piece of raw HTML, without its scripts and styles."""
    parser = _Text()
    parser.feed(html)
    parser.close()
    return [" ".join(line.split()) for line in parser.text.split("\n") if line.strip()]
