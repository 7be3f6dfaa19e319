"""Agents: functions that serve task types in a test's mesh, as a registry shows them, and the attempts they work on."""

import asyncio
import contextlib
import functools
import inspect
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, get_type_hints
from uuid import UUID

from orchestrator_agent.dispatch.router import AdmitAll
from pantheon.agent import Agent
from pantheon.worker.context import TaskContext, sayable
from pantheon.worker.handler import Handler
from pantheon.worker.runner import error_of
from protocol.discovery import InstanceRecord
from protocol.errors import ErrorCode
from protocol.messages import ErrorInfo, TaskProgress, TaskRequest, TaskResponse, Usage, to_bytes
from testkit.clock import RESTING, Clock, Resting, rest


class _NoAnswer:
    def __repr__(self) -> str:
        return "NO_ANSWER"


# What an agent gives that works on a task for ever, or died on it: its attempt ends by its timeout.
NO_ANSWER = _NoAnswer()


@dataclass(frozen=True)
class Call:
    """One attempt that an agent took up."""

    task_type: str
    agent: str
    payload: dict[str, Any]
    step: str
    attempt: int
    task_id: UUID
    at: datetime


@dataclass
class Service:
    """How an agent serves one task type. `takes` is how long, in the mesh's time; `answers` how often each answer
    arrives."""

    handler: Handler
    takes: float | str = 0
    answers: int = 1


@dataclass
class Fake:
    """One agent: what it serves, what its registry entry says, what it has at work."""

    name: str
    max_concurrency: int
    metadata: dict[str, str]
    services: dict[str, Service] = field(default_factory=dict)
    agent: Agent | None = None
    started: bool = False
    queue: "deque[Attempt]" = field(default_factory=deque)
    at_work: "set[Attempt]" = field(default_factory=set)


@dataclass(eq=False)
class Attempt:
    request: TaskRequest
    respond: Callable[[TaskResponse], None]
    resting: Resting
    work: "asyncio.Task[None] | None" = None
    stopped: bool = False
    # Tasks that it gave out and waits for.
    delegations: int = 0
    timed_out: float | None = None
    alarm: "asyncio.Future[None] | None" = None

    @property
    def shown(self) -> str:
        request = self.request
        return f"'{request.task_type}' of step '{request.metadata.get('step')}', attempt {request.attempt}"


class Agents:
    """Discovery and the agents themselves, in one: see `routing.LiveInstances`."""

    def __init__(self, clock: Clock, delegate: Callable[[TaskContext, TaskRequest], Any]) -> None:
        self._clock = clock
        self._delegate = delegate
        self._fakes: dict[str, Fake] = {}
        self.calls: list[Call] = []
        self.progress: list[TaskProgress] = []
        self.changed = asyncio.Event()
        self.crashed: list[Exception] = []

    # -- what routing reads -------------------------------------------------------------------------------------------

    def serving(self, task_type: str) -> Sequence[str]:
        return sorted(name for name, fake in self._fakes.items() if task_type in fake.services)

    def instances(self, agent: str | None = None) -> Sequence[InstanceRecord]:
        return [
            InstanceRecord(
                name=fake.name,
                instance_id="test",
                task_types=tuple(fake.services),
                max_concurrency=fake.max_concurrency,
                metadata=fake.metadata,
            )
            for fake in self._fakes.values()
            if agent in (None, fake.name)
        ]

    def task_types(self) -> frozenset[str]:
        return frozenset(task_type for fake in self._fakes.values() for task_type in fake.services)

    def at_work(self, name: str) -> int:
        """How many attempts an agent has."""
        fake = self._fakes.get(name)
        return 0 if fake is None else len(fake.at_work) + len(fake.queue)

    # -- who is there -------------------------------------------------------------------------------------------------

    def serve(self, name: str, task_type: str, service: Service, metadata: Mapping[str, str], places: int) -> None:
        """A function serves a task type under an agent's name; another one before it is replaced."""
        fake = self._fakes.setdefault(name, Fake(name, places, {}))
        fake.max_concurrency = places
        fake.metadata |= metadata
        fake.services[task_type] = service

    def join(self, agent: Agent, *, takes: float | str, answers: int) -> None:
        """An agent as it would run as a process, hooks included."""
        services = {name: Service(handler, takes, answers) for name, handler in agent.handlers.items()}
        self._fakes[agent.name] = Fake(agent.name, agent.max_concurrency, agent.metadata, services, agent)

    def remove(self, name: str) -> None:
        """The agent is gone; what it has at work is never answered. Raises KeyError."""
        fake = self._fakes.pop(name)
        for attempt in [*fake.at_work, *fake.queue]:
            self._stop(attempt)

    # -- work ---------------------------------------------------------------------------------------------------------

    def give(self, agent: str, request: TaskRequest, respond: Callable[[TaskResponse], None]) -> None:
        fake = self._fakes.get(agent)
        if fake is not None:
            fake.queue.append(Attempt(request, respond, Resting(self.changed.set)))

    def stop(self, agent: str, task_id: UUID, attempt: int) -> None:
        fake = self._fakes.get(agent)
        for one in [*fake.at_work, *fake.queue] if fake is not None else ():
            if (one.request.task_id, one.request.attempt) == (task_id, attempt):
                self._stop(one)

    @staticmethod
    def _stop(attempt: Attempt) -> None:
        attempt.stopped = True
        if attempt.work is not None:
            attempt.work.cancel()

    def begin(self) -> bool:
        """Set to work what there is a place for; False where there was nothing."""
        begun = False
        for fake in self._fakes.values():
            # Who waits for a task that it gave out lends its place, as in `pantheon.worker.slots`.
            while fake.queue and sum(not one.delegations for one in fake.at_work) < fake.max_concurrency:
                attempt = fake.queue.popleft()
                if attempt.stopped:
                    continue
                fake.at_work.add(attempt)
                attempt.work = asyncio.create_task(self._work(fake, attempt), name=attempt.shown)
                begun = True
        return begun

    def busy(self) -> list[Attempt]:
        """Attempts that are doing something other than to wait for what only the mesh can bring."""
        return [
            one
            for fake in self._fakes.values()
            for one in fake.at_work
            if one.work is not None and not one.work.done() and one.resting.count == 0
        ]

    async def _work(self, fake: Fake, attempt: Attempt) -> None:
        RESTING.set(attempt.resting)
        service = fake.services[attempt.request.task_type]
        try:
            response = await self._respond(fake, service, attempt)
        except asyncio.CancelledError:
            if not attempt.stopped:
                raise
            return
        except Exception as error:
            # An agent that does not start, a hook of the test's: nothing that the mesh would be told of.
            self.crashed.append(error)
            return
        finally:
            if attempt.alarm is not None:
                attempt.alarm.cancel()
            fake.at_work.discard(attempt)
            self.changed.set()
        for _ in range(service.answers):
            attempt.respond(response)

    async def _respond(self, fake: Fake, service: Service, attempt: Attempt) -> TaskResponse:
        request, agent = attempt.request, fake.agent
        context = TaskContext(
            request, agent=fake.name, publish_progress=self._note, delegate=self._delegate_of(fake.agent, attempt)
        )
        step = request.metadata.get("step", "")
        self.calls.append(
            Call(request.task_type, fake.name, request.payload, step, request.attempt, request.task_id, self._clock.now)
        )
        started_at = self._clock.now
        self._limit(service, attempt)
        status, result, error = "completed", None, None
        if agent is not None and not fake.started:
            fake.started = True
            await agent.call_hooks("startup")
        try:
            payload = service.handler.validate(request.payload)
            if service.takes:
                await self._clock.sleep(service.takes)
            if agent is not None:
                await agent.call_hooks("before_task", context)
            result = await service.handler.call(payload, context)
        except asyncio.CancelledError:
            if attempt.timed_out is None:
                raise
            message = f"'{request.task_type}' did not end within {attempt.timed_out:g} s"
            status, error = "failed", ErrorInfo(code=ErrorCode.TIMEOUT, message=message, retryable=True)
        except Exception as raised:
            error = error_of(raised)
            status = "cancelled" if error.code == ErrorCode.CANCELLED else "failed"
            await _look_on(agent, "error", context, raised)
        response = TaskResponse(
            task_id=request.task_id,
            root_task_id=context.root_task_id,
            task_type=request.task_type,
            agent=fake.name,
            attempt=request.attempt,
            status=status,  # type: ignore[arg-type]
            result=result,
            error=error,
            instance_id="test",
            usage=context.usage if context.usage != Usage() else None,
            started_at=started_at,
            completed_at=self._clock.now,
        )
        await _look_on(agent, "after_task", context, response)
        # As it arrives at the other end of the wire.
        try:
            return TaskResponse.model_validate_json(to_bytes(response))
        except (ValueError, TypeError) as unsayable:
            message = f"the result of '{request.task_type}' cannot be written as JSON: {sayable(unsayable)}"
            wrong = ErrorInfo(code=ErrorCode.INTERNAL_ERROR, message=message)
            return response.model_copy(update={"status": "failed", "result": None, "error": wrong})

    def _limit(self, service: Service, attempt: Attempt) -> None:
        """A handler's own timeout, where it is the smaller one; the engine's own ends the attempt otherwise."""
        limit = service.handler.timeout_seconds
        if limit is None or limit >= attempt.request.timeout_seconds:
            return

        def over(alarm: "asyncio.Future[None]") -> None:
            if attempt.work is not None and not attempt.work.done() and not alarm.cancelled():
                attempt.timed_out = limit
                attempt.work.cancel()

        attempt.alarm = self._clock.alarm(self._clock.now + timedelta(seconds=limit))
        attempt.alarm.add_done_callback(over)

    def _delegate_of(self, agent: Agent | None, attempt: Attempt) -> Callable[[TaskContext, TaskRequest], Any]:
        async def delegate(context: TaskContext, request: TaskRequest) -> Any:
            if agent is not None:
                await agent.call_hooks("delegation", context, request)
            attempt.delegations += 1
            self.changed.set()
            try:
                return await self._delegate(context, request)
            finally:
                attempt.delegations -= 1

        return delegate

    async def _note(self, progress: TaskProgress) -> None:
        self.progress.append(progress)

    async def shut_down(self) -> None:
        for fake in self._fakes.values():
            if fake.agent is not None and fake.started:
                fake.started = False
                await _look_on(fake.agent, "shutdown")


async def _look_on(agent: Agent | None, moment: str, *arguments: Any) -> None:
    """Call hooks that cannot change the outcome."""
    with contextlib.suppress(Exception):
        if agent is not None:
            await agent.call_hooks(moment, *arguments)


class Places(AdmitAll):
    """No flow control, but alternatives share by what each has at work."""

    def __init__(self, agents: Agents) -> None:
        self._agents = agents

    def at_work(self, agent: str) -> int:
        return self._agents.at_work(agent)


def handler_of(task_type: str, outcome: Any) -> Handler:
    """A handler of whatever a test gives: a function of none, the payload, or payload and context; an exception to
    raise; NO_ANSWER; or the result itself."""
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
        made = function(*arguments, **named)
        result = await made if inspect.isawaitable(made) else made
        if result is NO_ANSWER:
            await rest(asyncio.get_running_loop().create_future())
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
    if any(one.kind is one.VAR_POSITIONAL for one in parameters):
        return 1
    positional = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    required = sum(1 for one in positional if one.default is one.empty)
    if required > 2:
        raise TypeError(f"{function!r} takes {required} arguments: an agent's function gets a payload and a context")
    return max(required, min(len(positional), 1))


def in_turn(*outcomes: Any) -> Callable[..., Any]:
    """A function that comes to each of these in turn, then to the last one again and again; exceptions are raised,
    functions called with the payload."""
    if not outcomes:
        raise ValueError("in_turn() needs at least one outcome")
    left = deque(outcomes)

    async def next_one(payload: dict[str, Any], ctx: TaskContext) -> Any:
        outcome = left.popleft() if len(left) > 1 else left[0]
        if outcome is NO_ANSWER:
            return NO_ANSWER
        handler = handler_of(ctx.task_type, outcome)
        return await handler.call(handler.validate(payload), ctx)

    return next_one
