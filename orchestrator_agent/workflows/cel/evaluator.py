"""Evaluator: a syntax tree made into Python functions, each of which takes the frame and gives a value."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from orchestrator_agent.workflows.cel import operators
from orchestrator_agent.workflows.cel.additions import ADDITIONS
from orchestrator_agent.workflows.cel.checker import CheckedText, matches
from orchestrator_agent.workflows.cel.control import (
    LOGICAL,
    Run,
    conditional,
    exists_one,
    filtered,
    mapped,
    otherwise,
    quantifier,
)
from orchestrator_agent.workflows.cel.functions import STANDARD
from orchestrator_agent.workflows.cel.meter import FIRST, Frame, build
from orchestrator_agent.workflows.cel.operators import has_field, optional_select, select
from orchestrator_agent.workflows.cel.scanner import NAMESPACES
from orchestrator_agent.workflows.cel.syntax import (
    Call,
    Comprehension,
    Constant,
    ListLiteral,
    MapLiteral,
    Message,
    Name,
    Node,
    Select,
)
from orchestrator_agent.workflows.cel.values import (
    CelError,
    CelType,
    MixedMap,
    Optional,
    UInt,
    map_key,
    shown_type,
)

_UNARY: Mapping[str, Callable[..., Any]] = {"-_": operators.negate}
_BINARY: Mapping[str, Callable[..., Any]] = {
    "_+_": operators.add,
    "_-_": operators.subtract,
    "_*_": operators.multiply,
    "_/_": operators.divide,
    "_%_": operators.modulo,
    "_==_": operators.equal,
    "_!=_": operators.unequal,
    "_<_": operators.less,
    "_<=_": operators.less_or_equal,
    "_>_": operators.greater,
    "_>=_": operators.greater_or_equal,
    "@in": operators.contained,
    "_[_]": operators.index,
    "_[?_]": operators.optional_index,
}
FUNCTIONS: Mapping[str, Callable[..., Any]] = {**STANDARD, **ADDITIONS, "matches": matches}
# Of these, the value is JSON, whatever the arguments: a boolean, a string, an int within 64 bits, lists of those.
_JSON = frozenset(
    "_==_ _!=_ _<_ _<=_ _>_ _>=_ @in !_ _&&_ _||_ int string bool size contains startsWith endsWith charAt indexOf "
    "lastIndexOf substring trim lowerAscii upperAscii reverse strings.quote replace split join format hasValue matches "
    "math.isInf math.isNaN math.isFinite to_json parse_json".split()
)
# Of these, the value may hold parts of the arguments.
_SHARING = frozenset(
    "_+_ _[_] _[?_] _?._ dyn optional.of optional.ofNonZeroValue value or orValue first last "
    "sort_pairs__ group_pairs__ flatten unique".split()
)
_TYPES = frozenset(
    "bool int uint double string bytes list map type null_type optional_type google.protobuf.Timestamp "
    "google.protobuf.Duration".split()
)
# The value of the enum that protocol buffers have for null.
_NULLS = frozenset(("google.protobuf.NullValue.NULL_VALUE",))


class Unsupported(Exception):
    """The expression is CEL, but nothing that workflows have."""


@dataclass(slots=True)
class Code:
    """A part of an expression: its function, and what is known of its values without running it.

    `json`: its values are JSON as they are. `slots`: the variables that its values may share parts with; `copies`: how
    often at most one such part may stand in a value. `units`: what one run costs, loops apart.
    """

    run: Run
    json: bool
    slots: frozenset[int] = frozenset()
    copies: float = 0
    units: int = 1


@dataclass(frozen=True, slots=True)
class Program:
    """A compiled expression. A frame for it has the `names`' values, then `slots` more positions."""

    code: Code
    names: tuple[str, ...]
    slots: int


def compile_syntax(checked: CheckedText) -> Program:
    """Raises Unsupported."""
    compiler = _Compiler(checked)
    code = compiler.code(checked.syntax, {})
    return Program(code, tuple(compiler.variables), compiler.next_slot - FIRST - len(compiler.variables))


@dataclass(slots=True)
class _Bound:
    """A variable that a macro binds."""

    slot: int
    json: bool
    slots: frozenset[int]
    copies: float


_Scope = Mapping[str, _Bound]


class _Compiler:
    def __init__(self, checked: CheckedText) -> None:
        self._checked = checked
        # Variables of the expression have the first slots, in the checker's order; macros' variables those behind.
        self.variables = {name: FIRST + number for number, name in enumerate(checked.names)}
        self.next_slot = FIRST + len(self.variables)
        # How many loops the code that is being made stands in.
        self._depth = 0

    def code(self, node: Node, scope: _Scope) -> Code:
        match node:
            case Constant():
                return _constant(node.value)
            case Name():
                return self._name(node, scope)
            case Select():
                return self._select(node, scope)
            case Call():
                return self._call(node, scope)
            case ListLiteral():
                return self._list(node, scope)
            case MapLiteral():
                return self._map(node, scope)
            case Comprehension():
                return self._comprehension(node, scope)
            case Message():
                raise Unsupported(
                    f"'{node.name}{{…}}' makes a message of protocol buffers: workflows have JSON's values"
                )

    # -- names and fields ---------------------------------------------------------------------------------------------

    def _name(self, node: Name, scope: _Scope) -> Code:
        name = node.name.removeprefix(".")
        if (bound := scope.get(name)) is not None:
            return Code(_read(bound.slot), bound.json, bound.slots, bound.copies)
        if (variable := self._checked.variable(name)) is not None:
            slot = self.variables[variable]
            return Code(_read(slot), True, frozenset({slot}), 1)
        if name in _TYPES:
            return _constant(CelType(name), json=False)
        if name in _NULLS:
            return _constant(0)
        raise Unsupported(f"undeclared reference to '{name}'")

    def _path(self, node: Node, scope: _Scope) -> str:
        """How a plain path is written, for messages."""
        if isinstance(node, Name):
            return self._checked.variable(node.name) or node.name
        if isinstance(node, Select) and not node.test and (left := self._path(node.operand, scope)):
            return f"{left}.{node.field}"
        return ""

    def _select(self, node: Select, scope: _Scope) -> Code:
        operand = self.code(node.operand, scope)
        where = self._path(node.operand, scope)
        field, value_of = node.field, operand.run
        if node.test:

            def test(f: Frame) -> Any:
                return has_field(value_of(f), field, where)

            return Code(test, True, units=1 + operand.units)
        slot = self._slot_of(node.operand, scope)
        if slot is not None:

            def select_from_slot(f: Frame) -> Any:
                value = f[slot]
                if type(value) is dict and field in value:
                    return value[field]
                return select(value, field, where)

            run: Run = select_from_slot
        else:

            def select_from_value(f: Frame) -> Any:
                value = value_of(f)
                if type(value) is dict and field in value:
                    return value[field]
                return select(value, field, where)

            run = select_from_value
        return Code(run, operand.json, operand.slots, operand.copies, 1 + operand.units)

    def _slot_of(self, node: Node, scope: _Scope) -> int | None:
        if not isinstance(node, Name):
            return None
        if (bound := scope.get(node.name)) is not None:
            return bound.slot
        variable = self._checked.variable(node.name.removeprefix("."))
        return self.variables[variable] if variable is not None else None

    # -- calls --------------------------------------------------------------------------------------------------------

    def _call(self, node: Call, scope: _Scope) -> Code:
        name = node.function
        nodes = node.arguments
        if node.target is not None:
            # Where the checker has not been at it, `math.abs` is still a name and a function.
            space = node.target.name if isinstance(node.target, Name) else ""
            if space in NAMESPACES and space not in scope and f"{space}.{name}" in FUNCTIONS:
                name = f"{space}.{name}"
            else:
                nodes = (node.target, *nodes)
        if name == "_?._":
            return self._optional_select(nodes, scope)
        arguments = [self.code(argument, scope) for argument in nodes]
        runs = [argument.run for argument in arguments]
        units = 1 + sum(argument.units for argument in arguments)
        if name == "_?_:_" and len(runs) == 3:
            chosen = arguments[1:]
            return Code(
                conditional(*runs),
                all(argument.json for argument in chosen),
                chosen[0].slots | chosen[1].slots,
                max(argument.copies for argument in chosen),
                units,
            )
        if name in ("or", "orValue") and len(runs) == 2:
            return _shared(otherwise(name, *runs), arguments, name == "orValue", units)
        if name in LOGICAL and len(runs) == LOGICAL[name][1]:
            return Code(LOGICAL[name][0](*runs), True, units=units)
        function = _BINARY.get(name) if len(runs) == 2 else _UNARY.get(name) if len(runs) == 1 else None
        if function is None and name not in _BINARY and name not in _UNARY:
            function = FUNCTIONS.get(name)
        if function is None:
            raise Unsupported(f"undeclared reference to '{name}'")
        run = _applied(function, runs)
        if name in _SHARING:
            passes_json = name in ("_[_]", "dyn", "sort_pairs__", "flatten", "unique")
            return _shared(run, arguments, passes_json, units)
        return Code(run, name in _JSON, units=units)

    def _optional_select(self, nodes: Sequence[Node], scope: _Scope) -> Code:
        operand, (field,) = self.code(nodes[0], scope), nodes[1:]
        if not isinstance(field, Constant) or not isinstance(field.value, str):
            raise Unsupported("'.?' is followed by a field's name")
        name, value_of = field.value, operand.run

        def run(f: Frame) -> Any:
            return optional_select(value_of(f), name)

        return Code(run, False, operand.slots, operand.copies, 1 + operand.units)

    # -- literals -----------------------------------------------------------------------------------------------------

    def _list(self, node: ListLiteral, scope: _Scope) -> Code:
        elements = [self.code(element, scope) for element in node.elements]
        runs = [element.run for element in elements]
        units = 1 + sum(element.units for element in elements)
        size = 2 + 2 * len(runs)

        def run(f: Frame) -> Any:
            build(f, size)
            return [element(f) for element in runs]

        def run_with_optional(f: Frame) -> Any:
            build(f, size)
            made = []
            for number, element in enumerate(runs):
                value = element(f)
                if number not in node.optional:
                    made.append(value)
                elif type(value) is not Optional:
                    raise CelError(f"an element with '?' is an optional value, not {shown_type(value)}")
                elif value.present:
                    made.append(value.value)
            return made

        json = not node.optional and all(element.json for element in elements)
        return _gathered(run_with_optional if node.optional else run, elements, json, units)

    def _map(self, node: MapLiteral, scope: _Scope) -> Code:
        values = [self.code(entry.value, scope) for entry in node.entries]
        texts = [text for entry in node.entries if (text := _text_of(entry.key)) is not None]
        units = 1 + sum(value.units for value in values)
        size = 2 + sum(6 + len(text) for text in texts)
        if len(texts) == len(node.entries) and not any(entry.optional for entry in node.entries):
            if len(set(texts)) < len(texts):
                raise Unsupported("a map literal has the same key twice")
            pairs = [(text, value.run) for text, value in zip(texts, values, strict=True)]

            def run(f: Frame) -> Any:
                build(f, size)
                return {key: value(f) for key, value in pairs}

            return _gathered(run, values, all(value.json for value in values), units)
        keys = [self.code(entry.key, scope) for entry in node.entries]
        entries = [
            (key.run, value.run, entry.optional) for key, value, entry in zip(keys, values, node.entries, strict=True)
        ]

        def run_with_any_key(f: Frame) -> Any:
            build(f, 8 * len(entries))
            made: dict[Any, Any] = MixedMap()
            for key_of, value_of, optional in entries:
                key = _literal_key(key_of(f))
                value = value_of(f)
                if optional:
                    if type(value) is not Optional:
                        raise CelError(f"an entry with '?' is an optional value, not {shown_type(value)}")
                    if not value.present:
                        continue
                    value = value.value
                if key in made:
                    raise CelError("duplicate key in map")
                made[key] = value
            return made

        return _gathered(run_with_any_key, values, False, units + sum(key.units for key in keys))

    # -- macros -------------------------------------------------------------------------------------------------------

    def _comprehension(self, node: Comprehension, scope: _Scope) -> Code:
        if node.variable == "#unused" and node.accumulator != "@result":
            return self._binding(node, scope)
        macro = _macro_of(node)
        if macro is None:
            raise Unsupported("a loop that is none of the macros all, exists, exists_one, map and filter")
        kind, test, value = macro
        items = self.code(node.range, scope)
        slot = self._new_slot()
        bound = _Bound(slot, items.json, items.slots, items.copies)
        self._depth += 1
        inner = {**scope, node.variable: bound}
        tested = self.code(test, inner) if test is not None else None
        made = self.code(value, inner) if value is not None else None
        self._depth -= 1
        cost = 1 + (tested.units if tested else 0) + (made.units if made else 0)
        # A loop that stands in no other adds to what the evaluation may cost: its work is linear in a value's size.
        free = self._depth == 0
        if kind in ("all", "exists"):
            assert tested is not None
            return Code(quantifier(kind, items.run, slot, tested.run, cost, free), True, units=1 + items.units)
        if kind == "exists_one":
            assert tested is not None
            return Code(exists_one(items.run, slot, tested.run, cost, free), True, units=1 + items.units)
        if made is None:
            assert tested is not None
            run = filtered(items.run, slot, tested.run, cost, free)
            return Code(run, items.json, items.slots, items.copies, 1 + items.units)
        run = mapped(items.run, slot, tested.run if tested else None, made.run, cost, free)
        # Of each element, a value has as many copies as the body makes; of anything else, one with each element.
        copies = made.copies if made.slots <= items.slots and items.copies <= 1 and self._only(value, node) else inf
        return Code(run, made.json, made.slots, copies if made.copies else 0, 1 + items.units)

    def _only(self, value: Node | None, node: Comprehension) -> bool:
        """Whether the names in the body of a macro are its own variable's alone."""
        return value is not None and all(name == node.variable for name in _names(value))

    def _binding(self, node: Comprehension, scope: _Scope) -> Code:
        """What `optMap` and `optFlatMap` are made of: a name for a value."""
        value = self.code(node.start, scope)
        slot = self._new_slot()
        bound = _Bound(slot, value.json, value.slots, value.copies)
        result = self.code(node.result, {**scope, node.accumulator: bound})
        start, finish = value.run, result.run

        def run(f: Frame) -> Any:
            f[slot] = start(f)
            return finish(f)

        return Code(run, result.json, result.slots, result.copies, 1 + value.units + result.units)

    def _new_slot(self) -> int:
        slot = self.next_slot
        self.next_slot += 1
        return slot


def _constant(value: Any, *, json: bool | None = None) -> Code:
    def run(f: Frame) -> Any:
        return value

    return Code(run, not isinstance(value, UInt | bytes) if json is None else json)


def _text_of(node: Node) -> str | None:
    return node.value if isinstance(node, Constant) and isinstance(node.value, str) else None


def _read(slot: int) -> Run:
    def run(f: Frame) -> Any:
        return f[slot]

    return run


def _shared(run: Run, arguments: Sequence[Code], passes_json: bool, units: int) -> Code:
    """Code whose values may be, or hold, its arguments'."""
    slots = frozenset[int]().union(*(argument.slots for argument in arguments))
    json = passes_json and all(argument.json for argument in arguments)
    return Code(run, json, slots, sum(argument.copies for argument in arguments), units)


def _gathered(run: Run, parts: Sequence[Code], json: bool, units: int) -> Code:
    slots = frozenset[int]().union(*(part.slots for part in parts))
    return Code(run, json, slots, sum(part.copies for part in parts), units)


def _literal_key(value: Any) -> Any:
    key = map_key(value)
    if key is None or type(value) is float:
        raise CelError(f"a key of a map is a string, an integer or a boolean, not {shown_type(value)}")
    return key


def _applied(function: Callable[..., Any], runs: Sequence[Run]) -> Run:
    if len(runs) == 1:
        (one,) = runs
        return lambda f: function(f, one(f))
    if len(runs) == 2:
        left, right = runs
        return lambda f: function(f, left(f), right(f))
    return lambda f: function(f, *[run(f) for run in runs])


def _macro_of(node: Comprehension) -> tuple[str, Node | None, Node | None] | None:
    """Which macro a loop was made of, its condition, and the value of each element."""
    result = Name(node.accumulator)
    match node.step:
        case Call("_&&_", None, (left, test)) if left == result and node.start == Constant(True):
            return "all", test, None
        case Call("_||_", None, (left, test)) if left == result and node.start == Constant(False):
            return "exists", test, None
        case Call("_?_:_", None, (test, Call("_+_", None, (left, Constant(1))), right)) if left == right == result:
            return "exists_one", test, None
        case Call("_+_", None, (left, ListLiteral((value,)))) if left == result:
            return "map", None, value
        case Call("_?_:_", None, (test, Call("_+_", None, (left, ListLiteral((value,)))), right)):
            if left == right == result:
                return ("filter", test, None) if value == Name(node.variable) else ("map", test, value)
    return None


def _names(node: Node) -> set[str]:
    match node:
        case Name():
            return {node.name}
        case Select():
            return _names(node.operand)
        case Call():
            parts: Sequence[Node] = node.arguments if node.target is None else (node.target, *node.arguments)
        case ListLiteral():
            parts = node.elements
        case MapLiteral():
            parts = [part for entry in node.entries for part in (entry.key, entry.value)]
        case Comprehension():
            inner = _names(node.step) | _names(node.result) | _names(node.condition)
            return (inner - {node.variable, node.accumulator}) | _names(node.range) | _names(node.start)
        case _:
            return set()
    return set().union(*map(_names, parts))
