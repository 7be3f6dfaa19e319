"""Reading: bytes as a model, their mistakes in one line, and the ids that invalid bytes still show."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, TypeVar
from uuid import UUID

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json, to_json

from protocol.errors import InvalidRequest, InvalidResult
from protocol.names import TASK_TYPE
from protocol.subjects import is_reply_subject

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:,]|[^\s"{}\[\]:,]+', re.DOTALL)

ModelT = TypeVar("ModelT", bound=BaseModel)


def parsed(model: type[ModelT], body: bytes, free: str) -> ModelT:
    """Bytes as a model, of which the field `free` holds any JSON. Raises InvalidRequest, which names the field."""
    try:
        if b"NaN" in body or b"Infinity" in body:
            # Words that JSON does not have, but that lenient parsers take as numbers; inside strings they are fine.
            from_json(body, allow_inf_nan=False)
        message = model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] != "json_invalid":
            raise invalid_request(error) from None
        raise _invalid_json(body, first["ctx"]["error"]) from None
    except ValueError as error:
        raise _invalid_json(body, str(error)) from None
    if has_infinity(getattr(message, free)):
        raise InvalidRequest(f"{free}: holds a number that no double can hold", field=free)
    return message


def _invalid_json(body: bytes, reason: str) -> InvalidRequest:
    field = _field_at(body, reason)
    text = f"Invalid JSON: {reason}"
    message = f"{field}: {text}" if field else text
    return InvalidRequest(message, field=field, details={"mistakes": [{"field": field, "message": text}]})


# Where the parser stopped: lines are counted from 1, and so are columns, in bytes.
_POSITION = re.compile(r"at line ([0-9]+) column ([0-9]+)$")


def _field_at(body: bytes, reason: str) -> str:
    """The field of the outermost object that a parser's mistake is in; nothing where it is in none."""
    position = _POSITION.search(reason)
    if position is None:
        return ""
    *before, _ = body.split(b"\n", int(position[1]) - 1)
    end = sum(len(line) + 1 for line in before) + int(position[2])
    depth, key, last = 0, "", ""
    # A character for each byte: what is cut off at its end may be no UTF-8, and columns count bytes.
    for match in _TOKEN.finditer(body[:end].decode("latin-1")):
        word = match[0]
        if word in "{[":
            depth += 1
        elif word in "}]":
            depth -= 1
        elif depth == 1 and word == ",":
            key = ""
        elif depth == 1 and last in ("{", ",") and word.startswith('"'):
            key = word
        last = word
    try:
        field: str = json.loads(key.encode("latin-1"))
        field.encode()
    except ValueError:
        return ""
    return _cut(field)


def has_infinity(value: Any) -> bool:
    """Whether a value read from JSON held a number beyond what a double can hold: one such as 1e999 reads as infinity,
    which JSON cannot write, and would come out as null at the other end."""
    # Writing it again is several times faster than searching the text, or walking the value.
    if b"Infinity" not in to_json(value, inf_nan_mode="constants"):
        return False
    queue = [value]
    while queue:
        item = queue.pop()
        if isinstance(item, float) and math.isinf(item):
            return True
        queue.extend(item.values() if isinstance(item, dict) else item if isinstance(item, list) else ())
    return False


# Of a field's path or a mistake's words: both may quote what was sent, and the error must fit into a response.
_QUOTED_CHARS = 300


def _cut(text: str) -> str:
    return text if len(text) <= _QUOTED_CHARS else f"{text[:_QUOTED_CHARS]}…"


def invalid_request(error: ValidationError, prefix: str = "") -> InvalidRequest:
    """The first mistake of a failed validation, in one line; all of them in details."""
    text, mistakes = _mistakes(error, prefix)
    return InvalidRequest(text, field=str(mistakes[0]["field"]), details={"mistakes": mistakes[:20]})


def invalid_result(error: ValidationError) -> InvalidResult:
    """The same for what a handler returned."""
    text, mistakes = _mistakes(error, "result")
    return InvalidResult(text, details={"mistakes": mistakes[:20]})


def _mistakes(error: ValidationError, prefix: str) -> tuple[str, list[dict[str, str]]]:
    mistakes = []
    for mistake in error.errors(include_url=False, include_input=False, include_context=False):
        path = ".".join(str(part) for part in (*([prefix] if prefix else []), *mistake["loc"]))
        message = mistake["msg"].removeprefix("Value error, ")
        mistakes.append({"field": _cut(path), "message": _cut(message)})
    first = mistakes[0]
    more = f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
    text = f"{first['field']}: {first['message']}{more}" if first["field"] else f"{first['message']}{more}"
    return text, mistakes


def salvage_ids(body: bytes) -> Mapping[str, Any]:
    """What an invalid message still shows: valid `task_id`, `root_task_id`, `attempt`, `task_type`,
    `reply_to`.

    A message with a task_id gets a response; one without becomes a dead letter.
    """
    try:
        text = body.decode(json.detect_encoding(body), "surrogatepass")
    except UnicodeDecodeError:
        # Bytes that are no text, in a string somewhere, leave the ids as readable as they were.
        text = body.decode(errors="replace")
    try:
        # The lenient parser on purpose: it also reads what the strict one refused (NaN, lone surrogates, numbers of
        # thousands of digits).
        fields = json.loads(text, parse_int=lambda digits: int(digits) if len(digits) < 20 else None)
    except RecursionError:
        fields = _top_level_strings(body)
    except ValueError:
        return {}
    if not isinstance(fields, dict):
        return {}
    found: dict[str, Any] = {}
    for name in ("task_id", "root_task_id"):
        value = fields.get(name)
        if isinstance(value, str):
            try:
                found[name] = UUID(value)
            except ValueError:
                continue
    attempt = fields.get("attempt")
    if isinstance(attempt, int) and not isinstance(attempt, bool) and 1 <= attempt < 2**31:
        found["attempt"] = attempt
    task_type = fields.get("task_type")
    if isinstance(task_type, str) and TASK_TYPE.match(task_type):
        found["task_type"] = task_type
    reply_to = fields.get("reply_to")
    if isinstance(reply_to, str) and is_reply_subject(reply_to):
        found["reply_to"] = reply_to
    return found


def _top_level_strings(body: bytes) -> dict[str, Any]:
    """The fields of an object that is nested deeper than any parser goes, those with a string or a small integer."""
    found: dict[str, Any] = {}
    depth, key, before = 0, None, ""
    for match in _TOKEN.finditer(body.decode(errors="replace")):
        word = match[0]
        if word in "{[":
            depth += 1
        elif word in "}]":
            depth -= 1
        elif depth == 1 and before in "{," and word.startswith('"'):
            key = word
        elif depth == 1 and before == ":" and key is not None and (word.startswith('"') or word.isdecimal()):
            try:
                found[json.loads(key)] = json.loads(word[:20_000])
            except ValueError:
                return {}
        before = word
    return found if depth == 0 else {}
