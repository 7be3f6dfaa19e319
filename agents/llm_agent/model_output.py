"""The text of a model made into what the task promises: a title, known citation marks, a true list of sources."""

import re
from dataclasses import dataclass

from pantheon.text.sentences import split_sentences
from pantheon.text.words import count_words, plain

from .article import Article, Entry, parse, render_sources

_WRAPPING_FENCE = re.compile(r"\A\s*```(?:markdown|md)?[ \t]*\n(.*?)\n```\s*\Z", re.DOTALL | re.IGNORECASE)
_SOURCES_SECTION = re.compile(
    r"^#{1,6}[ \t]+(?:sources|references|bibliography|citations)[ \t:]*$.*\Z", re.DOTALL | re.IGNORECASE | re.MULTILINE
)
_MARKS = re.compile(r"(\s*)\[(\d{1,3}(?:\s*,\s*\d{1,3})*)\](?!\()")
_CODE = re.compile(r"(^[ \t]*(```|~~~).*?^[ \t]*\2[^\n]*$|`[^`\n]+`)", re.DOTALL | re.MULTILINE)
_SUMMARY_WORDS = 60


@dataclass(frozen=True, slots=True)
class ModelArticle:
    """An article as a model wrote it, in the system's form."""

    title: str
    markdown: str
    summary: str
    word_count: int
    cited: list[int]


def article_of(output: str, title: str, entries: list[Entry]) -> ModelArticle:
    """The output with one title, marks only for sources that exist, and the list of those it cites."""
    wrapped = _WRAPPING_FENCE.match(output)
    text = (wrapped.group(1) if wrapped else output).strip()
    text = _SOURCES_SECTION.sub("", text).rstrip()
    if not re.match(r"#[ \t]+\S", text):
        before, found, after = text.partition("\n# ")
        # Anything before the title is talk about the article, not the article.
        text = f"# {after}" if found and count_words(before) < 60 and "\n## " not in before else f"# {title}\n\n{text}"
    known = {entry.number for entry in entries}
    cited: set[int] = set()
    pieces = _CODE.split(text)
    # The pattern has two groups: text, code, fence, text, code, fence, … and text at the end.
    for position in range(0, len(pieces), 3):
        pieces[position] = _MARKS.sub(lambda match: _known_marks(match, known, cited), pieces[position])
        if position + 2 < len(pieces):
            pieces[position + 2] = ""
    text = "".join(piece or "" for piece in pieces)
    listing = render_sources(entries, cited)
    markdown = f"{text}\n\n{listing}\n" if listing else f"{text}\n"
    article, _ = parse(markdown)
    return ModelArticle(article.title or title, markdown, _summary(article), article.words, sorted(cited))


def _known_marks(match: re.Match[str], known: set[int], cited: set[int]) -> str:
    numbers = [int(number) for number in match.group(2).split(",") if int(number) in known]
    cited.update(numbers)
    return match.group(1) + "".join(f"[{number}]" for number in numbers) if numbers else ""


def _summary(article: Article) -> str:
    """The first sentences of the text."""
    chosen: list[str] = []
    size = 0
    for line in (line for part in article.parts for line in part.lines()):
        if chosen and size + line.words > _SUMMARY_WORDS:
            break
        chosen.append(plain(line.text))
        size += line.words
    return " ".join(chosen)


def summary_of(output: str) -> tuple[str, list[str]]:
    """The summary and the key points of an output in the form that the prompt asks for, or of any other prose."""
    wrapped = _WRAPPING_FENCE.match(output)
    text = (wrapped.group(1) if wrapped else output).strip()
    head, _, tail = re.sub(r"\*\*", "", text).partition("KEY POINTS:")
    summary = re.sub(r"^#*\s*SUMMARY:\s*", "", head.strip()).strip()
    points = [re.sub(r"^(?:[-*]|\d+[.)])\s+", "", row.strip()) for row in tail.splitlines() if row.strip()]
    if not summary:
        summary = " ".join(points)
    return summary, points or split_sentences(summary)[:3]
