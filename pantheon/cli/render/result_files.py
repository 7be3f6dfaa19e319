"""Files inside a result: objects with `filename` and `content_base64`, at any depth, written to a folder."""

import base64
import binascii
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pantheon.cli.exit_codes import CommandError, ExitCode

FILENAME_MAX_BYTES = 200
_SHOWN_BASE64_CHARS = 40


def is_file(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and isinstance(value.get("filename"), str)
        and isinstance(value.get("content_base64"), str)
    )


def write_files(value: Any, folder: Path) -> tuple[Any, list[Path]]:
    """Write every file found in a result; returns the result with `path` in place of the content, and the paths.

    A name is cut to its last part: a result does not choose where on this disk a file is written. Two files of the same
    name in a result get numbers. Raises CommandError.
    """
    written: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _write(value, folder, written), written
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise CommandError(f"cannot write {error.filename or folder}: {reason}", ExitCode.USAGE) from None


def _write(value: Any, folder: Path, written: list[Path]) -> Any:
    if is_file(value):
        path = _path_for(value["filename"], folder, written)
        try:
            content = base64.b64decode(value["content_base64"], validate=True)
        except (binascii.Error, ValueError):
            raise CommandError(f"the file '{path.name}' of the result is not base64", ExitCode.FAILED) from None
        unfinished = path.with_name(f".{path.name}.part")
        unfinished.write_bytes(content)
        unfinished.replace(path)
        written.append(path)
        return {**{key: item for key, item in value.items() if key != "content_base64"}, "path": str(path)}
    if isinstance(value, Mapping):
        return {key: _write(item, folder, written) for key, item in value.items()}
    if isinstance(value, list):
        return [_write(item, folder, written) for item in value]
    return value


def _path_for(name: str, folder: Path, written: list[Path]) -> Path:
    last = re.split(r"[/\\]", name)[-1]
    last = "".join(char if char.isprintable() else "_" for char in last).strip().lstrip(".")
    while len(last.encode()) > FILENAME_MAX_BYTES:
        last = last[1:]
    path = folder / (last or "file")
    number = 2
    while path in written:
        path = folder / f"{Path(last).stem}-{number}{Path(last).suffix}"
        number += 1
    return path


def shortened(value: Any) -> Any:
    """A result for a person: the contents of files are cut, everything else is as it is."""
    if is_file(value):
        content = value["content_base64"]
        cut = (
            content
            if len(content) <= _SHOWN_BASE64_CHARS
            else f"{content[:_SHOWN_BASE64_CHARS]}… (--out DIR writes it)"
        )
        return {**value, "content_base64": cut}
    if isinstance(value, Mapping):
        return {key: shortened(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shortened(item) for item in value]
    return value
