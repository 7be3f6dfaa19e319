"""Expressions: Google's CEL over JSON values, compiled once, evaluated many times.

Spec: https://github.com/google/cel-spec (language definition), with its strings, math and optional extensions.
A path such as `shout.text`, which most expressions are, is walked without the evaluator: same outcome, no conversion.
"""

import base64
import re
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import Any

from cel_expr_python import cel
from cel_expr_python.ext import ext_math, ext_optional, ext_strings

from protocol.errors import ExpressionError, InvalidWorkflow

_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*\Z", re.ASCII)
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
# A string literal of CEL: optional prefixes r and b, then triple or single quotes of either kind.
_STRING = re.compile(
    r"""(?P<prefix>[rRbB]{0,2})(?P<quote>\"{3}|'{3}|"|')""",
)
# CEL's own names of types: a step may be called so, but the evaluator's environment declares them already.
_TYPE_NAMES = frozenset("bool bytes double dyn int list map null_type optional_type string type uint google".split())
# A step that a type's name hides is known to the evaluator by this prefix.
_RENAMED = "step__"


def skip_string(text: str, at: int) -> int | None:
    """The index behind the string literal that starts at `at`, or None where none starts, or it has no end."""
    match = _STRING.match(text, at)
    if match is None:
        return None
    quote = match["quote"]
    raw = "r" in match["prefix"].lower()
    place = match.end()
    while place < len(text):
        if text[place] == "\\" and not raw:
            place += 2
        elif text.startswith(quote, place):
            return place + len(quote)
        else:
            place += 1
    return None


def _tokens(text: str) -> list[tuple[int, str, bool]]:
    """Every identifier with its place and whether it can name a variable: not a field, not a call, not a map's key."""
    found = []
    place = 0
    while place < len(text):
        if text.startswith("//", place):
            place = text.find("\n", place) if "\n" in text[place:] else len(text)
            continue
        if (behind := skip_string(text, place)) is not None:
            place = behind
            continue
        if (match := _NAME.match(text, place)) is not None:
            before = text[:place].rstrip()
            after = text[match.end() :].lstrip()
            is_field = before.endswith((".", ".?"))
            found.append((place, match[0], not is_field and not after.startswith("(")))
            place = match.end()
            continue
        # A number's exponent or suffix must not be read as a name.
        if text[place].isdigit():
            number = re.match(r"[0-9][0-9A-Za-z_.]*", text[place:])
            place += number.end() if number else 1
            continue
        place += 1
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
        used = frozenset(name for _, name, variable in _tokens(stripped) if variable and name in self.names)
        if _PATH.match(stripped) and stripped not in ("true", "false", "null"):
            path = tuple(stripped.split("."))
            if path[0] not in self.names:
                known = ", ".join(sorted(self.names))
                raise InvalidWorkflow(
                    f"{where}expression '{stripped}': there is no '{path[0]}' here; there is {known}", step=step
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
                f"{where}expression '{stripped}' does not compile: {_reason(error)}", step=step
            ) from None
        return Expression(stripped, used, program=program, renamed={name: self._shown(name) for name in used})

    def _program(self, text: str) -> Any:
        try:
            return self._cel.compile(text)
        except RuntimeError as error:
            # `x == null ? null : {…}` is what JSON's people write, and the checker wants one type of both branches. When
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
        for place, name, variable in _tokens(text):
            if variable and name in hidden:
                made += [text[last:place], self._shown(name)]
                last = place + len(name)
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
        try:
            value = self._program.eval(data={shown: variables.get(name) for name, shown in self._renamed.items()})
            kind = value.type()
            plain = value.plain_value()
        except (RuntimeError, ValueError, OverflowError, TypeError) as error:
            raise ExpressionError(f"expression '{self.text}' failed: {_reason(error)}", expression=self.text) from None
        if kind == cel.Type.ERROR:
            raise ExpressionError(f"expression '{self.text}' failed: {_reason(plain)}", expression=self.text)
        return _json_able(plain)

    def condition(self, variables: Mapping[str, Any]) -> bool:
        """The value of an expression that must be true or false. Raises ExpressionError where it is neither."""
        value = self.evaluate(variables)
        if not isinstance(value, bool):
            raise ExpressionError(
                f"expression '{self.text}' must be true or false, not {type(value).__name__}", expression=self.text
            )
        return value

    def _walk(self, variables: Mapping[str, Any]) -> Any:
        assert self._path is not None
        value: Any = variables.get(self._path[0])
        for index, name in enumerate(self._path[1:], start=1):
            if not isinstance(value, dict):
                held = "null" if value is None else type(value).__name__
                before = ".".join(self._path[:index])
                raise ExpressionError(
                    f"expression '{self.text}' failed: '{before}' is {held}, it has no field '{name}'",
                    expression=self.text,
                )
            if name not in value:
                before = ".".join(self._path[:index])
                raise ExpressionError(
                    f"expression '{self.text}' failed: '{before}' has no field '{name}'", expression=self.text
                )
            value = value[name]
        return value


def _reason(error: object) -> str:
    """What the library says, in one line, without its own labels."""
    text = str(error).strip("'\"")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("|")]
    text = " ".join(lines) if lines else text
    text = re.sub(r"^[A-Z_]+: ", "", text)
    text = re.sub(r"ERROR: <input>:1:(\d+): ", r"at character \1: ", text)
    text = text.replace(" (in container '')", "").replace(_RENAMED, "")
    return re.sub(r"\s*\[[A-Z_]+\]$", "", text)


def _json_able(value: Any) -> Any:
    """CEL's values that JSON lacks, as the protobuf JSON mapping writes them (times RFC 3339, durations `3s`)."""
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
        return base64.b64encode(bytes(value)).decode()
    return value.name() if hasattr(value, "name") else str(value)


def _key(key: Any) -> str:
    if isinstance(key, bool):
        return "true" if key else "false"
    return str(key)
