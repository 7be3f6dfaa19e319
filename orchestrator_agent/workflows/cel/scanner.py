"""Scanner: the words of an expression's text, as far as is needed before it is parsed.

Templates find where an expression ends by it; the checker finds the names that stand for variables.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence

# A string literal of CEL: optional prefixes r and b, then triple or single quotes of either kind.
_STRING = re.compile(r"""(?P<prefix>[rRbB]{0,2})(?P<quote>\"{3}|'{3}|"|')""")
_TOKEN = re.compile(
    r"""(?P<space>\s+|//[^\n]*)|(?P<string>[rRbB]{0,2}["'])|(?P<name>[A-Za-z_][A-Za-z0-9_]*)"""
    r"""|(?P<number>[0-9][0-9A-Za-z_.]*)|(?P<field>`[^`]*`?)|(?P<other>.)""",
    re.DOTALL,
)
# Macros whose first argument names a variable of their own, which hides a step of that name.
BINDING = frozenset("all exists exists_one existsOne map filter optMap optFlatMap sort_by group_by".split())
# Names with functions of their own: `math.abs(…)`, also where a step is called `math`.
NAMESPACES = frozenset(("math", "optional", "strings"))
# A word: where it begins, and its text. Strings, numbers and fields in backticks all read `0`.
Word = tuple[int, str]


# What an expression may be long; the parser's own limit.
MAX_CHARS = 100_000


def skip_string(text: str, start: int, end: int | None = None) -> int | None:
    """The index behind the string literal that starts at `start`: the text's end (or `end`) where it is not closed.

    None where no string starts.
    """
    match = _STRING.match(text, start)
    if match is None:
        return None
    quote = match["quote"]
    raw = "r" in match["prefix"].lower()
    position = match.end()
    last = len(text) if end is None else min(len(text), end)
    while position < last:
        if text[position] == "\\" and not raw:
            position += 2
        elif text.startswith(quote, position):
            return position + len(quote)
        else:
            position += 1
    return last


def closing_brace(text: str, start: int) -> int | None:
    """Where the expression that begins at `start` ends: braces in its maps, strings and comments are its own.

    None where it has no end, or is longer than an expression may be.
    """
    depth = 0
    position = start
    last = min(len(text), start + MAX_CHARS + 1)
    while position < last:
        character = text[position]
        if character in "\"'rRbB" and (behind := skip_string(text, position, last)) is not None:
            position = behind
            continue
        if character == "/" and text.startswith("//", position):
            end = text.find("\n", position)
            if end < 0:
                return None
            position = end
        elif character == "{":
            depth += 1
        elif character == "}":
            if depth == 0:
                return position
            depth -= 1
        position += 1
    return None


def words_of(text: str) -> list[Word]:
    """Names, and every other character that is not space, comment, string or number."""
    return list(_words(text))


def _words(text: str) -> Iterator[Word]:
    position, end = 0, len(text)
    while position < end:
        match = _TOKEN.match(text, position)
        assert match is not None
        kind = match.lastgroup
        if kind == "name" or kind == "other":
            yield position, match[0]
        elif kind == "string":
            yield position, "0"
            position = skip_string(text, position) or end
            continue
        elif kind != "space":
            yield position, "0"
        position = match.end()


def _is_name(word: str) -> bool:
    return word[:1].isalpha() or word[:1] == "_"


def variables_of(words: Sequence[Word]) -> list[Word]:
    """The words that stand for variables: no fields, no functions, no variables that a macro binds."""
    found = []
    # What the macros around a word have bound, one entry an open bracket; and how often each name is among these.
    bound: list[str] = []
    hidden: Counter[str] = Counter()

    def word(index: int) -> str:
        return words[index][1] if 0 <= index < len(words) else ""

    for index, (position, name) in enumerate(words):
        if name in ("(", "[", "{"):
            called = name == "(" and word(index - 1) in BINDING and word(index - 2) in (".", "?")
            binds = called and _is_name(word(index + 1)) and word(index + 2) == ","
            bound.append(word(index + 1) if binds else "")
            hidden[bound[-1]] += 1
        elif name in (")", "]", "}"):
            if bound:
                hidden[bound.pop()] -= 1
        elif _is_name(name) and word(index + 1) != "(" and not hidden[name]:
            if name in NAMESPACES and word(index + 1) == "." and word(index + 3) == "(":
                continue
            dot = index - 1 if word(index - 1) == "." else index - 2
            of_something = dot > 0 and (word(dot - 1) in (")", "]", "}") or word(dot - 1)[-1:].isalnum())
            if word(dot) != "." or (dot == index - 2 and word(index - 1) != "?") or not of_something:
                found.append((position, name))
    return found
