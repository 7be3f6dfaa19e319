"""Logs: structlog and the standard library's logging through one pipe to stderr, as JSON or for a console.

What is bound with `bind_task` (ids of the task, of its root, of the trace) is on every line logged inside, by any
logger. A line is never lost because of an odd value in it, and logging never raises.
"""

import logging
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TextIO

import structlog
from structlog.contextvars import bound_contextvars
from structlog.typing import EventDict, Processor, WrappedLogger

# version-traceid-parentid-flags; of later versions only the part that they must keep (W3C Trace Context, 3.2.2).
TRACEPARENT = re.compile(r"^([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?$")
# Libraries that narrate each request at `info`.
CHATTY = ("httpx", "httpcore", "asyncio", "urllib3", "openai", "anthropic")
MAX_TEXT_CHARS = 10_000
MAX_DEPTH = 6
# Keys that the renderers need as they are.
UNTOUCHED = frozenset({"exc_info", "_record", "_from_structlog"})
HANDLER_NAME = "pantheon"


@dataclass(frozen=True)
class Trace:
    """The content of a `traceparent` header."""

    trace_id: str
    span_id: str
    sampled: bool


def parse_traceparent(header: str | None) -> Trace | None:
    """Read a W3C `traceparent`; an invalid one is None, as the specification demands."""
    found = TRACEPARENT.match(header.strip()) if header else None
    if found is None:
        return None
    version, trace_id, span_id, flags, rest = found.groups()
    if version == "ff" or not int(trace_id, 16) or not int(span_id, 16) or (version == "00" and rest):
        return None
    return Trace(trace_id, span_id, bool(int(flags, 16) & 1))


@contextmanager
def bind_task(
    task_id: str, root_task_id: str | None = None, *, traceparent: str | None = None, **more: Any
) -> Iterator[None]:
    """Bind a task's ids, and its trace's, to every line logged inside; tasks in between stay apart (contextvars)."""
    trace = parse_traceparent(traceparent)
    fields = {
        "task_id": task_id,
        "root_task_id": root_task_id,
        "trace_id": trace.trace_id if trace else None,
        "span_id": trace.span_id if trace else None,
        **more,
    }
    with bound_contextvars(**{name: value for name, value in fields.items() if value is not None}):
        yield


def configure_logging(
    level: str = "info", style: Literal["json", "console", "auto"] = "auto", stream: TextIO | None = None
) -> None:
    """Set up logging of the process; calling again replaces the set-up, it never doubles lines.

    `auto` is a console where the stream is a terminal, else JSON. `stream` is stderr as it is when a line is written,
    so that stdout stays free for the results of commands.
    """
    target: TextIO | _Stderr = stream if stream is not None else _Stderr()
    use_console = style == "console" or (style == "auto" and _is_terminal(target))
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        # Here, so that other handlers of the root logger (a test's, a library's) get clean values too.
        _clean,
    ]
    final: list[Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if use_console:
        final.append(structlog.dev.ConsoleRenderer(colors=_is_terminal(target)))
    else:
        final += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    handler = _Handler(target)
    handler.set_name(HANDLER_NAME)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *shared], processors=final
        )
    )
    root = logging.getLogger()
    for old in [old for old in root.handlers if old.get_name() == HANDLER_NAME]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    for name in CHATTY:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    logging.captureWarnings(True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        # Loggers made at import time must follow a later set-up.
        cache_logger_on_first_use=False,
    )


def set_level(level: str) -> None:
    """Change the level of a running process."""
    logging.getLogger().setLevel(level.upper())


class _Stderr:
    """`sys.stderr` as it is when a line is written."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()

    def isatty(self) -> bool:
        return sys.stderr.isatty()


class _Handler(logging.StreamHandler[Any]):
    """Writes lines; one that cannot be written as it is, is written escaped."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception as error:
            line = f'{{"level": "error", "event": "a log line could not be formed: {type(error).__name__}"}}'
        try:
            try:
                self.stream.write(line + self.terminator)
            except UnicodeError:
                self.stream.write(line.encode("ascii", "backslashreplace").decode("ascii") + self.terminator)
            self.flush()
        except (OSError, ValueError):
            # The stream is closed or its reader is gone: the line is lost.
            return


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError, OSError):
        return False


def _clean(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Make every value one that both renderers can write."""
    return {_plain_text(str(key)): value if key in UNTOUCHED else plain(value) for key, value in event.items()}


def plain(value: Any, depth: int = MAX_DEPTH) -> Any:
    """A value of JSON's own types that shows any value."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else str(value)
    if isinstance(value, str):
        return _plain_text(value)
    if isinstance(value, (bytes, bytearray)):
        return _plain_text(bytes(value).decode("utf-8", "backslashreplace"))
    if depth <= 0:
        return _shown(value)
    if isinstance(value, Mapping):
        return {_plain_text(_shown(key)): plain(item, depth - 1) for key, item in list(value.items())}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item, depth - 1) for item in list(value)]
    return _shown(value)


def _shown(value: Any) -> str:
    try:
        return _plain_text(value if isinstance(value, str) else str(value))
    except Exception:
        return f"<{type(value).__name__} that cannot be shown>"


def _plain_text(text: str) -> str:
    if len(text) > MAX_TEXT_CHARS:
        text = f"{text[:MAX_TEXT_CHARS]}… ({len(text)} characters)"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text
