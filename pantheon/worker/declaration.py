"""Declaration: an agent as data: its name, the task types it serves, its hooks. The worker runs it."""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from pantheon.worker.context import TaskContext
from pantheon.worker.handler import Handler
from protocol.messages import TaskRequest, TaskResponse
from protocol.names import is_agent_name

F = TypeVar("F", bound=Callable[..., Any])
Hook = Callable[..., Awaitable[None] | None]


class Declaration:
    """What an Agent declares.

    `metadata` (free keys such as `model`, or a function that makes them at start) goes into discovery.
    `max_concurrency` bounds the attempts that one process works on at once; the environment's MAX_CONCURRENCY wins.
    Raises TypeError for a name the wire cannot carry.
    """

    def __init__(
        self,
        name: str,
        *,
        version: str = "0.1.0",
        description: str = "",
        metadata: Mapping[str, str] | Callable[[], Mapping[str, str]] | None = None,
        max_concurrency: int = 10,
    ) -> None:
        if not is_agent_name(name):
            raise TypeError(f"'{name}' is not an agent's name: those match ^[a-z][a-z0-9_]{{0,62}}$")
        if max_concurrency < 1:
            raise TypeError(f"max_concurrency is {max_concurrency}: an agent works on at least 1 task at once")
        self.name = name
        self.version = version
        self.description = description
        self.max_concurrency = max_concurrency
        self.handlers: dict[str, Handler] = {}
        self._metadata = metadata
        self._hooks: dict[str, list[Hook]] = {}

    @property
    def task_types(self) -> tuple[str, ...]:
        return tuple(self.handlers)

    @property
    def schemas(self) -> Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any] | None]]:
        """Of each task type, the JSON Schemas of its payload and of its result."""
        return {name: (handler.input_schema, handler.output_schema) for name, handler in self.handlers.items()}

    @property
    def metadata(self) -> dict[str, str]:
        return dict(self._metadata() if callable(self._metadata) else self._metadata or {})

    def task(self, task_type: str, *, timeout_seconds: float | None = None, description: str = "") -> Callable[[F], F]:
        """Serve `task_type` with the decorated function (async, or plain: then it runs in a thread).

        Its first parameter's annotation is the payload's model, its return annotation the result's; a parameter
        annotated TaskContext gets the context. `timeout_seconds` bounds an attempt beside the request's own timeout.
        """

        def declare(function: F) -> F:
            if task_type in self.handlers:
                raise TypeError(f"{self.name} serves '{task_type}' twice")
            self.handlers[task_type] = Handler(
                task_type, function, timeout_seconds=timeout_seconds, description=description
            )
            return function

        return declare

    def on_startup(self, hook: F) -> F:
        """Run before the first task: `async def hook()`. An exception keeps the process from starting."""
        return self._add("startup", hook)

    def on_shutdown(self, hook: F) -> F:
        """Run after the last task: `async def hook()`."""
        return self._add("shutdown", hook)

    def before_task(self, hook: F) -> F:
        """`async def hook(ctx)`, before each attempt; raising TaskFailure ends the attempt without running it."""
        return self._add("before_task", hook)

    def after_task(self, hook: F) -> F:
        """`async def hook(ctx, response)`, after each attempt, before its response is sent."""
        return self._add("after_task", hook)

    def on_error(self, hook: F) -> F:
        """`async def hook(ctx, error)`, when a handler raised; `error` may be any BaseException."""
        return self._add("error", hook)

    def on_delegation(self, hook: F) -> F:
        """`async def hook(ctx, request)`, before `ctx.run` sends a task to another agent."""
        return self._add("delegation", hook)

    def _add(self, moment: str, hook: F) -> F:
        self._hooks.setdefault(moment, []).append(hook)
        return hook

    async def call_hooks(
        self, moment: str, *arguments: TaskContext | TaskRequest | TaskResponse | BaseException
    ) -> None:
        for hook in self._hooks.get(moment, ()):
            result = hook(*arguments)
            if inspect.isawaitable(result):
                await result

    def has_hooks(self, moment: str) -> bool:
        return moment in self._hooks
