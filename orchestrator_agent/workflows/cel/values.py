"""Values that JSON lacks, the errors of an evaluation, and the way from a CEL value to JSON."""

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

INT_MIN, INT_MAX = -(2**63), 2**63 - 1
UINT_MAX = 2**64 - 1


class CelError(Exception):
    """An error of the language: absorbed by `&&`, `||`, `all` and `exists` where their value does not depend on it."""


class LimitExceeded(Exception):
    """The evaluation costs more than it may. No operator absorbs it."""


class UInt(int):
    """CEL's uint: an unsigned 64-bit integer, which does not mix with int."""


@dataclass(frozen=True, slots=True, order=True)
class Timestamp:
    """Nanoseconds since 1970 in UTC."""

    nanos: int


@dataclass(frozen=True, slots=True, order=True)
class Duration:
    nanos: int


@dataclass(frozen=True, slots=True)
class CelType:
    name: str


@dataclass(frozen=True, slots=True)
class Optional:
    """CEL's optional value. `present`: an optional null is there, none is not."""

    present: bool
    value: Any = None


NONE = Optional(False)


@dataclass(frozen=True, slots=True)
class BoolKey:
    """A boolean as a key of a map: in Python, True and 1 would be the same key."""

    value: bool


class MixedMap(dict[Any, Any]):
    """A map literal with keys that are no strings. JSON's objects, and literals like them, are plain dicts."""


def map_key(value: Any) -> Any:
    """A CEL value as the key by which Python's dict finds it: numbers that are equal are one key."""
    kind = type(value)
    if kind is str or kind is int:
        return value
    if kind is bool:
        return BoolKey(value)
    if kind is UInt:
        return value
    if kind is float and value.is_integer():
        return int(value)
    return None


def key_value(key: Any) -> Any:
    return key.value if type(key) is BoolKey else key


def keys_of(value: dict[Any, Any]) -> list[Any]:
    return [key_value(key) for key in value] if type(value) is MixedMap else list(value)


_TYPE_NAMES: Mapping[type, str] = {
    type(None): "null_type",
    bool: "bool",
    float: "double",
    UInt: "uint",
    str: "string",
    bytes: "bytes",
    list: "list",
    dict: "map",
    MixedMap: "map",
    Timestamp: "google.protobuf.Timestamp",
    Duration: "google.protobuf.Duration",
    CelType: "type",
    Optional: "optional_type",
}


def type_name(value: Any) -> str:
    """The name of a value's CEL type. An integer of JSON that int is too small for is a uint."""
    if type(value) is int:
        return "int" if value <= INT_MAX else "uint"
    return _TYPE_NAMES[type(value)]


# What messages call the types whose names are long.
_SHOWN_TYPES = {"null_type": "null", "google.protobuf.Timestamp": "timestamp", "google.protobuf.Duration": "duration"}


def shown_type(value: Any) -> str:
    name = type_name(value)
    return _SHOWN_TYPES.get(name, name.removesuffix("_type"))


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and type(value) is not bool


def no_overload(what: str, *operands: Any) -> CelError:
    """The error of an operator or function that is not defined for such operands."""
    kinds = [shown_type(operand) for operand in operands]
    hint = ""
    if len(operands) == 2 and all(map(is_number, operands)) and kinds[0] != kinds[1]:
        hint = f"; CEL does not mix them: convert one with {kinds[0]}(…) or {kinds[1]}(…)"
    return CelError(f"no matching overload: {what} is not defined for {' and '.join(kinds)}{hint}")


def check_64_bits(value: int) -> None:
    if not INT_MIN <= value <= UINT_MAX:
        raise CelError("an integer out of range: CEL's have 64 bits")


def base64_text(value: bytes) -> str:
    return base64.b64encode(value).decode()


def finite(value: float) -> float | None:
    """As it will be in the database, which has no infinity: a run that is read again must see what it saw before."""
    return value if math.isfinite(value) else None
