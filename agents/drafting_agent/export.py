"""Makes the files of one request: reads the Markdown once, writes its formats side by side within a bound."""

import asyncio
import base64
import hashlib
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

from agents.drafting_agent.conversion import read_markdown
from agents.drafting_agent.document import Document, clean
from agents.drafting_agent.filename import safe_basename
from agents.drafting_agent.metadata import Metadata, metadata_of
from agents.drafting_agent.models import FORMATS, MEDIA_TYPES, ExportDocument, ExportedDocument, ExportedFile, Format
from agents.drafting_agent.writers import WRITERS, Job

Report = Callable[[float, str], Awaitable[None]]


class UnknownFormat(ValueError):
    """A request for formats that this agent does not write; `formats` names them."""

    def __init__(self, formats: list[str]) -> None:
        self.formats = formats
        super().__init__(f"cannot export to {', '.join(formats)}: the formats are {', '.join(FORMATS)}")


def requested_formats(formats: list[str]) -> list[Format]:
    """The formats asked for, each once, in order; raises UnknownFormat."""
    requested = list(dict.fromkeys(name.strip().lower().lstrip(".") for name in formats))
    unknown = [name for name in requested if name not in FORMATS]
    if unknown:
        raise UnknownFormat(unknown)
    return cast("list[Format]", requested)


class Exporter:
    """Exports documents, at most `concurrency` conversions at once over all requests of its event loop."""

    def __init__(self, *, concurrency: int, timeout_seconds: float) -> None:
        self._slots = asyncio.Semaphore(concurrency)
        self._timeout_seconds = timeout_seconds

    async def export(self, task: ExportDocument, report: Report) -> ExportedDocument:
        """The finished files; raises UnknownFormat, ConversionFailed or ConversionTimedOut."""
        formats = requested_formats(task.formats)
        markdown = task.markdown.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\ufffd").lstrip("\ufeff")
        with tempfile.TemporaryDirectory(prefix="pantheon-export-", ignore_cleanup_errors=True) as name:
            folder = Path(name)
            async with self._slots:
                tree = await read_markdown(markdown, folder=folder, timeout_seconds=self._timeout_seconds)
            document = await asyncio.to_thread(clean, tree, title=task.title)
            metadata = metadata_of(task, document)
            identifier = metadata.identifier(markdown)
            basename = safe_basename(task.basename)
            await report(20, f"read {document.headings} headings")
            done = 0

            async def make(form: Format) -> ExportedFile:
                nonlocal done
                content = await self._write(form, document, metadata, identifier, folder)
                done += 1
                await report(20 + 75 * done / len(formats), f"{form} written")
                return _file(form, f"{basename}.{form}", content)

            try:
                async with asyncio.TaskGroup() as group:
                    making = [group.create_task(make(form)) for form in formats]
            except ExceptionGroup as failures:
                raise failures.exceptions[0] from None
            return ExportedDocument(title=metadata.title, files=[task.result() for task in making])

    async def _write(
        self, form: Format, document: Document, metadata: Metadata, identifier: str, folder: Path
    ) -> bytes:
        own = folder / form
        own.mkdir()
        async with self._slots:
            return await WRITERS[form](Job(document, metadata, identifier, own, self._timeout_seconds))


def _file(form: Format, filename: str, content: bytes) -> ExportedFile:
    return ExportedFile(
        format=form,
        filename=filename,
        media_type=MEDIA_TYPES[form],
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        content_base64=base64.b64encode(content).decode(),
    )
