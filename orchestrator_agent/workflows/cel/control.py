"""Control: what decides which parts of an expression are evaluated, and how often: conditions, logic, macros' loops."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from orchestrator_agent.workflows.cel.meter import ALLOWED, UNITS, Frame, build, next_slice, spend
from orchestrator_agent.workflows.cel.operators import elements_of
from orchestrator_agent.workflows.cel.values import CelError, Optional, no_overload

Run = Callable[[Frame], Any]

# -- logic ------------------------------------------------------------------------------------------------------------


def conditional(condition: Run, yes: Run, no: Run) -> Run:
    def run(f: Frame) -> Any:
        chosen = condition(f)
        if chosen is True:
            return yes(f)
        if chosen is False:
            return no(f)
        raise no_overload("'? :'", chosen)

    return run


def _logical(decisive: bool, what: str) -> Callable[[Run, Run], Run]:
    """`&&` (decided by false) or `||` (by true): either side decides, also where the other one is an error."""

    def make(left: Run, right: Run) -> Run:
        def run(f: Frame) -> Any:
            try:
                value = left(f)
            except CelError as error:
                if right(f) is decisive:
                    return decisive
                raise error
            if value is decisive:
                return decisive
            other = right(f)
            if other is decisive:
                return decisive
            if type(value) is bool and type(other) is bool:
                return not decisive
            raise no_overload(what, value, other)

        return run

    return make


def _negated(operand: Run) -> Run:
    def run(f: Frame) -> Any:
        value = operand(f)
        if type(value) is bool:
            return not value
        raise no_overload("'!'", value)

    return run


LOGICAL: Mapping[str, tuple[Callable[..., Run], int]] = {
    "_&&_": (_logical(False, "'&&'"), 2),
    "_||_": (_logical(True, "'||'"), 2),
    "!_": (_negated, 1),
}


def otherwise(name: str, operand: Run, other: Run) -> Run:
    """`or` and `orValue`, which evaluate their argument only where it is needed."""

    def run(f: Frame) -> Any:
        value = operand(f)
        if type(value) is not Optional:
            raise no_overload(name, value)
        if value.present:
            return value if name == "or" else value.value
        instead = other(f)
        if name == "or" and type(instead) is not Optional:
            raise no_overload(name, value, instead)
        return instead

    return run


# -- loops ------------------------------------------------------------------------------------------------------------

# Elements of a `map` that are counted together: at most some hundred units each, they are a slice or two.
_CHUNK = 512


def _allow(f: Frame, items: Sequence[Any], cost: int, free: bool) -> None:
    """Before a loop: what is linear in a value's size may take what it needs."""
    if free:
        f[ALLOWED] += len(items) * cost


def quantifier(kind: str, items_of: Run, slot: int, test: Run, cost: int, free: bool) -> Run:
    """`all` and `exists`: one element decides, also where others are errors."""
    decisive = kind == "exists"

    def run(f: Frame) -> Any:
        items = elements_of(items_of(f))
        _allow(f, items, cost, free)
        failed: CelError | None = None
        for item in items:
            f[UNITS] -= cost
            if f[UNITS] < 0:
                next_slice(f)
            f[slot] = item
            try:
                value = test(f)
            except CelError as error:
                failed = failed or error
                continue
            if value is decisive:
                return decisive
            if type(value) is not bool:
                failed = failed or no_overload(f"the condition of {kind}", value)
        if failed is not None:
            raise failed
        return not decisive

    return run


def _holds(value: Any, what: str) -> bool:
    if type(value) is bool:
        return value
    raise no_overload(f"the condition of {what}", value)


def exists_one(items_of: Run, slot: int, test: Run, cost: int, free: bool) -> Run:
    def run(f: Frame) -> Any:
        items = elements_of(items_of(f))
        _allow(f, items, cost, free)
        count = 0
        for item in items:
            f[UNITS] -= cost
            if f[UNITS] < 0:
                next_slice(f)
            f[slot] = item
            if _holds(test(f), "exists_one"):
                count += 1
        return count == 1

    return run


def filtered(items_of: Run, slot: int, test: Run, cost: int, free: bool) -> Run:
    def run(f: Frame) -> Any:
        items = elements_of(items_of(f))
        _allow(f, items, cost, free)
        made = []
        for item in items:
            f[UNITS] -= cost
            if f[UNITS] < 0:
                next_slice(f)
            f[slot] = item
            if _holds(test(f), "filter"):
                made.append(item)
        build(f, 2 * len(made))
        return made

    return run


def mapped(items_of: Run, slot: int, test: Run | None, value_of: Run, cost: int, free: bool) -> Run:
    def run(f: Frame) -> Any:
        items = elements_of(items_of(f))
        _allow(f, items, cost, free)
        made: list[Any] = []
        append = made.append
        for start in range(0, len(items), _CHUNK):
            chunk = items[start : start + _CHUNK] if len(items) > _CHUNK else items
            spend(f, len(chunk) * cost)
            build(f, 2 * len(chunk))
            for item in chunk:
                f[slot] = item
                if test is None or _holds(test(f), "map"):
                    append(value_of(f))
        return made

    return run
