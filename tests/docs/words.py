"""Words: those that code and documentation do not use, with the field's word for each, and where they are still used.

One concept has one word (docs/glossary.md). A word may be banned in names, in prose, or in both: "given" is plain
English in a sentence, and says nothing as a name. Prose is comments, docstrings and Markdown, without what is in
backticks or in a block of code. `python -m tests.docs.words` prints how often each package breaks the rule.
"""

import ast
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).parents[2]
# A migration keeps the name that databases know it by.
VERSIONS = REPOSITORY / "migrations" / "versions"


@dataclass(frozen=True)
class Banned:
    """`names` are words of an identifier, in a row where there are several; `prose` is a pattern of whole words."""

    instead: str
    names: Sequence[str] = ()
    prose: str = ""
    # The name of a test is a sentence, and its docstring may tell a story: there, these are plain English.
    in_tests: bool = True


BANNED = (
    Banned("response, reply, respond", ("answer", "answers", "answered", "answering"), r"answer(?:s|ed|ing)?"),
    Banned(
        "slot, position, location, assign, choose",
        ("place", "places", "placed", "placing"),
        r"(?<!in )place(?! of)|places|placed|placing",
        in_tests=False,
    ),
    Banned("needed, requested, required", ("wanted",), r"wanted", in_tests=False),
    Banned("result, summary, report, notify", ("tell", "tells", "told"), r"tells?|told|telling", in_tests=False),
    # What a page or a comment says is plain English; what a process does is to publish, send, log.
    Banned("publish, send, log, state", ("say", "says", "said"), r"say|said|saying", in_tests=False),
    Banned("receive", ("hear", "hears", "heard"), r"hears?|heard|hearing", in_tests=False),
    Banned("check, scan, read", ("look", "looks", "looking"), r"look(?:s|ed|ing)?(?![ -]?up)", in_tests=False),
    Banned("the thing's name", ("given",), in_tests=False),
    Banned("the actor's name", ("whoever",), r"whoever", in_tests=False),
    Banned("the actor's name", ("nobody",), r"nobody", in_tests=False),
    Banned("the actor's name", ("somebody", "anybody"), r"somebody|anybody", in_tests=False),
    Banned("run event", ("happening", "happenings"), r"happenings?"),
    Banned(
        "compensate, compensation",
        ("undo", "undoes", "undone", "undoing"),
        r"undo(?:es|ne|ing)?|undid",
    ),
    Banned("agent health", ("standings",), r"standings"),
    Banned("decision builder", ("ledger",), r"ledgers?"),
    Banned("unpublished", ("debt", "debts", "owe", "owes", "owed"), r"debts?|owe[sd]?|owing"),
    Banned(
        "round (fairness), slot of the key (concurrency)",
        ("turn", "turns"),
        r"(?<!in )turns?(?! (?:on|off|into|out|back))",
        in_tests=False,
    ),
    Banned("orchestrator, message loops", ("conductor",), r"conductors?"),
    Banned("released while waiting", ("lend", "lends", "lent", "lending"), r"len[dt](?:s|ing)?"),
    Banned(
        "retry", ("patience", "patient", "patiently", "insistently"), r"patien(?:t|ce|tly)|insist\w*", in_tests=False
    ),
    Banned(
        "deliver (the broker), delegate (an agent)",
        ("give out", "given out"),
        r"g[ia]v(?:e|es|en|ing) (?:\w+ )?out",
        in_tests=False,
    ),
    Banned("ready queue, enqueue", ("line up",), r"in (?:the )?line|lin(?:e|es|ed) up"),
    Banned("nak, return", ("hand back", "handed back"), r"hand(?:s|ed|ing)? (?:\w+ ){0,2}back", in_tests=False),
    Banned("forward", ("pass on", "passed on"), r"pass(?:es|ed|ing)? (?:\w+ )?on", in_tests=False),
    Banned("release", ("let go",), r"let(?:s|ting)? (?:\w+ )?go(?! on)", in_tests=False),
    Banned("add, enqueue, post", ("put in",), r"put(?:s|ting)? in", in_tests=False),
    Banned("stop accepting", ("quiet",), r"(?:be|is|are|stays?) quiet", in_tests=False),
    Banned("held by another orchestrator", ("elsewhere",), r"elsewhere", in_tests=False),
    Banned("queue dispatcher", ("taker",), r"takers?"),
    Banned("wait reasons", ("obstacle", "obstacles"), r"obstacles?", in_tests=False),
    Banned("broker was down", ("unheard",), r"unheard"),
    Banned("unserved", ("hopeless",), r"hopeless", in_tests=False),
    Banned("fairness key, flow control", ("flow", "flows"), r"(?<!control )flows?(?! control)"),
    Banned("in the cache", (), r"in mind"),
    Banned("run", ("course",), r"(?<!of )courses?"),
)
# The name of a loop's variable is the thing's.
LOOP_NAME = Banned("the thing's name", ("one",))

# Names that stay: what users, the wire and the database know, and what client libraries call their own.
ALLOWED_NAMES = frozenset(
    {
        "answered_at",  # a column
        "NO_ANSWER", "answers", "in_turn", "assert_undone", "patience_seconds",  # pantheon.testing
        "FlowSettings",
        "quiet",  # an option of `pantheon run`
        "PATIENCE_SECONDS",  # how long a test waits (tests/waiting.py)
        "handed_back",  # a field of the log event `peer.silent`
    }
)  # fmt: skip

TOPS = ("orchestrator_agent", "pantheon", "agents", "tests")


def packages() -> list[str]:
    """Where the rule holds: all code and documentation, as packages of which each is looked through by itself."""
    found = ["docs", "README.md", "CONTRIBUTING.md", "hatch_build.py", "examples/agents"]
    found += ["benchmarks", "docker", "migrations", "protocol", "testkit"]
    for top in TOPS:
        folders = sorted(path.parent for path in (REPOSITORY / top).glob("*/*.py"))
        found += [f"{top}/*.py", *dict.fromkeys(f"{top}/{folder.name}" for folder in folders)]
    return [package for package in found if files_of(package)]


class Hit(NamedTuple):
    path: Path
    line: int
    kind: str
    text: str
    instead: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(REPOSITORY)}:{self.line}: {self.kind} '{self.text}': {self.instead}"


_OURS = frozenset(
    {"protocol", "pantheon", "orchestrator_agent", "agents", "testkit", "migrations", "tests", "benchmarks", "docker"}
)
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
# A phrase may be broken by the end of a line.
_PROSE = [
    (re.compile(rf"\b(?:{banned.prose})\b".replace(" ", r"\s"), re.IGNORECASE), banned)
    for banned in BANNED
    if banned.prose
]
_ALLOWED_PHRASES = ("control flow", "flow control", "in turn")
_NAMES = [(f" {words} ", banned) for banned in BANNED for words in banned.names]


def in_name(name: str) -> Iterator[tuple[str, Banned]]:
    """The banned words of an identifier."""
    if name in ALLOWED_NAMES:
        return
    words = f" {' '.join(word.lower() for word in _WORDS.findall(name))} "
    for phrase in _ALLOWED_PHRASES:
        words = words.replace(f" {phrase} ", "  ")
    sentence = name.startswith("test_")
    for phrase, banned in _NAMES:
        if phrase in words and (banned.in_tests or not sentence):
            yield name, banned


def in_prose(text: str) -> Iterator[tuple[int, str, Banned]]:
    """The banned words of a text, with the number of the line, from 0. What is in backticks is no prose."""
    plain = re.sub(r"\n[ \t]+", "\n", re.sub(r"`+[^`]*`+", _blank, text))
    for pattern, banned in _PROSE:
        for found in pattern.finditer(plain):
            yield plain.count("\n", 0, found.start()), " ".join(found[0].split()), banned


def _blank(found: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", found[0])


def in_markdown(path: Path) -> Iterator[Hit]:
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```$", _blank, text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"\]\([^)]*\)", _blank, text)
    for line, found, banned in in_prose(text):
        yield Hit(path, line + 1, "prose", found, banned.instead)


def in_python(path: Path) -> Iterator[Hit]:
    is_test = path.is_relative_to(REPOSITORY / "tests")
    if not path.is_relative_to(VERSIONS):
        for name, banned in in_name(path.stem):
            yield Hit(path, 0, "file", name, banned.instead)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    foreign = set(_foreign_names(tree))
    comments: list[tuple[int, str]] = []
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.NAME and token.string not in foreign:
                for name, banned in in_name(token.string):
                    yield Hit(path, token.start[0], "name", name, banned.instead)
            elif token.type == tokenize.COMMENT:
                comments.append((token.start[0], token.string.lstrip("#: ")))
    for first, text in _joined(comments):
        for line, found, banned in in_prose(text):
            if banned.in_tests or not is_test:
                yield Hit(path, first + line, "comment", found, banned.instead)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            doc = ast.get_docstring(node, clean=False)
            if doc is not None:
                for line, found, banned in in_prose(doc):
                    if banned.in_tests or not is_test:
                        yield Hit(path, node.body[0].lineno + line, "docstring", found, banned.instead)
    for line in _loop_names(tree):
        yield Hit(path, line, "loop", "one", LOOP_NAME.instead)


def _foreign_names(tree: ast.AST) -> Iterator[str]:
    """What a module imports from others' libraries, such as hypothesis's `given`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").partition(".")[0] not in _OURS:
            yield from (name.asname or name.name for name in node.names)


def _joined(comments: Sequence[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Comments on lines that follow one another as one text."""
    first, lines = 0, list[str]()
    for line, text in comments:
        if lines and line == first + len(lines):
            lines.append(text)
            continue
        if lines:
            yield first, "\n".join(lines)
        first, lines = line, [text]
    if lines:
        yield first, "\n".join(lines)


def _loop_names(tree: ast.AST) -> Iterator[int]:
    for node in ast.walk(tree):
        targets: list[ast.AST] = []
        if isinstance(node, ast.For | ast.AsyncFor | ast.comprehension):
            targets = [node.target]
        elif isinstance(node, ast.Lambda):
            targets = [*node.args.posonlyargs, *node.args.args]
        for target in targets:
            for part in ast.walk(target):
                if getattr(part, "id", getattr(part, "arg", None)) == "one":
                    yield getattr(part, "lineno", 0)


def files_of(package: str) -> list[Path]:
    """The files of a folder, a pattern or one file."""
    path = REPOSITORY / package
    found = [*path.rglob("*.py"), *path.rglob("*.md")] if path.is_dir() else list(REPOSITORY.glob(package))
    # The wordlist itself.
    return sorted(file for file in found if file != Path(__file__) and "node_modules" not in file.parts)


def hits_in(package: str) -> list[Hit]:
    found: list[Hit] = []
    for path in files_of(package):
        found += in_markdown(path) if path.suffix == ".md" else in_python(path)
    return found


def main(selected: Sequence[str]) -> None:
    """Without arguments: a table of all packages. With some: each hit in them."""
    if selected:
        for package in selected:
            sys.stdout.writelines(f"{hit}\n" for hit in hits_in(package))
        return
    sys.stdout.write(f"{'package':34}{'names':>7}{'loops':>7}{'prose':>7}\n")
    for package in packages():
        kinds = Counter(hit.kind for hit in hits_in(package))
        prose = kinds["prose"] + kinds["comment"] + kinds["docstring"]
        sys.stdout.write(f"{package:34}{kinds['name'] + kinds['file']:>7}{kinds['loop']:>7}{prose:>7}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
