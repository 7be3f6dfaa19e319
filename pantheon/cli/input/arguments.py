"""A payload from `key=value` arguments and input files.

    key=value         value as JSON where it is a number, true, false, null, a list or an object; else a string
    key:=json         JSON, or a mistake
    key=@file         the file's text; of a folder, a list of its files' texts; @- is standard input
    key:=@file        the file as JSON or YAML
    key[]=…           a list, also of one item; a repeated key makes a list too

Where a workflow declares its input, the schema decides what the grammar leaves open: a value for a text stays a
text (`topic=2026`), and a single value for a list becomes a list of one item.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pantheon.cli.exit_codes import CommandError, ExitCode
from pantheon.runtime.json_yaml import JsonLoader

STANDARD_INPUT = "-"
YAML_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Argument:
    """An argument after parsing. `text` is set where the value may also have been meant as that text."""

    key: str
    value: Any
    text: str | None = None
    is_list: bool = False


def usage(message: str) -> CommandError:
    return CommandError(message, ExitCode.USAGE)


def read_stdin() -> str:
    return sys.stdin.read()


def parse(argument: str, *, stdin: Callable[[], str] = read_stdin) -> Argument:
    """Read one `key=value`. Raises CommandError, which names the argument and its mistake."""
    left, equals, right = argument.partition("=")
    is_json = left.endswith(":")
    key = left.removesuffix(":")
    is_list = key.endswith("[]")
    key = key.removesuffix("[]")
    if not equals or not key:
        raise usage(f"'{argument}' is no key=value, key=@file, key:=json or key:=@file.json")
    if right.startswith("@"):
        path = right[1:]
        if is_json:
            return Argument(key, read_data(path, argument, stdin=stdin), is_list=is_list)
        value = read_text_or_folder(path, argument, stdin=stdin)
        return Argument(key, value, text=value if isinstance(value, str) else None, is_list=is_list)
    if is_json:
        return Argument(key, _json(right, f"'{argument}'"), is_list=is_list)
    value = _value(right)
    return Argument(key, value, text=right, is_list=is_list)


def _value(text: str) -> Any:
    """What a bare value means: JSON, except for what JSON would call a string or not know at all."""
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except ValueError:
        return text
    return text if isinstance(value, str) else value


def _no_constant(name: str) -> Any:
    # Python reads NaN and Infinity; JSON has neither, and no other language would read them back.
    raise ValueError(name)


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except ValueError as error:
        raise usage(f"{where} is not JSON: {error}") from None


def read_text(path: str, where: str, *, stdin: Callable[[], str] = read_stdin) -> str:
    """A file's text, UTF-8. Raises CommandError."""
    if path == STANDARD_INPUT:
        return stdin()
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise usage(f"'{where}': {path} is not UTF-8 text") from None
    except (OSError, ValueError) as error:
        raise CommandError(f"'{where}': cannot read {path} ({_reason(error)})", ExitCode.NOT_FOUND) from None


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def read_text_or_folder(path: str, where: str, *, stdin: Callable[[], str] = read_stdin) -> str | list[str]:
    folder = Path(path).expanduser()
    if path == STANDARD_INPUT or not folder.is_dir():
        return read_text(path, where, stdin=stdin)
    files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    if not files:
        raise usage(f"'{where}': the folder {path} has no files")
    return [read_text(str(file), where) for file in files]


def read_data(path: str, where: str, *, stdin: Callable[[], str] = read_stdin) -> Any:
    """A file as JSON, or as YAML where its name says so. Raises CommandError with the position of a mistake."""
    text = read_text(path, where, stdin=stdin)
    if Path(path).suffix not in YAML_SUFFIXES:
        return _json(text, f"'{where}': {path}")
    try:
        value = yaml.load(text, Loader=JsonLoader)  # noqa: S506
        # An alias may stand within what it names.
        json.dumps(value)
        return value
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        position = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else path
        raise usage(f"'{where}': {position}: {error.problem or 'not YAML'}") from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise usage(f"'{where}': {path} is not YAML that a message can carry: {error}") from None


def read_input(path: str, *, stdin: Callable[[], str] = read_stdin) -> dict[str, Any]:
    """The payload of `--input`: an object, as JSON or YAML."""
    value = read_data(path, f"--input {path}", stdin=stdin)
    if not isinstance(value, dict):
        raise usage(f"--input {path} holds {_kind(value)}; a payload is an object")
    return {str(key): item for key, item in value.items()}


def _kind(value: Any) -> str:
    return {list: "a list", str: "a text", type(None): "nothing"}.get(type(value), f"a {type(value).__name__}")


def payload_of(
    arguments: Sequence[Argument], *, base: Mapping[str, Any] | None = None, schema: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The payload of arguments, over `base` (an input file); `schema` is the workflow's input where it is known."""
    properties = (schema or {}).get("properties")
    known: Mapping[str, Any] = properties if isinstance(properties, dict) else {}
    grouped: dict[str, list[Argument]] = {}
    for argument in arguments:
        grouped.setdefault(argument.key, []).append(argument)
    payload = dict(base or {})
    for key, group in grouped.items():
        types = _types_of(known.get(key))
        items = types and "array" in types
        item_types = _types_of(known[key].get("items")) if items else types
        # A list stands for the whole list; any other value is one of its items.
        values = [
            argument.value if items and isinstance(argument.value, list) else _as(argument, item_types)
            for argument in group
        ]
        if len(group) == 1 and not group[0].is_list:
            value = values[0]
            is_item = (
                bool(types) and "array" in types and not isinstance(value, list) and _json_type(value) not in types
            )
            payload[key] = [value] if is_item else value
            continue
        # `key=@folder` beside `key=@file`: the folder's texts are more of the same.
        payload[key] = [item for value in values for item in (value if isinstance(value, list) else [value])]
    return payload


def _as(argument: Argument, types: frozenset[str]) -> Any:
    """The value, or the text it was written as, where only that fits."""
    if argument.text is None or not types or _json_type(argument.value) in types:
        return argument.value
    if _json_type(argument.value) == "integer" and "number" in types:
        return argument.value
    return argument.text if "string" in types else argument.value


def _types_of(schema: Any) -> frozenset[str]:
    """The JSON types that a schema allows at its top level; empty where it names none."""
    if not isinstance(schema, dict):
        return frozenset()
    found: set[str] = set()
    declared = schema.get("type")
    if isinstance(declared, str):
        found.add(declared)
    elif isinstance(declared, list):
        found.update(name for name in declared if isinstance(name, str))
    for word in ("anyOf", "oneOf"):
        for alternative in schema.get(word) or ():
            found |= _types_of(alternative)
    return frozenset(found)


def _json_type(value: Any) -> str:
    if value is None:
        return "null"
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return kinds.get(type(value), "object")
