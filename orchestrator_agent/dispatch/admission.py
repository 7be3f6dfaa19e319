"""Admission: whether a task may go to an agent now. Asked by the router, in memory, in the middle of a transition.

A task is admitted when its agent's window has room, its limits have tokens, and its queue has no rows; or when it was
taken from the head of its queue. A row that is not admitted gets its position in the ready queue when it is written.
"""

from collections.abc import Iterable, Sequence, Set
from typing import Protocol
from uuid import UUID

from orchestrator_agent.dispatch.queues import Queue, fairness_key, queue_of
from orchestrator_agent.dispatch.signal import DispatchSignal
from orchestrator_agent.dispatch.window import Window
from orchestrator_agent.engine.assignment import route_request_of
from orchestrator_agent.engine.decisions import Decisions, RouteRequest
from orchestrator_agent.engine.state import Role, Row, Run, Status
from orchestrator_agent.store.ready_queue import QueueEntry, ReadyQueue
from orchestrator_agent.store.tasks import QueuePosition


class Tokens(Protocol):
    """Rate limits, as admission sees them."""

    # Whether there are any limits at all.
    active: bool

    def of_agent(self, agent: str) -> int | None:
        """How many tasks may go to an agent now; None: any number."""

    def of_requester(self, limited: str) -> int | None: ...

    def limited(self, request: RouteRequest) -> str:
        """The requester's text, where a limit holds for it; else empty."""

    def spend(self, request: RouteRequest, agent: str) -> None: ...


class Admission:
    """`signal` is set when rows have joined a queue."""

    def __init__(
        self, window: Window, ready_queue: ReadyQueue, tokens: Tokens, signal: DispatchSignal | None = None
    ) -> None:
        self.window = window
        self.ready_queue = ready_queue
        self.tokens = tokens
        # Names of the queues that have rows, as far as this process knows.
        self.queues: set[str] = set()
        # How often rows have joined: a reader that found a queue empty checks whether that is still so.
        self.joins = 0
        # Rows that were taken from the heads of their queues, until a transition has assigned them or not.
        self.taken: set[UUID] = set()
        # Tasks that processes died on more than once are worked on one at a time at each agent, so that one that kills
        # is known from what was beside it. Each with its root and attempt, once it is written.
        self.suspects: dict[str, tuple[UUID | None, UUID | None, int]] = {}
        self._signal = signal or DispatchSignal()

    # -- asked by the router ------------------------------------------------------------------------------------------

    def queue(self, request: RouteRequest) -> Queue:
        return queue_of(request, self.tokens.limited(request) if self.tokens.active else "")

    def limited(self, request: RouteRequest) -> bool:
        """Whether its requester's rate limit is used up for now."""
        if self.tokens.active and (limited := self.tokens.limited(request)):
            tokens = self.tokens.of_requester(limited)
            return tokens is not None and tokens <= 0
        return False

    def admits(self, request: RouteRequest) -> bool:
        """Whether a task may be dispatched now, whatever agent it goes to."""
        if self.limited(request):
            return False
        return not self.queues or request.task_id in self.taken or self.queue(request).name not in self.queues

    def room(self, agent: str) -> int:
        room = self.window.room(agent)
        if self.tokens.active and (tokens := self.tokens.of_agent(agent)) is not None:
            return min(room, tokens)
        return room

    def full(self, agent: str) -> str:
        return "all its places are taken" if self.window.room(agent) <= 0 else "its rate limit is reached"

    def has_suspect(self, agent: str) -> bool:
        """Whether an agent works on a task that processes died on."""
        return agent in self.suspects

    def at_work(self, agent: str) -> int:
        """How many tasks an agent has, as far as this process knows."""
        return self.window.at_work(agent)

    def assigned(self, request: RouteRequest, agent: str) -> None:
        self.window.take(agent)
        if request.suspect:
            self.suspects[agent] = (None, request.task_id, 0)
        if self.tokens.active:
            self.tokens.spend(request, agent)

    # -- asked by the store -------------------------------------------------------------------------------------------

    async def enqueue(self, batch: Sequence[tuple[Run, Decisions]]) -> dict[UUID, QueuePosition]:
        """Queue and position of every row of a batch that will be ready without an agent. Raises StoreError."""
        positions: dict[UUID, QueuePosition] = {}
        joining: list[tuple[UUID, QueueEntry]] = []
        for run, decisions in batch:
            for row in _ready(decisions):
                request = route_request_of(run, row)
                key = _fairness_key(run, row, request)
                entry = QueueEntry(self.queue(request).name, run.facts.priority, key)
                positions[row.task_id] = QueuePosition(entry.queue, entry.fairness_key, None)
                # A row of a paused task is in no queue; it joins when the task is resumed.
                if run.at_work:
                    joining.append((row.task_id, entry))
        found = await self.ready_queue.positions([entry for _, entry in joining])
        for (task_id, entry), position in zip(joining, found, strict=True):
            positions[task_id] = QueuePosition(entry.queue, entry.fairness_key, position)
        return positions

    def written(self, batch: Sequence[tuple[Run, Decisions]], roots: Set[UUID]) -> None:
        """Of a batch, only these roots' decisions were written: of the others, another process was faster, or the task
        was known already. The slots that they took are free again."""
        for run, decisions in batch:
            for agent in decisions.released:
                self.window.release(agent)
            written = run.root_task_id in roots
            if not written:
                for row in decisions.dispatched.values():
                    self.window.release(row.agent or "")
            if self.suspects:
                self._note_suspects(decisions, written)

    def _note_suspects(self, decisions: Decisions, written: bool) -> None:
        for row in (*decisions.changed.values(), *decisions.dispatched.values()):
            if not row.deaths:
                continue
            self.suspects = {agent: each for agent, each in self.suspects.items() if each[1] != row.task_id}
            if written and row.status is Status.DISPATCHED and row.agent is not None:
                self.suspects[row.agent] = (row.root_task_id, row.task_id, row.attempt)

    def wake(self) -> None:
        """Slots may have come, for rows that are queued."""
        if self.queues:
            self._signal.set()

    def joined(self, queues: Iterable[str]) -> None:
        """These queues have rows now."""
        self.joins += 1
        self.queues.update(queues)
        self._signal.set()


def _fairness_key(run: Run, row: Row, request: RouteRequest) -> int:
    """Whose round a row takes: its requester's, or, below an attempt that delegated a task and waits for it, that
    attempt's.

    So a task that was begun is ended beside new ones. With the requester's own key, a thousand tasks that each delegate
    one would all be begun, and wait, before the first of the delegated ones had its round.
    """
    above: Row | None = row
    while above is not None and above.parent_task_id is not None:
        if above.role is Role.DELEGATED:
            return fairness_key(request.tenant, str(above.parent_task_id))
        above = run.rows.get(above.parent_task_id)
    return fairness_key(request.tenant, request.requester)


def _ready(decisions: Decisions) -> list[Row]:
    found = [row for row in decisions.made if row.status is Status.READY]
    if decisions.changed:
        found += [row for row in decisions.changed.values() if row.status is Status.READY]
    return found
