"""Source: the text of a workflow file, JSON or YAML, read into JSON's values, with the position of each."""

import json
import math
import re
from collections.abc import Iterator
from typing import Any, NoReturn

import yaml

from pantheon.runtime.json_yaml import MERGE, TEXT, JsonLoader
from protocol.errors import InvalidWorkflow

# Keys and indices from the top of a file to a value in it.
KeyPath = tuple[str | int, ...]
Marks = dict[KeyPath, tuple[int, int]]
# Aliases make a few lines of YAML a value of any size: a file that is read has fewer values than this.
MAX_VALUES = 1_000_000
_SURROGATE = re.compile("[\ud800-\udfff]")


class Source:
    """A file's value, and where its parts stand. Raises InvalidWorkflow whose message begins `name:line:column:`."""

    def __init__(self, text: str, name: str) -> None:
        self._name = name
        self._text = text
        self._marks: Marks = {}
        self._values = 0
        self.value: Any = None
        if text.lstrip("\ufeff \t\r\n").startswith("{"):
            self._read_json(text)
        else:
            self._read_yaml(text)
        for path, problem in _no_json(self.value, ()):
            raise self.mistake(path, problem)

    def mistake(self, path: KeyPath, message: str, step: str | None = None) -> InvalidWorkflow:
        """An error at the deepest part of the path that stands in the file."""
        if not self._marks:
            self._find_positions()
        while path and path not in self._marks:
            path = path[:-1]
        line, column = self._marks.get(path, (1, 1))
        return InvalidWorkflow(f"{self._name}:{line}:{column}: {message}", step=step, line=line, column=column)

    def _refuse(self, line: int, column: int, problem: str) -> NoReturn:
        raise InvalidWorkflow(f"{self._name}:{line}:{column}: {problem}", line=line, column=column)

    def _refuse_mark(self, mark: yaml.Mark, problem: str) -> NoReturn:
        self._refuse(mark.line + 1, mark.column + 1, problem)

    # -- JSON ---------------------------------------------------------------------------------------------------------

    def _read_json(self, text: str) -> None:
        try:
            self.value = json.loads(text.removeprefix("\ufeff"), object_pairs_hook=_object)
        except _TwiceTheSameKeyError as error:
            self._find_positions()
            self._refuse(1, 1, f"'{error}' stands here twice")
        except json.JSONDecodeError as error:
            if not self._name.endswith(".json"):
                # YAML's own braces.
                self._read_yaml(text)
                return
            self._refuse(error.lineno, error.colno, f"not JSON: {error.msg}")
        except (ValueError, RecursionError) as error:
            reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
            self._refuse(1, 1, f"not JSON that can be read: {reason}")

    def _find_positions(self) -> None:
        """JSON is YAML as far as the positions of its values go. Refuses a key that stands twice in an object."""
        try:
            node = yaml.compose(self._text, Loader=_PositionLoader)
        except (yaml.YAMLError, RecursionError):
            return
        if node is not None:
            self._collect(node, ())

    # -- YAML ---------------------------------------------------------------------------------------------------------

    def _read_yaml(self, text: str) -> None:
        try:
            loader = JsonLoader(text)
            try:
                node = loader.get_single_node()
                if node is None:
                    self._refuse(1, 1, "the file is empty")
                self._collect(node, ())
                self.value = loader.construct_document(node)
            finally:
                loader.dispose()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            problem = error.problem or error.context or "not YAML"
            self._refuse(mark.line + 1 if mark else 1, mark.column + 1 if mark else 1, problem)
        except (yaml.YAMLError, ValueError) as error:
            self._refuse(1, 1, f"not YAML: {' '.join(str(error).split())}")
        except RecursionError:
            self._refuse(1, 1, "nested too deep, or an alias holds itself")

    # -- positions ----------------------------------------------------------------------------------------------------

    def _collect(self, node: yaml.Node, path: KeyPath) -> None:
        self._values += 1
        if self._values > MAX_VALUES:
            self._refuse_mark(node.start_mark, f"with its aliases the file has more than {MAX_VALUES} values")
        self._marks.setdefault(path, (node.start_mark.line + 1, node.start_mark.column + 1))
        if isinstance(node, yaml.MappingNode):
            self._collect_keys(node, path)
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self._collect(item, (*path, index))

    def _collect_keys(self, node: yaml.MappingNode, path: KeyPath) -> None:
        seen: set[str] = set()
        for key_node, value_node in node.value:
            mark = key_node.start_mark
            if not isinstance(key_node, yaml.ScalarNode):
                self._refuse_mark(mark, "a key must be a name")
            key = key_node.value
            if key in seen:
                # YAML would silently keep the last one: a step would be gone.
                self._refuse_mark(mark, f"'{key}' stands here twice")
            seen.add(key)
            if key_node.tag == MERGE:
                merged = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                for other in merged:
                    if not isinstance(other, yaml.MappingNode):
                        self._refuse_mark(value_node.start_mark, "'<<' takes an alias of an object, or a list of them")
                    self._collect_merged(other, path)
                continue
            if key_node.tag != TEXT:
                self._refuse_mark(mark, f"a key must be a text: put '{key}' in quotes")
            self._marks[(*path, key)] = (mark.line + 1, mark.column + 1)
            self._collect(value_node, (*path, key))

    def _collect_merged(self, node: yaml.MappingNode, path: KeyPath) -> None:
        """Keys of another object count where they are written, unless this object has them itself."""
        before = dict(self._marks)
        self._collect_keys(node, path)
        self._marks.update(before)


class _PositionLoader(JsonLoader):
    """Every scalar is a text: JSON's values are known, only their positions are not."""


_PositionLoader.yaml_implicit_resolvers = {}


class _TwiceTheSameKeyError(ValueError):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        raise _TwiceTheSameKeyError(next(key for key, _ in pairs if key in seen or seen.add(key)))  # type: ignore[func-returns-value]
    return made


def _no_json(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    """What Python's readers take for JSON, and no database or message can hold."""
    if isinstance(value, str):
        if _SURROGATE.search(value) is not None:
            yield path, "the text holds half a surrogate pair, which is no character"
    elif isinstance(value, float):
        if not math.isfinite(value):
            yield path, "JSON has no infinity and no NaN"
    elif isinstance(value, dict):
        for key, field in value.items():
            if _SURROGATE.search(key) is not None:
                yield path, "a key holds half a surrogate pair, which is no character"
            yield from _no_json(field, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _no_json(item, (*path, index))
