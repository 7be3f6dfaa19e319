"""Conversions between CEL's types: `int(…)`, `string(…)`, `timestamp(…)`, …"""

import re
from typing import Any

from orchestrator_agent.workflows.cel.formatting import double_text
from orchestrator_agent.workflows.cel.meter import Frame, build
from orchestrator_agent.workflows.cel.times import (
    SECOND,
    checked_timestamp,
    duration_text,
    parse_duration,
    parse_timestamp,
    timestamp_text,
)
from orchestrator_agent.workflows.cel.values import (
    INT_MAX,
    INT_MIN,
    UINT_MAX,
    CelError,
    CelType,
    Duration,
    Timestamp,
    UInt,
    check_64_bits,
    no_overload,
    type_name,
)

_INTEGER = re.compile(r"\s*([+-]?)0*(\d+)\s*", re.ASCII)
_DOUBLE = re.compile(r"\s*[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|inf|infinity|nan)\s*", re.ASCII | re.IGNORECASE)
_MOST_DIGITS = 20


def _integer_of(text: str, kind: str) -> int:
    match = _INTEGER.fullmatch(text)
    if match is None or len(match[2]) > _MOST_DIGITS:
        raise CelError(f"cannot convert string to {kind}")
    return int(match[1] + match[2])


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
    if type(value) is not str:
        raise no_overload("bytes(…)", value)
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
