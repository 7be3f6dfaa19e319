"""Gate: whether a task may go to an agent now. Asked by routing, in memory, in the middle of a transition.

A task passes when its agent's window has room, its limits have tokens, and nobody waits in its queue; or when it is its
turn. What does not pass is given a place in the line by the store, when it is written.
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
from orchestrator_agent.store.ready_queue import ReadyQueue, Waiting
from orchestrator_agent.store.tasks import QueuePosition


class Tokens(Protocol):
    """Rate limits, as the gate sees them."""

    # Whether there are any limits at all.
    active: bool

    def of_agent(self, agent: str) -> int | None:
        """How many tasks may go to an agent now; None: any number."""

    def of_requester(self, limited: str) -> int | None: ...

    def limited(self, wanted: RouteRequest) -> str:
        """The requester's text, where a limit holds for it; else empty."""

    def spend(self, wanted: RouteRequest, agent: str) -> None: ...


class Admission:
    """`signal` is set when rows have joined a queue."""

    def __init__(self, window: Window, line: ReadyQueue, tokens: Tokens, signal: DispatchSignal | None = None) -> None:
        self.window = window
        self.line = line
        self.tokens = tokens
        # Queues in which rows wait, as far as this process knows.
        self.waiting: set[str] = set()
        # How often rows have joined: whoever found a queue empty asks whether that is still so.
        self.joins = 0
        # Rows whose turn it is.
        self.called: set[UUID] = set()
        self._signal = signal or DispatchSignal()

    # -- asked by routing ---------------------------------------------------------------------------------------------

    def queue(self, wanted: RouteRequest) -> Queue:
        return queue_of(wanted, self.tokens.limited(wanted) if self.tokens.active else "")

    def limited(self, wanted: RouteRequest) -> bool:
        """Whether its requester's rate limit is used up for now."""
        if self.tokens.active and (limited := self.tokens.limited(wanted)):
            tokens = self.tokens.of_requester(limited)
            return tokens is not None and tokens <= 0
        return False

    def admits(self, wanted: RouteRequest) -> bool:
        """Whether it may be this task's turn, whatever agent it goes to."""
        if self.limited(wanted):
            return False
        return not self.waiting or wanted.task_id in self.called or self.queue(wanted).name not in self.waiting

    def room(self, agent: str) -> int:
        room = self.window.room(agent)
        if self.tokens.active and (tokens := self.tokens.of_agent(agent)) is not None:
            return min(room, tokens)
        return room

    def full(self, agent: str) -> str:
        return "all its places are taken" if self.window.room(agent) <= 0 else "its rate limit is reached"

    def at_work(self, agent: str) -> int:
        """How many tasks an agent has, as far as this process knows."""
        return self.window.at_work(agent)

    def passed(self, wanted: RouteRequest, agent: str) -> None:
        self.window.take(agent)
        if self.tokens.active:
            self.tokens.spend(wanted, agent)

    # -- asked by the store -------------------------------------------------------------------------------------------

    async def enqueue(self, batch: Sequence[tuple[Run, Decisions]]) -> dict[UUID, QueuePosition]:
        """Queue, flow and position of every row of a batch that will wait for an agent. Raises StoreError."""
        places: dict[UUID, QueuePosition] = {}
        standing: list[tuple[UUID, Waiting]] = []
        for run, decisions in batch:
            for row in _ready(decisions):
                wanted = route_request_of(run, row)
                flow = _flow_of(run, row, wanted)
                waiting = Waiting(self.queue(wanted).name, run.facts.priority, flow)
                places[row.task_id] = QueuePosition(waiting.queue, waiting.flow, None)
                # A task that is paused is in no line; it joins when it is resumed.
                if run.at_work:
                    standing.append((row.task_id, waiting))
        positions = await self.line.positions([waiting for _, waiting in standing])
        for (task_id, waiting), position in zip(standing, positions, strict=True):
            places[task_id] = QueuePosition(waiting.queue, waiting.flow, position)
        return places

    def written(self, batch: Sequence[tuple[Run, Decisions]], roots: Set[UUID]) -> None:
        """Of a batch, only these roots' decisions were written: of the others, another process was faster, or the task
        was known already. The places that they took are free again."""
        for run, decisions in batch:
            for agent in decisions.released:
                self.window.give_back(agent)
            if run.root_task_id not in roots:
                for row in decisions.dispatched.values():
                    self.window.give_back(row.agent or "")

    def joined(self, queues: Iterable[str]) -> None:
        """Rows wait there now."""
        self.joins += 1
        self.waiting.update(queues)
        self._signal.set()


def _flow_of(run: Run, row: Row, wanted: RouteRequest) -> int:
    """Whose turn it is: the requester's, or, below an attempt that gave a task out and waits for it, that attempt's.

    So what was begun is ended beside what is new. With the requester's own, a thousand tasks that each give one out
    would all be begun, and wait, before the first of the given ones had its turn.
    """
    above: Row | None = row
    while above is not None and above.parent_task_id is not None:
        if above.role is Role.DELEGATED:
            return fairness_key(wanted.tenant, str(above.parent_task_id))
        above = run.rows.get(above.parent_task_id)
    return fairness_key(wanted.tenant, wanted.requester)


def _ready(decisions: Decisions) -> list[Row]:
    found = [row for row in decisions.made if row.status is Status.READY]
    if decisions.changed:
        found += [row for row in decisions.changed.values() if row.status is Status.READY]
    return found
