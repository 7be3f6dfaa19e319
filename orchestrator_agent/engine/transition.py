"""Transition: what one transition goes by and what it has decided so far; the first argument of the engine's functions.

It owns the one work list of a transition, so that steps and workflows that end at once follow each other without
recursion.
"""

from collections import deque
from collections.abc import Callable
from datetime import datetime
from random import Random
from typing import Any
from uuid import UUID

from orchestrator_agent.engine.decisions import Decisions, Directory, Rules
from orchestrator_agent.engine.state import Row, Run, Status
from protocol.messages import ErrorInfo


class Transition:
    """A run, and all that its transition may depend on besides: values, a directory of agents, a source of chance."""

    __slots__ = ("_queue", "_working", "builder", "directory", "now", "random", "rules", "run")

    def __init__(self, run: Run, directory: Directory, rules: Rules, now: datetime, random: Random) -> None:
        self.run = run
        self.directory = directory
        self.rules = rules
        self.now = now
        self.random = random
        self.builder = DecisionBuilder(run, now)
        self._queue: deque[Callable[[], None]] = deque()
        self._working = False

    def soon(self, act: Callable[[], None]) -> None:
        """Act now, or after what is acting: a queue and not recursion, because workflows and fan-outs that end at once
        may follow each other, or repeat, a thousand times."""
        self._queue.append(act)
        if self._working:
            return
        self._working = True
        try:
            while self._queue:
                self._queue.popleft()()
        finally:
            self._working = False


class DecisionBuilder:
    """Gathers a transition's decisions: rows made and changed, attempts to publish and to stop, events."""

    __slots__ = ("_made", "decisions", "now", "run")

    def __init__(self, run: Run, now: datetime) -> None:
        self.run = run
        self.now = now
        self.decisions = Decisions(at=now)
        # By identity, which costs less than an id's hash.
        self._made: set[int] = set()

    def make(self, row: Row) -> None:
        self.run.rows[row.task_id] = row
        self.decisions.made.append(row)
        self._made.add(id(row))

    def change(self, row: Row) -> None:
        # A row that is made in this very transition is written once, as it is at the end.
        if id(row) not in self._made:
            self.decisions.changed[row.task_id] = row

    def end(self, row: Row, status: Status, error: ErrorInfo | None = None) -> None:
        row.become(status)
        row.error = error
        row.completed_at = self.now
        row.expires_at = None
        row.run_after = None
        self.change(row)

    def dispatch(self, row: Row) -> None:
        """Publish the attempt of a row that has been assigned to an agent."""
        self.change(row)
        self.decisions.dispatched[row.task_id] = row
        self.step_event("dispatched", row, agent=row.agent)

    def stop(self, row: Row, reason: str) -> None:
        """Stop the attempt of a dispatched row at its agent."""
        if row.status is not Status.DISPATCHED or row.agent is None:
            return
        # Decided in this very transition, it was never published: the agent does not know of it.
        if self.decisions.dispatched.pop(row.task_id, None) is None:
            self.decisions.stopped.append((row.agent, row.task_id, row.attempt, reason))
        else:
            self.decisions.released.append(row.agent)

    def report(self, operation: UUID, outcome: dict[str, Any] | ErrorInfo) -> None:
        """The outcome of an operation, for its requester."""
        self.decisions.outcomes[operation] = outcome

    def respond(self, row: Row) -> None:
        """Send the response of a delegated task that has ended."""
        self.decisions.responses.append(row)

    def wake_at(self, moment: datetime) -> None:
        """Check the run again at this moment, whatever happens until then."""
        self.decisions.wake_at.append(moment)

    def task_event(self, name: str, *, error: ErrorInfo | None = None, **more: Any) -> None:
        data: dict[str, Any] = {"task_id": self.run.root.text, "task_type": self.run.root.task_type, **more}
        if error is not None:
            data["error"] = error.model_dump(mode="json", exclude_defaults=True)
        self.decisions.events.append(("task", name, data))

    def step_event(self, name: str, row: Row, *, error: ErrorInfo | None = None, **more: Any) -> None:
        data: dict[str, Any] = {
            "root_task_id": self.run.root.text,
            "task_id": row.text,
            "parent_task_id": self.run.parent_text(row),
            "step": self.run.path(row),
            "task_type": row.task_type,
            "iteration": row.iteration,
            "attempt": row.attempt,
            **more,
        }
        if row.item >= 0:
            data["item"] = row.item
        if error is not None:
            data["error"] = error.model_dump(mode="json", exclude_defaults=True)
        self.decisions.events.append(("step", name, data))
