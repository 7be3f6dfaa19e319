"""How often tests patch a constant or reach into what is private: the totals only go down.

A test that sets a time by a setting or an argument, and waits for a public signal, survives a change of the code's
inside. `python -m tests.docs.test_reaches` lists each of them.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.docs.conftest import REPOSITORY

MOST_REACHES = 17
MOST_PATCHED_CONSTANTS = 9

# The objects whose private names are the test's own.
_OWN = ("self", "cls", "super")
# Underscored, and public all the same: members of named tuples.
_PUBLIC = ("_replace", "_asdict", "_fields")


class Reach(NamedTuple):
    path: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(REPOSITORY)}:{self.line}: {self.text}"


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in _PUBLIC


def reaches_in(path: Path) -> Iterator[Reach]:
    """Private attributes of anything but the test's own object, and private names that are imported."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and _is_private(node.attr):
            owner = node.value.func if isinstance(node.value, ast.Call) else node.value
            if not (isinstance(owner, ast.Name) and owner.id in _OWN):
                yield Reach(path, node.lineno, ast.unparse(node))
        elif isinstance(node, ast.ImportFrom):
            yield from (Reach(path, node.lineno, name.name) for name in node.names if _is_private(name.name))


def patched_constants_in(path: Path) -> Iterator[Reach]:
    """`monkeypatch.setattr` of a name in capitals, as an attribute or at the end of a dotted path."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "setattr"):
            continue
        names = [str(argument.value) for argument in node.args[:2] if isinstance(argument, ast.Constant)]
        if names and re.fullmatch(r"_?[A-Z][A-Z0-9_]+", names[0].rpartition(".")[2]):
            yield Reach(path, node.lineno, ast.unparse(node))


def _all() -> tuple[list[Reach], list[Reach]]:
    files = sorted((REPOSITORY / "tests").rglob("*.py"))
    reaches = [reach for path in files for reach in reaches_in(path)]
    return reaches, [reach for path in files for reach in patched_constants_in(path)]


def test_tests_reach_into_what_is_private_no_more_often_than_before() -> None:
    reaches, _ = _all()
    assert len(reaches) <= MOST_REACHES, "\n".join(map(str, reaches))


def test_tests_patch_constants_no_more_often_than_before() -> None:
    _, patched = _all()
    assert len(patched) <= MOST_PATCHED_CONSTANTS, "\n".join(map(str, patched))


def test_both_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "test_any.py"
    file.write_text(
        "from a import _b\n\n\nclass C:\n    def m(self) -> None:\n        self._x, super()._y, other._z, d.e._f()\n"
        "        other.__class__, named._replace(a=1)\n\n\ndef test(p):\n    p.setattr(a, 'LIMIT', 1)\n"
        "    p.setattr('a.b.WAIT_SECONDS', 2)\n    p.setattr(a, 'limit', 3)\n"
    )
    assert [(reach.line, reach.text) for reach in reaches_in(file)] == [(1, "_b"), (6, "other._z"), (6, "d.e._f")]
    assert [reach.line for reach in patched_constants_in(file)] == [11, 12]


if __name__ == "__main__":
    for title, found in zip(("private", "patched constants"), _all(), strict=True):
        sys.stdout.write(f"{title}: {len(found)}\n")
        sys.stdout.writelines(f"  {reach}\n" for reach in found)
