"""The math extension: `math.greatest(…)`, `math.round(…)`, `math.bitAnd(…)`, …"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from orchestrator_agent.workflows.cel.conversions import to_double
from orchestrator_agent.workflows.cel.meter import Frame, spend
from orchestrator_agent.workflows.cel.operators import as_uint
from orchestrator_agent.workflows.cel.values import (
    INT_MAX,
    INT_MIN,
    UINT_MAX,
    CelError,
    UInt,
    check_64_bits,
    is_number,
    no_overload,
    shown_type,
)

Function = Callable[..., Any]


def _numbers(what: str, values: tuple[Any, ...]) -> list[Any]:
    """The arguments, or the elements of the list that is the only one."""
    numbers = list(values[0]) if len(values) == 1 and type(values[0]) is list else list(values)
    if not numbers:
        raise CelError(f"{what} of an empty list")
    for value in numbers:
        if not is_number(value):
            raise CelError(f"{what} is of numbers, not of {shown_type(value)}")
    return [as_uint(value) for value in numbers]


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
        check_64_bits(value)
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


MATHEMATICS: Mapping[str, Function] = {
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
}
