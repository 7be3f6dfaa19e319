"""Handler: the function that serves one task type; its annotations define payload, context and result."""

import asyncio
import contextlib
import contextvars
import inspect
import threading
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, get_type_hints

from pydantic import BaseModel, TypeAdapter, ValidationError

from pantheon.worker.context import TaskContext
from protocol.errors import InvalidRequest
from protocol.messages import invalid_request
from protocol.names import is_task_type

_ANYTHING: TypeAdapter[Any] = TypeAdapter(Any)


class Handler:
    """Validates a payload, calls the function (a plain one in a thread), dumps its result.

    Raises TypeError when the function cannot be a handler, at declaration, not at the first task.
    """

    def __init__(
        self,
        task_type: str,
        function: Callable[..., Any],
        *,
        timeout_seconds: float | None = None,
        description: str = "",
    ) -> None:
        if not is_task_type(task_type):
            raise TypeError(f"'{task_type}' is not a task type: those match ^[a-z][a-z0-9_]{{0,62}}$")
        self.task_type = task_type
        self.function = function
        self.timeout_seconds = timeout_seconds
        self.description = description or (inspect.getdoc(function) or "").split("\n\n", 1)[0]
        self.is_async = inspect.iscoroutinefunction(function)
        name = getattr(function, "__qualname__", repr(function))
        hints = get_type_hints(function)
        parameters = list(inspect.signature(function).parameters.values())
        self._context_parameter: str | None = None
        payload_parameters = []
        for parameter in parameters:
            hint = hints.get(parameter.name, Any)
            if inspect.isclass(hint) and issubclass(hint, TaskContext):
                self._context_parameter = parameter.name
            elif parameter.default is inspect.Parameter.empty:
                payload_parameters.append(parameter)
        if len(payload_parameters) > 1:
            extra = ", ".join(parameter.name for parameter in payload_parameters[1:])
            raise TypeError(f"{name}: a handler takes one payload and a TaskContext (by annotation), not also {extra}")
        self._payload_parameter = payload_parameters[0].name if payload_parameters else None
        self._payload_type: Any = hints.get(self._payload_parameter, dict) if self._payload_parameter else None
        if self._payload_type is Any:
            self._payload_type = dict
        self._input = TypeAdapter(self._payload_type) if self._payload_parameter else None
        self._result_type: Any = hints.get("return", Any)
        self._output = None if self._result_type in (Any, type(None)) else TypeAdapter(self._result_type)

    @cached_property
    def input_schema(self) -> dict[str, Any]:
        """JSON Schema of the payload (any object, where it has no annotation)."""
        return self._input.json_schema() if self._input is not None else {"type": "object"}

    @cached_property
    def output_schema(self) -> dict[str, Any]:
        """JSON Schema of the result (anything, where it has no annotation)."""
        return self._output.json_schema(mode="serialization") if self._output is not None else {}

    def validate(self, payload: dict[str, Any]) -> Any:
        """The payload as the type that the function takes. Raises InvalidRequest that names the field."""
        if self._input is None:
            return None
        try:
            return self._input.validate_python(payload)
        except ValidationError as error:
            raise invalid_request(error, prefix="payload") from None

    async def call(self, payload: Any, context: TaskContext) -> Any:
        """Run the function on a validated payload; returns its result as JSON-able values."""
        arguments: dict[str, Any] = {}
        if self._payload_parameter is not None:
            arguments[self._payload_parameter] = payload
        if self._context_parameter is not None:
            arguments[self._context_parameter] = context
        if self.is_async:
            result = await self.function(**arguments)
        else:
            result = await _in_thread(partial(self.function, **arguments))
            if inspect.isawaitable(result):
                # An async function behind a decorator that is not async.
                result = await result
        return self._dump(result)

    def _dump(self, result: Any) -> Any:
        if isinstance(result, BaseModel):
            return result.model_dump(mode="json", by_alias=True)
        if self._output is not None:
            return self._output.dump_python(result, mode="json", by_alias=True, warnings=False)
        return {} if result is None else _ANYTHING.dump_python(result, mode="json")


async def _in_thread(function: Callable[[], Any]) -> Any:
    """Call a plain function in a thread of its own.

    Not asyncio.to_thread: its pool has few threads, fewer than an agent may have tasks, and the interpreter waits for
    all of them at its end, also for one that is stuck in a task that was given up long ago.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()
    context = contextvars.copy_context()

    def finish(result: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)
        elif isinstance(error, StopIteration | asyncio.CancelledError):
            # Neither can be a future's exception; the second is what `ctx.raise_if_cancelled` raised in the thread.
            future.set_exception(RuntimeError(f"{type(error).__name__}: {error}"))
        else:
            future.set_exception(error)

    def work() -> None:
        result, error = None, None
        try:
            result = context.run(function)
        except BaseException as raised:
            error = raised
        # The loop may have closed while the thread went on.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(finish, result, error)

    threading.Thread(target=work, name="handler", daemon=True).start()
    return await future


__all__ = ["Handler", "InvalidRequest"]
