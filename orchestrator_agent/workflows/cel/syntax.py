"""The syntax tree of an expression, read from what the library serializes.

That is a protocol buffer, a CheckedExpr or ParsedExpr of package cel.expr in an Any of google.protobuf
(github.com/google/cel-spec, proto/cel/expr/syntax.proto and checked.proto). The wire format is read here: no package of
Python's carries these messages.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator_agent.workflows.cel.values import UInt


@dataclass(slots=True)
class Constant:
    value: Any


@dataclass(slots=True)
class Name:
    name: str


@dataclass(slots=True)
class Select:
    """`operand.field`; with `test`, `has(operand.field)`."""

    operand: "Node"
    field: str
    test: bool


@dataclass(slots=True)
class Call:
    """A function or an operator (`_+_`, `_?_:_`, …). `target` is what stands before the dot."""

    function: str
    target: "Node | None"
    arguments: tuple["Node", ...]


@dataclass(slots=True)
class ListLiteral:
    """`optional` are the indices of the elements that are written `?element`."""

    elements: tuple["Node", ...]
    optional: frozenset[int]


@dataclass(slots=True)
class Entry:
    key: "Node"
    value: "Node"
    optional: bool


@dataclass(slots=True)
class MapLiteral:
    entries: tuple[Entry, ...]


@dataclass(slots=True)
class Message:
    """A literal of a protocol buffer's message."""

    name: str


@dataclass(slots=True)
class Comprehension:
    """What the parser makes of a macro: a loop with an accumulator."""

    variable: str
    range: "Node"
    accumulator: str
    start: "Node"
    condition: "Node"
    step: "Node"
    result: "Node"


Node = Constant | Name | Select | Call | ListLiteral | MapLiteral | Message | Comprehension

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_CHECKED = b"type.googleapis.com/cel.expr.CheckedExpr"


def read_syntax(serialized: bytes) -> Node:
    parts = dict(_fields(serialized))
    body = parts[2]
    if parts[1] == _CHECKED:
        references: dict[int, str] = {}
        expression = b""
        for number, value in _fields(body):
            if number == 2:
                (_, identity), (_, reference) = _fields(value)
                number, name = next(_fields(reference))
                if number == 1:
                    references[identity] = name.decode()
            elif number == 4:
                expression = value
        return _Reader(references).node(expression)
    return _Reader({}).node(dict(_fields(body))[2])


class _Reader:
    """`references` are the qualified names that the checker found for nodes, by the nodes' ids."""

    def __init__(self, references: Mapping[int, str]) -> None:
        self._references = references

    def node(self, data: bytes) -> Node:
        identity, kind, body = 0, 0, b""
        for number, value in _fields(data):
            if number == 2:
                identity = value
            else:
                kind, body = number, value
        match kind:
            case 3:
                return Constant(_constant(body))
            case 4:
                return Name(self._references.get(identity) or dict(_fields(body))[1].decode())
            case 5:
                return self._select(identity, body)
            case 6:
                return self._call(body)
            case 7:
                return self._list(body)
            case 8:
                return self._map(body)
            case 9:
                return self._comprehension(body)
        raise ValueError(f"a node of unknown kind {kind}")

    def _select(self, identity: int, body: bytes) -> Node:
        if (name := self._references.get(identity)) is not None:
            return Name(name)
        parts = dict(_fields(body))
        return Select(self.node(parts[1]), parts.get(2, b"").decode(), bool(parts.get(3)))

    def _call(self, body: bytes) -> Node:
        target, function, arguments = None, "", []
        for number, value in _fields(body):
            if number == 1:
                target = self.node(value)
            elif number == 2:
                function = value.decode()
            elif number == 3:
                arguments.append(self.node(value))
        return Call(function, target, tuple(arguments))

    def _list(self, body: bytes) -> Node:
        elements: list[Node] = []
        optional: set[int] = set()
        for number, value in _fields(body):
            if number == 1:
                elements.append(self.node(value))
            elif isinstance(value, int):
                optional.add(value)
            else:
                optional.update(_varints(value))
        return ListLiteral(tuple(elements), frozenset(optional))

    def _map(self, body: bytes) -> Node:
        name = ""
        entries = []
        for number, value in _fields(body):
            if number == 1:
                name = value.decode()
            elif not name:
                parts = dict(_fields(value))
                entries.append(Entry(self.node(parts[3]), self.node(parts[4]), bool(parts.get(5))))
        return Message(name) if name else MapLiteral(tuple(entries))

    def _comprehension(self, body: bytes) -> Node:
        parts = dict(_fields(body))
        if parts.get(8):
            raise ValueError("a loop with two variables")
        return Comprehension(
            variable=parts.get(1, b"").decode(),
            range=self.node(parts[2]),
            accumulator=parts.get(3, b"").decode(),
            start=self.node(parts[4]),
            condition=self.node(parts[5]),
            step=self.node(parts[6]),
            result=self.node(parts[7]),
        )


def _constant(body: bytes) -> Any:
    ((number, value),) = _fields(body)
    match number:
        case 1:
            return None
        case 2:
            return bool(value)
        case 3:
            return value - 2**64 if value >= 2**63 else value
        case 4:
            return UInt(value)
        case 5:
            return struct.unpack("<d", value)[0]
        case 6:
            return value.decode()
        case 7:
            return bytes(value)
    raise ValueError(f"a constant of unknown kind {number}")


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a message: number, and an integer (varint) or bytes."""
    position, end = 0, len(data)
    while position < end:
        tag = data[position]
        position += 1
        if tag >= 0x80:
            tag, position = _varint(data, position - 1)
        wire = tag & 7
        if wire == _BYTES:
            size = data[position]
            position += 1
            if size >= 0x80:
                size, position = _varint(data, position - 1)
            yield tag >> 3, data[position : position + size]
            position += size
        elif wire == _VARINT:
            value = data[position]
            position += 1
            if value >= 0x80:
                value, position = _varint(data, position - 1)
            yield tag >> 3, value
        elif wire == _FIXED64:
            yield tag >> 3, data[position : position + 8]
            position += 8
        elif wire == _FIXED32:
            yield tag >> 3, data[position : position + 4]
            position += 4
        else:
            raise ValueError(f"a field of unknown wire type {wire}")


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _varints(data: bytes) -> Iterator[int]:
    position = 0
    while position < len(data):
        value, position = _varint(data, position)
        yield value
