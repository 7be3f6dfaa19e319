"""The payloads of the llm agent's task types, as they travel on the wire."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from pantheon.text.sources import Source, SourceInput

MAX_SOURCES_CHARACTERS = 4_000_000
"""All sources of one request together: about 1,200 pages, far beyond what a message may carry inline."""


class Payload(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


Topic = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=2_000)]


class Issue(Payload):
    """What a reviewer found wrong, as `review_content` reports it."""

    kind: str = ""
    severity: str = "medium"
    line: int | None = None
    excerpt: str = ""
    message: str = ""
    suggestion: str = ""


class Previous(Payload):
    """A finished article and what must change in it."""

    markdown: str = Field(min_length=1)
    issues: list[Issue] = []


class GenerateContent(Payload):
    """Write an article about `topic` from `sources`, or revise `previous`."""

    topic: Topic
    sources: list[SourceInput] = []
    style: str = ""
    length_words: int = Field(default=800, ge=50, le=20_000)
    guidelines: str = ""
    previous: Previous | None = None

    @model_validator(mode="after")
    def _sources_fit(self) -> "GenerateContent":
        check_size(self.sources)
        return self


class Citation(Payload):
    number: int
    title: str
    url: str | None = None


class GeneratedContent(Payload):
    """An article. `offline` says that no language model took part; `note` states what a reader should know of it."""

    title: str
    markdown: str
    summary: str
    word_count: int
    citations: list[Citation]
    offline: bool
    model: str | None
    note: str = ""


class SummarizeContent(Payload):
    """Summarize `sources`, or `text` alone, with a view to `topic` when it is set."""

    sources: list[SourceInput] = []
    text: str = ""
    topic: str = ""
    max_words: int = Field(default=150, ge=10, le=5_000)
    style: str = ""

    @model_validator(mode="after")
    def _something_to_summarize(self) -> "SummarizeContent":
        if not self.text.strip() and not any(source.text.strip() for source in self.sources):
            raise ValueError("there is nothing to summarize: give `text`, or `sources` with text in them")
        check_size(self.sources)
        return self

    def all_sources(self) -> list[Source]:
        own = [Source(text=self.text)] if self.text.strip() else []
        return own + list(self.sources)


class SummarizedContent(Payload):
    """A summary. `title` is that of the only source: its own, or found in its text."""

    summary: str
    key_points: list[str]
    word_count: int
    title: str = ""
    offline: bool
    model: str | None


def check_size(sources: list[Source]) -> None:
    size = sum(len(source.text) for source in sources)
    if size > MAX_SOURCES_CHARACTERS:
        raise ValueError(f"the sources hold {size:,} characters together, more than {MAX_SOURCES_CHARACTERS:,}")
