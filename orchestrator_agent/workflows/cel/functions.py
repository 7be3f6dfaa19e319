"""Functions: CEL's standard ones, its strings, math and optional extensions, and this project's own.

Each takes the frame and its arguments; what stands before the dot is the first of them.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from orchestrator_agent.workflows.cel.formatting import double_text, formatted
from orchestrator_agent.workflows.cel.meter import Frame, build, spend
from orchestrator_agent.workflows.cel.operators import as_uint
from orchestrator_agent.workflows.cel.times import (
    PARTS,
    SECOND,
    checked_timestamp,
    duration_text,
    parse_duration,
    parse_timestamp,
    part_of,
    timestamp_text,
)
from orchestrator_agent.workflows.cel.values import (
    INT_MAX,
    INT_MIN,
    NONE,
    UINT_MAX,
    CelError,
    CelType,
    Duration,
    Optional,
    Timestamp,
    UInt,
    check_64_bits,
    is_number,
    no_overload,
    shown_type,
    type_name,
)

Function = Callable[..., Any]


def _texts(what: str, *values: Any) -> None:
    """Count the reading of texts. Raises CelError where one of the values is none."""
    for value in values:
        if type(value) is not str:
            raise no_overload(what, *values)


def _scan(f: Frame, *texts: str) -> None:
    spend(f, sum(map(len, texts)) >> 6)


# -- conversions ------------------------------------------------------------------------------------------------------

_INTEGER = re.compile(r"\s*[+-]?\d+\s*", re.ASCII)
_DOUBLE = re.compile(r"\s*[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|inf|infinity|nan)\s*", re.ASCII | re.IGNORECASE)
_MOST_DIGITS = 20


def _integer_of(text: str, kind: str) -> int:
    if _INTEGER.fullmatch(text) is None or len(text.strip().lstrip("+-0")) > _MOST_DIGITS:
        raise CelError(f"cannot convert string to {kind}")
    return int(text)


def to_int(f: Frame, value: Any) -> int:
    kind = type(value)
    if kind is int and INT_MIN <= value <= INT_MAX:
        return int(value)
    if kind is bool:
        return 1 if value else 0
    if kind is float:
        if not -(2.0**63) < value < 2.0**63:
            raise CelError("integer overflow: the double is out of int's range")
        return int(value)
    if kind is str:
        number = _integer_of(value, "int")
        if not INT_MIN <= number <= INT_MAX:
            raise CelError("cannot convert string to int")
        return number
    if kind is Timestamp:
        return int(value.nanos // SECOND)
    if kind is UInt or kind is int:
        check_64_bits(value)
        if value > INT_MAX:
            raise CelError("integer overflow: the uint is out of int's range")
        return int(value)
    raise no_overload("int(…)", value)


def to_uint(f: Frame, value: Any) -> UInt:
    kind = type(value)
    if kind is UInt:
        return UInt(value)
    if kind is int:
        check_64_bits(value)
        if value < 0:
            raise CelError("unsigned integer overflow: the int is negative")
        return UInt(value)
    if kind is float:
        if not -1 < value < 2.0**64 or value < 0:
            raise CelError("unsigned integer overflow: the double is out of uint's range")
        return UInt(int(value))
    if kind is str:
        number = _integer_of(value, "uint")
        if "-" in value or not 0 <= number <= UINT_MAX:
            raise CelError("cannot convert string to uint")
        return UInt(number)
    raise no_overload("uint(…)", value)


def to_double(f: Frame, value: Any) -> float:
    kind = type(value)
    if kind is float:
        return float(value)
    if kind is int or kind is UInt:
        check_64_bits(value)
        return float(value)
    if kind is str:
        if _DOUBLE.fullmatch(value) is None:
            raise CelError("cannot convert string to double")
        return float(value)
    raise no_overload("double(…)", value)


def to_string(f: Frame, value: Any) -> str:
    kind = type(value)
    if kind is str:
        return str(value)
    if kind is int or kind is UInt:
        check_64_bits(value)
        return str(int(value))
    if kind is bool:
        return "true" if value else "false"
    if kind is float:
        return double_text(value)
    if kind is bytes:
        build(f, len(value))
        try:
            return str(value.decode())
        except UnicodeDecodeError:
            raise CelError("malformed UTF-8 bytes") from None
    if kind is Timestamp:
        return timestamp_text(value)
    if kind is Duration:
        return duration_text(value)
    raise no_overload("string(…)", value)


def to_bytes(f: Frame, value: Any) -> bytes:
    if type(value) is bytes:
        return value
    _texts("bytes(…)", value)
    build(f, 2 * len(value))
    try:
        return bytes(value.encode())
    except UnicodeEncodeError:
        raise CelError("the text holds half a surrogate pair") from None


_BOOLS = {"true": True, "True": True, "TRUE": True, "t": True, "1": True}
_BOOLS |= {"false": False, "False": False, "FALSE": False, "f": False, "0": False}


def to_bool(f: Frame, value: Any) -> bool:
    if type(value) is bool:
        return value
    if type(value) is str and value in _BOOLS:
        return _BOOLS[value]
    if type(value) is str:
        raise CelError("cannot convert string to bool")
    raise no_overload("bool(…)", value)


def to_timestamp(f: Frame, value: Any) -> Timestamp:
    if type(value) is Timestamp:
        return value
    if type(value) is str:
        return parse_timestamp(value)
    if type(value) is int:
        return checked_timestamp(value * SECOND)
    raise no_overload("timestamp(…)", value)


def to_duration(f: Frame, value: Any) -> Duration:
    if type(value) is Duration:
        return value
    if type(value) is str:
        return parse_duration(value)
    raise no_overload("duration(…)", value)


def type_of(f: Frame, value: Any) -> CelType:
    if type(value) is int:
        check_64_bits(value)
    return CelType(type_name(value))


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


# -- math -------------------------------------------------------------------------------------------------------------


def _numbers(what: str, values: tuple[Any, ...]) -> list[Any]:
    """The arguments, or the elements of the list that is the only one."""
    given = list(values[0]) if len(values) == 1 and type(values[0]) is list else list(values)
    if not given:
        raise CelError(f"{what} of an empty list")
    for value in given:
        if not is_number(value):
            raise CelError(f"{what} is of numbers, not of {shown_type(value)}")
    return [as_uint(value) for value in given]


def greatest(f: Frame, *values: Any) -> Any:
    numbers = _numbers("math.greatest", values)
    spend(f, len(numbers))
    best = numbers[0]
    for value in numbers[1:]:
        if value > best:
            best = value
    return best


def least(f: Frame, *values: Any) -> Any:
    numbers = _numbers("math.least", values)
    spend(f, len(numbers))
    best = numbers[0]
    for value in numbers[1:]:
        if value < best:
            best = value
    return best


def _rounding(what: str, function: Callable[[float], float]) -> Function:
    def run(f: Frame, value: Any) -> float:
        if type(value) is not float:
            raise no_overload(what, value)
        # Beyond 2^52 there are no fractions; infinities and NaN have none either.
        return math.copysign(float(function(value)), value) if abs(value) < 2.0**52 else value

    return run


def _round(value: float) -> float:
    """Half away from zero."""
    whole = math.trunc(value)
    return whole + math.copysign(1, value) if abs(value - whole) >= 0.5 else whole


def _double_test(what: str, function: Callable[[float], bool]) -> Function:
    def run(f: Frame, value: Any) -> bool:
        if type(value) is not float:
            raise no_overload(what, value)
        return function(value)

    return run


def absolute(f: Frame, value: Any) -> Any:
    value = as_uint(value)
    if type(value) is int:
        check_64_bits(value)
        if value == INT_MIN:
            raise CelError("integer overflow")
        return abs(value)
    if type(value) is float or type(value) is UInt:
        return value if type(value) is UInt else abs(value)
    raise no_overload("math.abs", value)


def sign(f: Frame, value: Any) -> Any:
    value = as_uint(value)
    if type(value) is int:
        return (value > 0) - (value < 0)
    if type(value) is UInt:
        return UInt(value > 0)
    if type(value) is float:
        if math.isnan(value):
            return value
        return 0.0 if value == 0 else math.copysign(1.0, value)
    raise no_overload("math.sign", value)


def square_root(f: Frame, value: Any) -> float:
    if not is_number(value):
        raise no_overload("math.sqrt", value)
    number = to_double(f, value)
    return math.nan if number < 0 else math.sqrt(number)


_BITS = UINT_MAX


def _signed(bits: int) -> int:
    return bits - 2**64 if bits > INT_MAX else bits


def _bits(what: str, function: Callable[[int, int], int]) -> Function:
    def run(f: Frame, a: Any, b: Any) -> int:
        a, b = as_uint(a), as_uint(b)
        if type(a) is UInt and type(b) is UInt:
            return UInt(function(a, b))
        if type(a) is int and type(b) is int:
            check_64_bits(a)
            check_64_bits(b)
            return function(a, b)
        raise no_overload(what, a, b)

    return run


def bit_not(f: Frame, value: Any) -> int:
    value = as_uint(value)
    if type(value) is UInt:
        return UInt(~int(value) & _BITS)
    if type(value) is int:
        return ~value
    raise no_overload("math.bitNot", value)


def _shift(what: str, function: Callable[[int, int], int]) -> Function:
    def run(f: Frame, value: Any, by: Any) -> int:
        value = as_uint(value)
        if type(by) is not int or type(value) not in (int, UInt):
            raise no_overload(what, value, by)
        if by < 0:
            raise CelError(f"{what}: a shift by {by} is negative")
        bits = function(int(value) & _BITS, by) & _BITS if by < 64 else 0
        return UInt(bits) if type(value) is UInt else _signed(bits)

    return run


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
    "math.@max": greatest,
    "math.@min": least,
    "math.ceil": _rounding("math.ceil", math.ceil),
    "math.floor": _rounding("math.floor", math.floor),
    "math.round": _rounding("math.round", _round),
    "math.trunc": _rounding("math.trunc", math.trunc),
    "math.isInf": _double_test("math.isInf", math.isinf),
    "math.isNaN": _double_test("math.isNaN", math.isnan),
    "math.isFinite": _double_test("math.isFinite", math.isfinite),
    "math.abs": absolute,
    "math.sign": sign,
    "math.sqrt": square_root,
    "math.bitAnd": _bits("math.bitAnd", lambda a, b: a & b),
    "math.bitOr": _bits("math.bitOr", lambda a, b: a | b),
    "math.bitXor": _bits("math.bitXor", lambda a, b: a ^ b),
    "math.bitNot": bit_not,
    "math.bitShiftLeft": _shift("math.bitShiftLeft", lambda bits, by: bits << by),
    "math.bitShiftRight": _shift("math.bitShiftRight", lambda bits, by: bits >> by),
    "optional.of": lambda f, value: Optional(True, value),
    "optional.none": lambda f: NONE,
    "optional.ofNonZeroValue": optional_of_non_zero,
    "hasValue": lambda f, value: _optional("hasValue", value).present,
    "value": optional_value,
    "first": first,
    "last": last,
    **{name: part_of(name) for name in PARTS},
}
