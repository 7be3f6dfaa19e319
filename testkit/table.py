"""Table: what Postgres holds of one root, in memory: the columns that the store's statements write, and no others."""

import json
from typing import Any
from uuid import UUID

from orchestrator_agent.engine.decisions import Decisions
from orchestrator_agent.engine.state import ENDED, TRANSITIONS, Row, Run, Status
from orchestrator_agent.runtime.run_cache import bare_run
from orchestrator_agent.store import run_builder as stored
from orchestrator_agent.store import statements
from orchestrator_agent.store import tasks as writes
from orchestrator_agent.workflows.library import Library
from orchestrator_agent.workflows.plan import Plan
from protocol.names import EXECUTE_DAG

COLUMNS = stored.COLUMNS.split(", ")
_WITHOUT_WORKFLOW = frozenset({Status.WAITING, *ENDED})


class Table:
    """The rows of one tree. Each write checks what the database's constraints and locks would."""

    def __init__(self) -> None:
        self.records: dict[UUID, dict[str, Any]] = {}

    @property
    def root(self) -> dict[str, Any]:
        return next(record for record in self.records.values() if record["task_id"] == record["root_task_id"])

    def accept(self, run: Run, decisions: Decisions) -> None:
        root = dict.fromkeys(COLUMNS)
        root |= dict(zip(_names(statements.ACCEPTED), writes._accepted_values(run), strict=True))
        self.records[run.root_task_id] = {**root, "version": 1}
        self._make(run, decisions)

    def apply(self, run: Run, decisions: Decisions) -> None:
        root = self.records[run.root_task_id]
        assert root["version"] == run.version
        assert _reachable(Status(root["status"]), run.root.status), "a root went where no transition leads"
        values = (run.root.status.value, writes._text(run.root.result), writes._error(run.root))
        values += (writes._usage(run.root.usage), run.root.completed_at, run.facts.reply_to)  # type: ignore[assignment]
        names = [name for name in _names(statements.ROOTS) if name not in ("root_task_id", "task_id", "known_version")]
        root |= {**dict(zip(names, values, strict=True)), "version": run.version + 1}
        for row in decisions.changed.values():
            if row is run.root:
                continue
            record = self.records[row.task_id]
            before = Status(record["status"])
            assert before not in ENDED, "what has ended was changed"
            record |= dict(zip(_names(statements.CHANGED), writes._changed_values(row), strict=True))
            assert _reachable(before, Status(record["status"])), "a row went where no transition leads"
        self._make(run, decisions)
        run.version += 1

    def _make(self, run: Run, decisions: Decisions) -> None:
        for row in decisions.made:
            assert row.task_id not in self.records, "a row was made twice"
            record = dict.fromkeys(COLUMNS)
            self.records[row.task_id] = {
                **record,
                **dict(zip(_names(statements.MADE), writes._made_values(run, row), strict=True)),
                "version": 0,
            }

    def admit(self) -> None:
        """Let a root that waits for its turn run, as `Reader.admit` does."""
        root = self.root
        assert root["status"] == Status.WAITING
        root |= {"status": Status.RUNNING.value, "version": root["version"] + 1}

    def plan(self, library: Library) -> Plan:
        """The plan that the root was started on."""
        root = self.root
        if root["workflow_version"] is not None:
            return library.version(root["workflow_version"])
        if root["task_type"] == EXECUTE_DAG:
            return library.inline(json.loads(root["payload"] or "{}"))[0]
        return library.single(root["task_type"])

    def rows(self) -> list[Row]:
        return [stored.row_of(record) for record in self.records.values()]

    def read(self, library: Library) -> Run:
        """The run, as a process that has never seen it makes it."""
        # The database gives rows in any order; the reverse of the one they were made in is the most unlike it.
        records = list(reversed(self.records.values()))
        if Status(self.root["status"]) in _WITHOUT_WORKFLOW:
            return bare_run(records)
        return stored.run_of(records, self.plan(library), library)


def json_of(text: str | None) -> Any:
    return None if text is None else json.loads(text)


def _names(columns: statements.Columns) -> list[str]:
    return [column.name for column in columns]


def _reachable(before: Status, after: Status) -> bool:
    """Over any number of transitions: one batch may hold several."""
    seen, queue = {before}, [before]
    while queue:
        for following in TRANSITIONS[queue.pop()]:
            if following not in seen:
                seen.add(following)
                queue.append(following)
    return after in seen
