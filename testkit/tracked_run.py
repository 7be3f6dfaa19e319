"""TrackedRun: one root task of a test's mesh: its run, its rows as the database would have them, its events."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from orchestrator_agent.engine.decisions import Decisions
from orchestrator_agent.engine.due import due_at
from orchestrator_agent.engine.state import Role, Row, Run, Status
from orchestrator_agent.workflows.library import Library
from protocol.messages import TaskRequest
from testkit.table import Table


@dataclass(frozen=True)
class RecordedEvent:
    """One event of a task or of a step, as `mesh.event.*` would carry it."""

    at: datetime
    name: str
    data: dict[str, Any]


@dataclass
class TrackedRun:
    request: TaskRequest
    run: Run
    table: Table = field(default_factory=Table)
    events: list[RecordedEvent] = field(default_factory=list)

    @property
    def root(self) -> Row:
        return self.run.root

    def read_again(self, library: Library) -> None:
        """Drop what is in memory; the run is what its rows hold."""
        self.run = self.table.read(library)

    def record(self, decisions: Decisions, at: datetime) -> None:
        self.events += [RecordedEvent(at, f"{entity}.{name}", data) for entity, name, data in decisions.events]

    def waiting_rows(self) -> list[Row]:
        """Rows that wait for an agent, a time or a person: those of workflows and fan-outs only hold others."""
        open_rows = [row for row in self.run.active() if row.status not in (Status.RUNNING, Status.COMPENSATING)]
        return [row for row in open_rows if row.role is not Role.SIGNAL]

    def due_moments(self) -> Iterator[tuple[Row, datetime]]:
        """Rows in which time will bring something, and when."""
        if self.run.root.ended:
            return
        for row in (self.run.root, *self.run.active()):
            if (moment := due_at(self.run, row)) is not None:
                yield row, moment

    def ready_rows(self) -> list[Row]:
        """Rows that may be assigned as soon as an agent has a slot."""
        return [row for row in self.run.active() if row.status is Status.READY] if self.run.at_work else []
