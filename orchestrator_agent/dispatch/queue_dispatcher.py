"""Taker: takes rows out of the line when there are places for them, and has them placed.

Woken by answers, by rows that join, by tokens that come back; the reconciler's sweep is the backstop. It never asks the
database whether somebody waits: it knows, and learns of what others know at each sweep.
"""

import asyncio
import time
from collections.abc import Collection, Iterable, Sequence
from typing import Protocol
from uuid import UUID

import structlog

from orchestrator_agent.dispatch.active_processes import ActiveProcesses
from orchestrator_agent.dispatch.admission import Admission
from orchestrator_agent.dispatch.queues import Queue
from orchestrator_agent.dispatch.router import Pauses
from orchestrator_agent.dispatch.signal import DispatchSignal
from orchestrator_agent.engine.events import Due
from orchestrator_agent.engine.state import Run, Status
from orchestrator_agent.inbox import Inbox
from orchestrator_agent.store.availability import retry_until_available
from orchestrator_agent.store.ready_queue import Taken, Waiting
from pantheon.bus import Bus, pending_messages
from pantheon.runtime.background import end
from protocol.streams import TASKS

log = structlog.get_logger()

# As many rows as one transition's batch holds.
TAKE_LIMIT = 256
# A row that was taken and could not be placed (the agent that it sticks to is full) lets others go first this long.
HOLD_SECONDS = 0.5
# So many at most are passed by: beyond, the oldest get another chance.
HELD_LIMIT = 2000
# When a window is full and rows wait, the broker is asked whether it is: what this process counted may be wrong, as
# others read answers too. Soon, then ever more seldom.
CHECK_FIRST_SECONDS = 0.05
CHECK_ALONE_SECONDS = 1.0
CHECK_MAX_SECONDS = 2.0
# With several orchestrators the place that one took is often given back at another, to which the answer came: each
# comes to think that the window is full. What the broker says then is all that anybody knows.
CHECK_SHARED_SECONDS = 0.1
UNSERVED_LIMIT = 1000


class Rooms(Protocol):
    """What is asked of routing."""

    def room(self, task_type: str, pinned_agent: str | None) -> int: ...
    def agents(self, task_type: str, pinned_agent: str | None) -> tuple[str, ...]: ...


class CachedRuns(Protocol):
    """What is asked of the runs that this process has in memory."""

    def cached(self, root_task_id: UUID) -> Run | None: ...
    async def held_by_other(self) -> Collection[UUID]:
        """Roots whose rows another process had better take. Raises StoreError."""


class QueueDispatcher:
    """Woken by `signal`. It has the rows that it takes placed through the inbox, as everything that happens to a run;
    `bus` counts an agent's tasks in the broker."""

    def __init__(
        self,
        gate: Admission,
        rooms: Rooms,
        signal: DispatchSignal,
        *,
        active: ActiveProcesses,
        pauses: Pauses,
        inbox: Inbox,
        runs: CachedRuns,
        bus: Bus,
    ) -> None:
        self._gate = gate
        self._rooms = rooms
        self._signal = signal
        self._active = active
        self._pauses = pauses
        self._inbox = inbox
        self._runs = runs
        self._bus = bus
        self._loop_task: asyncio.Task[None] | None = None
        self._takes: dict[tuple[str, ...], asyncio.Task[None]] = {}
        self._checks: dict[str, asyncio.Task[None]] = {}
        self._held: dict[UUID, float] = {}

    async def start(self) -> None:
        self._loop_task = asyncio.create_task(self._run(), name="take-from-line")

    def wake(self) -> None:
        """Slots may have come: an agent, a resumed one, tokens."""
        if self._gate.waiting:
            self._signal.set()

    async def _run(self) -> None:
        while True:
            await self._signal.wait()
            groups: dict[tuple[str, ...], list[Queue]] = {}
            for name in self._gate.waiting:
                queue = Queue.of(name)
                groups.setdefault(self._rooms.agents(queue.task_type, queue.agent), []).append(queue)
            self._signal.awaited = frozenset(agent for agents in groups for agent in agents)
            for agents, queues in groups.items():
                # A task of its own for each: one whose rows are slow to place does not hold up the others.
                if agents and agents not in self._takes:
                    task = asyncio.create_task(self._take_group(agents, queues), name="take")
                    self._takes[agents] = task
                    task.add_done_callback(lambda done, agents=agents: self._taken(agents, done))  # type: ignore[misc]

    def _taken(self, agents: tuple[str, ...], task: "asyncio.Task[None]") -> None:
        self._takes.pop(agents, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("take.failed", error=str(error), exc_info=error)

    async def _take_group(self, agents: tuple[str, ...], queues: Sequence[Queue]) -> None:
        """Queues whose rows go to the same agents share these agents' places."""
        while True:
            lanes = list(self._lanes(queues))
            if not lanes:
                return
            room = self._rooms.room(queues[0].task_type, queues[0].agent)
            if room <= 0:
                for agent in agents:
                    # Else it is paused or broken: that is told by who ends it, or found at the next sweep.
                    if self._gate.window.room(agent) <= 0:
                        self._check(agent)
                return
            share = min(TAKE_LIMIT, -(-room // len(lanes)))
            taken = [await self._take(names, min(share, tokens), queues[0]) for names, tokens in lanes]
            if not any(taken):
                return

    def _lanes(self, queues: Sequence[Queue]) -> Iterable[tuple[list[str], int]]:
        """Queues that are taken from together, and how many rows may be: a requester with a limit has its own."""
        waiting = [queue for queue in queues if queue.name in self._gate.waiting]
        if free := [queue.name for queue in waiting if not queue.limited]:
            yield free, TAKE_LIMIT
        for queue in waiting:
            if queue.limited:
                tokens = self._gate.tokens.of_requester(queue.limited)
                if tokens is None or tokens > 0:
                    yield [queue.name], TAKE_LIMIT if tokens is None else tokens

    async def _take(self, names: list[str], count: int, like: Queue) -> int:
        """Have the next rows of some queues placed; returns how many there were."""
        gate, joins = self._gate, self._gate.joins
        claim = self._active.shared
        # To place a row of a large tree, whoever has not its newest state in mind would read it all first.
        held_by_other = await retry_until_available(self._runs.held_by_other)
        rows = await retry_until_available(
            gate.line.take,
            names,
            count,
            passed=self._passed(),
            paused=self._pauses.workflows,
            claim=claim,
            held_by_other=held_by_other,
        )
        left_out = bool(self._held) or bool(held_by_other)
        if len(rows) < count and not left_out and not (claim and rows) and joins == gate.joins:
            # All who wait have been called; whoever comes now need not stand in line.
            gate.waiting.difference_update(names)
        parked = [row for row in rows if row.parked]
        if parked:
            await retry_until_available(gate.line.park, parked)
        called = [row for row in rows if not row.parked]
        if called:
            await self._call(called, like)
        return len(rows)

    async def _call(self, rows: Sequence[Taken], like: Queue) -> None:
        ids = {row.task_id for row in rows}
        self._gate.called |= ids
        try:
            await asyncio.gather(*(self._inbox.perform(Due(row.root_task_id, row.task_id)) for row in rows))
        finally:
            self._gate.called -= ids
        left = [row.task_id for row in rows if self._still_ready(row)]
        if left and self._rooms.room(like.task_type, like.agent) > 0:
            # There is room, but not for these.
            until = time.monotonic() + HOLD_SECONDS
            self._held.update(dict.fromkeys(left, until))
            while len(self._held) > HELD_LIMIT:
                del self._held[next(iter(self._held))]
            asyncio.get_running_loop().call_later(HOLD_SECONDS, self.wake)

    def _still_ready(self, row: Taken) -> bool:
        run = self._runs.cached(row.root_task_id)
        found = run.rows.get(row.task_id) if run is not None else None
        return found is not None and found.status is Status.READY

    def _passed(self) -> list[UUID]:
        now = time.monotonic()
        for task_id in [task_id for task_id, until in self._held.items() if until <= now]:
            del self._held[task_id]
        return list(self._held)

    # -- what the broker says -----------------------------------------------------------------------------------------

    def _check(self, agent: str) -> None:
        if agent not in self._checks:
            task = asyncio.create_task(self._check_window(agent), name="check-window")
            self._checks[agent] = task
            task.add_done_callback(lambda _: self._checks.pop(agent, None))

    async def _check_window(self, agent: str) -> None:
        """A full window that is not full in truth would hold the line up for ever."""
        window = self._gate.window
        shared = self._active.shared
        wait = CHECK_FIRST_SECONDS if shared else CHECK_ALONE_SECONDS
        most = CHECK_SHARED_SECONDS if shared else CHECK_MAX_SECONDS
        while agent in self._signal.awaited and window.room(agent) <= 0:
            await asyncio.sleep(wait)
            await self.correct(agent)
            wait = min(wait * 2, most)
        self.wake()

    async def correct(self, agent: str) -> None:
        before = self._gate.window.before(agent)
        in_broker = await pending_messages(self._bus, TASKS.name, agent)
        if in_broker is not None:
            self._gate.window.correct(agent, in_broker, before)

    async def count_processes(self) -> None:
        """Ask how many orchestrators share the work, and which is the first of them. Raises StoreError."""
        self._active.learn(await self._gate.line.processes())

    async def look(self) -> None:
        """The sweep's part: what other processes have put into the line, how many they are, and who waits in vain.

        Raises StoreError.
        """
        gate = self._gate
        await self.count_processes()
        names = await gate.line.queues()
        gate.waiting.update(names)
        queues = [Queue.of(name) for name in names]
        unserved = [queue.name for queue in queues if not self._rooms.agents(queue.task_type, queue.agent)]
        if unserved:
            for root_task_id, task_id in await gate.line.unserved(unserved, UNSERVED_LIMIT):
                self._inbox.post(Due(root_task_id, task_id))
        for agent in gate.window.busy():
            await self.correct(agent)
        self.wake()

    async def back(self, rows: Sequence[tuple[UUID, UUID, Waiting]]) -> None:
        """Rows that were parked, and are not paused any more, wait in line again. Raises StoreError."""
        if rows:
            await self._gate.line.back(rows)
            self._gate.joined({waiting.queue for _, _, waiting in rows})

    async def stop(self) -> None:
        await end([*([self._loop_task] if self._loop_task else []), *self._takes.values(), *self._checks.values()])
