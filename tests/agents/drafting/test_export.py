"""Whole exports by the real converters; the files are opened with libraries that know nothing of ours."""

import asyncio
import base64
import hashlib
import io
import re
import xml.etree.ElementTree as ET
import zipfile
from pathlib import Path
from typing import Any

import docx
import html5lib
import psutil
import pypdf
import pytest

from agents.drafting_agent import agent as binding
from agents.drafting_agent.conversion import ConversionFailed, ConversionTimedOut, read_markdown, typeset
from agents.drafting_agent.models import ExportDocument, ExportedDocument
from pantheon import TaskFailure
from pantheon.worker.context import LocalTaskContext

PICTURE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
    "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
MARKDOWN = f"""# The Mesh That Remembers

Durable execution[^note] goes on after a crash [1],
in \u201cplain\u201d words: `code`, *emphasis*, [a link](https://x.example/a?b=c&d).

## Tables and lists

| Engine | Steps |
|:-------|------:|
| Celery | 1,000 |

- one
  - nested
- [x] done

## Code & mathematics

```python
def run() -> None:
    print("<not a tag> $x$ #hash")
```

Inline $e^{{i\\pi}} + 1 = 0$, prices of $5 and $10.

$$\\sum_{{k=1}}^{{n}} k = \\frac{{n(n+1)}}{{2}}$$

## Unicode

\u0395\u03bb\u03bb\u03b7\u03bd\u03b9\u03ba\u03ac, \u0420\u0443\u0441\u0441\u043a\u0438\u0439, \u2192 \u2713 \U0001f680,
![tiny]({PICTURE}), ![far](https://x.example/far.png).

<script>alert("raw")</script>

### A deeper heading, so long that its bookmark cannot have its name

> A quotation.

## Sources

1. A paper, <https://x.example/paper>

[^note]: A footnote with `code`.
"""
ABOUT: dict[str, Any] = {
    "author": "Ada \u201cCountess\u201d Lovelace & S\u00f6hne",
    "date": "2026-11-20",
    "description": 'How work survives <crashes>, "quoted" #hash $x$',
    "keywords": ["durable execution", "C#"],
    "language": "en-GB",
}


async def _export(markdown: str = MARKDOWN, *formats: str, **fields: Any) -> tuple[ExportedDocument, dict[str, bytes]]:
    task = ExportDocument(markdown=markdown, formats=list(formats or ("html",)), **fields)
    made = await binding.export_document(task, LocalTaskContext(task_type="export_document"))
    return made, {file.format: base64.b64decode(file.content_base64) for file in made.files}


async def test_all_formats_come_in_the_order_asked_for_with_their_digests() -> None:
    made, contents = await _export(MARKDOWN, "PDF", "html", ".docx", "epub", "html", basename="../My Article", **ABOUT)
    assert made.title == "The Mesh That Remembers"
    assert [file.filename for file in made.files] == [f"My-Article.{name}" for name in ("pdf", "html", "docx", "epub")]
    assert [file.size_bytes for file in made.files] == [len(content) for content in contents.values()]
    assert [file.sha256 for file in made.files] == [
        hashlib.sha256(content).hexdigest() for content in contents.values()
    ]
    assert made.files[0].media_type == "application/pdf"


async def test_the_same_request_gives_the_same_bytes() -> None:
    first = (await _export(MARKDOWN, "html", "docx", "pdf", "epub", **ABOUT))[0]
    await asyncio.sleep(1.1)  # A clock that got into a file shows in its seconds.
    second = (await _export(MARKDOWN, "html", "docx", "pdf", "epub", **ABOUT))[0]
    assert [file.sha256 for file in first.files] == [file.sha256 for file in second.files]


async def test_html_is_a_complete_accessible_page_that_loads_nothing() -> None:
    content = (await _export(MARKDOWN, "html", **ABOUT))[1]["html"].decode()
    parser = html5lib.HTMLParser(strict=False, namespaceHTMLElements=False)
    tree = parser.parse(content)
    assert [error for error in parser.errors if error[1] != "non-void-element-with-trailing-solidus"] == []
    assert tree.get("lang") == "en-GB"
    assert tree.findtext(".//title") == "The Mesh That Remembers"
    meta = {element.get("name"): element.get("content") for element in tree.iter("meta")}
    assert meta["author"] == ABOUT["author"]
    assert meta["description"] == ABOUT["description"]
    assert meta["keywords"] == "durable execution, C#"
    assert meta["dcterms.date"] == "2026-11-20"
    assert len(list(tree.iter("h1"))) == 1
    assert tree.find(".//script") is None
    assert tree.find(".//link") is None
    assert "prefers-color-scheme: dark" in content
    assert "alert" not in content
    loaded = [element.get("src") for element in tree.iter() if element.get("src")]
    assert loaded == [PICTURE]
    ids = [element.get("id") for element in tree.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    targets = {str(element.get("href"))[1:] for element in tree.iter("a") if str(element.get("href")).startswith("#")}
    assert targets <= set(ids)
    assert "source-1" in targets
    assert tree.find(".//main") is not None
    assert tree.find(".//nav") is not None
    assert len(list(tree.iter("{http://www.w3.org/1998/Math/MathML}math"))) == 2


async def test_docx_opens_with_title_page_metadata_and_page_numbers() -> None:
    content = (await _export(MARKDOWN, "docx", **ABOUT))[1]["docx"]
    document = docx.Document(io.BytesIO(content))
    about = document.core_properties
    assert (about.title, about.author) == ("The Mesh That Remembers", ABOUT["author"])
    assert about.keywords == "durable execution, C#"
    assert about.comments == ABOUT["description"]
    assert about.created is not None
    assert about.created.isoformat()[:10] == "2026-11-20"
    styles = [paragraph.style.name for paragraph in document.paragraphs if paragraph.style is not None]
    assert styles[:4] == ["Title", "Subtitle", "Author", "Date"]
    assert "heading 1" in [str(style).lower() for style in styles]
    assert document.tables[0].cell(1, 1).text == "1,000"
    assert "PAGE" in document.sections[0].footer._element.xml
    parts = zipfile.ZipFile(io.BytesIO(content))
    body = parts.read("word/document.xml").decode()
    assert 'w:type="page"' in body
    assert 'TOC \\o "1-3"' in body
    anchors = set(re.findall(r'<w:hyperlink [^>]*w:anchor="([^"]+)"', body))
    assert {"tables-and-lists", "code-mathematics"} <= {anchor.replace("--", "-") for anchor in anchors}
    assert anchors <= set(re.findall(r'<w:bookmarkStart [^>]*w:name="([^"]+)"', body))
    assert "m:oMath" in body
    assert 'w:val="en-GB"' in parts.read("word/styles.xml").decode()
    for name in parts.namelist():
        if name.endswith((".xml", ".rels")):
            ET.fromstring(parts.read(name))


async def test_pdf_has_title_page_metadata_numbers_and_embedded_fonts() -> None:
    content = (await _export(MARKDOWN, "pdf", **ABOUT))[1]["pdf"]
    reader = pypdf.PdfReader(io.BytesIO(content))
    assert reader.metadata is not None
    assert reader.metadata.title == "The Mesh That Remembers"
    assert reader.metadata.author == ABOUT["author"]
    assert reader.metadata.subject == ABOUT["description"]
    assert str(reader.metadata["/Keywords"]) == "durable execution, C#"
    assert str(reader.root_object["/Lang"]) == "en-GB"
    pages = [page.extract_text() for page in reader.pages]
    assert len(pages) >= 2
    assert "The Mesh That Remembers" in pages[0]
    assert "20 November 2026" in pages[0]
    assert "Contents" in pages[0]
    assert f"2 / {len(pages)}" in pages[1]
    text = "\n".join(pages)
    for words in ("goes on after a crash", "1,000", 'print("<not a tag> $x$ #hash")', "A footnote with"):
        assert words in text
    assert "\u0420\u0443\u0441\u0441\u043a\u0438\u0439" in text
    pages_with_fonts: list[Any] = list(reader.pages)
    fonts = [font for page in pages_with_fonts for font in page["/Resources"]["/Font"].values()]
    assert fonts
    for font in fonts:
        descendant = font.get_object()["/DescendantFonts"][0].get_object()
        assert {"/FontFile2", "/FontFile3"} & set(descendant["/FontDescriptor"].get_object())
    assert len(reader.outline) > 0


async def test_epub_is_built_as_the_format_demands() -> None:
    content = (await _export(MARKDOWN, "epub", **ABOUT))[1]["epub"]
    book = zipfile.ZipFile(io.BytesIO(content))
    first = book.infolist()[0]
    assert (first.filename, first.compress_type) == ("mimetype", zipfile.ZIP_STORED)
    assert book.read(first) == b"application/epub+zip"
    container = ET.fromstring(book.read("META-INF/container.xml"))
    rootfile = container.find(".//{*}rootfile")
    assert rootfile is not None
    path = str(rootfile.get("full-path"))
    package = ET.fromstring(book.read(path))
    metadata = {(str(e.tag).split("}")[1], e.text) for e in package.iter() if "purl.org/dc" in str(e.tag)}
    assert {
        ("title", "The Mesh That Remembers"),
        ("creator", ABOUT["author"]),
        ("language", "en-GB"),
        ("description", ABOUT["description"]),
        ("subject", "durable execution"),
        ("subject", "C#"),
        ("date", "2026-11-20"),
    } <= metadata
    modified = [e.text for e in package.iter() if e.get("property") == "dcterms:modified"]
    assert modified == ["2026-11-20T00:00:00Z"]
    folder = path.rpartition("/")[0]
    items = {f"{folder}/{item.get('href')}" for item in package.findall(".//{*}manifest/{*}item")}
    assert items <= set(book.namelist())
    for name in items:
        if name.endswith(".xhtml"):
            ET.fromstring(book.read(name))
    spine = package.find(".//{*}itemref")
    assert spine is not None
    assert spine.get("idref") == "title_page_xhtml"
    assert b"page-break-after: avoid" in book.read(f"{folder}/styles/stylesheet1.css")


async def test_a_short_document_has_no_table_of_contents() -> None:
    contents = (await _export("# T\n\n## A\n\nText.\n", "html", "pdf"))[1]
    assert b"<nav" not in contents["html"]
    assert "Contents" not in pypdf.PdfReader(io.BytesIO(contents["pdf"])).pages[0].extract_text()


async def test_metadata_may_come_from_front_matter() -> None:
    front = "title: In front\nauthor: [Ann, Ben]\ndescription: Said there\nlang: de\nkeywords: [k]\n"
    made, contents = await _export(f"---\n{front}---\n\nText.\n", "html")
    assert made.title == "In front"
    page = contents["html"].decode()
    assert '<html lang="de">' in page
    assert "Ann, Ben" in page
    assert '"Said there"' in page


async def test_right_to_left_languages_are_set_so() -> None:
    word = "\u05e9\u05dc\u05d5\u05dd"
    page = (await _export(f"# {word}\n\n{word}\n", "html", "epub", language="he"))[1]["html"].decode()
    assert 'dir="rtl"' in page


@pytest.mark.parametrize(
    "markdown",
    [
        "Text without any heading",
        "#\n\nEmpty heading\n",
        '# "Quoted" & <b>\n\n"Words"\n',
        "\ufeff# T\r\n\r\nWindows\r\n",
        "Null \0 byte and \x07 bell",
        "---\n\nA rule first\n\n---\n\nand more\n",
        "Broken $\\frac{1$ math and $$\\undefined{x}$$ and an open ``` fence",
        "[a](#nowhere) ![x](missing.png) ![y](../../../../etc/passwd) [^undefined]\n",
        "# A\n\n# A\n\n[to](#a)\n\n# A\n",
        '#import "x" #read("/etc/passwd") $#read("/etc/passwd")$ @label <label> \\ `#eval("1")`\n',
        '```{=typst}\n#read("/etc/passwd")\n```\n\n```{=html}\n<script>alert(1)</script>\n```\n',
        "> " * 40 + "deep",
        "\n".join("  " * depth + "- deep" for depth in range(30)),
        "| a |\n|---|\n" + "| " + "long " * 200 + "|\n",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467 :smile: \u0301\u0301 \u4e2d\u6587 \ud7ff\n",
        "# T\n\nA form\x0cfeed, an &#12; in an entity, \x1b[31m a colour.\n",
        "# Old\r\rMacintosh\r",
        "---\nlang: not-a-language-at-all\n---\n\n# T\n\nText.\n",
        "\n".join("  " * depth + "- deep" for depth in range(80)),
        "# T\n\n![broken](data:image/png;base64,AAAA) picture\n",
        "1. a\n   - b\n     ```\n     code\n     ```\n\nTerm\n: Definition\n\n~~gone~~ H~2~O x^2^\n",
    ],
)
async def test_odd_documents_are_exported_to_every_format(markdown: str) -> None:
    made, contents = await _export(markdown, "html", "docx", "pdf", "epub")
    assert len(made.files) == 4
    assert b"root:" not in contents["html"]
    assert b"<script" not in contents["html"]
    pdf = "".join(page.extract_text() for page in pypdf.PdfReader(io.BytesIO(contents["pdf"])).pages)
    assert "root:x" not in pdf
    _check_book(contents["epub"])
    docx.Document(io.BytesIO(contents["docx"]))


def _check_book(content: bytes) -> None:
    """Every page of the book is XML, and no page has an id twice: readers refuse a book for less."""
    book = zipfile.ZipFile(io.BytesIO(content))
    for name in book.namelist():
        if name.endswith(".xhtml"):
            page = ET.fromstring(book.read(name))
            ids = [element.get("id") for element in page.iter() if element.get("id")]
            assert len(ids) == len(set(ids)), name
            assert [link for link in page.iter("{http://www.w3.org/1999/xhtml}a") if not "".join(link.itertext())] == []


@pytest.mark.parametrize(
    "markdown",
    [
        "# A short article\n\nOnly text, as an article below 200 words is.\n",
        "# An article\n\nAn introduction [1].\n\n## First\n\nText, [back](#an-article).\n\n## Sources\n\n1. One\n",
    ],
)
async def test_a_book_that_begins_with_text_has_no_id_twice(markdown: str) -> None:
    # The title's own id stood at the first paragraph and, given by pandoc, at the chapter: no validator took the book.
    contents = (await _export(markdown, "epub", "html"))[1]
    _check_book(contents["epub"])
    page = contents["html"].decode()
    assert re.findall(r'href="#([^"]+)"', page.partition("<main")[2] or page).count("_title") == markdown.count("](#")
    assert page.count('id="_title"') == min(1, markdown.count("](#"))


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("a[^1]\n\n[^1]: b[^1]\n", "[^1] leads back to itself"),
        ("a[^x]\n\n[^x]: see[^y]\n\n[^y]: see[^x]\n", "[^x] leads back to itself"),
        ("---\na: &a [x, x]\nb: [*a, *a]\n---\n\nText.\n", "alias (*a)"),
    ],
)
async def test_what_pandoc_would_follow_without_end_is_refused_at_once(markdown: str, expected: str) -> None:
    with pytest.raises(TaskFailure) as caught:
        await _export(markdown)
    assert (caught.value.code, caught.value.retryable) == ("invalid_document", False)
    assert expected in caught.value.message


async def test_footnotes_that_end_are_read() -> None:
    markdown = "a[^1] b[^2]\n\n[^1]: One, see[^2].\n\n[^2]: Two.\n\n```\n[^3]: c[^3]\n```\n"
    assert "Two." in (await _export(markdown))[1]["html"].decode()


async def test_an_unknown_format_is_responseed_with_the_known_ones() -> None:
    with pytest.raises(TaskFailure) as caught:
        await _export("# T\n", "html", "odt", "rtf")
    failure = caught.value
    assert (failure.code, failure.retryable) == ("unknown_format", False)
    assert failure.details == {"unknown": ["odt", "rtf"], "allowed": ["html", "docx", "pdf", "epub"]}
    assert "odt, rtf" in failure.message


async def test_an_empty_document_and_broken_front_matter_are_refused() -> None:
    with pytest.raises(TaskFailure) as caught:
        await _export(" \n")
    assert caught.value.code == "empty_document"
    with pytest.raises(TaskFailure) as caught:
        await _export("---\ntitle: [open\n---\n\nText\n")
    assert (caught.value.code, caught.value.retryable) == ("invalid_document", False)
    assert "YAML" in caught.value.message


async def test_a_conversion_that_takes_too_long_is_killed(tmp_path: Path) -> None:
    with pytest.raises(ConversionTimedOut):
        await read_markdown("text " * 200_000, folder=tmp_path, timeout_seconds=0.01)


async def test_a_cancelled_export_leaves_no_process_behind(tmp_path: Path) -> None:
    (tmp_path / "main.typ").write_text("#let f(n) = if n == 0 { 0 } else { range(1000000).sum() + f(n - 1) }\n#f(70)\n")
    typesetting = asyncio.create_task(typeset(tmp_path, epoch=0, timeout_seconds=60))
    await asyncio.sleep(0.3)
    typesetting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await typesetting
    assert [
        process for process in psutil.process_iter(["cmdline"]) if str(tmp_path) in (process.info["cmdline"] or [])
    ] == []


async def test_typesetting_reads_nothing_outside_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "main.typ").write_text('#read("/../../../../../../etc/passwd")\n')
    with pytest.raises(ConversionFailed):
        await typeset(tmp_path, epoch=0, timeout_seconds=60)
