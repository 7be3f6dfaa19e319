"""The structure of the code: what packages say of themselves, and how objects are put together."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.conftest import REPOSITORY

TOPS = ("orchestrator_agent", "pantheon", "protocol", "testkit")
MODULES = sorted(path for top in (*TOPS, "agents", "migrations") for path in (REPOSITORY / top).rglob("*.py"))
PACKAGES = sorted(path for top in TOPS for path in (REPOSITORY / top).rglob("__init__.py"))
MOST_ARGUMENTS = 8
MOST_FLAT_MODULES = 8
# Lines of a package's docstring.
LEAST, MOST = 15, 40


def classes() -> Iterator[tuple[Path, ast.ClassDef]]:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                yield path, node


@pytest.mark.parametrize("path", PACKAGES, ids=lambda path: str(path.parent.relative_to(REPOSITORY)))
def test_a_package_says_what_it_is_responsible_for_and_who_may_call_it(path: Path) -> None:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert LEAST <= len(text.splitlines()) <= MOST


def test_few_modules_are_flat() -> None:
    assert len(list((REPOSITORY / "orchestrator_agent").glob("*.py"))) <= MOST_FLAT_MODULES


def test_no_constructor_has_many_arguments() -> None:
    found = {}
    for path, node in classes():
        for member in node.body:
            if isinstance(member, ast.FunctionDef) and member.name == "__init__":
                arguments = [*member.args.posonlyargs, *member.args.args, *member.args.kwonlyargs]
                found[f"{path.relative_to(REPOSITORY)}: {node.name}"] = len(arguments) - 1
    assert {name: number for name, number in found.items() if number > MOST_ARGUMENTS} == {}


def test_no_callback_is_assigned_after_construction() -> None:
    """An object that is complete when it is made cannot be called before it is."""
    found = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Assign):
                continue
            found += [
                f"{path.relative_to(REPOSITORY)}:{node.lineno}: {ast.unparse(target)}"
                for target in node.targets
                if isinstance(target, ast.Attribute)
                and target.attr.startswith("on_")
                and not (isinstance(target.value, ast.Name) and target.value.id == "self")
            ]
    # The client library's own subscription, which has no argument for it.
    assert [each for each in found if "pantheon/bus/receiving.py" not in each] == []
