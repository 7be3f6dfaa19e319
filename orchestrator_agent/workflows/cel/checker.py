"""The seam to cel-expr-python: it parses and checks expressions, and matches regular expressions (RE2).

It evaluates nothing else. Its environments are costly to make and hold their variables' names, so there is one for all
workflows: a variable is renamed to one of a pool before the text is parsed, and back in messages.
"""

import re
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any

from cel_expr_python import cel
from cel_expr_python.ext import ext_math, ext_optional, ext_strings

from orchestrator_agent.workflows.cel.scanner import MAX_CHARS, Word, variables_of, words_of
from orchestrator_agent.workflows.cel.syntax import Node, read_syntax
from orchestrator_agent.workflows.cel.values import CelError, no_overload

_POOL_NAME = "pantheon__v"
_POOL_SIZE = 64
_POOLED = re.compile(rf"\b{_POOL_NAME}(\d+)\b")
# The parser repeats what stands before them for each of these: so many in a row, and it takes seconds.
_MAX_OPTIONAL_MACROS = 8
# So many names, numbers and signs take the parser some 50 ms, in which nothing else happens.
_MAX_WORDS = 5_000
_OPTIONAL_MACROS = ("optMap", "optFlatMap")
_POSITION = re.compile(r"ERROR: <input>:(-?\d+):(-?\d+): ")
_MIXED = re.compile(r"applied to '\((?:int|uint), double\)'|applied to '\(double, (?:int|uint)\)'")
_MIXED_HINT = "; int and double do not mix: write double(…) around the integer, or the number without its fraction"
_NUL = "\0"


# This project's own macros, each with the function that takes the pairs of element and key.
_MACROS = {"sort_by": "sort_pairs__", "group_by": "group_pairs__"}


class DoesNotCompile(Exception):
    """The expression is none; the text says where and why."""


@lru_cache(maxsize=4)
def _environment(pool: int) -> Any:
    return cel.NewEnv(
        variables={f"{_POOL_NAME}{number}": cel.Type.DYN for number in range(pool)},
        extensions=[ext_strings.ExtStrings(), ext_math.ExtMath(), ext_optional.ExtOptional()],
        functions=_additions(),
    )


def _additions() -> list[Any]:
    """What the checker needs to know of this project's own functions (`additions`)."""
    anything, some_list = cel.Type.DYN, cel.Type.List(cel.Type.DYN)
    members: dict[str, tuple[Any, list[Any]]] = {
        "sum": (anything, []),
        "avg": (cel.Type.DOUBLE, []),
        "min": (anything, []),
        "max": (anything, []),
        "unique": (some_list, []),
        "sort_pairs__": (some_list, []),
        "group_pairs__": (cel.Type.Map(anything, some_list), []),
    }
    declared = [
        cel.FunctionDecl(name, [cel.Overload(f"list_{name}", result, [some_list, *more], is_member=True)])
        for name, (result, more) in members.items()
    ]
    depths = [
        cel.Overload("list_flatten", some_list, [some_list], is_member=True),
        cel.Overload("list_flatten_int", some_list, [some_list, cel.Type.INT], is_member=True),
    ]
    return [
        *declared,
        cel.FunctionDecl("flatten", depths),
        cel.FunctionDecl("to_json", [cel.Overload("to_json", cel.Type.STRING, [anything])]),
        cel.FunctionDecl("parse_json", [cel.Overload("parse_json", anything, [cel.Type.STRING])]),
    ]


class CheckedText:
    """An expression's syntax, and the variables of it: in the tree they have names of the pool, in this order."""

    def __init__(self, syntax: Node, names: tuple[str, ...]) -> None:
        self.syntax = syntax
        self.names = names

    def variable(self, name: str) -> str | None:
        """The variable that a name of the tree stands for."""
        if name.startswith(_POOL_NAME) and name[len(_POOL_NAME) :].isdigit():
            return self.names[int(name[len(_POOL_NAME) :])]
        return None


def check(text: str, names: Collection[str]) -> CheckedText:
    """Parse and check an expression over variables of these names. Raises DoesNotCompile."""
    if len(text) > MAX_CHARS:
        raise DoesNotCompile(f"it has {len(text)} characters; {MAX_CHARS} are allowed")
    words = words_of(text)
    if len(words) > _MAX_WORDS:
        raise DoesNotCompile(
            f"it has {len(words)} names, numbers and signs; {_MAX_WORDS} are allowed: put data into the input"
        )
    for _, word in words:
        if _POOLED.fullmatch(word) or word in _MACROS.values():
            raise DoesNotCompile(f"undeclared reference to '{word}'")
    optional_macros = sum(word in _OPTIONAL_MACROS for _, word in words)
    if optional_macros > _MAX_OPTIONAL_MACROS:
        raise DoesNotCompile(f"it has {optional_macros} of optMap and optFlatMap; {_MAX_OPTIONAL_MACROS} are allowed")
    renamed = _Renamed(text, words, names)
    pool = max(_POOL_SIZE, 1 << (len(renamed.names) - 1).bit_length()) if renamed.names else _POOL_SIZE
    return CheckedText(_syntax(renamed, _environment(pool)), renamed.names)


def _syntax(renamed: "_Renamed", environment: Any) -> Node:
    try:
        compiled = environment.compile(renamed.text)
    except RuntimeError as error:
        complaints = re.findall(r"ERROR: .*", str(error))
        if not complaints or not all("'_?_:_'" in complaint for complaint in complaints):
            raise DoesNotCompile(renamed.reason(str(error))) from None
        # `x == null ? null : {…}` is what people write, and the checker wants one type of both branches. When that is
        # all it complains of, it need not check: every value is dynamic here anyway.
        try:
            compiled = environment.compile(renamed.text, disable_check=True)
        except RuntimeError as unchecked:
            raise DoesNotCompile(renamed.reason(str(unchecked))) from None
    return read_syntax(compiled.serialize())


class _Renamed:
    """A text whose variables have names of the pool, and whose macros are those that the parser knows."""

    def __init__(self, text: str, words: Sequence[Word], names: Collection[str]) -> None:
        self._original = text
        numbers: dict[str, int] = {}
        edits = [
            (position, name, f"{_POOL_NAME}{numbers.setdefault(name, len(numbers))}")
            for position, name in variables_of(words)
            if name in names
        ]
        if any(word in _MACROS for _, word in words):
            edits = sorted([*edits, *_macro_edits(words)], key=itemgetter(0))
        parts: list[str] = []
        # Where each edit ends, in the text that was made, and by how much that is longer there than the original.
        self._ends: list[int] = []
        self._longer: list[int] = []
        last = length = 0
        for position, old, new in edits:
            parts += [text[last:position], new]
            length += position - last + len(new)
            last = position + len(old)
            self._ends.append(length)
            self._longer.append(length - last)
        self.names = tuple(numbers)
        self.text = "".join(parts) + text[last:]

    def reason(self, error: str) -> str:
        """What the library complains of, in one line, with the original's names and positions."""
        lines = [line.strip() for line in error.splitlines() if line.strip() and not line.lstrip().startswith("|")]
        text = re.sub(r"^[A-Z_]+: ", "", " ".join(lines))
        text = _POSITION.sub(lambda match: self._where(int(match[1]), int(match[2])), text)
        text = _POOLED.sub(lambda match: self.names[int(match[1])], text)
        hint = _MIXED_HINT if _MIXED.search(text) else ""
        text = text.replace(" (in container '')", "")
        return re.sub(r"\s*\[[A-Z_]+\]$", "", text) + hint

    def _where(self, line: int, column: int) -> str:
        if line < 1:
            return ""
        starts = [0, *(match.end() for match in re.finditer("\n", self.text))]
        made = starts[min(line, len(starts)) - 1] + column - 1
        before = bisect_right(self._ends, made)
        position = made - (self._longer[before - 1] if before else 0)
        position = max(0, min(position, len(self._original)))
        row = self._original.count("\n", 0, position)
        if "\n" not in self._original:
            return f"at character {position + 1}: "
        return f"at line {row + 1}, character {position - (self._original.rfind(chr(10), 0, position) + 1) + 1}: "


def _macro_edits(words: Sequence[Word]) -> Iterator[tuple[int, str, str]]:
    """`l.sort_by(x, key)` is `l.map(x, [x, key]).sort_pairs__()`: the parser takes no macros but its own."""
    # Of each open bracket: what stands behind the one that closes it.
    open_brackets: list[str] = []
    for index, (position, word) in enumerate(words):
        if word in ("(", "[", "{"):
            before = words[index - 1][1] if index else ""
            name, comma = (words[index + more][1] if index + more < len(words) else "" for more in (1, 2))
            if word == "(" and before in _MACROS and index > 1 and words[index - 2][1] == "." and comma == ",":
                yield words[index - 1][0], before, "map"
                yield words[index + 2][0], ",", f", [{name}, "
                open_brackets.append(f"]).{_MACROS[before]}()")
            else:
                open_brackets.append("")
        elif word in (")", "]", "}") and open_brackets and (behind := open_brackets.pop()):
            yield position, word, behind


@lru_cache(maxsize=1)
def _matcher() -> Any:
    return _environment(_POOL_SIZE).compile(f"{_POOL_NAME}0.matches({_POOL_NAME}1)")


def matches(f: Any, text: Any, pattern: Any) -> bool:
    """Whether a part of the text matches, by RE2: linear in the text, whatever the pattern."""
    if type(text) is not str or type(pattern) is not str:
        raise no_overload("matches", text, pattern)
    if _NUL in text or _NUL in pattern:
        raise CelError("matches: a text with a NUL character is not matched")
    try:
        value = _matcher().eval(data={f"{_POOL_NAME}0": text, f"{_POOL_NAME}1": pattern})
    except (RuntimeError, ValueError) as error:
        raise CelError(f"matches: {' '.join(str(error).split())[:200]}") from None
    if value.type() == cel.Type.BOOL:
        return bool(value.plain_value())
    raise CelError(f"matches: {' '.join(str(value.plain_value()).split())[:200]}")
