"""The body of an article as clean HTML, from its Markdown or from HTML that came along."""

import re
from functools import cache

import nh3
from markdown_it import MarkdownIt
from mdit_py_plugins.footnote import footnote_plugin
from mdit_py_plugins.front_matter import front_matter_plugin
from mdit_py_plugins.tasklists import tasklists_plugin

_MATH_TAGS = frozenset(
    "math mi mn mo ms mtext mspace mrow mfrac msqrt mroot mstyle merror mpadded mphantom msub msup msubsup munder mover"
    " munderover mmultiscripts mtable mtr mtd semantics annotation".split()
)
_TAGS = (
    frozenset(nh3.ALLOWED_TAGS)
    | _MATH_TAGS
    | {"section", "article", "figure", "figcaption", "input", "main", "picture"}
)
_ATTRIBUTES = {
    **{tag: set(names) for tag, names in nh3.ALLOWED_ATTRIBUTES.items()},
    "*": {"id", "class", "lang", "dir", "title", "role", "aria-label", "aria-hidden"},
    "input": {"type", "checked", "disabled"},
    "math": {"display", "xmlns"},
    "mo": {"stretchy", "fence", "form", "separator", "accent"},
    "annotation": {"encoding"},
}
_URL_SCHEMES = {"http", "https", "mailto", "tel"}
_SOURCES = re.compile(
    r"(?is)(<h\d[^>]*>\W*(?:sources?|references|bibliography)\W*</h\d>\s*)<ol(?: start=\"(\d+)\")?>(.*?)</ol>"
)
_CELL_STYLE = re.compile(r'<(t[dh]) style="text-align: ?(left|center|right);?">')
_CITATION = re.compile(r"\[(\d{1,3})\](?![(:])")
_NOT_PROSE = re.compile(r"(?is)(<(pre|code|a|h[1-6]|script|style|math)\b.*?</\2>|<[^>]+>)")


@cache
def _markdown() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": True, "typographer": False}).enable(["table", "strikethrough"])
    return parser.use(front_matter_plugin).use(footnote_plugin).use(tasklists_plugin)


def body_html(markdown: str, html: str, title: str) -> str:
    """Clean HTML of the article without its title heading; scripts, styles, handlers and forms do not survive.

    `html` is preferred when it is not empty: a fragment, or a page (then the content of its article, main or body).
    """
    made = _inner(html) if html.strip() else _markdown().render(markdown.replace("\0", ""))
    made = _CELL_STYLE.sub(r'<\1 align="\2">', made)  # Styles are dropped below, and columns should stay aligned.
    cleaned = nh3.clean(
        made, tags=set(_TAGS), attributes=_ATTRIBUTES, url_schemes=_URL_SCHEMES, link_rel="noopener noreferrer"
    )
    return _linked_citations(_without_title(cleaned, title)).strip() + "\n"


def _inner(html: str) -> str:
    for element in ("article", "main", "body"):
        found = re.search(rf"(?is)<{element}\b[^>]*>(.*)</{element}\s*>", html)
        if found:
            # A page brings its own title block and contents; the channel has its own.
            return re.sub(r"(?is)<(header|nav)\b.*?</\1\s*>", "", found[1])
    return html


def _without_title(html: str, title: str) -> str:
    """Drops the first heading when it repeats the title; other first-level headings go down a level."""
    found = re.match(r"(?is)\s*<h1\b[^>]*>(.*?)</h1>", html)
    if found and _words(found[1]) == _words(title):
        html = html[found.end() :]
    return re.sub(r"(?i)(</?)h1\b", r"\1h2", html)


def _words(html: str) -> str:
    text = re.sub(r"<[^>]+>|&\w+;", " ", html)
    return " ".join(re.findall(r"\w+", text)).casefold()


def _linked_citations(html: str) -> str:
    """Makes [n] a link to the n-th item of the closing list of sources."""
    sources = _SOURCES.search(html)
    if sources is None:
        return html
    number = int(sources[2] or 1) - 1

    def identified(_: re.Match[str]) -> str:
        nonlocal number
        number += 1
        return f'<li id="source-{number}">'

    first = number + 1
    items = re.sub(r"<li>", identified, sources[3])
    start = f' start="{first}"' if first != 1 else ""
    listed = f"{sources[1]}<ol{start}>{items}</ol>"
    before = "".join(
        piece if index % 3 else _cited(piece, first, number)
        for index, piece in enumerate(_NOT_PROSE.split(html[: sources.start()]))
        if index % 3 != 2
    )
    return before + listed + html[sources.end() :]


def _cited(text: str, first: int, last: int) -> str:
    def link(match: re.Match[str]) -> str:
        return (
            f'<a class="citation" href="#source-{match[1]}">{match[0]}</a>'
            if first <= int(match[1]) <= last
            else match[0]
        )

    return _CITATION.sub(link, text)
