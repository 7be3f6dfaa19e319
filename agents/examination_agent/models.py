"""The payloads of the examination agent's task type, as they travel on the wire."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pantheon.text.sources import SourceInput

MAX_CHARACTERS = 4_000_000
"""The article and all its sources together."""

Severity = Literal["low", "medium", "high"]
Verdict = Literal["approve", "revise", "reject"]


class Payload(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


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
