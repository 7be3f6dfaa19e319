"""Names: what documentation and comments may refer to: files, modules, classes, settings, commands, sections.

Known is what the repository itself defines or uses. A name in backticks that is known nowhere is a mistake of the page:
the thing was renamed, moved, or never there. What belongs to others (NATS, Docker, a reader's own files) is listed here
by name. `python -m tests.docs.names PACKAGE` lists the mistakes in a package's comments.
"""

import ast
import importlib
import io
import re
import sys
import tokenize
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import typer.main

from pantheon.cli.app import app

REPOSITORY = Path(__file__).parents[2]
PRODUCT = ("protocol", "pantheon", "orchestrator_agent", "agents", "migrations", "testkit")
CODE = (*PRODUCT, "benchmarks", "examples", "docker", "scripts", "tests")
# Files that are a reader's own, that a mesh makes, or that other projects have.
FOREIGN_FILES = frozenset(
    {
        *("NAME.py", "conftest.py", "greeting_agent.py", "publish.yaml", "slug_agent.py", "translation_agent.py"),
        *(".pantheon/", ".pantheon/communication", ".pantheon/endpoints.json", ".pantheon/logs/", ".cache/", "dist/"),
        *("docker/secrets/nats_password", "docker/secrets/llm_api_key", "docker/workflows/", "application/json"),
        *("schemas/3.0.0-without-$id.json", "__init__.py", "agents/__init__.py"),
        *("out/", "out/demo/", "out/bench.json", "out/bench.svg"),
    }
)  # fmt: skip
# Images have the name of the product and of an agent, or `kit`.
IMAGES = r"pantheon/(?:kit|\w+_agent)"
# Words of NATS, Postgres, Docker, Kubernetes, CEL, HTTP and other languages; and what a decision considered and left.
FOREIGN_NAMES = frozenset(
    {
        "mesh.list_tasks",
        *("AckWait", "MaxDeliver", "MaxAckPending", "BackOff", "PodDisruptionBudget", "ScaledObject"),
        *("Deployment", "Job"),
        *("HEALTHCHECK", "DOCKER_BUILDKIT", "PYTHON_IMAGE", "PATH", "CEL", "OPENAI_API_KEY", "CI", "SIGTERM", "NOTIFY"),
        *("nats_url", "target_session_attrs", "read-write", "num_pending", "num_ack_pending", "idle_session_timeout"),
        *("idle_in_transaction_session_timeout", "pg_basebackup", "wait_for", "asyncio_mode", "no-deps", "psycopg"),
        *("preexec_fn", "sanitize_title", "output_config"),
    }
)  # fmt: skip
# Options of other programs.
FOREIGN_OPTIONS = frozenset({"--build-arg", "--constraint", "--secret", "--no-deps", "--follow", "--help", "--dist"})


class Mistake(NamedTuple):
    path: Path
    line: int
    text: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(REPOSITORY)}:{self.line}: `{self.text}` {self.reason}"


# -- what is known ---------------------------------------------------------------------------------------------------


@cache
def known() -> frozenset[str]:
    """Every identifier of the code, and every word of its strings and of the files beside it."""
    found: set[str] = set()
    for folder in CODE:
        for path in (REPOSITORY / folder).rglob("*"):
            if path.is_dir() or "node_modules" in path.parts or path.suffix in (".pyc", ".md"):
                continue
            if path.parent == Path(__file__).parent:
                # These tests name what must not exist.
                continue
            try:
                text = path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue
            found |= _of_python(text) if path.suffix == ".py" else _words(text)
    for name in ("pyproject.toml", "Makefile", "constraints.txt", "hatch_build.py"):
        found |= _words((REPOSITORY / name).read_text(encoding="utf-8"))
    # Settings and what they are made of are compared with this page by a test of its own.
    configuration = (REPOSITORY / "docs" / "configuration.md").read_text(encoding="utf-8")
    found |= set(re.findall(r"^\| (?:`[a-z_]+` \| )?`([A-Z_]+)`", configuration, re.MULTILINE))
    return frozenset(found)


def _of_python(text: str) -> set[str]:
    """Identifiers, and the words of strings that are no docstrings."""
    docs: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and ast.get_docstring(node) is not None
        ):
            docs.add(node.body[0].lineno)
    found: set[str] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME:
            found.add(token.string)
        elif token.type == tokenize.STRING and token.start[0] not in docs:
            found |= _words(token.string)
    return found


def _words(text: str) -> set[str]:
    return set(re.findall(r"[A-Za-z_$][\w-]*", text)) | set(re.findall(r"[a-z_]\w*(?:\.[a-z_]\w*)+", text))


@cache
def commands() -> dict[tuple[str, ...], frozenset[str]]:
    """Each command of `pantheon`, as its words, with its options."""
    found: dict[tuple[str, ...], frozenset[str]] = {}

    def add(command: object, path: tuple[str, ...]) -> None:
        parameters = getattr(command, "params", ())
        found[path] = frozenset(option for parameter in parameters for option in parameter.opts)
        for name, inner in getattr(command, "commands", {}).items():
            add(inner, (*path, name))

    add(typer.main.get_command(app), ())
    return found


@cache
def make_targets() -> frozenset[str]:
    return frozenset(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


@cache
def headings(page: Path) -> frozenset[str]:
    return frozenset(
        heading.replace("`", "") for heading in re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    )


# -- one name --------------------------------------------------------------------------------------------------------


def wrong_with(text: str, page: Path) -> str | None:
    """Why what stands in backticks on a page (or in a comment of a file) cannot be right; None where it can."""
    if text.startswith("pantheon "):
        return wrong_command(text)
    if text.startswith("make ") and text.split()[1] not in make_targets():
        return "is no target of the Makefile"
    if re.fullmatch(r"--[a-z-]+", text):
        options = {option for options in commands().values() for option in options}
        return None if text in options | FOREIGN_OPTIONS or text in known_options() else "is no option of a command"
    if " " in text or re.search(r"[<>{}$*…=\"'|]", text):
        call = re.match(r"([A-Za-z_][\w.]*)\(", text)
        return None if call is None else wrong_name(call[1])
    if "/" in text or re.search(r"\.(py|md|ya?ml|toml|json|sh|svg)$", text):
        return wrong_path(text, page)
    call = re.fullmatch(r"@?([A-Za-z_][\w.]*)(?:\(.*\))?", text)
    return None if call is None else wrong_name(call[1])


@cache
def known_options() -> frozenset[str]:
    text = (REPOSITORY / "benchmarks" / "__main__.py").read_text(encoding="utf-8")
    return frozenset(re.findall(r"--[a-z-]+", text))


def wrong_command(text: str) -> str | None:
    words = text.split()[1:]
    path: tuple[str, ...] = ()
    while words and (*path, words[0]) in commands():
        path = (*path, words.pop(0))
    if not path and words and re.fullmatch(r"[a-z][a-z-]*", words[0]):
        return "is no command"
    allowed = commands()[path] | commands()[()] | {"--help"}
    for word in words:
        option = word.strip("[]").partition("=")[0]
        if option.startswith("--") and option not in allowed:
            return f"has no option {option}"
    return None


def wrong_path(text: str, page: Path) -> str | None:
    """A path is from the root of the repository, or from the page."""
    path = text.partition("#")[0]
    foreign = path in FOREIGN_FILES or re.fullmatch(rf"{IMAGES}|\.[a-z]+", path) is not None
    if foreign or path.startswith("/") or "://" in path:
        return None
    first = path.partition("/")[0]
    if not path.endswith((".py", ".md")) and first not in _top_level() and not path.startswith("."):
        # A subject's, an image's or a step's path, a media type.
        return None
    if (REPOSITORY / path).exists() or (page.parent / path).exists():
        return None
    return "is no file here"


@cache
def _top_level() -> frozenset[str]:
    return frozenset(path.name for path in REPOSITORY.iterdir()) - {"out", "dist"}


def wrong_name(name: str) -> str | None:
    """An identifier or a dotted name. Of a module its members are looked up, of anything else its last part."""
    name = name.rstrip(".")
    first, *rest = name.split(".")
    if first in PRODUCT and rest:
        return None if _imports(name) else "is no module or name in one"
    if name in FOREIGN_NAMES or name in known():
        return None
    if not rest:
        # Words of a language (`false`), letters, and what a page has in its own code are not names of ours.
        return "is defined nowhere" if re.search(r"[a-z][A-Z]|_|^[A-Z][a-z]+[A-Z]|^[A-Z]{3,}$", name) else None
    if len(rest) > 1 and rest[-1][0].isupper() and not first[0].isupper():
        # A module's path without its package, and a class in it.
        return None if any(_imports(f"{package}.{name}") for package in _packages()) else "is no module or name in one"
    return None if all(part in known() or part in FOREIGN_NAMES for part in (first, rest[-1])) else "is defined nowhere"


@cache
def _packages() -> Sequence[str]:
    found = [path.parent for package in PRODUCT for path in (REPOSITORY / package).rglob("__init__.py")]
    return [".".join(path.relative_to(REPOSITORY).parts) for path in found]


@cache
def _imports(name: str) -> bool:
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for part in parts[length:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


# -- pages and comments ----------------------------------------------------------------------------------------------


def in_page(page: Path) -> Iterator[Mistake]:
    """Names in backticks, the commands of shell blocks, and the sections of other pages that it refers to."""
    text = page.read_text(encoding="utf-8")
    own = _words("".join(re.findall(r"^```.*?^```$", text, re.MULTILINE | re.DOTALL)))
    prose = re.sub(r"^```.*?^```$", _blank, text, flags=re.MULTILINE | re.DOTALL)
    for line, name in backticked(prose):
        reason = wrong_with(name, page)
        if reason is not None and name not in own:
            yield Mistake(page, line, name, reason)
    for block in re.finditer(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        first = text.count("\n", 0, block.start()) + 2
        for number, command in enumerate(block[1].splitlines()):
            command = command.partition(" #")[0].strip()
            if command.startswith("pantheon ") and (reason := wrong_command(command)) is not None:
                yield Mistake(page, first + number, command, reason)
    yield from wrong_sections(page, prose)


def backticked(text: str) -> Iterator[tuple[int, str]]:
    for found in re.finditer(r"``(.+?)``|`([^`\n]+)`", text):
        yield text.count("\n", 0, found.start()) + 1, (found[1] or found[2]).strip()


def wrong_sections(page: Path, text: str) -> Iterator[Mistake]:
    """A page's name, linked or as a path, then a comma and a section: the page has such a section."""
    flat = re.sub(r"\n[ \t]*(?:#:? ?|- |\* )?", lambda found: " ", text)
    references = [
        *re.finditer(r"\[[\w./-]+\.md\]\(([\w./-]+\.md)\), ([\w][^).;:\[]*)\)", flat),
        *re.finditer(r"(docs/[\w./-]+\.md), ([\w][^).;:\[\"]*)\)", flat),
    ]
    for found in references:
        target = REPOSITORY / found[1] if found[1].startswith("docs/") else page.parent / found[1]
        if not target.exists():
            yield Mistake(page, 0, found[1], "is no page")
            continue
        there = {heading.rstrip(" …") for heading in headings(target)}
        named = found[2].strip().rstrip(" …")
        for section in [named] if named in there else re.split(r", and |, | and | to ", named):
            if section not in there:
                yield Mistake(page, 0, f"{found[1]}, {section}", "is no section of it")


def _blank(found: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", found[0])


def in_code(path: Path) -> Iterator[Mistake]:
    """Names in backticks in comments and docstrings, the pages and decisions that they refer to, and their sections."""
    source = path.read_text(encoding="utf-8")
    texts: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            doc = ast.get_docstring(node, clean=False)
            if doc is not None:
                texts.append((node.body[0].lineno, doc))
    comments = [
        (token.start[0], token.string.lstrip("#: "))
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    ]
    for line, text in [*texts, *comments]:
        for within, name in backticked(text):
            if (reason := wrong_with(name, path)) is not None and name not in known():
                yield Mistake(path, line + within - 1, name, reason)
        for found in re.finditer(r"(?<![\w/.-])((?:docs/)?[A-Za-z][\w/-]*\.md)\b", text):
            if not (REPOSITORY / found[1]).exists():
                yield Mistake(path, line, found[1], "is no page: pages are named as docs/protocol.md")
        for found in re.finditer(r"(?<!NATS )\bADR[ -](\d{4})\b", text):
            if not list((REPOSITORY / "docs" / "adr").glob(f"{found[1]}-*.md")):
                yield Mistake(path, line, found[0], "is no decision here")
    yield from wrong_sections(path, "\n".join(text for _, text in [*texts, *comments]))


def mistakes_in(package: str) -> Sequence[Mistake]:
    """Of a folder, a file, or a pattern of files."""
    path = REPOSITORY / package
    files = sorted(path.rglob("*.py")) if path.is_dir() else sorted(REPOSITORY.glob(package))
    return [mistake for file in files for mistake in in_code(file)]


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        sys.stdout.writelines(f"{mistake}\n" for mistake in mistakes_in(argument))
