"""Handler: the function that serves one task type; its annotations define payload, context and result.

A payload and a result are values of JSON, and JSON's rules hold: a strict model takes the text of a time or a UUID, and
NaN is no number. A generator streams: each text that it yields is sent to watchers, and all together are its result.
"""

import asyncio
import contextlib
import contextvars
import inspect
import math
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from functools import cached_property, partial
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from pantheon.worker.context import TaskContext
from protocol.errors import InvalidRequest, InvalidResult
from protocol.messages import invalid_request, json_bytes
from protocol.names import is_task_type
from protocol.reading import invalid_result

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
        hints = get_type_hints(function, include_extras=True)
        parameters = list(inspect.signature(function).parameters.values())
        self._context_parameter: str | None = None
        payload_parameters = []
        for parameter in parameters:
            hint = hints.get(parameter.name, Any)
            if _is_context(hint):
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
        self.streams = is_generator(function)
        if self.streams:
            self._result_type = _streamed_type(name, self._result_type)
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
        except ValidationError:
            pass
        try:
            # What Python's values are too strict for, as JSON's are not: a time as text in a strict model.
            return self._input.validate_json(json_bytes(payload))
        except ValidationError as error:
            raise invalid_request(error, prefix="payload") from None

    async def call(self, payload: Any, context: TaskContext) -> Any:
        """Run the function on a validated payload; returns its result as JSON-able values. Raises InvalidResult."""
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
        if inspect.isasyncgen(result):
            result = await _streamed(result, context)
        elif inspect.isgenerator(result):
            result = await _streamed(_in_threads(result), context)
        return self._dump(result)

    def _dump(self, result: Any) -> Any:
        try:
            if self._result_type is type(None) and result is not None:
                raise InvalidResult(f"result: {type(result).__name__}, where the handler is annotated to return None")
            if isinstance(result, BaseModel):
                if self._output is not None and type(result) is not self._result_type:
                    self._output.validate_python(result)
                # By itself, not by the annotation: a subclass keeps the fields that it adds.
                values = result.model_dump(mode="json", by_alias=True)
            elif self._output is None:
                values = {} if result is None else _ANYTHING.dump_python(result, mode="json")
            else:
                fit = self._output.validate_python(result)
                values = self._output.dump_python(fit, mode="json", by_alias=True, warnings=False)
        except ValidationError as error:
            raise invalid_result(error) from None
        except (PydanticSerializationError, RecursionError) as error:
            raise InvalidResult(f"result: no value of JSON: {error}") from None
        _refuse_nan(values, "result")
        return values


def is_generator(function: Callable[..., Any]) -> bool:
    """Whether a function, or the one that it wraps, yields."""
    inner = inspect.unwrap(function)
    return inspect.isasyncgenfunction(inner) or inspect.isgeneratorfunction(inner)


def _is_context(hint: Any) -> bool:
    kind = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    return inspect.isclass(kind) and issubclass(kind, TaskContext)


def _streamed_type(name: str, hint: Any) -> type[str]:
    """What a generator's result is. Raises TypeError where its annotation yields no text."""
    items = get_args(hint)[:1] or (Any,)
    if hint is not Any and items[0] not in (str, Any):
        raise TypeError(
            f"{name}: a handler that yields streams text: annotate it AsyncIterator[str] and yield str, "
            "or collect what it makes and return it"
        )
    return str


async def _streamed(pieces: AsyncIterator[Any], context: TaskContext) -> str:
    """All pieces together, each of which is sent as it comes. Raises InvalidResult."""
    texts = []
    async for piece in pieces:
        if not isinstance(piece, str):
            raise InvalidResult(f"result: a handler that yields streams text, and yielded {type(piece).__name__}")
        texts.append(piece)
        await context.stream(piece)
    return "".join(texts)


async def _in_threads(pieces: Iterator[Any]) -> AsyncIterator[Any]:
    """A plain generator, each step of it in a thread, as a plain function is."""
    end = object()
    while (piece := await _in_thread(partial(next, pieces, end))) is not end:
        yield piece


def _refuse_nan(value: Any, path: str) -> None:
    """Raises InvalidResult that names the place of a NaN or an infinity, which JSON has not."""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidResult(f"{path}: {value} is no number of JSON: return null, or leave it out")
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(item, str | int):
                _refuse_nan(item, f"{path}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            if not isinstance(item, str | int):
                _refuse_nan(item, f"{path}.{index}")


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
