"""This project's own functions over lists and JSON, which CEL lacks. docs/workflows.md documents them as such."""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from heapq import merge
from operator import itemgetter
from typing import Any, NoReturn

from pydantic_core import from_json

from orchestrator_agent.workflows.cel.formatting import measure, to_json
from orchestrator_agent.workflows.cel.meter import MAX_BUILT_BYTES, UNITS, Frame, build, next_slice, spend
from orchestrator_agent.workflows.cel.operators import kind_of
from orchestrator_agent.workflows.cel.values import (
    INT_MAX,
    INT_MIN,
    CelError,
    Duration,
    MixedMap,
    Timestamp,
    check_64_bits,
    is_number,
    map_key,
    no_overload,
)
from protocol.messages import json_bytes

# A sort holds the interpreter for as long as it takes: so many elements are some milliseconds.
_SORT_CHUNK = 20_000
_MAX_DEPTH = 100
_HALF_A_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


def _list(what: str, value: Any) -> list[Any]:
    if type(value) is not list:
        raise CelError(f"no matching overload: {what} is of a list, not of {kind_of(value)}")
    return value


def _each(f: Frame, values: list[Any], units: int) -> Iterator[Any]:
    """The elements, counted."""
    for value in values:
        f[UNITS] -= units
        if f[UNITS] < 0:
            next_slice(f)
        yield value


# -- numbers ---------------------------------------------------------------------------------------------------------


def total(f: Frame, values: Any) -> int | float:
    """An int of ints; a double as soon as one of the numbers is a double."""
    whole, fraction, doubles = 0, 0.0, False
    for value in _each(f, _list("sum", values), 1):
        if not is_number(value):
            raise CelError(f"sum is of numbers, not of {kind_of(value)}")
        if type(value) is float:
            doubles = True
            fraction += value
        else:
            check_64_bits(value)
            whole += value
    if doubles:
        return whole + fraction
    if not INT_MIN <= whole <= INT_MAX:
        raise CelError("integer overflow")
    return int(whole)


def average(f: Frame, values: Any) -> float:
    if not _list("avg", values):
        raise CelError("avg of an empty list")
    return float(total(f, values)) / len(values)


def _kind_of_order(what: str, value: Any) -> str:
    """What a value is compared as: numbers with numbers, texts with texts."""
    if is_number(value):
        if math.isnan(value):
            raise CelError(f"{what}: NaN has no order")
        return "numbers"
    if isinstance(value, str | bool | bytes | Timestamp | Duration):
        return type(value).__name__
    raise CelError(f"{what}: {kind_of(value)} has no order")


def _in_order(f: Frame, what: str, keys: list[Any]) -> None:
    """Raises CelError unless each of the keys can be compared with every other one."""
    kinds = {_kind_of_order(what, key) for key in _each(f, keys, 2)}
    if len(kinds) > 1:
        raise CelError(f"{what}: values of several types have no order")


def _extreme(what: str, choose: Callable[[list[Any]], Any]) -> Callable[[Frame, Any], Any]:
    def run(f: Frame, values: Any) -> Any:
        if not _list(what, values):
            raise CelError(f"{what} of an empty list")
        _in_order(f, what, values)
        # In pieces, so that the event loop does not wait for the whole.
        pieces = (values[at : at + _SORT_CHUNK] for at in range(0, len(values), _SORT_CHUNK))
        return choose([choose(piece) for piece in pieces])

    return run


# -- lists -----------------------------------------------------------------------------------------------------------


def sort_pairs(f: Frame, pairs: Any) -> list[Any]:
    """The first of each pair, in the order of the second ones; what `sort_by` is made of."""
    pairs = _list("sort_by", pairs)
    _in_order(f, "sort_by", [key for _, key in pairs])
    spend(f, 2 * len(pairs))
    build(f, 2 * len(pairs))
    by_key = itemgetter(1)
    chunks = [sorted(pairs[at : at + _SORT_CHUNK], key=by_key) for at in range(0, len(pairs), _SORT_CHUNK)]
    if len(chunks) == 1:
        return [value for value, _ in chunks[0]]
    made = []
    for value, _ in merge(*chunks, key=by_key):
        f[UNITS] -= 8
        if f[UNITS] < 0:
            next_slice(f)
        made.append(value)
    return made


def group_pairs(f: Frame, pairs: Any) -> dict[Any, Any]:
    """A map of lists: the first of each pair under the second; what `group_by` is made of."""
    groups: dict[Any, list[Any]] = {}
    texts = True
    build(f, 2 * len(_list("group_by", pairs)))
    for value, key in _each(f, pairs, 4):
        found = map_key(key)
        if found is None or type(key) is float:
            raise CelError(f"group_by: a key is a string, an integer or a boolean, not {kind_of(key)}")
        texts = texts and type(key) is str
        groups.setdefault(found, []).append(value)
    return groups if texts else MixedMap(groups)


def flatten(f: Frame, values: Any, depth: Any = 1) -> list[Any]:
    """Lists in a list are replaced by their elements, `depth` levels deep."""
    if type(depth) is not int or not 0 <= depth <= _MAX_DEPTH:
        raise CelError(f"flatten: a depth is an int from 0 to {_MAX_DEPTH}")
    made = _list("flatten", values)
    for _ in range(depth):
        below: list[Any] = []
        nested = False
        for value in _each(f, made, 1):
            if type(value) is list:
                nested = True
                build(f, 2 * len(value))
                spend(f, len(value) >> 3)
                below.extend(value)
            else:
                below.append(value)
        build(f, 2 * len(made))
        if not nested:
            return made
        made = below
    return made


def unique(f: Frame, values: Any) -> list[Any]:
    """The elements that are equal to none before them."""
    seen: set[Any] = set()
    made = []
    for value in _each(f, _list("unique", values), 3):
        identity = _identity(f, value)
        if identity not in seen:
            seen.add(identity)
            made.append(value)
    build(f, 2 * len(made))
    return made


def _identity(f: Frame, value: Any) -> Any:
    """Something with a hash that is the same for equal values, and for no others."""
    if type(value) is bool or value is None:
        return (type(value), value)
    if type(value) is list:
        build(f, 2 * len(value))
        return (list, tuple(_identity(f, element) for element in _each(f, value, 3)))
    if isinstance(value, dict):
        build(f, 6 * len(value))
        spend(f, 4 * len(value))
        return (dict, frozenset((key, _identity(f, element)) for key, element in value.items()))
    # Numbers are equal as numbers, and have the same hash then.
    return value


# -- JSON ------------------------------------------------------------------------------------------------------------


def json_text(f: Frame, value: Any) -> str:
    build(f, measure(f, value, MAX_BUILT_BYTES))
    value = to_json(f, value)
    if type(value) is not list or len(value) <= _SORT_CHUNK:
        return json_bytes(value).decode()
    # In pieces, so that the event loop does not wait for the whole.
    pieces = []
    for at in range(0, len(value), _SORT_CHUNK):
        spend(f, _SORT_CHUNK)
        pieces.append(json_bytes(value[at : at + _SORT_CHUNK])[1:-1].decode())
    return f"[{','.join(pieces)}]"


def parse_json(f: Frame, text: Any) -> Any:
    if type(text) is not str:
        raise no_overload("parse_json", text)
    build(f, len(text))
    spend(f, len(text))
    try:
        if _HALF_A_PAIR.search(text) is not None:
            # The reader of messages refuses half a surrogate pair, which could be neither sent nor stored.
            from_json(text)
        return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise CelError(f"parse_json: not JSON: {reason}") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"JSON has no {name}")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is too large")
    return number


ADDITIONS: Mapping[str, Callable[..., Any]] = {
    "sum": total,
    "avg": average,
    "min": _extreme("min", min),
    "max": _extreme("max", max),
    "sort_pairs__": sort_pairs,
    "group_pairs__": group_pairs,
    "flatten": flatten,
    "unique": unique,
    "to_json": json_text,
    "parse_json": parse_json,
}
