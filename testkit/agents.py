"""Agents: functions that serve task types in a test's mesh, as a registry shows them, and the attempts they work on."""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from orchestrator_agent.dispatch.router import AdmitAll
from pantheon.agent import Agent
from pantheon.worker.context import TaskContext, as_unicode
from pantheon.worker.handler import Handler
from pantheon.worker.runner import error_of
from protocol.discovery import InstanceRecord
from protocol.errors import ErrorCode
from protocol.messages import ErrorInfo, TaskProgress, TaskRequest, TaskResponse, Usage, to_bytes
from testkit.clock import MESH_WAITS, Clock, MeshWaits


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
    """How an agent serves one task type. `takes` is how long, in the mesh's time; `responses` how often each response
    arrives."""

    handler: Handler
    takes: float | str = 0
    responses: int = 1


@dataclass
class FakeAgent:
    """One agent: what it serves, what its registry entry holds, what it has at work."""

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
    waits: MeshWaits
    work: "asyncio.Task[None] | None" = None
    stopped: bool = False
    # Tasks that it has delegated and waits for.
    delegations: int = 0
    timed_out: float | None = None
    alarm: "asyncio.Future[None] | None" = None

    def __str__(self) -> str:
        request = self.request
        return f"'{request.task_type}' of step '{request.metadata.get('step')}', attempt {request.attempt}"


class Agents:
    """Discovery and the agents themselves, in one: see `dispatch.router.LiveInstances`."""

    def __init__(self, clock: Clock, delegate: Callable[[TaskContext, TaskRequest], Any]) -> None:
        self._clock = clock
        self._delegate = delegate
        self._fakes: dict[str, FakeAgent] = {}
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

    # -- agents come and go --------------------------------------------------------------------------------------------

    def serve(self, name: str, task_type: str, service: Service, metadata: Mapping[str, str], slots: int) -> None:
        """A function serves a task type under an agent's name; another one before it is replaced."""
        fake = self._fakes.setdefault(name, FakeAgent(name, slots, {}))
        fake.max_concurrency = slots
        fake.metadata |= metadata
        fake.services[task_type] = service

    def join(self, agent: Agent, *, takes: float | str, responses: int) -> None:
        """An agent as it would run as a process, hooks included."""
        services = {name: Service(handler, takes, responses) for name, handler in agent.handlers.items()}
        self._fakes[agent.name] = FakeAgent(agent.name, agent.max_concurrency, agent.metadata, services, agent)

    def remove(self, name: str) -> None:
        """The agent is gone, and does not respond to what it has at work. Raises KeyError."""
        fake = self._fakes.pop(name)
        for attempt in [*fake.at_work, *fake.queue]:
            self._stop(attempt)

    # -- work ---------------------------------------------------------------------------------------------------------

    def dispatch(self, agent: str, request: TaskRequest, respond: Callable[[TaskResponse], None]) -> None:
        fake = self._fakes.get(agent)
        if fake is not None:
            fake.queue.append(Attempt(request, respond, MeshWaits(self.changed.set)))

    def stop(self, agent: str, task_id: UUID, attempt: int) -> None:
        fake = self._fakes.get(agent)
        for known in [*fake.at_work, *fake.queue] if fake is not None else ():
            if (known.request.task_id, known.request.attempt) == (task_id, attempt):
                self._stop(known)

    @staticmethod
    def _stop(attempt: Attempt) -> None:
        attempt.stopped = True
        if attempt.work is not None:
            attempt.work.cancel()

    def begin(self) -> bool:
        """Begin the attempts that there is a slot for; False where there are none."""
        begun = False
        for fake in self._fakes.values():
            # An attempt that waits for a task which it delegated has released its slot, as in `pantheon.worker.slots`.
            while fake.queue and sum(not attempt.delegations for attempt in fake.at_work) < fake.max_concurrency:
                attempt = fake.queue.popleft()
                if attempt.stopped:
                    continue
                fake.at_work.add(attempt)
                attempt.work = asyncio.create_task(self._work(fake, attempt), name=str(attempt))
                begun = True
        return begun

    def busy(self) -> list[Attempt]:
        """Attempts that do not wait for what only the mesh can bring."""
        return [
            attempt
            for fake in self._fakes.values()
            for attempt in fake.at_work
            if attempt.work is not None and not attempt.work.done() and attempt.waits.count == 0
        ]

    async def _work(self, fake: FakeAgent, attempt: Attempt) -> None:
        MESH_WAITS.set(attempt.waits)
        service = fake.services[attempt.request.task_type]
        try:
            response = await self._respond(fake, service, attempt)
        except asyncio.CancelledError:
            if not attempt.stopped:
                raise
            return
        except Exception as error:
            # An agent that does not start, a hook of the test's: no response comes of it.
            self.crashed.append(error)
            return
        finally:
            if attempt.alarm is not None:
                attempt.alarm.cancel()
            fake.at_work.discard(attempt)
            self.changed.set()
        for _ in range(service.responses):
            attempt.respond(response)

    async def _respond(self, fake: FakeAgent, service: Service, attempt: Attempt) -> TaskResponse:
        request, agent = attempt.request, fake.agent
        context = TaskContext(
            request,
            agent=fake.name,
            publish_progress=self._record_progress,
            delegate=self._delegate_of(fake.agent, attempt),
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
        except BaseException as raised:
            interrupted = isinstance(raised, asyncio.CancelledError)
            if isinstance(raised, GeneratorExit) or (interrupted and attempt.stopped):
                raise
            if interrupted and attempt.timed_out is not None:
                message = f"'{request.task_type}' did not end within {attempt.timed_out:g} s"
                status, error = "failed", ErrorInfo(code=ErrorCode.TIMEOUT, message=message, retryable=True)
            else:
                error = error_of(raised)
                status = "cancelled" if error.code == ErrorCode.CANCELLED else "failed"
                await _call_hooks(agent, "error", context, raised)
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
        await _call_hooks(agent, "after_task", context, response)
        # As it arrives at the other end of the wire.
        try:
            return TaskResponse.model_validate_json(to_bytes(response))
        except (ValueError, TypeError) as unsayable:
            message = f"the result of '{request.task_type}' cannot be written as JSON: {as_unicode(unsayable)}"
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

    async def _record_progress(self, progress: TaskProgress) -> None:
        self.progress.append(progress)

    async def shut_down(self) -> None:
        for fake in self._fakes.values():
            if fake.agent is not None and fake.started:
                fake.started = False
                await _call_hooks(fake.agent, "shutdown")


async def _call_hooks(agent: Agent | None, moment: str, *arguments: Any) -> None:
    """Call hooks that cannot change the outcome."""
    try:
        if agent is not None:
            await agent.call_hooks(moment, *arguments)
    except GeneratorExit:
        raise
    except asyncio.CancelledError:
        # One that the hook made itself is like any other error in it.
        if (task := asyncio.current_task()) is None or task.cancelling():
            raise
    except BaseException:
        return


class LoadOnly(AdmitAll):
    """No flow control, but alternatives share by what each has at work."""

    def __init__(self, agents: Agents) -> None:
        self._agents = agents

    def at_work(self, agent: str) -> int:
        return self._agents.at_work(agent)
