"""The kit's packages import only those before them, as the kit's docstring lists them."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pantheon

ROOT = Path(pantheon.__file__).parent
ORDER = ["runtime", "bus", "discovery", "config", "client", "worker", "agent", "process"]
# Agent.run imports the process when it is called: an author runs an agent by the object that was declared.
LATE = {("agent.py", "process")}


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_each_package_imports_only_those_before_it() -> None:
    wrong = []
    for rank, package in enumerate(ORDER):
        folder = ROOT / package
        for path in sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]:
            for module in imports_of(path):
                top, _, rest = module.partition(".")
                imported = rest.partition(".")[0]
                known = ORDER.index(imported) if imported in ORDER else len(ORDER)
                allowed = top not in ("pantheon", "orchestrator_agent", "agents", "testkit", "tests") or (
                    top == "pantheon" and known <= rank
                )
                if not allowed and (path.name, imported) not in LATE:
                    wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert wrong == []


def test_the_order_is_the_documented_one() -> None:
    lines = [line.split()[0] for line in (pantheon.__doc__ or "").splitlines() if line.startswith("    ")]
    assert [name for name in lines if name in ORDER] == [name for name in ORDER if name != "agent"]
