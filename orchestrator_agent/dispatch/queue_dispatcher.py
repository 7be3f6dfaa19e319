"""QueueDispatcher: takes rows from the ready queue when there are slots for them, and has them dispatched.

Woken by responses, by rows that join, by tokens that come back; the reconciler's sweep is the backstop. It never asks
the database whether rows are queued: it knows, and learns at each sweep what other processes have queued.
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
from orchestrator_agent.inbox import Inbox, TakesLong
from orchestrator_agent.store.availability import retry_until_available
from orchestrator_agent.store.ready_queue import QueueEntry, TakenRow
from pantheon.bus import Bus, pending_messages
from pantheon.runtime.background import end
from protocol.streams import TASKS

log = structlog.get_logger()

# As many rows as one transition's batch holds.
TAKE_LIMIT = 256
# A row that was taken and could not be dispatched (the agent that it sticks to is full) comes after the others for
# this long.
HOLD_SECONDS = 0.5
# So many rows at most are held back: beyond, the oldest get another chance.
HELD_LIMIT = 2000
# When a window is full and rows are queued, the broker is asked whether it is: what this process counted may be wrong,
# as others read responses too. Soon, then ever more seldom.
CHECK_FIRST_SECONDS = 0.05
CHECK_ALONE_SECONDS = 1.0
CHECK_MAX_SECONDS = 2.0
# With several orchestrators the slot that one took is often freed at another, to which the response came: each comes to
# count its window as full. Then only the broker knows.
CHECK_SHARED_SECONDS = 0.1
UNSERVED_LIMIT = 1000
# The broker is asked about so many agents at once, and about so many in a sweep: of very many, these in rotation.
CHECKS_AT_ONCE = 64
CORRECTED_PER_SWEEP = 64


class Routes(Protocol):
    """What is asked of the router."""

    def room(self, task_type: str, pinned_agent: str | None) -> int: ...
    def agents(self, task_type: str, pinned_agent: str | None) -> Sequence[str]: ...


class CachedRuns(Protocol):
    """What is asked of the runs that this process has in memory."""

    def cached(self, root_task_id: UUID) -> Run | None: ...
    async def held_by_other(self) -> Collection[UUID]:
        """Roots whose rows are better left to another process. Raises StoreError."""


class QueueDispatcher:
    """Woken by `signal`. The rows that it takes go through the inbox, like everything that happens to a run; `bus`
    counts an agent's tasks in the broker."""

    def __init__(
        self,
        admission: Admission,
        routes: Routes,
        signal: DispatchSignal,
        *,
        active: ActiveProcesses,
        pauses: Pauses,
        inbox: Inbox,
        runs: CachedRuns,
        bus: Bus,
    ) -> None:
        self._admission = admission
        self._routes = routes
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
        # How far the sweeps have come in their rotation.
        self._corrected = 0

    async def start(self) -> None:
        self._loop_task = asyncio.create_task(self._run(), name="dispatch-queued")

    def wake(self) -> None:
        """Slots may have come: an agent, a resumed one, tokens."""
        self._admission.wake()

    async def _run(self) -> None:
        while True:
            await self._signal.wait()
            groups: dict[tuple[str, ...], list[Queue]] = {}
            for name in self._admission.queues:
                queue = Queue.of(name)
                groups.setdefault(tuple(self._routes.agents(queue.task_type, queue.agent)), []).append(queue)
            self._signal.awaited = frozenset(agent for agents in groups for agent in agents)
            for agents, queues in groups.items():
                # A task of its own for each group: one whose rows are slow to dispatch does not hold up the others.
                if agents and agents not in self._takes:
                    task = asyncio.create_task(self._take_group(agents, queues), name="take")
                    self._takes[agents] = task
                    task.add_done_callback(lambda done, agents=agents: self._taken(agents, done))  # type: ignore[misc]

    def _taken(self, agents: tuple[str, ...], task: "asyncio.Task[None]") -> None:
        self._takes.pop(agents, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("take.failed", error=str(error), exc_info=error)

    async def _take_group(self, agents: tuple[str, ...], queues: Sequence[Queue]) -> None:
        """Queues whose rows go to the same agents share the slots of these agents."""
        while True:
            filled = [queue for queue in queues if queue.name in self._admission.queues]
            if not filled:
                return
            # By task type: that of one may be barred from an agent (its circuit is open), and others not.
            rooms = {kind: self._routes.room(*kind) for kind in dict.fromkeys(map(_kind, filled))}
            takeable = [queue for queue in filled if rooms[_kind(queue)] > 0]
            if not takeable:
                for agent in agents:
                    if len(self._checks) >= CHECKS_AT_ONCE:
                        # The sweep corrects the others.
                        break
                    # Else it is paused or its circuit is open: the end of that wakes the dispatcher, or the next sweep.
                    if self._admission.window.room(agent) <= 0:
                        self._check(agent)
                return
            lanes = list(self._lanes(takeable))
            if not lanes:
                return
            share = min(TAKE_LIMIT, -(-max(rooms.values()) // len(lanes)))
            taken = [await self._take(names, min(share, tokens), takeable[0]) for names, tokens in lanes]
            if not any(taken):
                return

    def _lanes(self, queues: Sequence[Queue]) -> Iterable[tuple[list[str], int]]:
        """Queues that are taken from together, and how many rows may be: a requester with a limit has its own."""
        if unlimited := [queue.name for queue in queues if not queue.limited]:
            yield unlimited, TAKE_LIMIT
        for queue in queues:
            if queue.limited:
                tokens = self._admission.tokens.of_requester(queue.limited)
                if tokens is None or tokens > 0:
                    yield [queue.name], TAKE_LIMIT if tokens is None else tokens

    async def _take(self, names: list[str], count: int, like: Queue) -> int:
        """Have the next rows of some queues dispatched; returns how many there were."""
        admission, joins = self._admission, self._admission.joins
        claim = self._active.shared
        # To dispatch a row of a large tree, a process that has not its newest state in memory would read it all first.
        held_by_other = await retry_until_available(self._runs.held_by_other)
        rows = await retry_until_available(
            admission.ready_queue.take,
            names,
            count,
            left_out=self._held_back(),
            paused=self._pauses.workflows,
            claim=claim,
            held_by_other=held_by_other,
        )
        held_back = bool(self._held) or bool(held_by_other)
        if len(rows) < count and not held_back and not (claim and rows) and joins == admission.joins:
            # All rows of these queues were taken: a row that comes now need not be queued.
            admission.queues.difference_update(names)
        parked = [row for row in rows if row.parked]
        if parked:
            await retry_until_available(admission.ready_queue.park, parked)
        taken = [row for row in rows if not row.parked]
        if taken:
            await self._dispatch(taken, like)
        return len(rows)

    async def _dispatch(self, rows: Sequence[TakenRow], like: Queue) -> None:
        ids = {row.task_id for row in rows}
        self._admission.taken |= ids
        try:
            waiting = await asyncio.gather(*map(self._dispatch_row, rows))
        finally:
            self._admission.taken -= ids
        left = [row.task_id for row, waits in zip(rows, waiting, strict=True) if waits or self._still_ready(row)]
        if left and self._routes.room(like.task_type, like.agent) > 0:
            # There is room, but not for these rows.
            until = time.monotonic() + HOLD_SECONDS
            self._held.update(dict.fromkeys(left, until))
            while len(self._held) > HELD_LIMIT:
                del self._held[next(iter(self._held))]
            asyncio.get_running_loop().call_later(HOLD_SECONDS, self.wake)

    async def _dispatch_row(self, row: TakenRow) -> bool:
        """Have a row dispatched; whether that waits for a transition which takes long."""
        try:
            await self._inbox.perform(Due(row.root_task_id, row.task_id), at_once=True)
        except TakesLong:
            return True
        return False

    def _still_ready(self, row: TakenRow) -> bool:
        run = self._runs.cached(row.root_task_id)
        found = run.rows.get(row.task_id) if run is not None else None
        return found is not None and found.status is Status.READY

    def _held_back(self) -> list[UUID]:
        now = time.monotonic()
        for task_id in [task_id for task_id, until in self._held.items() if until <= now]:
            del self._held[task_id]
        return list(self._held)

    # -- what the broker holds ----------------------------------------------------------------------------------------

    def _check(self, agent: str) -> None:
        if agent not in self._checks:
            task = asyncio.create_task(self._check_window(agent), name="check-window")
            self._checks[agent] = task
            task.add_done_callback(lambda _: self._checks.pop(agent, None))

    async def _check_window(self, agent: str) -> None:
        """A window that is only counted as full would hold up its queues for ever."""
        window = self._admission.window
        shared = self._active.shared
        wait = CHECK_FIRST_SECONDS if shared else CHECK_ALONE_SECONDS
        most = CHECK_SHARED_SECONDS if shared else CHECK_MAX_SECONDS
        while agent in self._signal.awaited and window.room(agent) <= 0:
            await asyncio.sleep(wait)
            await self.correct(agent)
            wait = min(wait * 2, most)
        self.wake()

    async def correct(self, agent: str) -> None:
        before = self._admission.window.before(agent)
        in_broker = await pending_messages(self._bus, TASKS.name, agent)
        if in_broker is not None:
            self._admission.window.correct(agent, in_broker, before)

    async def sweep(self) -> None:
        """The sweep's part: what other processes have queued, how many they are, and rows that no agent serves.

        Raises StoreError.
        """
        admission = self._admission
        await self._active.refresh()
        names = await admission.ready_queue.queues()
        admission.queues.update(names)
        queues = [Queue.of(name) for name in names]
        unserved = [queue.name for queue in queues if not self._routes.agents(queue.task_type, queue.agent)]
        if unserved:
            for root_task_id, task_id in await admission.ready_queue.unserved(unserved, UNSERVED_LIMIT):
                self._inbox.post(Due(root_task_id, task_id))
        busy = admission.window.busy()
        first = self._corrected % len(busy) if len(busy) > CORRECTED_PER_SWEEP else 0
        self._corrected = first + CORRECTED_PER_SWEEP
        for agent in [*busy[first:], *busy[:first]][:CORRECTED_PER_SWEEP]:
            await self.correct(agent)
        self.wake()

    async def requeue(self, rows: Sequence[tuple[UUID, UUID, QueueEntry]]) -> None:
        """Queue rows again that were parked, and are not paused any more. Raises StoreError."""
        if rows:
            await self._admission.ready_queue.requeue(rows)
            self._admission.joined({entry.queue for _, _, entry in rows})

    async def stop(self) -> None:
        await end([*([self._loop_task] if self._loop_task else []), *self._takes.values(), *self._checks.values()])


def _kind(queue: Queue) -> tuple[str, str | None]:
    """What the room of a queue depends on."""
    return queue.task_type, queue.agent
