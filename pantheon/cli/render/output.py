"""The streams of a command: results to stdout, everything else to stderr."""

import json
import sys
from typing import Any

from rich.console import Console
from rich.text import Text

from pantheon.runtime.settings import one_line

# A line of an error message may be long, but not a page.
MESSAGE_MAX_CHARS = 2_000


class ReaderGone(Exception):
    """The reader of stdout has closed it (`| head`). No OSError: Typer ends the program with 1 for those."""


class _ResultConsole(Console):
    def on_broken_pipe(self) -> None:
        # Rich would end the program, with status 1.
        raise ReaderGone


def stdout() -> Console:
    """The console for a command's result; no colours where it is no terminal. Raises ReaderGone."""
    return _ResultConsole(highlight=False, soft_wrap=not sys.stdout.isatty())


def stderr() -> Console:
    """The console for progress, notes and errors."""
    return Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())


def is_live(console: Console) -> bool:
    """Whether the console can be redrawn in place."""
    return console.is_terminal and not console.is_dumb_terminal


def print_json(value: Any) -> None:
    """A value as JSON on stdout, coloured for a person, plain for a program."""
    encoding = (sys.stdout.encoding or "ascii").lower().replace("-", "")
    text = json.dumps(value, indent=2, ensure_ascii=encoding != "utf8", default=str)
    console = stdout()
    if console.is_terminal:
        from rich.json import JSON

        console.print(JSON(text), soft_wrap=True)
    else:
        print_line(text)


def _writable(text: str) -> str:
    """Text without lone surrogates, which no encoding can write; as JSON escapes they mean the same."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def print_line(text: str) -> None:
    """A line of a result on stdout, as it is. Raises ReaderGone."""
    try:
        sys.stdout.write(_writable(text) + "\n")
    except BrokenPipeError:
        raise ReaderGone from None


def flush_output() -> None:
    """Flush what was printed to stdout so far. Raises ReaderGone."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise ReaderGone from None


def note(message: str) -> None:
    """A line for the person on stderr."""
    stderr().print(Text(_printable(message), style="dim"), soft_wrap=True)


def problem(message: str, *, command: str = "pantheon") -> None:
    """An error on stderr, in one line whatever the message holds."""
    line = Text.assemble((f"{command}: ", "bold red"), _printable(one_line(message, MESSAGE_MAX_CHARS)))
    stderr().print(line, soft_wrap=True)


def _printable(text: str) -> str:
    """Text without control characters: an error message from the mesh must not steer a terminal."""
    return "".join(char if char.isprintable() or char in "\n\t" else "�" for char in text)
