"""The drafting agent's binding to the mesh."""

import asyncio
from functools import cache
from weakref import WeakKeyDictionary

from agents.drafting_agent.conversion import ConversionFailed, ConversionTimedOut, pandoc_path
from agents.drafting_agent.export import Exporter, UnknownFormat
from agents.drafting_agent.models import FORMATS, ExportDocument, ExportedDocument
from agents.drafting_agent.settings import DraftingSettings
from pantheon import Agent, TaskContext, TaskFailure

agent = Agent(
    "drafting_agent",
    version="1.0.0",
    description=f"Exports Markdown to {', '.join(FORMATS)}, with a title page and metadata.",
    metadata={"formats": ",".join(FORMATS)},
)

_exporters: WeakKeyDictionary[asyncio.AbstractEventLoop, Exporter] = WeakKeyDictionary()
"""An exporter for each event loop, because the bound on conversions is a semaphore, which belongs to a loop."""


@cache
def _settings() -> DraftingSettings:
    return DraftingSettings.load()


def _exporter() -> Exporter:
    loop = asyncio.get_running_loop()
    if loop not in _exporters:
        settings = _settings()
        _exporters[loop] = Exporter(concurrency=settings.concurrency, timeout_seconds=settings.timeout_seconds)
    return _exporters[loop]


@agent.on_startup
async def _start() -> None:
    pandoc_path()
    _exporter()


@agent.task("export_document")
async def export_document(task: ExportDocument, ctx: TaskContext) -> ExportedDocument:
    """Write a Markdown document as files; the same request makes the same bytes, so an attempt may be repeated."""
    if not task.markdown.strip():
        raise TaskFailure("empty_document", "markdown is empty: send the document to export", retryable=False)
    await ctx.progress(5, f"exporting to {', '.join(task.formats)}")
    try:
        made = await _exporter().export(task, ctx.progress)
    except UnknownFormat as error:
        details = {"unknown": error.formats, "allowed": list(FORMATS)}
        raise TaskFailure("unknown_format", str(error), retryable=False, details=details) from error
    except ConversionTimedOut as error:
        message = f"{error}: send a shorter document, or raise EXPORT_TIMEOUT_SECONDS"
        raise TaskFailure("export_timeout", message, retryable=True) from error
    except ConversionFailed as error:
        message = f"the document could not be converted: {error}"
        raise TaskFailure("invalid_document", message, retryable=False) from error
    await ctx.progress(100, f"{len(made.files)} files")
    return made
