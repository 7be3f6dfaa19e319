"""Worker: takes an agent's tasks from its queue, runs the handlers, responds, then acknowledges (docs/protocol.md, What
an agent gets).

The order is the guarantee: pull, work (with in-progress acks), publish the TaskResponse and have its ack, ack the task.
A process that dies anywhere in it leaves the task to another instance.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID

import structlog

from pantheon.bus import Delivery, Puller, Transport, acknowledge, hold
from pantheon.bus.returns import return_to_queue
from pantheon.config.agent_config import AgentConfig
from pantheon.runtime.background import end
from pantheon.runtime.periodic import PeriodicTask
from pantheon.worker.attempt import AttemptObserver, AttemptReturned, Completed, Key, RunningAttempt
from pantheon.worker.context import TaskContext
from pantheon.worker.declaration import Declaration
from pantheon.worker.failing import FailingInstance
from pantheon.worker.response_form import ResponseForm
from pantheon.worker.responses import DEFAULT_MEMORY, RecentResponses, ResponseMemory, ResponseSender
from pantheon.worker.runner import Delegate, Runner
from pantheon.worker.slots import RELEASED_LIMIT, Slot, Slots
from protocol.errors import ErrorCode, InvalidRequest, PantheonError, TaskFailure, TooLarge
from protocol.messages import RunningTask, TaskRequest, parse_request, to_bytes
from protocol.streams import IN_PROGRESS_SECONDS, TASKS, task_consumer

log = structlog.get_logger()

# How long handlers may clean up that a drain has cancelled, before their tasks return to the queue without them. Grace,
# this, and the rest of a process's end stay within 30 s.
RETURN_SECONDS = 3.0
# A handler that was cancelled, and has not ended after so long, is taken to have swallowed its cancellation.
STUCK_SECONDS = 15.0
# A cancel may overtake its task in the queue; it is remembered this long.
CANCEL_MEMORY_SECONDS = 300.0


@dataclass(frozen=True)
class WorkerLimits:
    """What a worker does by itself: in-progress acks every `hold_seconds`, how much it remembers and releases, and for
    how long a handler may clean up after its cancellation before its slot is freed without it."""

    hold_seconds: float = IN_PROGRESS_SECONDS
    stuck_seconds: float = STUCK_SECONDS
    released_slots: int = RELEASED_LIMIT
    remembered: ResponseMemory = DEFAULT_MEMORY


DEFAULT_LIMITS = WorkerLimits()


class Worker:
    """Runs up to `max_concurrency` attempts at once, from `start` to `drain`, which finishes or returns what it holds.

    `config` is read at the start of each attempt; `delegate` does what `ctx.run` asks for. `crowded` is set when
    attempts wait for tasks that they delegated, and there are as many attempts as slots; its reader clears it.
    """

    def __init__(
        self,
        agent: Declaration,
        transport: Transport,
        *,
        instance_id: str,
        max_concurrency: int,
        config: Callable[[], AgentConfig] | None = None,
        observer: AttemptObserver | None = None,
        delegate: Delegate | None = None,
        limits: WorkerLimits = DEFAULT_LIMITS,
    ) -> None:
        self._agent = agent
        self._publisher = transport.publisher
        self._form = form = ResponseForm(agent.name, instance_id)
        self._runner = Runner(
            agent,
            transport,
            form,
            config=config or (lambda: AgentConfig.of(agent.name, instance_id)),
            observer=observer,
            delegate=self._delegate_released if delegate is not None else None,
        )
        self._sender = ResponseSender(transport, form, agent=agent.name)
        self._sent = RecentResponses(limits.remembered)
        self._delegate = delegate
        self._stuck_seconds = limits.stuck_seconds
        # Set when messages arrived, or slots changed.
        self._wake = asyncio.Event()
        self._puller = Puller(
            transport.bus, TASKS.name, task_consumer(agent.name), capacity=max_concurrency, arrivals=self._wake
        )
        self._capacity = max_concurrency
        self._failing = FailingInstance(transport.bus, agent.name, instance_id, self._slots_changed)
        self._slots = Slots(max_concurrency, self._slots_changed, released_limit=limits.released_slots)
        self._holding = PeriodicTask(
            f"{agent.name}-hold", self._hold, seconds=limits.hold_seconds, jitter=0, at_start=False
        )
        self._running: dict[Key, RunningAttempt] = {}
        self._works: set[asyncio.Task[None]] = set()
        self._cancelled: dict[tuple[UUID, int | None], float] = {}
        self._taking: asyncio.Task[None] | None = None
        self._draining = False
        self.crowded = asyncio.Event()

    @property
    def max_concurrency(self) -> int:
        return self._slots.count

    @property
    def active(self) -> int:
        return len(self._running)

    @property
    def deliveries(self) -> int:
        """Messages at work: more than `active` where an attempt was delivered twice."""
        return len(self._works)

    @property
    def receiving(self) -> bool:
        """Whether tasks may still arrive: no longer once a pause or a drain has reached the broker."""
        return self._puller.receiving

    @property
    def released(self) -> int:
        """How many attempts wait for tasks that they delegated, where there are as many attempts as slots."""
        return self._slots.released if self._slots.crowded else 0

    @property
    def running(self) -> tuple[RunningTask, ...]:
        return tuple(
            RunningTask(task_id=task_id, attempt=attempt, root_task_id=running.root_task_id)
            for (task_id, attempt), running in self._running.items()
        )

    @property
    def held(self) -> list[Delivery]:
        """Messages that other instances must not get: at work, or delivered and waiting for a slot."""
        at_work = [delivery for running in self._running.values() for delivery in running.deliveries]
        return [*at_work, *self._puller.buffered]

    async def start(self) -> None:
        await self._puller.start()
        self._taking = asyncio.create_task(self._take(), name=f"{self._agent.name}-take")
        self._holding.start()

    async def wait_ready(self) -> None:
        """Until the consumer exists: from then on no task can be missed."""
        await self._puller.wait_ready()

    async def missing(self) -> list[str]:
        """What it lacks to take tasks, for a probe."""
        return [] if self._puller.ready else ["there is no stream to take tasks from yet"]

    def resize(self, max_concurrency: int) -> None:
        """Work on more or fewer attempts at once from now on; what runs goes on."""
        self._slots.resize(max_concurrency)

    def _slots_changed(self) -> None:
        # At every end of an attempt, and the capacity seldom changes: a change wakes the puller.
        capacity = 1 if self._failing.slow else self._slots.count + self._slots.released
        if capacity != self._capacity:
            self._capacity = capacity
            self._puller.set_capacity(capacity)
        self._wake.set()

    def pause(self) -> None:
        self._puller.pause()

    def resume(self) -> None:
        self._puller.resume()

    def cancel(self, task_id: UUID, attempt: int | None, reason: str) -> None:
        """Stop one task, running or still to come; an attempt whose handler has ended is left to respond."""
        loop = asyncio.get_running_loop()
        self._cancelled[(task_id, attempt)] = loop.time() + CANCEL_MEMORY_SECONDS
        for (running_id, running_attempt), running in self._running.items():
            if running_id == task_id and attempt in (None, running_attempt) and not running.responding:
                if running.stop_reason is not None:
                    # The order is sent more than once; another interruption would hit the handler's cleaning up.
                    continue
                running.stop(reason or "cancelled")

    def _is_cancelled(self, key: Key) -> bool:
        if not self._cancelled:
            return False
        clock = asyncio.get_running_loop().time()
        self._cancelled = {name: until for name, until in self._cancelled.items() if until > clock}
        return key in self._cancelled or (key[0], None) in self._cancelled

    async def drain(self, grace_seconds: float) -> None:
        """Take no more; let what runs finish within the grace, return the rest to the queue.

        A handler that swallows its cancellation is left behind, and its task returned all the same.
        """
        self._draining = True
        for delivery in await self._puller.stop():
            await return_to_queue(self._publisher, delivery)
        if self._taking is not None:
            self._taking.cancel()
        if self._works:
            await asyncio.wait(self._works, timeout=grace_seconds)
        for running in list(self._running.values()):
            if not running.responding:
                running.returning = True
                running.stop("the instance is ending")
        if self._works:
            await asyncio.wait(self._works, timeout=RETURN_SECONDS)
        await self._holding.stop()
        for key, running in self._running.items():
            if not running.responding:
                log.warning("task.not_ended", task_id=str(key[0]), attempt=key[1], agent=self._agent.name)
                running.returned = True
                for delivery in running.deliveries:
                    await return_to_queue(self._publisher, delivery)
        await self._failing.stop()
        if self._taking is not None:
            await end([self._taking])

    async def _take(self) -> None:
        while not self._draining:
            # As many as there are slots at this moment: the server may send more than the last request was for, where
            # requests overlap (after a reconnect, for example), and an attempt that had released its slot may have it
            # again.
            self._wake.clear()
            if wait := self._failing.wait_seconds:
                await asyncio.sleep(wait)
            deliveries = self._puller.take_now(min(1, self._slots.free) if self._failing.slow else self._slots.free)
            if not deliveries:
                await self._wake.wait()
            for delivery in deliveries:
                slot = self._slots.take()
                work = asyncio.create_task(self._work(delivery, slot), name=f"{self._agent.name}-work")
                self._works.add(work)
                work.add_done_callback(partial(self._finished, slot))

    def _finished(self, slot: Slot, work: "asyncio.Task[None]") -> None:
        if work in self._works:
            self._works.discard(work)
            self._puller.release()
            slot.end()
        if not work.cancelled() and (error := work.exception()) is not None:
            log.error("worker.failed", error=repr(error), exc_info=error)

    async def _delegate_released(self, context: TaskContext, request: TaskRequest) -> Any:
        """Delegate a task, with the attempt's slot released until that has ended."""
        assert self._delegate is not None
        running = self._running.get((context.task_id, context.attempt))
        if running is None:
            raise PantheonError("the attempt that this context is of has ended")
        async with running.slot.released():
            if self.released:
                self.crowded.set()
            return await self._delegate(context, request)

    async def _hold(self) -> None:
        """Send in-progress acks for all that runs, so that a long task is not delivered to another instance."""
        stuck_since = asyncio.get_running_loop().time() - self._stuck_seconds
        for key, running in list(self._running.items()):
            interrupted_at = running.interrupted_at
            if interrupted_at is not None and interrupted_at < stuck_since and not running.responding:
                await self._leave_behind(key, running)
        for delivery in self.held:
            await hold(delivery)

    async def _leave_behind(self, key: Key, running: RunningAttempt) -> None:
        """Respond for a handler that does not end, and free its slot. What it comes to later changes nothing."""
        assert running.context is not None
        request = running.context.request
        log.error(
            "handler.stuck",
            task_id=str(key[0]),
            attempt=key[1],
            task_type=request.task_type,
            agent=self._agent.name,
            hint="it goes on after its cancellation: let CancelledError pass",
        )
        running.returned = True
        del self._running[key]
        self._works.discard(running.work)
        self._puller.release()
        running.slot.end()
        message = f"'{request.task_type}' did not end when it was cancelled, and was left behind"
        if running.stop_reason is not None:
            failure = TaskFailure(ErrorCode.CANCELLED, running.stop_reason)
        else:
            failure = TaskFailure(ErrorCode.TIMEOUT, message, retryable=True)
        body = to_bytes(self._form.failed(request, failure))
        await self._sender.send(request, body, message_id=f"{request.task_id}:{request.attempt}:response")
        self._sent.add(key, body)
        running.responded = True
        for delivery in running.deliveries:
            await acknowledge(delivery)
        running.end()

    async def _work(self, delivery: Delivery, slot: Slot) -> None:
        try:
            request = parse_request(delivery.data)
        except InvalidRequest as error:
            await self._sender.refuse(delivery, error)
            await acknowledge(delivery)
            return
        key = (request.task_id, request.attempt)
        if (twin := self._running.get(key)) is not None:
            # The same attempt delivered again while it runs. It may be a message of its own (published again after a
            # loss), which nothing but its own in-progress acks keeps from being delivered until it counts as poison.
            twin.deliveries.append(delivery)
            await twin.wait_ended()
            if twin.responded:
                await acknowledge(delivery)
            else:
                await return_to_queue(self._publisher, delivery)
            return
        if (body := self._sent.get(key)) is not None:
            await self._sender.send(request, body, message_id=None)
            await acknowledge(delivery)
            return
        current = asyncio.current_task()
        assert current is not None
        running = self._running[key] = RunningAttempt(
            [delivery], current, slot, request.root_task_id or request.task_id, self._is_cancelled(key)
        )
        try:
            response = await self._runner.run(request, running)
            if running.returned:
                # It was drained, or left behind, without this handler.
                return
            if isinstance(response, Completed) or response.error is None:
                self._failing.succeeded()
            elif response.status == "failed" and response.error.retryable:
                self._failing.failed()
            body = await self._sender.body(request, response)
            try:
                await self._sender.send(request, body, message_id=f"{request.task_id}:{request.attempt}:response")
            except TooLarge as error:
                body = to_bytes(self._form.failed(request, error))
                await self._sender.send(request, body, message_id=f"{request.task_id}:{request.attempt}:response")
            self._sent.add(key, body)
            running.responded = True
            await acknowledge(delivery)
        except AttemptReturned:
            if not running.returned:
                await return_to_queue(self._publisher, delivery)
        finally:
            if self._running.get(key) is running:
                del self._running[key]
            if running.twins:
                running.end()
