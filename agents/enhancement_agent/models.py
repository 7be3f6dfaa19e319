"""The payload and the result of `enhance_content`."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_MARKDOWN_CHARACTERS = 2_000_000
"""About 600 pages; beyond it one task would hold a worker for minutes."""

ChangeKind = Literal["spelling", "style", "punctuation", "whitespace", "capitalization", "clarity", "model"]


class EnhanceContent(BaseModel):
    """A document to correct, the style it should have, and its language.

    The language is a BCP 47 tag. Without it, the language is detected: English gets all rules, everything else only
    those of white space.
    """

    model_config = ConfigDict(frozen=True)

    markdown: str = Field(max_length=MAX_MARKDOWN_CHARACTERS)
    style: str = Field(default="", max_length=10_000)
    language: str = Field(default="", pattern=r"^(?:[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*)?$")


class Change(BaseModel):
    """A correction; `line` counts from 1 in the document as it was sent."""

    model_config = ConfigDict(frozen=True)

    kind: ChangeKind
    line: int
    before: str
    after: str
    reason: str


class ReadabilityFigures(BaseModel):
    """How easily prose reads; scores are null where there is no prose or no formula for the language."""

    model_config = ConfigDict(frozen=True)

    flesch_reading_ease: float | None
    flesch_kincaid_grade: float | None
    automated_readability_index: float | None
    words: int
    sentences: int
    syllables: int
    words_per_sentence: float
    syllables_per_word: float
    longest_sentence_words: int
    complex_words: int = Field(description="words of three syllables or more")
    reading_time_minutes: float


class Readability(BaseModel):
    """Figures of the document as it was sent and as it is returned."""

    model_config = ConfigDict(frozen=True)

    before: ReadabilityFigures
    after: ReadabilityFigures


class EnhancedContent(BaseModel):
    """The corrected document; `offline` is true when only rules worked on it, and `note` then states why."""

    model_config = ConfigDict(frozen=True)

    markdown: str
    changes: list[Change]
    readability: Readability
    offline: bool
    model: str | None = None
    note: str = ""
