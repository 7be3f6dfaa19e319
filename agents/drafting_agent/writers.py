"""One function a format: a cleaned document and its metadata in, the finished file's bytes out."""

import asyncio
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from agents.drafting_agent.conversion import pandoc_path, typeset, write
from agents.drafting_agent.document import Document, Node, inlines, plain_text, with_image_files
from agents.drafting_agent.metadata import Metadata
from agents.drafting_agent.models import Format
from agents.drafting_agent.word_reference import styled_reference

TEMPLATES = Path(__file__).with_name("templates")
CONTENTS_DEPTH = 3
_PAGE_BREAK = {"t": "RawBlock", "c": ["openxml", '<w:p><w:r><w:br w:type="page"/></w:r></w:p>']}
_FIELD_START = (
    '<w:r><w:fldChar w:fldCharType="begin"/></w:r>'
    f'<w:r><w:instrText xml:space="preserve">TOC \\o "1-{CONTENTS_DEPTH}" \\h \\z \\u</w:instrText></w:r>'
    '<w:r><w:fldChar w:fldCharType="separate"/></w:r>'
)
_TIMES = re.compile(
    rb"(<dcterms:(?:created|modified)[^>]*>|<meta property=\"dcterms:modified\"[^>]*>)1970-01-01T00:00:00Z"
)


@dataclass(frozen=True, slots=True)
class Job:
    """What every writer gets: the document, its metadata, an empty folder of its own and a time limit."""

    document: Document
    metadata: Metadata
    identifier: str
    folder: Path
    timeout_seconds: float

    async def pandoc(self, tree: dict[str, Any], *options: str) -> bytes:
        """What pandoc makes of `tree` with these options."""
        return await write(
            tree,
            list(options),
            folder=self.folder,
            epoch=self.metadata.epoch_seconds,
            timeout_seconds=self.timeout_seconds,
        )

    def tree(self, **meta: str) -> dict[str, Any]:
        """The document's tree with metadata for pandoc, empty ones left out."""
        values = {"title": self.metadata.title, "lang": self.metadata.language, **meta}
        return {
            **self.document.tree,
            "meta": {name: {"t": "MetaInlines", "c": inlines(text)} for name, text in values.items() if text},
        }

    def contents_options(self) -> list[str]:
        """Pandoc's options for a table of contents, where there is to be one."""
        return ["--toc", f"--toc-depth={CONTENTS_DEPTH}"] if self.document.has_contents else []


async def html(job: Job) -> bytes:
    """A complete page: its style inside, nothing loaded from a server, math as MathML."""
    about = job.metadata
    byline = " \u00b7 ".join(part for part in (about.author, about.shown_date) if part)
    tree = job.tree(
        subtitle=about.description,
        byline=byline,
        pagetitle=about.title,
        **{"toc-title": about.contents_label, "skip-label": about.skip_label, "dir": about.direction or ""},
    )
    attributes = {
        "title-attribute": about.title,
        "author-attribute": about.author,
        "date-attribute": about.day.isoformat() if about.day else about.date,
        "description-attribute": about.description,
        "keywords-attribute": ", ".join(about.keywords),
    }
    for name, value in attributes.items():
        # Escaped here, because pandoc leaves quotation marks as they are, and these stand inside attributes.
        if value:
            tree["meta"][name] = {"t": "MetaInlines", "c": [{"t": "RawInline", "c": ["html", escape(value)]}]}
    return await job.pandoc(
        tree,
        "--to=html5",
        "--standalone",
        f"--template={TEMPLATES / 'page.html'}",
        "--mathml",
        "--shift-heading-level-by=1",
        "--section-divs=false",
        *job.contents_options(),
    )


async def docx(job: Job) -> bytes:
    """A Word document: title page, a contents field where there are many headings, numbered pages."""
    about = job.metadata
    tree = job.tree(
        author=about.author,
        date=about.shown_date,
        subtitle=about.description,
        description=about.description,
        **{"toc-title": about.contents_label},
    )
    if about.keywords:
        tree["meta"]["keywords"] = _list(about.keywords)
    contents = [_contents(job)] if job.document.has_contents else []
    tree["blocks"] = [*contents, _PAGE_BREAK, *tree["blocks"]]
    reference = job.folder / "reference.docx"
    await asyncio.to_thread(reference.write_bytes, await asyncio.to_thread(_reference))
    made = await job.pandoc(tree, "--to=docx", "--standalone", f"--reference-doc={reference}")
    return await asyncio.to_thread(_finished, made, about.epoch_seconds)


def _contents(job: Job) -> Node:
    """A contents field that is already filled: pandoc's own stays empty until its reader has Word update it."""
    lines = [f'<w:p><w:pPr><w:pStyle w:val="TOCHeading"/></w:pPr>{_run(job.metadata.contents_label)}</w:p>']
    headings = [block["c"] for block in job.document.tree["blocks"] if block["t"] == "Header"]
    shown = [heading for heading in headings if heading[0] <= CONTENTS_DEPTH]
    for index, (level, (identifier, _, _), words) in enumerate(shown):
        text = _run(plain_text(words).strip())
        if identifier:
            text = f'<w:hyperlink w:anchor="{escape(_bookmark(identifier))}">{text}</w:hyperlink>'
        start = _FIELD_START if index == 0 else ""
        end = '<w:r><w:fldChar w:fldCharType="end"/></w:r>' if index == len(shown) - 1 else ""
        layout = f'<w:spacing w:before="0" w:after="60"/><w:ind w:left="{(level - 1) * 300}"/>'
        lines.append(f"<w:p><w:pPr>{layout}</w:pPr>{start}{text}{end}</w:p>")
    return {"t": "RawBlock", "c": ["openxml", "".join(lines)]}


def _run(text: str) -> str:
    return f'<w:r><w:t xml:space="preserve">{escape(text)}</w:t></w:r>'


def _bookmark(identifier: str) -> str:
    """The name of a heading's bookmark, as pandoc makes it: Word takes at most 40 characters, the first a letter."""
    if identifier[0].isalpha() and len(identifier) <= 40:
        return identifier
    return f"X{hashlib.sha1(identifier.encode(), usedforsecurity=False).hexdigest()[1:]}"


@cache
def _reference() -> bytes:
    import subprocess

    default = subprocess.run(
        [pandoc_path(), "--print-default-data-file", "reference.docx"], capture_output=True, check=True, timeout=60
    ).stdout
    return styled_reference(default)


async def epub(job: Job) -> bytes:
    """An EPUB 3 book with a title page, a chapter for each top section and navigation."""
    about = job.metadata
    tree = job.tree(
        author=about.author,
        date=about.day.isoformat() if about.day else "",
        subtitle=about.description,
        description=about.description,
        identifier=job.identifier,
        **{"toc-title": about.contents_label},
    )
    if about.keywords:
        tree["meta"]["subject"] = _list(about.keywords)
    if about.direction:
        tree["meta"]["page-progression-direction"] = {"t": "MetaString", "c": about.direction}
    made = await job.pandoc(tree, "--to=epub3", "--standalone", "--mathml", "--toc", f"--toc-depth={CONTENTS_DEPTH}")
    return await asyncio.to_thread(_finished, made, about.epoch_seconds, (TEMPLATES / "book.css").read_bytes())


def _finished(archive: bytes, epoch_seconds: int, style: bytes = b"") -> bytes:
    """The archive with the document's own time, and a book with our style sheet.

    A sandboxed pandoc knows neither: its clock stands at 1970, and it reads no style sheet for a book. Order and
    compression of the parts stay, which an EPUB's first part depends on.
    """
    when = datetime.fromtimestamp(epoch_seconds, UTC)
    stamp = f"{when:%Y-%m-%dT%H:%M:%SZ}".encode()
    source = zipfile.ZipFile(io.BytesIO(archive))
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as target:
        for part in source.infolist():
            content = source.read(part)
            if part.filename == "docProps/core.xml" or part.filename.endswith(".opf"):
                content = _TIMES.sub(lambda match: match[1] + stamp, content)
            elif style and part.filename.endswith("stylesheet1.css"):
                content = style
            target.writestr(zipfile.ZipInfo(part.filename, when.timetuple()[:6]), content, part.compress_type)
    return made.getvalue()


def _list(values: tuple[str, ...]) -> dict[str, Any]:
    return {"t": "MetaList", "c": [{"t": "MetaInlines", "c": inlines(value)} for value in values]}


async def pdf(job: Job) -> bytes:
    """A typeset PDF: title page, contents where there are many headings, numbered pages, fonts embedded."""
    about = job.metadata
    images = job.document.images
    tree = with_image_files(job.document.tree, images)
    body = await job.pandoc(tree, "--to=typst", "--syntax-highlighting=idiomatic", "--wrap=none")
    when = about.day
    arguments = {
        "title": _string(about.title),
        "author": _string(about.author),
        "date": _string(about.shown_date),
        "when": f"datetime(year: {when.year}, month: {when.month}, day: {when.day})" if when else "none",
        "description": _string(about.description),
        "keywords": f"({''.join(_string(keyword) + ', ' for keyword in about.keywords)})",
        "lang": _string(about.base_language),
        "region": _string(about.region) if about.region else "none",
        "contents": _string(about.contents_label),
        "show-contents": "true" if job.document.has_contents else "false",
    }
    head = "".join(f"  {name}: {value},\n" for name, value in arguments.items())
    main = f'#import "article.typ": article, horizontalrule\n#show: article.with(\n{head})\n'
    await asyncio.to_thread(_lay_out, job.folder, main.encode() + body, job.document)
    return await typeset(job.folder, epoch=about.epoch_seconds, timeout_seconds=job.timeout_seconds)


def _lay_out(folder: Path, main: bytes, document: Document) -> None:
    (folder / "article.typ").write_bytes((TEMPLATES / "article.typ").read_bytes())
    (folder / "main.typ").write_bytes(main)
    for image in document.images.values():
        (folder / image.name).write_bytes(image.content)


def _string(text: str) -> str:
    """A typst string literal; its escapes of quotes and backslashes are JSON's."""
    return json.dumps(text, ensure_ascii=False)


WRITERS: dict[Format, Callable[[Job], Awaitable[bytes]]] = {"html": html, "docx": docx, "pdf": pdf, "epub": epub}
