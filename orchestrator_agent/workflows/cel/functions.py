"""Functions: of texts and of optional values, and the table of all that CEL has.

Each takes the frame and its arguments; what stands before the dot is the first of them.
"""

from collections.abc import Callable, Mapping
from typing import Any

from orchestrator_agent.workflows.cel.conversions import (
    to_bool,
    to_bytes,
    to_double,
    to_duration,
    to_int,
    to_string,
    to_timestamp,
    to_uint,
    type_of,
)
from orchestrator_agent.workflows.cel.formatting import formatted
from orchestrator_agent.workflows.cel.mathematics import MATHEMATICS
from orchestrator_agent.workflows.cel.meter import Frame, build, spend
from orchestrator_agent.workflows.cel.times import (
    PARTS,
    part_of,
)
from orchestrator_agent.workflows.cel.values import (
    NONE,
    CelError,
    Duration,
    Optional,
    Timestamp,
    no_overload,
    shown_type,
)

Function = Callable[..., Any]


def _texts(what: str, *values: Any) -> None:
    """Count the reading of texts. Raises CelError where one of the values is none."""
    for value in values:
        if type(value) is not str:
            raise no_overload(what, *values)


def _scan(f: Frame, *texts: str) -> None:
    spend(f, sum(map(len, texts)) >> 6)


# -- sizes and strings ------------------------------------------------------------------------------------------------


def size(f: Frame, value: Any) -> int:
    if isinstance(value, str | list | dict | bytes):
        return len(value)
    raise no_overload("size", value)


def contains(f: Frame, text: Any, part: Any) -> bool:
    _texts("contains", text, part)
    _scan(f, text)
    return part in text


def starts_with(f: Frame, text: Any, part: Any) -> bool:
    _texts("startsWith", text, part)
    return bool(text.startswith(part))


def ends_with(f: Frame, text: Any, part: Any) -> bool:
    _texts("endsWith", text, part)
    return bool(text.endswith(part))


def _int_argument(what: str, value: Any) -> int:
    if type(value) is not int:
        raise CelError(f"no matching overload: {what} takes an int, not {shown_type(value)}")
    return value


def char_at(f: Frame, text: Any, position: Any) -> str:
    _texts("charAt", text)
    position = _int_argument("charAt", position)
    if not 0 <= position <= len(text):
        raise CelError(f"charAt: index {position} is out of range of a text of {len(text)}")
    return str(text[position : position + 1])


def index_of(f: Frame, text: Any, part: Any, start: Any = 0) -> int:
    _texts("indexOf", text, part)
    start = _int_argument("indexOf", start)
    if not 0 <= start <= len(text):
        raise CelError(f"index out of range: {start}")
    _scan(f, text)
    return int(text.find(part, start))


def last_index_of(f: Frame, text: Any, part: Any, last: Any = None) -> int:
    _texts("lastIndexOf", text, part)
    _scan(f, text)
    if last is None:
        return int(text.rfind(part))
    last = _int_argument("lastIndexOf", last)
    if not 0 <= last <= len(text):
        raise CelError(f"index out of range: {last}")
    return int(text.rfind(part, 0, last + len(part)))


def substring(f: Frame, text: Any, start: Any, end: Any = None) -> str:
    _texts("substring", text)
    start = _int_argument("substring", start)
    last = len(text) if end is None else _int_argument("substring", end)
    if not 0 <= start <= last <= len(text):
        raise CelError(f"substring: {start} to {last} is out of range of a text of {len(text)}")
    build(f, last - start)
    return str(text[start:last])


# The characters that Unicode calls white space.
_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


def trim(f: Frame, text: Any) -> str:
    _texts("trim", text)
    build(f, len(text))
    return str(text.strip(_SPACE))


_UPPER = {ord(low): low.upper() for low in "abcdefghijklmnopqrstuvwxyz"}
_LOWER = {ord(high): high.lower() for high in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}


def lower_ascii(f: Frame, text: Any) -> str:
    _texts("lowerAscii", text)
    build(f, len(text))
    if text.isascii():
        return str(text.lower())
    spend(f, len(text))
    return str(text.translate(_LOWER))


def upper_ascii(f: Frame, text: Any) -> str:
    _texts("upperAscii", text)
    build(f, len(text))
    if text.isascii():
        return str(text.upper())
    spend(f, len(text))
    return str(text.translate(_UPPER))


def reverse(f: Frame, text: Any) -> str:
    _texts("reverse", text)
    build(f, len(text))
    _scan(f, text)
    return str(text[::-1])


_ESCAPES = {7: "\\a", 8: "\\b", 12: "\\f", 10: "\\n", 13: "\\r", 9: "\\t", 11: "\\v", 92: "\\\\", 34: '\\"'}


def quote(f: Frame, text: Any) -> str:
    _texts("strings.quote", text)
    build(f, 2 * len(text) + 2)
    spend(f, len(text) >> 2)
    return '"' + str(text.translate(_ESCAPES)) + '"'


def replace(f: Frame, text: Any, old: Any, new: Any, limit: Any = -1) -> str:
    _texts("replace", text, old, new)
    limit = _int_argument("replace", limit)
    _scan(f, text, text)
    count = text.count(old)
    if limit >= 0:
        count = min(count, limit)
    build(f, len(text) + count * (len(new) - len(old) if len(new) > len(old) else 0))
    return str(text.replace(old, new, max(limit, -1)))


def split(f: Frame, text: Any, separator: Any, limit: Any = -1) -> list[str]:
    _texts("split", text, separator)
    limit = _int_argument("split", limit)
    _scan(f, text)
    if limit == 0:
        return []
    build(f, len(text))
    if separator == "" and text:
        spend(f, len(text) >> 2)
        if limit < 0 or limit >= len(text):
            return list(text)
        return [*text[: limit - 1], text[limit - 1 :]]
    return list(text.split(separator, limit - 1 if limit > 0 else -1)) if text else [""]


def join(f: Frame, parts: Any, separator: Any = "") -> str:
    if type(parts) is not list:
        raise no_overload("join", parts)
    _texts("join", separator)
    spend(f, len(parts) >> 2)
    length = len(separator) * max(0, len(parts) - 1)
    for part in parts:
        if type(part) is not str:
            raise CelError(f"join: the list holds {shown_type(part)}, not strings alone: convert with string(…)")
        length += len(part)
    spend(f, length >> 6)
    build(f, length)
    return str(separator.join(parts))


# -- optional values --------------------------------------------------------------------------------------------------


def _optional(what: str, value: Any) -> Optional:
    if type(value) is not Optional:
        raise no_overload(what, value)
    return value


def optional_of_non_zero(f: Frame, value: Any) -> Optional:
    empty = value is None or (isinstance(value, str | bytes | list | dict | bool | int | float) and not value)
    empty = empty or (type(value) is Duration and value.nanos == 0) or (type(value) is Timestamp and value.nanos == 0)
    return NONE if empty or value is NONE else Optional(True, value)


def optional_value(f: Frame, value: Any) -> Any:
    if not _optional("value", value).present:
        raise CelError("optional.none() has no value")
    return value.value


def optional_or(f: Frame, value: Any, other: Any) -> Optional:
    return value if _optional("or", value).present else _optional("or", other)


def optional_or_value(f: Frame, value: Any, other: Any) -> Any:
    return value.value if _optional("orValue", value).present else other


def first(f: Frame, value: Any) -> Optional:
    if type(value) is not list:
        raise no_overload("first", value)
    return Optional(True, value[0]) if value else NONE


def last(f: Frame, value: Any) -> Optional:
    if type(value) is not list:
        raise no_overload("last", value)
    return Optional(True, value[-1]) if value else NONE


STANDARD: Mapping[str, Function] = {
    "int": to_int,
    "uint": to_uint,
    "double": to_double,
    "string": to_string,
    "bytes": to_bytes,
    "bool": to_bool,
    "timestamp": to_timestamp,
    "duration": to_duration,
    "type": type_of,
    "dyn": lambda f, value: value,
    "size": size,
    "contains": contains,
    "startsWith": starts_with,
    "endsWith": ends_with,
    "charAt": char_at,
    "indexOf": index_of,
    "lastIndexOf": last_index_of,
    "substring": substring,
    "trim": trim,
    "lowerAscii": lower_ascii,
    "upperAscii": upper_ascii,
    "reverse": reverse,
    "strings.quote": quote,
    "replace": replace,
    "split": split,
    "join": join,
    "format": formatted,
    **MATHEMATICS,
    "optional.of": lambda f, value: Optional(True, value),
    "optional.none": lambda f: NONE,
    "optional.ofNonZeroValue": optional_of_non_zero,
    "hasValue": lambda f, value: _optional("hasValue", value).present,
    "value": optional_value,
    "first": first,
    "last": last,
    **{name: part_of(name) for name in PARTS},
}
