"""Expressions drawn at random, by type, over fixed variables; and what Google's evaluator makes of them.

An optional value is always taken apart again (`orValue`, `hasValue`): results are plain values.
"""

import base64
import math
from datetime import datetime, timedelta
from typing import Any

from cel_expr_python import cel
from cel_expr_python.ext import ext_math, ext_optional, ext_strings
from hypothesis import strategies as st

VARIABLES: dict[str, Any] = {
    "input": {
        "n": 7,
        "zero": 0,
        "x": 2.5,
        "s": "héllo wörld",
        "t": "a,b,,c",
        "empty": "",
        "yes": True,
        "no": False,
        "none": None,
        "l": [3, 1, 2],
        "d": [1.5, -0.5],
        "words": ["b", "a", "b"],
        "mixed": [1, "a", None, True, 2.0, [1], {"k": 1}],
        "o": {"k": 1, "a b": "v", "in": {"deep": [1, {"x": None}]}},
        "at": "2024-02-29T23:59:59.123456Z",
    },
    "each": [{"id": 1, "t": "x", "v": 1.5}, {"id": 2, "t": "y"}, {"id": 2, "t": "", "v": None}],
}

_LITERALS: dict[str, list[str]] = {
    "int": "0 1 -1 2 7 9223372036854775807 -9223372036854775808 0x1F".split(),
    "uint": "0u 1u 7u 18446744073709551615u".split(),
    "double": "0.0 1.0 -2.5 1e3 1e-5 1e308 0.1".split(),
    "bool": ["true", "false"],
    "string": ["''", "'a'", "'é'", "'a,b'", '"x\\ny"', "'2024-02-29T12:00:00Z'", "'90s'", "'12'", "'1.5'", "'日本'"],
    "bytes": ["b''", "b'abc'", "b'\\xff'", "b'é'"],
    "timestamp": ["timestamp('2024-02-29T23:59:59.5Z')", "timestamp('1900-01-01T00:00:00Z')", "timestamp(input.at)"],
    "duration": ["duration('90s')", "duration('-1.5h')", "duration('1ms')", "duration('0s')"],
    "list": ["[]", "input.l", "input.d", "input.words", "input.mixed", "each", "[1, 2.5, 'x', null]"],
    "map": ["{}", "input.o", "each[0]", "each[2]", "{'a': 1, 'b': 'x'}", "{1: 'one', 2: 'two'}", "{true: 1}"],
    "null": ["null", "input.none"],
}
# Of the dynamic type: whatever is there.
_PATHS = """
    input.n input.zero input.x input.s input.t input.empty input.yes input.no input.none input.l input.d input.words
    input.mixed input.o input.o.k input.o.in.deep input.at each input.nothing input.s.nothing input["n"]
    input.o["a b"] each[0].t each[1].v each[5] input.mixed[4]
""".split()

_TIME_PARTS = (
    "getFullYear getMonth getDate getDayOfMonth getDayOfWeek getDayOfYear getHours getMinutes getSeconds".split()
)
_SPAN_PARTS = "getHours getMinutes getSeconds getMilliseconds".split()

# What gives a type: the text with a gap for each operand, the operands' types behind it.
_OPERATIONS: dict[str, list[str]] = {
    "int": [
        *(f"(_ {sign} _) int int" for sign in "+-*/%"),
        "-(_) int",
        "size(_) string",
        "_.size() list",
        "size(_) map",
        "size(_) bytes",
        "int(_) double",
        "int(_) string",
        "int(_) uint",
        "int(_) timestamp",
        "int(_) bool",
        "_.indexOf(_) string string",
        "_.lastIndexOf(_) string string",
        "_.indexOf(_, _) string string int",
        "_.lastIndexOf(_, _) string string int",
        "(_ ? _ : _) bool int int",
        "math.abs(_) int",
        "math.sign(_) int",
        "math.bitAnd(_, _) int int",
        "math.bitOr(_, _) int int",
        "math.bitXor(_, _) int int",
        "math.bitNot(_) int",
        "math.bitShiftLeft(_, _) int int",
        "math.bitShiftRight(_, _) int int",
        "math.greatest(_, _) int int",
        "optional.of(_).orValue(_) int int",
        "optional.ofNonZeroValue(_).orValue(_) int int",
        "optional.of(_).or(optional.of(_)).value() int int",
        "optional.of(_).optMap(v, v + 1).orValue(_) int int",
        *(f"_.{part}() timestamp" for part in [*_TIME_PARTS, "getMilliseconds"]),
        *(f"_.{part}('Europe/Berlin') timestamp" for part in _TIME_PARTS),
        *(f"_.{part}('-03:30') timestamp" for part in _TIME_PARTS),
        *(f"_.{part}() duration" for part in _SPAN_PARTS),
    ],
    "uint": [
        *(f"(_ {sign} _) uint uint" for sign in "+-*/%"),
        "uint(_) int",
        "uint(_) double",
        "uint(_) string",
        "math.abs(_) uint",
        "math.bitNot(_) uint",
        "math.bitShiftLeft(_, _) uint int",
        "math.bitShiftRight(_, _) uint int",
    ],
    "double": [
        *(f"(_ {sign} _) double double" for sign in "+-*/"),
        "-(_) double",
        "double(_) int",
        "double(_) uint",
        "double(_) string",
        *(f"math.{name}(_) double" for name in ("ceil", "floor", "round", "trunc", "abs", "sign", "sqrt")),
        "math.sqrt(_) int",
        "math.least(_, _) double double",
        "math.greatest([_, _, _]) double double double",
    ],
    "bool": [
        "(_ && _) bool bool",
        "(_ || _) bool bool",
        "!(_) bool",
        "(_ && _) dyn bool",
        "(_ || _) bool dyn",
        *(f"(_ {sign} _) dyn dyn" for sign in ("==", "!=", "<", "<=", ">", ">=")),
        *(f"(_ {sign} _) {kind} {kind}" for sign in ("==", "<", ">=") for kind in ("int", "double", "string", "bytes")),
        *(f"(_ {sign} _) {kind} {kind}" for sign in ("!=", "<=", ">") for kind in ("timestamp", "duration", "bool")),
        "(_ == _) list list",
        "(_ == _) map map",
        "(_ in _) dyn list",
        "(_ in _) dyn map",
        "_.contains(_) string string",
        "_.startsWith(_) string string",
        "_.endsWith(_) string string",
        "_.matches('^[a-z]+.*$') string",
        "matches(_, _) string string",
        "bool(_) string",
        "has(_.k) map",
        "has(_.nothing) map",
        "_.exists(e, _) list bool+",
        "_.all(e, _) list bool+",
        "_.exists_one(e, _) list bool+",
        "_.exists(e, _) map bool+",
        "math.isNaN(_) double",
        "math.isInf(_) double",
        "math.isFinite(_) double",
        "optional.of(_).hasValue() int",
        "optional.ofNonZeroValue(_).hasValue() dyn",
        "(optional.of(_) == optional.ofNonZeroValue(_)) int int",
        "_[?_].hasValue() list int",
        "_.?k.hasValue() map",
        "_.first().hasValue() list",
        "(type(_) == type(_)) dyn dyn",
        "(type(_) == int) dyn",
    ],
    "string": [
        "(_ + _) string string",
        *(f"string(_) {kind}" for kind in ("int", "uint", "double", "bool", "bytes", "timestamp", "duration")),
        "_.substring(_) string int",
        "_.charAt(_) string int",
        *(f"_.{name}() string" for name in ("trim", "lowerAscii", "upperAscii", "reverse")),
        "strings.quote(_) string",
        "_.replace(_, _) string string string",
        "_.replace(_, _, _) string string string int",
        "_.split(_).join(_) string string string",
        "_.map(e, string(e)).join(_) list string",
        "('%s|%s').format([_, _]) dyn list",
        "('%d %x %X %o %b').format([_, _, _, _, _]) int int int int int",
        "('%.2f %e %.0f %f').format([_, _, _, _]) double double double double",
        "('%s and %s %%').format([_, _]) map timestamp",
        "(_).format([_]) string dyn",
        "(_ ? _ : _) bool string string",
        "[_, _].last().orValue(_) string string string",
    ],
    "bytes": ["(_ + _) bytes bytes", "bytes(_) string"],
    "timestamp": [
        "(_ + _) timestamp duration",
        "(_ + _) duration timestamp",
        "(_ - _) timestamp duration",
        "timestamp(_) string",
        "timestamp(_) int",
    ],
    "duration": [
        "(_ + _) duration duration",
        "(_ - _) duration duration",
        "(_ - _) timestamp timestamp",
        "duration(_) string",
    ],
    "list": [
        "(_ + _) list list",
        "[_, _] dyn dyn",
        "[_] int",
        "[?optional.ofNonZeroValue(_), _] dyn dyn",
        "_.map(e, _) list dyn+",
        "_.map(e, _, _) list bool+ dyn+",
        "_.filter(e, _) list bool+",
        "_.map(e, _) map dyn+",
        "_.split(_) string string",
        "_.split(_, _) string string int",
        "_.map(e, each.map(w, _)) list dyn+",
        "(_ ? _ : _) bool list list",
    ],
    "map": [
        "{'a': _, 'b': _} dyn dyn",
        "{'k': _} int",
        "{_: _} string dyn",
        "{?'a': optional.ofNonZeroValue(_), 'z': _} dyn int",
        "(_ ? _ : _) bool map map",
    ],
    "null": [],
    "dyn": [
        "dyn(_) int",
        "_[_] list int",
        "_[_] map string",
        "_.k map",
        "_.?k.orValue(_) map dyn",
        "_[?_].orValue(_) list int dyn",
        "_.first().orValue(_) list dyn",
        "(_ ? _ : _) bool dyn dyn",
        "(_ + _) dyn dyn",
        "(_ * _) dyn dyn",
        *(f"_ {kind}" for kind in ("int", "uint", "double", "bool", "string", "list", "map", "null", "timestamp")),
    ],
}
_MAX_DEPTH = 4


@st.composite
def expressions(draw: st.DrawFn, kind: str = "dyn", depth: int = _MAX_DEPTH, bound: tuple[str, ...] = ()) -> str:
    """The text of an expression of a type, over VARIABLES and the names that macros around it have bound."""
    leaves = [*_LITERALS.get(kind, _PATHS), *(bound if kind == "dyn" else ()), *(_PATHS[:6] if kind != "dyn" else ())]
    operations = _OPERATIONS[kind]
    if depth == 0 or not operations or draw(st.integers(0, 3)) == 0:
        leaf: str = draw(st.sampled_from(leaves))
        return leaf
    template = draw(st.sampled_from(operations))
    gaps = template.count("_") - template.count("exists_one")
    text, *kinds = template.rsplit(" ", gaps)
    made = []
    pieces = text.replace("exists_one", "exists\0one").split("_")
    for number, operand in enumerate(kinds):
        names = (*bound, "e") if operand.endswith("+") else bound
        names = (*names, "w") if "map(w" in text and operand.endswith("+") else names
        made += [pieces[number], draw(expressions(operand.removesuffix("+"), depth - 1, names))]
    return "".join([*made, pieces[-1]]).replace("\0", "_")


_ENVIRONMENT = cel.NewEnv(
    variables=dict.fromkeys(VARIABLES, cel.Type.DYN),
    extensions=[ext_strings.ExtStrings(), ext_math.ExtMath(), ext_optional.ExtOptional()],
)


def outcome_of_the_library(text: str) -> tuple[str, Any]:
    """`refused` where the text does not compile, `failed` where it cannot be evaluated, or the value as JSON."""
    try:
        program = _ENVIRONMENT.compile(text)
    except RuntimeError as error:
        if "'_?_:_'" not in str(error) or str(error).count("ERROR: ") > str(error).count("'_?_:_'"):
            return "refused", None
        program = _ENVIRONMENT.compile(text, disable_check=True)
    try:
        value = program.eval(data=VARIABLES)
        kind, plain = value.type(), value.plain_value()
    except (RuntimeError, ValueError, OverflowError, TypeError):
        return "failed", None
    return ("failed", None) if kind == cel.Type.ERROR else ("value", json_of(plain))


def json_of(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key).lower() if isinstance(key, bool) else str(key): json_of(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_of(item) for item in value]
    if isinstance(value, datetime | timedelta):
        return value
    if isinstance(value, bytes | bytearray):
        return base64.b64encode(bytes(value)).decode()
    return value.name() if hasattr(value, "name") else value


def same(mine: Any, other: Any) -> bool:
    """Whether a JSON value is the library's: times as texts are those times, integers are no doubles."""
    if isinstance(other, datetime):
        # The library's binding has microseconds; a longer text is read as so many.
        return isinstance(mine, str) and datetime.fromisoformat(mine) == other
    if isinstance(other, timedelta):
        return isinstance(mine, str) and abs(timedelta(seconds=float(mine[:-1])) - other) < timedelta(milliseconds=1)
    # 0/0 has a sign or none, by the processor.
    if isinstance(other, str) and other.strip("-") == "nan":
        return isinstance(mine, str)
    if isinstance(other, list):
        return isinstance(mine, list) and len(mine) == len(other) and all(map(same, mine, other))
    if isinstance(other, dict):
        return (
            isinstance(mine, dict) and mine.keys() == other.keys() and all(same(mine[key], other[key]) for key in mine)
        )
    return type(mine) is type(other) and bool(mine == other)
