"""The payloads of the examination agent's task type, as they travel on the wire."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

MAX_CHARACTERS = 4_000_000
"""The article and all its sources together."""

Severity = Literal["low", "medium", "high"]
Verdict = Literal["approve", "revise", "reject"]


class Payload(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Source(Payload):
    """A text that the article was written from."""

    title: str = ""
    text: str
    url: str | None = None


def _source_of_text(value: Any) -> Any:
    return {"text": value} if isinstance(value, str) else value


SourceInput = Annotated[Source, BeforeValidator(_source_of_text, json_schema_input_type=Source | str)]
"""A source, or a plain string standing for its text."""


class ReviewContent(Payload):
    """An article to review, with what it was to be: its sources, topic, guidelines, style and length."""

    markdown: str
    sources: list[SourceInput] = []
    topic: str = ""
    guidelines: str = ""
    style: str = ""
    length_words: int | None = Field(default=None, ge=1, le=1_000_000)
    check_links: bool = False

    @model_validator(mode="after")
    def _fits(self) -> "ReviewContent":
        size = len(self.markdown) + sum(len(source.text) for source in self.sources)
        if size > MAX_CHARACTERS:
            raise ValueError(f"article and sources hold {size:,} characters together, more than {MAX_CHARACTERS:,}")
        return self


class Issue(Payload):
    """Something to change: what, how much it matters, where, and what would be better.

    `kind` is `unsupported_claim`, `tone`, `structure`, `link`, `citation` or `topic`; `line` counts from 1.
    """

    kind: str
    severity: Severity
    line: int | None = None
    excerpt: str = ""
    message: str
    suggestion: str = ""


class ReviewedContent(Payload):
    """The review. `offline` says that no language model took part."""

    verdict: Verdict
    score: int
    issues: list[Issue]
    summary: str
    offline: bool
    model: str | None
