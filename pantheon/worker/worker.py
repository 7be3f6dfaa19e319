"""Worker: takes an agent's tasks from its queue, runs the handlers, answers, then acknowledges (PROTOCOL.md).

The order is the guarantee: pull, work (with in-progress acks), publish the TaskResponse and have its ack, ack the task.
A process that dies anywhere in it leaves the task to another instance.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any
from uuid import UUID

import structlog

from pantheon.bus import Bus, Delivery, Objects, Publisher, Puller, acknowledge, hold, nak
from pantheon.config.agent_config import AgentConfig
from pantheon.runtime.background import end
from pantheon.worker.context import TaskContext
from pantheon.worker.declaration import Declaration
from pantheon.worker.responses import Key, SentResponses
from pantheon.worker.runner import HandBack, Observer, Runner, Running
from pantheon.worker.slots import Place, Places
from protocol.errors import InvalidRequest, PantheonError, TooLarge
from protocol.messages import RunningTask, TaskRequest, parse_request, to_bytes
from protocol.streams import IN_PROGRESS_SECONDS, TASKS, task_consumer

log = structlog.get_logger()

# A cancel may overtake its task in the queue; it is remembered this long.
CANCEL_MEMORY_SECONDS = 300.0


class Worker:
    """Runs up to `max_concurrency` attempts at once; `drain` ends it, finishing or handing back what it holds."""

    def __init__(
        self,
        agent: Declaration,
        bus: Bus,
        publisher: Publisher,
        *,
        instance_id: str,
        max_concurrency: int,
        objects: Objects | None = None,
        config: Callable[[], AgentConfig] | None = None,
        observer: Observer | None = None,
        delegate: Callable[[TaskContext, TaskRequest], Awaitable[Any]] | None = None,
    ) -> None:
        self._agent = agent
        objects = objects or Objects(bus)
        self._runner = Runner(
            agent,
            bus,
            objects,
            instance_id=instance_id,
            config=config or (lambda: AgentConfig.of(agent.name, instance_id)),
            observer=observer,
            delegate=self._delegated if delegate is not None else None,
        )
        self._answers = SentResponses(bus, publisher, objects, agent=agent.name, instance_id=instance_id)
        self._places = Places(max_concurrency)
        self._places.on_change = self._places_changed
        # Told when attempts wait for tasks that they gave out, and there are as many attempts as places.
        self.on_lent: Callable[[], None] = lambda: None
        self._delegate = delegate
        self._puller = Puller(bus, TASKS.name, task_consumer(agent.name), capacity=max_concurrency)
        self._capacity = max_concurrency
        self._running: dict[Key, Running] = {}
        self._works: set[asyncio.Task[None]] = set()
        self._cancelled: dict[tuple[UUID, int | None], float] = {}
        self._loops: list[asyncio.Task[None]] = []
        # Places came, or messages.
        self._wake = asyncio.Event()
        self._draining = False

    @property
    def max_concurrency(self) -> int:
        return self._places.count

    @property
    def active(self) -> int:
        return len(self._running)

    @property
    def lent(self) -> int:
        """How many attempts wait for tasks that they gave out, where there are as many attempts as places."""
        return self._places.lent if self._places.crowded else 0

    @property
    def running(self) -> tuple[RunningTask, ...]:
        return tuple(
            RunningTask(task_id=task_id, attempt=attempt, root_task_id=running.root_task_id)
            for (task_id, attempt), running in self._running.items()
        )

    async def start(self) -> None:
        self._puller.wake_on(self._wake)
        await self._puller.start()
        self._loops = [
            asyncio.create_task(self._take(), name=f"{self._agent.name}-take"),
            asyncio.create_task(self._hold(), name=f"{self._agent.name}-hold"),
        ]

    async def wait_ready(self) -> None:
        """Until the consumer exists: from then on no task can be missed."""
        await self._puller.wait_ready()

    async def missing(self) -> list[str]:
        """What it lacks to take tasks, for a probe."""
        return [] if self._puller.ready else ["there is no stream to take tasks from yet"]

    def resize(self, max_concurrency: int) -> None:
        """Work on more or fewer attempts at once from now on; what runs goes on."""
        self._places.resize(max_concurrency)

    def _places_changed(self) -> None:
        # At every end of an attempt, and seldom news: the puller wakes by it.
        if (capacity := self._places.count + self._places.lent) != self._capacity:
            self._capacity = capacity
            self._puller.set_capacity(capacity)
        self._wake.set()

    def pause(self) -> None:
        self._puller.pause()

    def resume(self) -> None:
        self._puller.resume()

    def cancel(self, task_id: UUID, attempt: int | None, reason: str) -> None:
        """Stop one task, running or still to come; one that is answering already is left to it."""
        loop = asyncio.get_running_loop()
        self._cancelled[(task_id, attempt)] = loop.time() + CANCEL_MEMORY_SECONDS
        for (running_id, running_attempt), running in self._running.items():
            if running_id == task_id and attempt in (None, running_attempt) and not running.answering:
                if running.stop_reason is not None:
                    # The order is sent more than once; another interruption would hit the handler's cleaning up.
                    continue
                running.stop_reason = reason or "cancelled"
                if running.context is not None:
                    running.context.cancelled = True
                running.work.cancel()

    def _is_cancelled(self, key: Key) -> bool:
        if not self._cancelled:
            return False
        clock = asyncio.get_running_loop().time()
        self._cancelled = {name: until for name, until in self._cancelled.items() if until > clock}
        return key in self._cancelled or (key[0], None) in self._cancelled

    async def drain(self, grace_seconds: float) -> None:
        """Take no more; let what runs finish within the grace, hand the rest back to the queue."""
        self._draining = True
        for delivery in await self._puller.stop():
            await nak(delivery)
        for loop_task in self._loops[:1]:
            loop_task.cancel()
        if self._works:
            await asyncio.wait(self._works, timeout=grace_seconds)
        for running in list(self._running.values()):
            if not running.answering:
                running.stop_reason = "hand back"
                if running.context is not None:
                    running.context.cancelled = True
                running.work.cancel()
        if self._works:
            await asyncio.wait(self._works, timeout=5)
        await end(self._loops)

    async def _take(self) -> None:
        while not self._draining:
            # As many as there are places at this moment: the server may send more than was asked for last, where
            # requests overlap (after a reconnect, say), and an attempt that had lent its place may have it back.
            self._wake.clear()
            deliveries = self._puller.take_now(self._places.free)
            if not deliveries:
                await self._wake.wait()
            for delivery in deliveries:
                place = self._places.take()
                work = asyncio.create_task(self._work(delivery, place), name=f"{self._agent.name}-work")
                self._works.add(work)
                work.add_done_callback(partial(self._finished, place))

    def _finished(self, place: Place, work: "asyncio.Task[None]") -> None:
        self._works.discard(work)
        self._puller.release()
        place.leave()
        if not work.cancelled() and (error := work.exception()) is not None:
            log.error("worker.failed", error=repr(error), exc_info=error)

    async def _delegated(self, context: TaskContext, request: TaskRequest) -> Any:
        assert self._delegate is not None
        running = self._running.get((context.task_id, context.attempt))
        if running is None:
            raise PantheonError("the attempt that this context is of has ended")
        async with running.place.lent():
            if self.lent:
                self.on_lent()
            return await self._delegate(context, request)

    async def _hold(self) -> None:
        """In-progress acks for all that runs, so that a long task is not given to another instance."""
        while True:
            await asyncio.sleep(IN_PROGRESS_SECONDS)
            running = [delivery for one in self._running.values() for delivery in one.deliveries]
            for delivery in [*running, *self._puller.waiting]:
                await hold(delivery)

    async def _work(self, delivery: Delivery, place: Place) -> None:
        try:
            request = parse_request(delivery.data)
        except InvalidRequest as error:
            await self._answers.refuse(delivery, error)
            await acknowledge(delivery)
            return
        key = (request.task_id, request.attempt)
        if (twin := self._running.get(key)) is not None:
            # The same attempt delivered again while it runs. It may be a message of its own (said again after a loss),
            # which nothing but its own in-progress acks keeps from being given out until it counts as poison.
            twin.deliveries.append(delivery)
            await asyncio.wait({twin.work})
            await (acknowledge if twin.answered else nak)(delivery)
            return
        if (answer := self._answers.given.get(key)) is not None:
            await self._answers.send(request, answer, message_id=None)
            await acknowledge(delivery)
            return
        current = asyncio.current_task()
        assert current is not None
        running = self._running[key] = Running(
            [delivery], current, place, request.root_task_id or request.task_id, self._is_cancelled(key)
        )
        try:
            response = await self._runner.run(request, running)
            body = await self._answers.body(request, response)
            try:
                await self._answers.send(request, body, message_id=f"{request.task_id}:{request.attempt}:response")
            except TooLarge as error:
                body = to_bytes(self._answers.failed(request, error))
                await self._answers.send(request, body, message_id=f"{request.task_id}:{request.attempt}:response")
            self._answers.remember(key, body)
            running.answered = True
            await acknowledge(delivery)
        except HandBack:
            await nak(delivery)
        finally:
            del self._running[key]
