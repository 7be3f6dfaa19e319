"""Table: what Postgres holds of one root, in memory: the columns that the store's statements write, and no others."""

import json
from typing import Any
from uuid import UUID

from orchestrator_agent.engine.decisions import Decisions
from orchestrator_agent.engine.state import ENDED, TRANSITIONS, Run, Status
from orchestrator_agent.store.columns import TASK_COLUMNS
from orchestrator_agent.store.records import accepted_record, changed_record, made_record, moved_record
from orchestrator_agent.store.run_builder import run_of
from orchestrator_agent.workflows.library import Library

_EMPTY = dict.fromkeys(TASK_COLUMNS.names)


class Table:
    """The rows of one tree. Each write checks what the database's constraints and locks would."""

    def __init__(self) -> None:
        self.records: dict[UUID, dict[str, Any]] = {}

    @property
    def root(self) -> dict[str, Any]:
        return next(record for record in self.records.values() if record["task_id"] == record["root_task_id"])

    def accept(self, run: Run, decisions: Decisions) -> None:
        self.records[run.root_task_id] = _EMPTY | accepted_record(run)
        self._make(run, decisions)

    def apply(self, run: Run, decisions: Decisions) -> None:
        root = self.records[run.root_task_id]
        assert root["version"] == run.version
        assert _reachable(Status(root["status"]), run.root.status), "a root went where no transition leads"
        root |= moved_record(run)
        for row in decisions.changed.values():
            if row is run.root:
                continue
            record = self.records[row.task_id]
            before = Status(record["status"])
            assert before not in ENDED, "what has ended was changed"
            record |= changed_record(row)
            assert _reachable(before, Status(record["status"])), "a row went where no transition leads"
        self._make(run, decisions)
        run.version += 1

    def _make(self, run: Run, decisions: Decisions) -> None:
        for row in decisions.made:
            assert row.task_id not in self.records, "a row was made twice"
            self.records[row.task_id] = _EMPTY | made_record(run, row) | {"version": 0}

    def admit(self) -> None:
        """Let a root run that its concurrency key admits, as the database does."""
        root = self.root
        assert root["status"] == Status.WAITING
        root |= {"status": Status.RUNNING.value, "version": root["version"] + 1}

    def read(self, library: Library) -> Run:
        """The run, as a process that has never seen it makes it."""
        # The database gives rows in any order; the reverse of the one they were made in is the most unlike it.
        records = list(reversed(self.records.values()))
        return run_of(records, library)


def json_of(text: str | None) -> Any:
    return None if text is None else json.loads(text)


def _reachable(before: Status, after: Status) -> bool:
    """Over any number of transitions: one batch may hold several."""
    seen, queue = {before}, [before]
    while queue:
        for following in TRANSITIONS[queue.pop()]:
            if following not in seen:
                seen.add(following)
                queue.append(following)
    return after in seen
