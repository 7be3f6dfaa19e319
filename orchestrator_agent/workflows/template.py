"""Templates: JSON values whose strings may hold `${…}` (docs/workflows.md)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from orchestrator_agent.workflows.cel.scanner import MAX_CHARS, closing_brace
from orchestrator_agent.workflows.expression import Environment, Expression, shown
from protocol.errors import InvalidWorkflow
from protocol.messages import json_bytes

# Of an expression that has no end.
QUOTED_CHARS = 40


class Template(Protocol):
    """A JSON value with holes. `uses` are the names that its expressions read."""

    @property
    def uses(self) -> frozenset[str]: ...

    def render(self, variables: Mapping[str, Any]) -> Any:
        """Fill the holes. Raises ExpressionError."""


@dataclass(frozen=True)
class Constant:
    value: Any
    uses: frozenset[str] = frozenset()

    def render(self, variables: Mapping[str, Any]) -> Any:
        return self.value


@dataclass(frozen=True)
class Hole:
    """A string that is one `${…}` alone: the expression's value, whatever its type."""

    expression: Expression

    @property
    def uses(self) -> frozenset[str]:
        return self.expression.uses

    def render(self, variables: Mapping[str, Any]) -> Any:
        return self.expression.evaluate(variables)


@dataclass(frozen=True)
class Interpolation:
    """Text with holes: strings as they are, other values as JSON."""

    parts: tuple[str | Expression, ...]

    @property
    def uses(self) -> frozenset[str]:
        return frozenset().union(*(part.uses for part in self.parts if isinstance(part, Expression)))

    def render(self, variables: Mapping[str, Any]) -> Any:
        parts = []
        for part in self.parts:
            value = part if isinstance(part, str) else part.evaluate(variables)
            parts.append(value if isinstance(value, str) else json_bytes(value).decode())
        return "".join(parts)


@dataclass(frozen=True)
class ObjectTemplate:
    fields: tuple[tuple[str, Template], ...]
    uses: frozenset[str]

    def render(self, variables: Mapping[str, Any]) -> Any:
        return {name: template.render(variables) for name, template in self.fields}


@dataclass(frozen=True)
class ListTemplate:
    items: tuple[Template, ...]
    uses: frozenset[str]

    def render(self, variables: Mapping[str, Any]) -> Any:
        return [template.render(variables) for template in self.items]


def split(text: str, *, step: str | None = None) -> list[tuple[bool, str]]:
    """The pieces of a string, in order: (is_expression, text). `$${` is a literal `${`. Raises InvalidWorkflow."""
    pieces: list[tuple[bool, str]] = []
    literal: list[str] = []
    position = 0
    while position < len(text):
        if text.startswith("$${", position):
            literal.append("${")
            position += 3
        elif text.startswith("${", position):
            end = closing_brace(text, position + 2)
            if end is None:
                where = f"step '{step}': " if step else ""
                quoted = text[position : position + QUOTED_CHARS]
                raise InvalidWorkflow(
                    f"{where}'{quoted}' has no closing brace, or a string in it no closing quote, or it is longer than "
                    f"{MAX_CHARS} characters",
                    step=step,
                )
            if literal:
                pieces.append((False, "".join(literal)))
                literal = []
            pieces.append((True, text[position + 2 : end]))
            position = end + 1
        else:
            dollar = text.find("$", position + 1)
            behind = dollar if dollar >= 0 else len(text)
            literal.append(text[position:behind])
            position = behind
    if literal:
        pieces.append((False, "".join(literal)))
    return pieces


def compile_template(value: Any, environment: Environment, *, step: str | None = None) -> Template:
    """Compile every expression in a JSON value. Raises InvalidWorkflow."""
    if isinstance(value, str):
        if "${" not in value:
            return Constant(value)
        pieces = split(value, step=step)
        if len(pieces) == 1 and pieces[0][0]:
            return Hole(environment.compile(pieces[0][1], step=step))
        if not any(is_expression for is_expression, _ in pieces):
            return Constant("".join(text for _, text in pieces))
        return Interpolation(
            tuple(environment.compile(text, step=step) if is_expression else text for is_expression, text in pieces)
        )
    if isinstance(value, dict):
        fields = tuple((name, compile_template(field, environment, step=step)) for name, field in value.items())
        if all(isinstance(template, Constant) for _, template in fields):
            return Constant({name: template.render({}) for name, template in fields})
        return ObjectTemplate(fields, frozenset().union(*(template.uses for _, template in fields)))
    if isinstance(value, list):
        items = tuple(compile_template(item, environment, step=step) for item in value)
        if all(isinstance(template, Constant) for template in items):
            return Constant([template.render({}) for template in items])
        return ListTemplate(items, frozenset().union(*(template.uses for template in items)))
    return Constant(value)


def compile_condition(text: str, environment: Environment, *, step: str | None = None) -> Expression:
    """`when` and `until`: an expression, with or without `${…}` around it. Raises InvalidWorkflow."""
    if "${" in text:
        pieces = split(text, step=step)
        if len(pieces) != 1 or not pieces[0][0]:
            raise InvalidWorkflow(f"step '{step}': the condition '{shown(text)}' must be one expression", step=step)
        text = pieces[0][1]
    return environment.compile(text, step=step)
