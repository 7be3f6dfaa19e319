"""Expressions: CEL over JSON values, compiled once, evaluated many times.

Spec: https://github.com/google/cel-spec (language definition), with its strings, math and optional extensions.
A path such as `shout.text`, which most expressions are, is neither parsed nor compiled: it is walked.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from typing import Any

from orchestrator_agent.workflows import evaluation
from orchestrator_agent.workflows.cel.checker import DoesNotCompile, check
from orchestrator_agent.workflows.cel.evaluator import Program, Unsupported, compile_syntax
from orchestrator_agent.workflows.cel.formatting import measure, to_json
from orchestrator_agent.workflows.cel.meter import MAX_BUILT_BYTES, UNITS, LongEvaluation, Meter, frame
from orchestrator_agent.workflows.cel.operators import kind_of
from orchestrator_agent.workflows.cel.values import CelError, LimitExceeded
from protocol.errors import ExpressionError, InvalidWorkflow

# The four words that CEL has for nothing but themselves are no fields either, unless in backticks.
_PATH = re.compile(r"[A-Za-z_]\w*(\.(?!(?:in|true|false|null)\b)[A-Za-z_]\w*)*\Z", re.ASCII)
_WORD = re.compile(r"[A-Za-z_]\w*", re.ASCII)
# Compiled expressions of this length are remembered.
_SHORT_CHARS = 400
# Messages quote expressions, names and values; an error must fit into a response whatever they are.
_SHOWN_CHARS = 200
_SHOWN_NAMES = 10
# A value in which no part of a variable stands more often is not measured: templates may make as many copies anyway.
_FEW_COPIES = 4


def shown(text: str) -> str:
    """A text as messages quote it: cut, when it is long."""
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"


def shown_names(names: Iterable[str]) -> str:
    """Names for a message, the first few of many."""
    every = list(names)
    more = f" and {len(every) - _SHOWN_NAMES} more" if len(every) > _SHOWN_NAMES else ""
    return ", ".join(every[:_SHOWN_NAMES]) + more


class Environment:
    """The names that expressions of one workflow may use: `input` and its steps."""

    def __init__(self, names: Collection[str]) -> None:
        self.names = frozenset(names)

    def compile(self, text: str, *, step: str | None) -> "Expression":
        """Raises InvalidWorkflow that says what in `text` is wrong, naming the step."""
        stripped = text.strip()
        where = f"step '{step}': " if step else ""
        if not stripped:
            raise InvalidWorkflow(f"{where}the expression between ${{ and }} is empty", step=step)
        if _PATH.match(stripped) and stripped not in ("true", "false", "null"):
            path = tuple(stripped.split("."))
            if path[0] not in self.names:
                known = shown_names(sorted(self.names))
                raise InvalidWorkflow(
                    f"{where}expression '{shown(stripped)}': there is no '{shown(path[0])}' here; there is {known}",
                    step=step,
                )
            return PathExpression(stripped, path)
        try:
            return CompiledExpression(stripped, _program(stripped, self.names))
        except (DoesNotCompile, Unsupported) as error:
            raise InvalidWorkflow(
                f"{where}expression '{shown(stripped)}' does not compile: {shown(str(error))}", step=step
            ) from None


# Graphs differ, their expressions often do not.
@lru_cache(maxsize=1024)
def _short_program(text: str, names: frozenset[str]) -> Program:
    return compile_syntax(check(text, names))


def _program(text: str, names: frozenset[str]) -> Program:
    """Raises DoesNotCompile, Unsupported."""
    if len(text) > _SHORT_CHARS:
        return compile_syntax(check(text, names))
    # The names that the text may speak of, so that steps that it does not know of make no difference.
    return _short_program(text, names.intersection(_WORD.findall(text)))


class Expression:
    """One compiled expression. `uses` are the names it reads: `input`, steps."""

    def __init__(self, text: str, uses: frozenset[str]) -> None:
        self.text = text
        self.uses = uses

    def evaluate(self, variables: Mapping[str, Any]) -> Any:
        """The value as JSON-able Python. Raises ExpressionError that says what failed; see `evaluation` for more."""
        raise NotImplementedError

    def condition(self, variables: Mapping[str, Any]) -> bool:
        """The value of an expression that must be true or false. Raises ExpressionError where it is neither."""
        value = self.evaluate(variables)
        if not isinstance(value, bool):
            raise ExpressionError(
                f"expression '{shown(self.text)}' must be true or false, not {kind_of(value)}",
                expression=shown(self.text),
            )
        return value

    def failed(self, reason: str) -> ExpressionError:
        return ExpressionError(f"expression '{shown(self.text)}' failed: {shown(reason)}", expression=shown(self.text))


class PathExpression(Expression):
    """A variable, or a field of a field of one."""

    def __init__(self, text: str, path: tuple[str, ...]) -> None:
        super().__init__(text, frozenset(path[:1]))
        self._first = path[0]
        self._fields = path[1:]

    def evaluate(self, variables: Mapping[str, Any]) -> Any:
        value: Any = variables.get(self._first)
        for index, field in enumerate(self._fields):
            if not isinstance(value, dict) or field not in value:
                before = shown(".".join((self._first, *self._fields[:index])))
                if isinstance(value, dict):
                    raise self.failed(f"'{before}' has no field '{shown(field)}'")
                raise self.failed(f"'{before}' is {kind_of(value)}, it has no field '{shown(field)}'")
            value = value[field]
        return value


class CompiledExpression(Expression):
    def __init__(self, text: str, program: Program) -> None:
        super().__init__(text, frozenset(program.names))
        self._names = program.names
        self._run = program.code.run
        self._json = program.code.json
        self._copies = program.code.copies > _FEW_COPIES
        self._slots = (None,) * program.slots

    def evaluate(self, variables: Mapping[str, Any]) -> Any:
        meter = evaluation.meter
        try:
            return self.evaluate_by(meter, variables)
        except LongEvaluation:
            return evaluation.apart(self, variables)

    def evaluate_by(self, meter: Meter, variables: Mapping[str, Any]) -> Any:
        """Evaluate as far as the meter lets it. Raises ExpressionError, LongEvaluation."""
        f = frame(meter)
        slice_units = f[UNITS]
        f += map(variables.get, self._names)
        f += self._slots
        try:
            value = self._run(f)
            if self._copies:
                measure(f, value, MAX_BUILT_BYTES)
            if not self._json:
                value = to_json(f, value)
        except CelError as error:
            raise self.failed(str(error)) from None
        except LimitExceeded as error:
            raise self.failed(f"it takes too much: {error}") from None
        except RecursionError:
            raise self.failed("its values are nested too deep") from None
        finally:
            if f[UNITS] < slice_units:
                meter.settle(slice_units - f[UNITS])
        return value
