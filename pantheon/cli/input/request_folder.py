"""A request kept as files: `request.yaml`, whose texts may be in files beside it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pantheon.cli.exit_codes import CommandError, ExitCode
from pantheon.cli.input.arguments import read_input, read_text

REQUEST_FILE = "request.yaml"
FILE_KEY = "file"
FILE_SUFFIX = "_file"


def read_request(path: Path) -> dict[str, Any]:
    """The payload in a folder's `request.yaml`, or in a file.

    `x_file: name` stands for `x` with that file's text, `file: name` inside an object for `text`; names are relative to
    the request. Raises CommandError.
    """
    file = path / REQUEST_FILE if path.is_dir() else path
    if not file.is_file():
        raise CommandError(f"{file}: there is no such file; give a folder with a {REQUEST_FILE}", ExitCode.NOT_FOUND)
    resolved: dict[str, Any] = _resolve(read_input(str(file)), file.parent, top=True)
    return resolved


def _resolve(value: Any, folder: Path, *, top: bool = False) -> Any:
    if isinstance(value, list):
        return [_resolve(item, folder) for item in value]
    if not isinstance(value, Mapping):
        return value
    resolved: dict[str, Any] = {}
    for key, item in value.items():
        if key == FILE_KEY and not top and isinstance(item, str):
            resolved["text"] = _text(folder / item)
        elif key.endswith(FILE_SUFFIX) and isinstance(item, str):
            resolved[key.removesuffix(FILE_SUFFIX)] = _text(folder / item)
        else:
            resolved[key] = _resolve(item, folder)
    return resolved


def _text(path: Path) -> str:
    return read_text(str(path), path.name)
