"""Operators: arithmetic, comparison, equality, membership, selection, indexing."""

import math
import operator
from collections.abc import Callable
from typing import Any

from orchestrator_agent.workflows.cel.meter import UNITS, Frame, build, next_slice, spend
from orchestrator_agent.workflows.cel.times import checked_duration, checked_timestamp
from orchestrator_agent.workflows.cel.values import (
    INT_MAX,
    INT_MIN,
    NONE,
    UINT_MAX,
    CelError,
    Duration,
    Optional,
    Timestamp,
    UInt,
    check_64_bits,
    is_number,
    keys_of,
    map_key,
    no_overload,
    shown_type,
)

# -- arithmetic -------------------------------------------------------------------------------------------------------


def _int(value: int, *operands: int) -> int:
    """The result of an operation on ints. Integers of JSON may be longer than CEL's."""
    for operand in operands:
        check_64_bits(operand)
        if operand > INT_MAX:
            raise CelError("no matching overload: int and uint do not mix, and an integer above 2^63 is a uint")
    if not INT_MIN <= value <= INT_MAX:
        raise CelError("integer overflow")
    return value


def _uint(value: int) -> UInt:
    if not 0 <= value <= UINT_MAX:
        raise CelError("unsigned integer overflow")
    return UInt(value)


def as_uint(value: Any) -> Any:
    """An integer of JSON that int is too small for, as the uint that it is."""
    if type(value) is int and value > INT_MAX:
        check_64_bits(value)
        return UInt(value)
    return value


def add(f: Frame, a: Any, b: Any) -> Any:
    kind, other = type(a), type(b)
    if kind is int and other is int:
        value = a + b
        if INT_MIN <= value <= INT_MAX and INT_MIN <= a <= INT_MAX and INT_MIN <= b <= INT_MAX:
            return value
        if a > INT_MAX and b > INT_MAX:
            return _uint(as_uint(a) + as_uint(b))
        return _int(value, a, b)
    if kind is other:
        if kind is str or kind is bytes:
            size = len(a) + len(b)
            build(f, size)
            spend(f, size >> 6)
            return a + b
        if kind is float:
            return a + b
        if kind is list:
            size = len(a) + len(b)
            build(f, 2 * size)
            spend(f, size >> 4)
            return a + b
        if kind is UInt:
            return _uint(int(a) + int(b))
        if kind is Duration:
            return checked_duration(a.nanos + b.nanos)
    if kind is Timestamp and other is Duration:
        return checked_timestamp(a.nanos + b.nanos)
    if kind is Duration and other is Timestamp:
        return checked_timestamp(a.nanos + b.nanos)
    return _again(add, "'+'", f, a, b)


def subtract(f: Frame, a: Any, b: Any) -> Any:
    kind, other = type(a), type(b)
    if kind is int and other is int:
        if a > INT_MAX and b > INT_MAX:
            return _uint(as_uint(a) - as_uint(b))
        return _int(a - b, a, b)
    if kind is other:
        if kind is float:
            return a - b
        if kind is UInt:
            return _uint(int(a) - int(b))
        if kind is Timestamp:
            return checked_duration(a.nanos - b.nanos)
        if kind is Duration:
            return checked_duration(a.nanos - b.nanos)
    if kind is Timestamp and other is Duration:
        return checked_timestamp(a.nanos - b.nanos)
    return _again(subtract, "'-'", f, a, b)


def multiply(f: Frame, a: Any, b: Any) -> Any:
    kind = type(a)
    if kind is type(b):
        if kind is int:
            if a > INT_MAX and b > INT_MAX:
                return _uint(as_uint(a) * as_uint(b))
            return _int(a * b, a, b)
        if kind is float:
            return a * b
        if kind is UInt:
            return _uint(int(a) * int(b))
    return _again(multiply, "'*'", f, a, b)


def divide(f: Frame, a: Any, b: Any) -> Any:
    kind = type(a)
    if kind is type(b):
        if kind is float:
            return _divided(a, b)
        if kind is int or kind is UInt:
            if b == 0:
                raise CelError("divide by zero")
            if kind is UInt or (a > INT_MAX and b > INT_MAX):
                return _uint(int(as_uint(a)) // int(as_uint(b)))
            # Toward zero, as in C.
            return _int(abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1), a, b)
    return _again(divide, "'/'", f, a, b)


def _divided(a: float, b: float) -> float:
    try:
        return a / b
    except ZeroDivisionError:
        if a == 0 or math.isnan(a):
            return math.nan
        return math.copysign(math.inf, a) * math.copysign(1, b)


def modulo(f: Frame, a: Any, b: Any) -> Any:
    kind = type(a)
    if kind is type(b) and (kind is int or kind is UInt):
        if b == 0:
            raise CelError("modulus by zero")
        if kind is UInt or (a > INT_MAX and b > INT_MAX):
            return _uint(int(as_uint(a)) % int(as_uint(b)))
        if a == INT_MIN and b == -1:
            # As in C, whose quotient would overflow.
            raise CelError("integer overflow")
        # The sign of the dividend, as in C.
        return _int((abs(a) % abs(b)) * (-1 if a < 0 else 1), a, b)
    return _again(modulo, "'%'", f, a, b)


def negate(f: Frame, a: Any) -> Any:
    if type(a) is int:
        return _int(-a, a)
    if type(a) is float:
        return -a
    raise no_overload("'-'", a)


def _again(function: Callable[[Frame, Any, Any], Any], what: str, f: Frame, a: Any, b: Any) -> Any:
    """Once more, with integers that are too large for int as uints; otherwise there is no such operation."""
    first, second = as_uint(a), as_uint(b)
    if first is not a or second is not b:
        return function(f, first, second)
    raise no_overload(what, a, b)


# -- comparison -------------------------------------------------------------------------------------------------------

_ORDERED = (str, bytes, bool, Timestamp, Duration)


def _compare(what: str, compare: Callable[[Any, Any], bool]) -> Callable[[Frame, Any, Any], bool]:
    def run(f: Frame, a: Any, b: Any) -> bool:
        kind, other = type(a), type(b)
        if kind is other and (kind is int or kind is float or kind is str):
            return compare(a, b)
        if is_number(a) and is_number(b):
            return compare(a, b)
        if kind is other and kind in _ORDERED:
            return compare(a, b)
        raise no_overload(what, a, b)

    return run


less = _compare("'<'", operator.lt)
less_or_equal = _compare("'<='", operator.le)
greater = _compare("'>'", operator.gt)
greater_or_equal = _compare("'>='", operator.ge)


def equal(f: Frame, a: Any, b: Any) -> bool:
    """Equality of any two values: of different types they are unequal, but numbers compare as numbers."""
    kind, other = type(a), type(b)
    if kind is str or other is str:
        return kind is other and bool(a == b)
    if kind is list or other is list:
        if kind is not other or len(a) != len(b):
            return False
        spend(f, len(a))
        return all(equal(f, first, second) for first, second in zip(a, b, strict=True))
    if isinstance(a, dict) or isinstance(b, dict):
        if not (isinstance(a, dict) and isinstance(b, dict)) or len(a) != len(b):
            return False
        spend(f, len(a))
        return all(key in b and equal(f, value, b[key]) for key, value in a.items())
    if is_number(a) and is_number(b):
        return bool(a == b)
    if kind is Optional and other is Optional:
        return a.present == b.present and (not a.present or equal(f, a.value, b.value))
    return kind is other and bool(a == b)


def unequal(f: Frame, a: Any, b: Any) -> bool:
    return not equal(f, a, b)


def contained(f: Frame, value: Any, container: Any) -> bool:
    """`value in container`: an element of a list, a key of a map."""
    if type(container) is list:
        if type(value) is str:
            # Nothing but a string is equal to one, so that Python's own search will do.
            spend(f, len(container) >> 3)
            return value in container
        for element in container:
            f[UNITS] -= 2
            if f[UNITS] < 0:
                next_slice(f)
            if equal(f, element, value):
                return True
        return False
    if isinstance(container, dict):
        key = map_key(value)
        if key is None and type(value) is not float:
            raise no_overload("'in'", value, container)
        return key is not None and key in container
    raise no_overload("'in'", value, container)


# -- selection --------------------------------------------------------------------------------------------------------


def select(value: Any, field: str, where: str) -> Any:
    """`value.field`; `where` is how the operand is written, if it is a plain path."""
    if isinstance(value, dict):
        if field in value:
            return value[field]
        raise CelError(f"{_subject(where)} has no field '{field}'")
    if type(value) is Optional:
        return optional_select(value, field)
    raise CelError(f"{_subject(where)} is {kind_of(value)}, it has no field '{field}'")


def _subject(where: str) -> str:
    return f"'{where}'" if where else "the value"


def kind_of(value: Any) -> str:
    """What a value is, in JSON's words where JSON has one."""
    kinds = {type(None): "null", bool: "a boolean", str: "a string", dict: "an object", list: "a list"}
    if (word := kinds.get(type(value))) is not None:
        return word
    if isinstance(value, dict):
        return "an object"
    return "a number" if is_number(value) else f"a {shown_type(value)}"


def has_field(value: Any, field: str, where: str) -> bool:
    """`has(value.field)`. Of null, nothing has a field: that is ours, in CEL it is an error."""
    if isinstance(value, dict):
        return field in value
    if value is None:
        return False
    if type(value) is Optional:
        return value.present and has_field(value.value, field, where)
    raise CelError(f"{_subject(where)} is {kind_of(value)}, it has no fields")


def optional_select(value: Any, field: str) -> Optional:
    """`value.?field`: none where there is no such field, and (ours) where the value is null."""
    if type(value) is Optional:
        if not value.present:
            return NONE
        value = value.value
    if isinstance(value, dict):
        return Optional(True, value[field]) if field in value else NONE
    if value is None:
        return NONE
    raise CelError(f"no matching overload: {kind_of(value)} has no field '{field}'")


def index(f: Frame, container: Any, key: Any) -> Any:
    """`container[key]`."""
    if type(container) is list:
        position = _position(key)
        if 0 <= position < len(container):
            return container[position]
        raise CelError(f"index out of bounds: index={position} size={len(container)}")
    if isinstance(container, dict):
        found = map_key(key)
        if found is not None and found in container:
            return container[found]
        if found is None and type(key) is not float:
            raise CelError(f"a key is a string, an integer or a boolean, not {kind_of(key)}")
        raise CelError(f"no such key: {key}")
    if type(container) is Optional:
        return optional_index(f, container, key)
    raise no_overload("'[]'", container, key)


def _position(key: Any) -> int:
    if type(key) is float and key.is_integer():
        return int(key)
    if type(key) is int or type(key) is UInt:
        return int(key)
    raise CelError(f"index error: expected an integer, got {kind_of(key)}")


def optional_index(f: Frame, container: Any, key: Any) -> Optional:
    """`container[?key]`."""
    if type(container) is Optional:
        if not container.present:
            return NONE
        container = container.value
    if type(container) is list:
        if type(key) is not int:
            raise no_overload("'[?]'", container, key)
        return Optional(True, container[key]) if 0 <= key < len(container) else NONE
    if isinstance(container, dict):
        found = map_key(key)
        return Optional(True, container[found]) if found is not None and found in container else NONE
    if container is None:
        return NONE
    raise no_overload("'[?]'", container, key)


def elements_of(value: Any) -> list[Any]:
    """What a macro goes over: a list's elements, a map's keys."""
    if type(value) is list:
        return value
    if isinstance(value, dict):
        return keys_of(value)
    raise CelError(f"no matching overload: {kind_of(value)} is neither a list nor a map")
