"""Handlers: an agent's handler of whatever a test names as its outcome."""

import asyncio
import functools
import inspect
from collections import deque
from collections.abc import Callable
from typing import Any, get_type_hints

from pantheon.worker.context import TaskContext
from pantheon.worker.handler import Handler
from testkit.clock import await_mesh


class _NeverResponds:
    def __repr__(self) -> str:
        return "NO_ANSWER"


# The outcome of an agent that works on a task for ever, or died on it: its attempt ends by its timeout.
NO_ANSWER = _NeverResponds()


def handler_of(task_type: str, outcome: Any) -> Handler:
    """A handler of an outcome: a function of nothing, of the payload, or of payload and context; an exception to raise;
    NO_ANSWER; or the result itself."""
    if isinstance(outcome, BaseException):
        raised = outcome

        def outcome_of() -> Any:
            raise raised

        return _handler(task_type, outcome_of)
    if outcome is NO_ANSWER or not callable(outcome):
        value = outcome

        def literal() -> Any:
            return value

        return _handler(task_type, literal)
    return _handler(task_type, outcome)


def _handler(task_type: str, function: Callable[..., Any]) -> Handler:
    async def outcome(*arguments: Any, **named: Any) -> Any:
        returned = function(*arguments, **named)
        result = await returned if inspect.isawaitable(returned) else returned
        if result is NO_ANSWER:
            await await_mesh(asyncio.get_running_loop().create_future())
        return result

    hints = get_type_hints(function) if inspect.isfunction(function) or inspect.ismethod(function) else {}
    takes = _positional(function)
    contexts = [hint for hint in hints.values() if inspect.isclass(hint) and issubclass(hint, TaskContext)]
    if hints and (contexts or takes < 2):
        # Not in a thread, as an agent's plain functions are: a test's functions end at once, in an order.
        return Handler(task_type, functools.wraps(function)(outcome))

    async def plain(payload: Any, ctx: TaskContext) -> Any:
        return await outcome(*(payload, ctx)[:takes])

    plain.__annotations__["payload"] = next((hint for name, hint in hints.items() if name != "return"), dict)
    return Handler(task_type, plain)


def _positional(function: Callable[..., Any]) -> int:
    """How many of payload and context a function takes. Raises TypeError."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        return 1
    kinds = inspect.Parameter
    if any(parameter.kind is kinds.VAR_POSITIONAL for parameter in parameters):
        return 1
    by_position = (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
    positional = [parameter for parameter in parameters if parameter.kind in by_position]
    required = sum(1 for parameter in positional if parameter.default is kinds.empty)
    if required > 2:
        raise TypeError(f"{function!r} takes {required} arguments: an agent's function gets a payload and a context")
    return max(required, min(len(positional), 1))


def in_turn(*outcomes: Any) -> Callable[..., Any]:
    """A function with these outcomes one after the other, then the last one again and again; exceptions are raised,
    functions called with the payload."""
    if not outcomes:
        raise ValueError("in_turn() needs at least one outcome")
    left = deque(outcomes)

    async def next_outcome(payload: dict[str, Any], ctx: TaskContext) -> Any:
        outcome = left.popleft() if len(left) > 1 else left[0]
        if outcome is NO_ANSWER:
            return NO_ANSWER
        handler = handler_of(ctx.task_type, outcome)
        return await handler.call(handler.validate(payload), ctx)

    return next_outcome
