"""Expressions: Google's CEL over JSON values, compiled once, evaluated many times.

Spec: https://github.com/google/cel-spec (language definition), with its strings, math and optional extensions.
A path such as `shout.text`, which most expressions are, is walked without the evaluator: same outcome, no conversion.
"""

import base64
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

from cel_expr_python import cel
from cel_expr_python.ext import ext_math, ext_optional, ext_strings

from protocol.errors import ExpressionError, InvalidWorkflow

# The four words that CEL has for nothing but themselves are no fields either, unless in backticks.
_PATH = re.compile(r"[A-Za-z_]\w*(\.(?!(?:in|true|false|null)\b)[A-Za-z_]\w*)*\Z", re.ASCII)
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
# A string literal of CEL: optional prefixes r and b, then triple or single quotes of either kind.
_STRING = re.compile(
    r"""(?P<prefix>[rRbB]{0,2})(?P<quote>\"{3}|'{3}|"|')""",
)
# CEL's own names of types: a step may be called so, but the evaluator's environment declares them already.
_TYPE_NAMES = frozenset("bool bytes double dyn int list map null_type optional_type string type uint google".split())
# A step that a type's name hides is known to the evaluator by this prefix.
_RENAMED = "step__"


# Macros whose first argument names a variable of their own, which hides a step of that name.
_BINDING = frozenset("all exists exists_one existsOne map filter optMap optFlatMap".split())
_NUMBER = re.compile(r"[0-9][0-9A-Za-z_.]*")
# Messages quote expressions, names and values; an error must fit into a response whatever they are.
_SHOWN_CHARS = 200
_SHOWN_NAMES = 10


def shown(text: str) -> str:
    """A text as messages quote it: cut, when it is long."""
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"


def shown_names(names: Iterable[str]) -> str:
    """Names for a message, the first few of many."""
    every = list(names)
    more = f" and {len(every) - _SHOWN_NAMES} more" if len(every) > _SHOWN_NAMES else ""
    return ", ".join(every[:_SHOWN_NAMES]) + more


def skip_string(text: str, at: int) -> int | None:
    """The index behind the string literal that starts at `at`: the text's end where it has no end of its own.

    None where no string starts.
    """
    match = _STRING.match(text, at)
    if match is None:
        return None
    quote = match["quote"]
    raw = "r" in match["prefix"].lower()
    position = match.end()
    while position < len(text):
        if text[position] == "\\" and not raw:
            position += 2
        elif text.startswith(quote, position):
            return position + len(quote)
        else:
            position += 1
    return len(text)


def _words(text: str) -> Iterator[tuple[int, str]]:
    """Names, and every other character that is not space, comment, string or number; `0` stands for those two."""
    position = 0
    while position < len(text):
        if text.startswith("//", position):
            end = text.find("\n", position)
            position = len(text) if end < 0 else end
        elif (behind := skip_string(text, position)) is not None:
            yield position, "0"
            position = behind
        elif (match := _NAME.match(text, position)) is not None:
            yield position, match[0]
            position = match.end()
        elif (match := _NUMBER.match(text, position)) is not None:
            yield position, "0"
            position = match.end()
        elif text[position] == "`":
            # A field whose name is no identifier: a.`b-c`
            end = text.find("`", position + 1)
            yield position, "0"
            position = len(text) if end < 0 else end + 1
        else:
            if not text[position].isspace():
                yield position, text[position]
            position += 1


def _variables(text: str) -> list[tuple[int, str]]:
    """Every name that stands for a variable, with its position: no field, no function, no variable of a macro's own."""
    words = list(_words(text))
    found = []
    # What the macros around a position have bound, one entry an open bracket.
    bound: list[str] = []

    def word(index: int) -> str:
        return words[index][1] if 0 <= index < len(words) else ""

    for index, (position, name) in enumerate(words):
        if name in ("(", "[", "{"):
            called = word(index - 1) in _BINDING and word(index - 2) in (".", "?") and name == "("
            binds = called and _NAME.fullmatch(word(index + 1)) is not None and word(index + 2) == ","
            bound.append(word(index + 1) if binds else "")
        elif name in (")", "]", "}"):
            if bound:
                bound.pop()
        elif _NAME.match(name) is not None and word(index + 1) != "(" and name not in bound:
            dot = index - 1 if word(index - 1) == "." else index - 2
            of_something = dot > 0 and (word(dot - 1) in (")", "]", "}") or word(dot - 1)[-1:].isalnum())
            if word(dot) != "." or (dot == index - 2 and word(index - 1) != "?") or not of_something:
                found.append((position, name))
    return found


class Environment:
    """The names that expressions of one workflow may use: `input` and its steps. Made once per workflow."""

    def __init__(self, names: Collection[str]) -> None:
        self.names = frozenset(names)
        self._cel: Any = None

    def compile(self, text: str, *, step: str | None) -> "Expression":
        """Raises InvalidWorkflow that says what in `text` is wrong, naming the step."""
        stripped = text.strip()
        where = f"step '{step}': " if step else ""
        if not stripped:
            raise InvalidWorkflow(f"{where}the expression between ${{ and }} is empty", step=step)
        used = frozenset(name for _, name in _variables(stripped) if name in self.names)
        if _PATH.match(stripped) and stripped not in ("true", "false", "null"):
            path = tuple(stripped.split("."))
            if path[0] not in self.names:
                known = shown_names(sorted(self.names))
                raise InvalidWorkflow(
                    f"{where}expression '{shown(stripped)}': there is no '{shown(path[0])}' here; there is {known}",
                    step=step,
                )
            return Expression(stripped, used, path=path)
        if self._cel is None:
            self._cel = cel.NewEnv(
                variables={self._shown(name): cel.Type.DYN for name in self.names},
                extensions=[ext_strings.ExtStrings(), ext_math.ExtMath(), ext_optional.ExtOptional()],
            )
        try:
            program = self._program(self._renamed(stripped))
        except RuntimeError as error:
            raise InvalidWorkflow(
                f"{where}expression '{shown(stripped)}' does not compile: {_reason(error)}", step=step
            ) from None
        return Expression(stripped, used, program=program, renamed={name: self._shown(name) for name in used})

    def _program(self, text: str) -> Any:
        try:
            return self._cel.compile(text)
        except RuntimeError as error:
            # `x == null ? null : {…}` is what people write, and the checker wants one type of both branches. When
            # that is all it has to say, it need not check: every value is dynamic here anyway.
            complaints = re.findall(r"ERROR: .*", str(error))
            if not complaints or not all("'_?_:_'" in complaint for complaint in complaints):
                raise
            return self._cel.compile(text, disable_check=True)

    @staticmethod
    def _shown(name: str) -> str:
        return _RENAMED + name if name in _TYPE_NAMES else name

    def _renamed(self, text: str) -> str:
        hidden = self.names & _TYPE_NAMES
        if not hidden:
            return text
        made, last = [], 0
        for position, name in _variables(text):
            if name in hidden:
                made += [text[last:position], self._shown(name)]
                last = position + len(name)
        return "".join(made) + text[last:]


class Expression:
    """One compiled expression. `uses` are the names it reads: `input`, steps."""

    def __init__(
        self,
        text: str,
        uses: frozenset[str],
        *,
        path: tuple[str, ...] | None = None,
        program: Any = None,
        renamed: Mapping[str, str] | None = None,
    ) -> None:
        self.text = text
        self.uses = uses
        self._path = path
        self._program = program
        self._renamed = renamed or {}

    def evaluate(self, variables: Mapping[str, Any]) -> Any:
        """The value as JSON-able Python. Raises ExpressionError that says what failed."""
        if self._path is not None:
            return self._walk(variables)
        data = {shown: variables.get(name) for name, shown in self._renamed.items()}
        kind, plain = self._run(data)
        if kind == cel.Type.ERROR:
            reason = _reason(plain)
            if _beyond_64_bits(data):
                # The library refuses them wherever they are, also where the expression does not look.
                kind, plain = self._run(_sealed(data))
            if kind == cel.Type.ERROR:
                raise self._failed(reason)
        return _json_able(plain)

    def _run(self, data: Mapping[str, Any]) -> tuple[Any, Any]:
        try:
            value = self._program.eval(data=data)
            return value.type(), value.plain_value()
        except (RuntimeError, ValueError, OverflowError, TypeError) as error:
            raise self._failed(_reason(error)) from None

    def condition(self, variables: Mapping[str, Any]) -> bool:
        """The value of an expression that must be true or false. Raises ExpressionError where it is neither."""
        value = self.evaluate(variables)
        if not isinstance(value, bool):
            raise ExpressionError(
                f"expression '{shown(self.text)}' must be true or false, not {_kind(value)}",
                expression=shown(self.text),
            )
        return value

    def _failed(self, reason: str) -> ExpressionError:
        return ExpressionError(f"expression '{shown(self.text)}' failed: {reason}", expression=shown(self.text))

    def _walk(self, variables: Mapping[str, Any]) -> Any:
        assert self._path is not None
        value: Any = variables.get(self._path[0])
        for index, name in enumerate(self._path[1:], start=1):
            before = ".".join(self._path[:index])
            if not isinstance(value, dict):
                raise self._failed(f"'{shown(before)}' is {_kind(value)}, it has no field '{shown(name)}'")
            if name not in value:
                raise self._failed(f"'{shown(before)}' has no field '{shown(name)}'")
            value = value[name]
        return value


# CEL has int for the lower half of these, and uint for what is above.
_SMALLEST, _LARGEST = -(2**63), 2**64 - 1


def _beyond_64_bits(value: Any) -> bool:
    """Whether there is an integer in a JSON value that CEL has none for."""
    if isinstance(value, dict):
        return any(map(_beyond_64_bits, value.values()))
    if isinstance(value, list):
        return any(map(_beyond_64_bits, value))
    return isinstance(value, int) and not _SMALLEST <= value <= _LARGEST


# Of an integer that CEL has none for, in the evaluator's hands: nothing can be reckoned with it, nor is it text, but
# what is passed on comes out as it was.
_SEAL = b"\xffint:"


def _sealed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sealed(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_sealed(one) for one in value]
    return _SEAL + str(value).encode() if _beyond_64_bits(value) else value


def _kind(value: Any) -> str:
    """What a JSON value is, in JSON's words."""
    if value is None:
        return "null"
    kinds = {bool: "a boolean", str: "a string", dict: "an object", list: "a list"}
    return next((word for kind, word in kinds.items() if isinstance(value, kind)), "a number")


def _reason(error: object) -> str:
    """What the library says, in one line, without its own labels."""
    text = str(error)
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        # A text that is a repr, as that of a KeyError.
        text = text[1:-1]
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("|")]
    text = " ".join(lines) if lines else text
    text = re.sub(r"^[A-Z_]+: ", "", text)
    text = re.sub(r"ERROR: <input>:1:(\d+): ", r"at character \1: ", text)
    text = text.replace(" (in container '')", "").replace(_RENAMED, "")
    return shown(re.sub(r"\s*\[[A-Z_]+\]$", "", text))


def _json_able(value: Any) -> Any:
    """CEL's values that JSON lacks, as the protobuf JSON mapping writes them (times RFC 3339, durations `3s`)."""
    if isinstance(value, float) and not math.isfinite(value):
        # As it will be in the database: a run that is read again must see what it saw before.
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {_key(key): _json_able(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_json_able(one) for one in value]
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, timedelta):
        return f"{value.total_seconds():.9f}".rstrip("0").rstrip(".") + "s"
    if isinstance(value, bytes | bytearray):
        if value.startswith(_SEAL):
            return int(value.removeprefix(_SEAL))
        return base64.b64encode(bytes(value)).decode()
    return value.name() if hasattr(value, "name") else str(value)


def _key(key: Any) -> str:
    if isinstance(key, bool):
        return "true" if key else "false"
    return str(key)
