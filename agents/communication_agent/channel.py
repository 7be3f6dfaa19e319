"""Post, ChannelFailure: what a channel gets to publish, and the error for what it could not."""

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

from agents.communication_agent.models import Channel, PublishContent, PublishedFile
from agents.communication_agent.rendering import body_html

MAX_SLUG_CHARACTERS = 80
_DIGEST_CHARACTERS = 8
_BY_SLUG = "slug:"
_SIGNS_IN_WORDS = (
    (re.compile(r"\+\+"), " plus plus "),
    (re.compile(r"(?<=\w)#"), " sharp "),
    (re.compile("&"), " and "),
)
"""Signs that make another word: C++ and C# are two subjects, and must not be one address."""


class ChannelFailure(Exception):
    """A channel could not publish. `code` is for programs, `retryable` says whether trying again could help.

    The message goes into the task's result: it names settings, never their values.
    """

    def __init__(self, code: str, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retryable = retryable


@dataclass(frozen=True)
class Post:
    """An article ready to be published."""

    title: str
    markdown: str
    own_html: str
    summary: str
    slug: str
    has_own_slug: bool
    date: str | None
    author: str
    tags: tuple[str, ...]
    files: tuple[PublishedFile, ...]

    @classmethod
    def of(cls, task: PublishContent) -> "Post":
        """The post of a request; a missing slug is made from the title, so that the same title is the same post."""
        return cls(
            title=_line(task.title),
            markdown=task.markdown,
            own_html=task.html,
            summary=_line(task.summary),
            slug=slug_of(task.slug or task.title),
            has_own_slug=bool(task.slug),
            date=task.date,
            author=_line(task.author),
            tags=tuple(dict.fromkeys(line for tag in task.tags if (line := _line(tag)))),
            files=tuple(task.files),
        )

    @cached_property
    def html(self) -> str:
        """The article's body as clean HTML, without its title."""
        return body_html(self.markdown, self.own_html, self.title)

    @cached_property
    def digest(self) -> str:
        """Changes when anything that readers see changes."""
        made = hashlib.sha256()
        parts = [self.title, self.html, self.summary, self.date or "", self.author, *self.tags]
        parts += [f"{file.filename} {file.media_type} {file.sha256}" for file in self.files]
        for part in parts:
            encoded = part.encode()
            made.update(len(encoded).to_bytes(8, "big") + encoded)
        return made.hexdigest()

    @property
    def when(self) -> datetime | None:
        """The article's date in UTC, when it is written as ISO 8601."""
        try:
            parsed = datetime.fromisoformat(self.date or "")
            return parsed.astimezone(UTC) if parsed.tzinfo else parsed.replace(tzinfo=UTC)
        except (ValueError, OverflowError):
            return None

    @property
    def description(self) -> str:
        """The summary, else the beginning of the text."""
        if self.summary:
            return self.summary
        words = re.sub(r"<[^>]+>", " ", re.sub(r"(?s)<(h\d|pre|table|math|sup)\b.*?</\1>", " ", self.html)).split()
        text = " ".join(words[:40])
        return f"{text}\u2026" if len(words) > 40 else text


def _line(text: str) -> str:
    """Text as one line, without control characters: it stands in headers, titles and a feed."""
    return " ".join("".join(" " if unicodedata.category(char) == "Cc" else char for char in text).split())


def key_of(channel: Channel, post: Post) -> str:
    """What identifies a publication: the option `key`, else the slug.

    Not the task's own key: that is new in every run, and a new run of the same article must update what an earlier
    one published. Attempts of one task share the slug too, so that a retry doubles nothing.
    """
    return channel.key or f"{_BY_SLUG}{post.slug}"


def is_explicit(key: str) -> bool:
    """Whether the request set the key, which then identifies the post whatever its slug."""
    return not key.startswith(_BY_SLUG)


def slug_of(text: str) -> str:
    """A name fit for an address and a folder: lower case, words joined by hyphens, never a path."""
    for sign, words in _SIGNS_IN_WORDS:
        text = sign.sub(words, text)
    folded = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "-", folded.replace("'", "")).strip("-")
    letters = sum(character.isalpha() for character in text)
    if len(re.sub(r"[^a-z]", "", slug)) * 2 < letters or not slug:
        # Not written in Latin letters: keep the letters as they are, addresses carry them percent-encoded.
        slug = re.sub(r"[\W_]+", "-", unicodedata.normalize("NFKC", text).lower()).strip("-")
    if len(slug) > MAX_SLUG_CHARACTERS:
        # Long titles often differ at their end ("part 1", "part 2"), and the same address would be the same post.
        digest = hashlib.sha256(slug.encode()).hexdigest()[:_DIGEST_CHARACTERS]
        slug = f"{slug[: MAX_SLUG_CHARACTERS - _DIGEST_CHARACTERS - 1].strip('-')}-{digest}"
    return slug or f"post-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
