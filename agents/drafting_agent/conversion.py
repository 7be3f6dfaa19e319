"""Runs pandoc and typst as processes of their own: sandboxed, with a time limit, killed with their caller."""

import asyncio
import json
import os
import re
import shutil
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import yaml

READER = "commonmark_x+autolink_bare_uris+task_lists-raw_attribute-yaml_metadata_block"
"""CommonMark with tables, footnotes, math and the rest; raw output code of any format is not passed on."""
MAX_STDERR_CHARACTERS = 500
_FRONT_MATTER = re.compile(r"\A---\n(.*?\n)(?:---|\.\.\.)(?:\n|\Z)", re.DOTALL)
_FENCED = re.compile(r"^ {0,3}(`{3,}|~{3,}).*?(?:^ {0,3}\1|\Z)", re.DOTALL | re.MULTILINE)
_NOTE = re.compile(
    r"^ {0,3}\[\^([^\]\s]+)\]:(.*?)(?=^ {0,3}\[\^[^\]\s]+\]:|\n[ \t]*\n(?=\S)|\Z)", re.DOTALL | re.MULTILINE
)
_NOTE_MARK = re.compile(r"\[\^([^\]\s]+)\]")


class ConversionFailed(Exception):
    """A converter refused the document; the message is its own."""


class ConversionTimedOut(Exception):
    """A converter did not end in time."""


@cache
def pandoc_path() -> str:
    """The pandoc that comes with pypandoc_binary, else the one on PATH; raises ConversionFailed when there is none."""
    import pypandoc

    bundled = Path(pypandoc.__file__).parent / "files" / "pandoc"
    found = str(bundled) if bundled.exists() else shutil.which("pandoc")
    if found is None:
        raise ConversionFailed("pandoc was not found: install pypandoc_binary, or pandoc on PATH")
    return found


async def _run(command: list[str], *, stdin: bytes, folder: Path, epoch: int, timeout_seconds: float) -> bytes:
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(folder),
        "LANG": "C.UTF-8",
        "SOURCE_DATE_EPOCH": str(epoch),
    }
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env=environment,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(timeout_seconds):
            output, errors = await process.communicate(stdin)
    except TimeoutError as error:
        raise ConversionTimedOut(f"{Path(command[0]).name} took more than {timeout_seconds:g} s") from error
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode != 0:
        message = errors.decode("utf-8", "replace").strip().replace(str(folder), "")
        raise ConversionFailed(message[:MAX_STDERR_CHARACTERS] or f"exit code {process.returncode}")
    return output


def refuse_aliases(front_matter: str) -> None:
    """Raises ConversionFailed for YAML that repeats parts of itself: a few lines of that can name a billion words."""
    try:
        aliases = [token.value for token in yaml.scan(front_matter) if isinstance(token, yaml.AliasToken)]
    except yaml.YAMLError:
        return  # pandoc reports what is wrong with it
    if aliases:
        raise ConversionFailed(f"the front matter has an alias (*{aliases[0]}): write out what it stands for")


def refuse_note_circles(markdown: str) -> None:
    """Raises ConversionFailed for footnotes that lead back to themselves, which pandoc follows without an end."""
    notes: dict[str, set[str]] = {}
    for label, text in _NOTE.findall(_FENCED.sub("", markdown)):
        notes.setdefault(label, set(_NOTE_MARK.findall(text)))
    ended: set[str] = set()
    for start in notes:
        seen: set[str] = set()
        ahead = [start]
        while ahead:
            for following in notes.get(ahead.pop(), ()):
                if following == start:
                    raise ConversionFailed(f"the footnote [^{start}] leads back to itself: take the mark out of it")
                if following not in seen and following not in ended:
                    seen.add(following)
                    ahead.append(following)
        ended.add(start)


async def read_markdown(markdown: str, *, folder: Path, timeout_seconds: float) -> dict[str, Any]:
    """Pandoc's syntax tree of a Markdown text; front matter is read where the text begins with it."""
    reader = READER
    if front := _FRONT_MATTER.match(markdown):
        refuse_aliases(front[1])
        reader = reader.replace("-yaml_metadata_block", "+yaml_metadata_block")
    refuse_note_circles(markdown)
    command = [pandoc_path(), "--sandbox", "--from", reader, "--to", "json"]
    made = await _run(command, stdin=markdown.encode(), folder=folder, epoch=0, timeout_seconds=timeout_seconds)
    tree: dict[str, Any] = json.loads(made)
    return tree


async def write(tree: dict[str, Any], options: list[str], *, folder: Path, epoch: int, timeout_seconds: float) -> bytes:
    """What pandoc writes from a tree with `options`, which name the format."""
    command = [pandoc_path(), "--sandbox", "--from", "json", "--output", "-", *options]
    document = json.dumps(tree).encode()
    return await _run(command, stdin=document, folder=folder, epoch=epoch, timeout_seconds=timeout_seconds)


async def typeset(folder: Path, *, epoch: int, timeout_seconds: float) -> bytes:
    """The PDF of `folder`/main.typ, which can read nothing outside of `folder`."""
    script = Path(__file__).with_name("typesetting.py")
    command = [sys.executable, "-I", str(script), str(folder), str(epoch)]
    return await _run(command, stdin=b"", folder=folder, epoch=epoch, timeout_seconds=timeout_seconds)
