"""The payload and the result of `export_document`."""

import re
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

MAX_MARKDOWN_CHARACTERS = 2_000_000
"""About 600 pages; beyond it a conversion takes minutes and its files no longer fit a message."""

LANGUAGE_TAG = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*")

Format = Literal["html", "docx", "pdf", "epub"]
FORMATS: tuple[Format, ...] = get_args(Format)

MEDIA_TYPES: dict[Format, str] = {
    "html": "text/html",
    "docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "pdf": "application/pdf",
    "epub": "application/epub+zip",
}


class ExportDocument(BaseModel):
    """A Markdown document, its metadata, and the formats to make.

    An empty field is taken from the document's front matter, the title from its first heading too. `formats` stays
    plain strings here so that the error for an unknown format lists the known ones.
    """

    model_config = ConfigDict(frozen=True)

    markdown: str = Field(max_length=MAX_MARKDOWN_CHARACTERS)
    title: str = Field(default="", max_length=1_000)
    author: str = Field(default="", max_length=1_000)
    date: str | None = Field(default=None, max_length=100)
    language: str = Field(default="en", pattern=f"^{LANGUAGE_TAG.pattern}$")
    description: str = Field(default="", max_length=5_000)
    keywords: list[str] = Field(default=[], max_length=100)
    formats: list[str] = Field(default=["html"], min_length=1, max_length=20)
    basename: str = "article"


class ExportedFile(BaseModel):
    """A finished file with its whole content."""

    model_config = ConfigDict(frozen=True)

    format: Format
    filename: str
    media_type: str
    size_bytes: int
    sha256: str
    content_base64: str


class ExportedDocument(BaseModel):
    """The files in the order their formats were asked for."""

    model_config = ConfigDict(frozen=True)

    title: str
    files: list[ExportedFile]
