"""The texts of values: `string(…)`, `format`, and JSON."""

import math
from typing import Any

from orchestrator_agent.workflows.cel.meter import Frame, build, spend
from orchestrator_agent.workflows.cel.times import (
    duration_text,
    short_duration_text,
    short_timestamp_text,
    timestamp_text,
)
from orchestrator_agent.workflows.cel.values import (
    CelError,
    CelType,
    Duration,
    LimitExceeded,
    MixedMap,
    Optional,
    Timestamp,
    UInt,
    base64_text,
    check_64_bits,
    finite,
    is_number,
    key_value,
    shown_type,
)

_MAX_PRECISION = 1000


def double_text(value: float) -> str:
    """The fewest digits that are read as the same double, with an exponent where that is not within -4 and 5."""
    if math.isnan(value):
        return "nan"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    mantissa, _, exponent = repr(abs(value)).partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    # The power of ten of the first digit that is not zero.
    power = int(exponent or 0) + len(whole) - 1 - (len(whole + fraction) - len(digits))
    digits = digits.rstrip("0") or "0"
    sign = "-" if math.copysign(1, value) < 0 else ""
    if value == 0:
        return f"{sign}0"
    if not -4 <= power < 6:
        rest = f".{digits[1:]}" if len(digits) > 1 else ""
        return f"{sign}{digits[0]}{rest}e{'-' if power < 0 else '+'}{abs(power):02d}"
    if power < 0:
        return f"{sign}0.{'0' * (-power - 1)}{digits}"
    padded = digits.ljust(power + 1, "0")
    return sign + padded[: power + 1] + (f".{padded[power + 1 :]}" if len(padded) > power + 1 else "")


def to_json(f: Frame, value: Any) -> Any:
    """A value as JSON: what JSON lacks, as the JSON mapping of protocol buffers writes it."""
    kind = type(value)
    if kind is str or kind is int or value is None or kind is bool:
        return value
    if kind is float:
        return finite(value)
    if kind is list:
        spend(f, len(value))
        build(f, 2 * len(value))
        return [to_json(f, element) for element in value]
    if kind is dict or kind is MixedMap:
        spend(f, 2 * len(value))
        build(f, 6 * len(value))
        return {_json_key(key): to_json(f, element) for key, element in value.items()}
    if kind is UInt:
        return int(value)
    if kind is Timestamp:
        return timestamp_text(value)
    if kind is Duration:
        return short_duration_text(value)
    if kind is bytes:
        return base64_text(value)
    if kind is CelType:
        return value.name
    raise CelError("an optional value is no JSON: end it with .orValue(…), or with .value() where it must be there")


def _json_key(key: Any) -> str:
    value = key_value(key)
    if value is True or value is False:
        return "true" if value else "false"
    return str(int(value)) if type(value) is UInt else str(value)


def measure(f: Frame, value: Any, limit: int) -> int:
    """About how many bytes a JSON value has as text. A part that stands in it often is measured once.

    Raises LimitExceeded beyond the limit.
    """
    known: dict[int, int] = {}

    def size_of(part: Any) -> int:
        if type(part) is str:
            return len(part) + 2
        if not isinstance(part, list | dict):
            return 4
        if (size := known.get(id(part))) is not None:
            return size
        spend(f, 2 * len(part))
        if isinstance(part, dict):
            size = 2 + sum(len(key) + 4 for key in part if type(key) is str) + sum(map(size_of, part.values()))
        else:
            size = 2 + len(part) + sum(map(size_of, part))
        known[id(part)] = size
        return size

    total = size_of(value)
    if total > limit:
        raise LimitExceeded(f"it gives {total} bytes, as the same values stand in it many times")
    return total


# -- format -----------------------------------------------------------------------------------------------------------


def formatted(f: Frame, text: Any, values: Any) -> str:
    """`'… %s …'.format([…])`: %s, %d, %f, %e, %x, %X, %o, %b, with a precision for %f and %e; %% is a percent sign."""
    if type(text) is not str or type(values) is not list:
        raise CelError("no matching overload: format is of a string and a list")
    spend(f, len(text) >> 2)
    parts: list[str] = []
    position, used = 0, 0
    while True:
        start = text.find("%", position)
        if start < 0:
            parts.append(text[position:])
            break
        parts.append(text[position:start])
        position = start + 1
        if text.startswith("%", position):
            parts.append("%")
            position += 1
            continue
        if used >= len(values):
            raise CelError(f"format: there is no value number {used} in the list")
        precision: int | None = None
        if text.startswith(".", position):
            end = position + 1
            while end < len(text) and text[end] in "0123456789":
                end += 1
            digits = text[position + 1 : end]
            if not digits or len(digits) > 4 or int(digits) > _MAX_PRECISION:
                raise CelError(f"format: a precision is a number up to {_MAX_PRECISION}")
            precision, position = int(digits), end
        if position >= len(text):
            raise CelError("format: the text ends within a clause")
        part = _clause(f, text[position], values[used], precision)
        build(f, len(part))
        parts.append(part)
        used += 1
        position += 1
    return "".join(parts)


def _clause(f: Frame, clause: str, value: Any, precision: int | None) -> str:
    match clause:
        case "s":
            return _text(f, value)
        case "d":
            if is_number(value):
                return _fixed(value, None, "f") if type(value) is float else _digits(value)
            raise CelError(f"format: %d is for numbers, not for {shown_type(value)}")
        case "f" | "e":
            return _fixed(_double(value), precision, clause)
        case "x" | "X":
            return _hex(value).upper() if clause == "X" else _hex(value)
        case "o":
            if is_number(value) and type(value) is not float:
                return f"{value:o}"
            raise CelError(f"format: %o is for integers, not for {shown_type(value)}")
        case "b":
            if type(value) is bool or (is_number(value) and type(value) is not float):
                return f"{int(value):b}"
            raise CelError(f"format: %b is for integers and booleans, not for {shown_type(value)}")
    raise CelError(f"format: there is no clause %{clause}")


def _digits(value: int) -> str:
    check_64_bits(value)
    return str(int(value))


def _double(value: Any) -> float:
    if type(value) is str:
        if value in ("NaN", "Infinity", "-Infinity"):
            return float(value)
        raise CelError("format: %f and %e are for numbers; of texts, for NaN, Infinity and -Infinity")
    if not is_number(value):
        raise CelError(f"format: %f and %e are for numbers, not for {shown_type(value)}")
    if type(value) is not float:
        check_64_bits(value)
    return float(value)


def _special(value: float) -> str | None:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return None


def _fixed(value: float, precision: int | None, letter: str) -> str:
    return _special(value) or f"{value:.{6 if precision is None else precision}{letter}}"


def _hex(value: Any) -> str:
    if type(value) is str:
        return value.encode("utf-8", "surrogatepass").hex()
    if type(value) is bytes:
        return value.hex()
    if is_number(value) and type(value) is not float:
        check_64_bits(value)
        return f"{int(value):x}"
    raise CelError(f"format: %x is for integers, bytes and strings, not for {shown_type(value)}")


def _text(f: Frame, value: Any) -> str:
    kind = type(value)
    if kind is str:
        return str(value)
    if kind is list:
        spend(f, len(value))
        return _joined(f, "[", [_text(f, element) for element in value], "]")
    if isinstance(value, dict):
        spend(f, 2 * len(value))
        texts = {_text(f, key_value(key)): element for key, element in value.items()}
        return _joined(f, "{", [f"{key}: {_text(f, texts[key])}" for key in sorted(texts)], "}")
    if value is None:
        return "null"
    if kind is bool:
        return "true" if value else "false"
    if kind is float:
        # Six significant digits, unlike `string(…)`: so does the library.
        return _special(value) or f"{value:.6g}"
    if kind is bytes:
        return _utf8(value)
    if kind is Timestamp:
        return short_timestamp_text(value)
    if kind is Duration:
        return duration_text(value)
    if kind is CelType:
        return str(value.name)
    if kind is Optional:
        raise CelError("format: an optional value has no text: end it with .orValue(…)")
    return _digits(value)


def _joined(f: Frame, left: str, parts: list[str], right: str) -> str:
    build(f, 2 + sum(map(len, parts)) + 2 * len(parts))
    return left + ", ".join(parts) + right


def _utf8(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise CelError("malformed UTF-8 bytes") from None
