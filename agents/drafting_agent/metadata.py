"""Metadata of a document: title, author, date, language, and the few words that a page needs in that language."""

import datetime as calendar
import re
import uuid
from dataclasses import dataclass

from agents.drafting_agent.document import Document
from agents.drafting_agent.models import LANGUAGE_TAG, ExportDocument

UNDATED_EPOCH_SECONDS = 946_684_800
"""2000-01-01: the time inside the files of a document without a date, so that the same input gives the same bytes."""

_EARLIEST_EPOCH_SECONDS = 315_532_800
"""1980-01-01: zip archives, which DOCX and EPUB are, know nothing earlier."""

_CONTENTS = {
    "de": "Inhalt", "es": "Contenido", "fr": "Sommaire", "it": "Indice", "nl": "Inhoud", "pl": "Spis treści",
    "pt": "Conteúdo", "sv": "Innehåll",
}  # fmt: skip
_SKIP = {
    "de": "Zum Inhalt", "es": "Ir al contenido", "fr": "Aller au contenu", "it": "Vai al contenuto",
    "nl": "Naar de inhoud", "pl": "Przejdź do treści", "pt": "Ir para o conteúdo", "sv": "Till innehållet",
}  # fmt: skip
_RIGHT_TO_LEFT = frozenset(("ar", "fa", "he", "ur", "yi", "ps", "ckb"))


@dataclass(frozen=True, slots=True)
class Metadata:
    """What the files of all formats state about the document."""

    title: str
    author: str
    date: str
    language: str
    description: str
    keywords: tuple[str, ...]

    @property
    def base_language(self) -> str:
        """The language without its region, in lower case."""
        return self.language.split("-")[0].lower()

    @property
    def region(self) -> str | None:
        """The two-letter region of the language, if it has one."""
        found = re.search(r"-([A-Za-z]{2})(?:-|$)", self.language)
        return found[1].upper() if found else None

    @property
    def direction(self) -> str | None:
        """`rtl` for languages written from the right."""
        return "rtl" if self.base_language in _RIGHT_TO_LEFT else None

    @property
    def contents_label(self) -> str:
        """What a table of contents is called."""
        return _CONTENTS.get(self.base_language, "Contents")

    @property
    def skip_label(self) -> str:
        """What the link past the navigation is called."""
        return _SKIP.get(self.base_language, "Skip to content")

    @property
    def day(self) -> calendar.date | None:
        """The date as a day, when it is written as ISO 8601."""
        try:
            return calendar.datetime.fromisoformat(self.date).date()
        except ValueError:
            return None

    @property
    def shown_date(self) -> str:
        """The date as a reader sees it: written out in English, unchanged in other languages."""
        day = self.day
        if day is None:
            return self.date
        return f"{day.day} {day:%B} {day.year}" if self.base_language == "en" else day.isoformat()

    @property
    def epoch_seconds(self) -> int:
        """The time written into the files: the document's own day, never the clock's."""
        day = self.day
        if day is None:
            return UNDATED_EPOCH_SECONDS
        return max(
            _EARLIEST_EPOCH_SECONDS,
            int(calendar.datetime(day.year, day.month, day.day, tzinfo=calendar.UTC).timestamp()),
        )

    def identifier(self, markdown: str) -> str:
        """The same URN for the same document, as an EPUB needs."""
        return uuid.uuid5(uuid.NAMESPACE_URL, "\0".join((self.title, self.author, self.date, markdown))).urn


def metadata_of(task: ExportDocument, document: Document) -> Metadata:
    """The request's words, and where they are empty the document's own."""
    found = document.fields
    keywords = [_line(keyword) for keyword in task.keywords] or document.keywords
    # Front matter is untrusted text: anything but a language tag is ignored there.
    own = found.get("lang", "") if "language" not in task.model_fields_set else ""
    return Metadata(
        title=_line(document.title) or "Untitled",
        author=_line(task.author or found.get("author", "")),
        date=_line(task.date or found.get("date", "")),
        language=own if LANGUAGE_TAG.fullmatch(own) else task.language,
        description=_line(task.description or found.get("description", "") or found.get("abstract", "")),
        keywords=tuple(keyword for keyword in keywords if keyword),
    )


def _line(text: str) -> str:
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())
