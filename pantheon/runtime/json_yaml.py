"""YAML for what is sent as JSON: its scalars are those of JSON, as in the JSON schema of YAML 1.2.

`1e3` is a number; `NO`, `010`, `10:30` and `2026-01-31` are texts. What is neither JSON's nor a text is a mistake.
"""

import re
from collections.abc import Mapping

import yaml

_PREFIX = "tag:yaml.org,2002:"
NULL, BOOL, INT, FLOAT, TEXT, MERGE = (f"{_PREFIX}{name}" for name in ("null", "bool", "int", "float", "str", "merge"))
_INT = re.compile(r"-?(?:0|[1-9][0-9]*)\Z")
_FLOAT = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?\Z")
_NO_NUMBER = re.compile(r"[-+]?\.(?:inf|Inf|INF)\Z|\.(?:nan|NaN|NAN)\Z")
_BOOLS: Mapping[str, bool] = {
    "true": True,
    "True": True,
    "TRUE": True,
    "false": False,
    "False": False,
    "FALSE": False,
}
_TAGS = frozenset((NULL, BOOL, INT, FLOAT, TEXT, MERGE, f"{_PREFIX}map", f"{_PREFIX}seq"))


class JsonLoader(yaml.SafeLoader):
    """Raises yaml.MarkedYAMLError, which has the line and column, for what JSON has no value for."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        node = super().compose_node(parent, index)
        if node is not None and node.tag not in _TAGS:
            raise yaml.constructor.ConstructorError(
                None, None, f"the tag '{node.tag}' makes no value of JSON", node.start_mark
            )
        if isinstance(node, yaml.ScalarNode) and node.style is None and _NO_NUMBER.match(node.value):
            raise yaml.constructor.ConstructorError(
                None, None, f"JSON has no {node.value}: put it in quotes if it is a text", node.start_mark
            )
        return node

    def construct_bool(self, node: yaml.ScalarNode) -> bool:
        value = _BOOLS.get(node.value)
        if value is None:
            raise _none_of(node, "true or false")
        return value

    def construct_int(self, node: yaml.ScalarNode) -> int:
        if _INT.match(node.value) is None:
            raise _none_of(node, "an integer of JSON")
        try:
            return int(node.value)
        except ValueError:
            raise _none_of(node, "an integer that can be read") from None

    def construct_float(self, node: yaml.ScalarNode) -> float:
        value = float(node.value) if _FLOAT.match(node.value) is not None else float("inf")
        if value in (float("inf"), float("-inf")):
            raise _none_of(node, "a number of JSON")
        return value


def _none_of(node: yaml.ScalarNode, what: str) -> yaml.MarkedYAMLError:
    shown = node.value if len(node.value) <= 40 else f"{node.value[:40]}…"
    return yaml.constructor.ConstructorError(None, None, f"'{shown}' is not {what}", node.start_mark)


# Not those of SafeLoader, which are YAML 1.1's.
JsonLoader.yaml_implicit_resolvers = {}
JsonLoader.add_implicit_resolver(NULL, re.compile(r"(?:~|null|Null|NULL|)\Z"), ["~", "n", "N", ""])
JsonLoader.add_implicit_resolver(BOOL, re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), list("tTfF"))
JsonLoader.add_implicit_resolver(INT, _INT, list("-0123456789"))
JsonLoader.add_implicit_resolver(FLOAT, _FLOAT, list("-0123456789"))
JsonLoader.add_implicit_resolver(MERGE, re.compile(r"<<\Z"), ["<"])
JsonLoader.add_constructor(BOOL, JsonLoader.construct_bool)
JsonLoader.add_constructor(INT, JsonLoader.construct_int)
JsonLoader.add_constructor(FLOAT, JsonLoader.construct_float)
