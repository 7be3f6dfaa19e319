"""TaskStore: what transitions write to `tasks`, set-based, one statement a batch. The SQL mirrors
`engine.state.TRANSITIONS`."""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

import asyncpg

from orchestrator_agent.engine.decisions import Decisions
from orchestrator_agent.engine.state import Row, Run
from orchestrator_agent.store.age import surely_new
from orchestrator_agent.store.pool import NO_FLUSH, Database
from orchestrator_agent.store.run_builder import COLUMNS
from orchestrator_agent.store.statements import (
    ACCEPTED,
    CHANGED,
    CHANGED_PLACED,
    MADE,
    MADE_PLACED,
    ROOTS,
    Batch,
    accept,
    apply,
    needed,
)
from protocol.errors import PantheonError
from protocol.messages import Usage, json_bytes, now

# The note only saves a publish of the same bytes after a crash: it need not wait for the disk.
ANSWERED = f"""
update tasks t set answered_at = now() from unnest($1::uuid[], $2::uuid[]) as u(root_task_id, task_id)
where t.root_task_id = u.root_task_id and t.task_id = u.task_id and t.answered_at is null and {NO_FLUSH}
"""


# Of roots that have not ended, and that stand at another version than the one that is known. Each is looked at by its
# key, whatever the statistics say (the lateral's limit); then its tree is read.
NEWER = f"""
select {", ".join(f"t.{name.strip()}" for name in COLUMNS.split(","))}
from unnest($1::uuid[], $2::uuid[], $3::bigint[]) as u(a, b, known),
lateral (
    select r.root_task_id, r.version, r.status from tasks r where r.root_task_id = u.a and r.task_id = u.b limit 1
) r
join tasks t on t.root_task_id = r.root_task_id
where r.version <> u.known and r.status not in ('completed', 'failed', 'cancelled', 'skipped')
"""
# No version is that of a root which is not known.
UNKNOWN = -1


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


def _error(row: Row) -> str | None:
    return None if row.error is None else row.error.model_dump_json(exclude_none=True)


def _usage(usage: Usage | None) -> str | None:
    return None if usage is None else usage.model_dump_json()


def _made_values(run: Run, row: Row) -> tuple[Any, ...]:
    return (
        row.root_task_id,
        row.task_id,
        row.parent_task_id,
        run.facts.tenant,
        row.step,
        row.role,
        row.iteration,
        row.item,
        row.task_type,
        row.workflow_version,
        row.pinned_agent,
        row.agent,
        row.status,
        row.attempt,
        row.failures,
        run.facts.priority,
        _text(row.payload),
        _text(row.result),
        _error(row),
        _usage(row.usage),
        row.timeout_seconds,
        row.created_at,
        row.dispatched_at,
        row.expires_at,
        row.run_after,
        row.completed_at,
        run.facts.reply_to if row is run.root else row.reply_to,
        row.sticky,
        _text(row.routing),
    )


def _changed_values(row: Row) -> tuple[Any, ...]:
    return (
        row.root_task_id,
        row.task_id,
        row.agent,
        row.instance_id,
        row.status,
        row.attempt,
        row.failures,
        _text(row.result),
        _error(row),
        _usage(row.usage),
        row.dispatched_at,
        row.expires_at,
        row.run_after,
        row.completed_at,
        row.reply_to,
        _text(row.routing),
    )


def _accepted_values(run: Run) -> tuple[Any, ...]:
    facts = run.facts
    return (
        *_made_values(run, run.root),
        facts.requester,
        facts.session_id,
        facts.idempotency_key,
        json_bytes(facts.metadata).decode() if facts.metadata else None,
        facts.traceparent,
        facts.tracestate,
        facts.deadline_at,
        facts.duplicate_of,
        facts.replay_of,
        facts.concurrency_key,
    )


def _columns(rows: Iterable[tuple[Any, ...]], width: int) -> list[list[Any]]:
    columns = [list(column) for column in zip(*rows, strict=True)]
    return columns or [[] for _ in range(width)]


class PoisonedBatch(PantheonError):
    """Postgres refuses something in a batch for its content; the batch is tried one root at a time."""


# Queue, flow and position of rows that wait, by their ids.
Places = dict[UUID, tuple[str, int, int | None]]
_NO_PLACE = (None, None, None)


class Waitings(Protocol):
    """Who gives waiting rows their places: see `flow.gate.Admission`."""

    async def enqueue(self, batch: Sequence[tuple[Run, Decisions]]) -> Places: ...
    def joined(self, queues: Iterable[str]) -> None: ...
    def written(self, batch: Sequence[tuple[Run, Decisions]], roots: Set[UUID]) -> None: ...


@dataclass
class TaskStore:
    """Writes of one orchestrator process; `process_id` goes into `dispatched_by` of all that it touches.

    Without a `gate`, rows that wait are in no line.
    """

    database: Database
    process_id: UUID
    gate: Waitings | None = None
    history_after_seconds: float = 3600.0

    async def accept(self, batch: Sequence[tuple[Run, Decisions]]) -> set[UUID]:
        """Insert new roots and their first steps; returns the ids of those that were new.

        Raises StoreError, PoisonedBatch.
        """
        places = await self._enqueue(batch)
        roots = _columns((_accepted_values(run) for run, _ in batch), len(ACCEPTED))
        moment = now()
        check = any(
            run.facts.idempotency_key is not None
            or not surely_new(run.root_task_id, moment, self.history_after_seconds)
            for run, _ in batch
        )
        (accepted, made), arrays = needed((ACCEPTED, roots), self._made(batch, places))
        records = await self._write(accept(accepted, made, check=check), self.process_id, *arrays)
        return self._written(batch, places, {record["root_task_id"] for record in records})

    async def apply(self, batch: Sequence[tuple[Run, Decisions]]) -> set[UUID]:
        """Write decisions; returns the roots whose version was still the expected one. The others wrote nothing.

        Raises StoreError, PoisonedBatch.
        """
        places = await self._enqueue(batch)
        moved = _columns(
            (
                (
                    run.root_task_id,
                    run.root_task_id,
                    run.version,
                    run.root.status,
                    _text(run.root.result),
                    _error(run.root),
                    _usage(run.root.usage),
                    run.root.completed_at,
                    run.facts.reply_to,
                )
                # In one order for all processes: see `statements.apply`.
                for run, _ in sorted(batch, key=lambda one: one[0].root_task_id)
            ),
            len(ROOTS),
        )
        rows = [row for run, decisions in batch for row in decisions.changed.values() if row is not run.root]
        changing: Batch = (CHANGED, _columns((_changed_values(row) for row in rows), len(CHANGED)))
        if places:
            values = ((*_changed_values(row), *places.get(row.task_id, _NO_PLACE)) for row in rows)
            changing = (CHANGED_PLACED, _columns(values, len(CHANGED_PLACED)))
        (roots, changed, made), arrays = needed((ROOTS, moved), changing, self._made(batch, places))
        records = await self._write(apply(roots, changed, made), self.process_id, *arrays)
        return self._written(batch, places, {record["root_task_id"] for record in records})

    def _made(self, batch: Sequence[tuple[Run, Decisions]], places: Places) -> Batch:
        rows = [(run, row) for run, decisions in batch for row in decisions.made]
        if not places:
            return MADE, _columns((_made_values(run, row) for run, row in rows), len(MADE))
        values = ((*_made_values(run, row), *places.get(row.task_id, _NO_PLACE)) for run, row in rows)
        return MADE_PLACED, _columns(values, len(MADE_PLACED))

    async def _enqueue(self, batch: Sequence[tuple[Run, Decisions]]) -> Places:
        return await self.gate.enqueue(batch) if self.gate is not None else {}

    def _written(self, batch: Sequence[tuple[Run, Decisions]], places: Places, roots: set[UUID]) -> set[UUID]:
        if self.gate is not None:
            self.gate.written(batch, roots)
            if places:
                self.gate.joined({queue for queue, _, position in places.values() if position is not None})
        return roots

    async def _write(self, query: str, *arguments: Any) -> Sequence[asyncpg.Record]:
        try:
            return await self.database.fetch(query, *arguments)
        except (
            asyncpg.DataError,
            asyncpg.IntegrityConstraintViolationError,
            asyncpg.ProgramLimitExceededError,
        ) as error:
            raise PoisonedBatch(str(error).splitlines()[0]) from error
        except (UnicodeEncodeError, asyncpg.exceptions.UntranslatableCharacterError) as error:
            raise PoisonedBatch(str(error)) from error

    async def mark_responded(self, task_ids: Sequence[UUID]) -> None:
        """Note that final responses were acknowledged by the broker. Raises StoreError."""
        await self.database.execute(ANSWERED, list(task_ids), list(task_ids))

    async def newer_trees(self, known: Mapping[UUID, int]) -> dict[UUID, list[Any]]:
        """All rows of those of these roots that have not ended and are not at the version that is `known` (or UNKNOWN).

        Raises StoreError.
        """
        ids = list(known)
        return _by_root(await self.database.fetch(NEWER, ids, ids, list(known.values())))

    async def trees(self, root_task_ids: Sequence[UUID]) -> dict[UUID, list[Any]]:
        """All rows of these roots, at work or in the history. Raises StoreError."""
        wanted = list(root_task_ids)
        trees: dict[UUID, list[Any]] = {}
        for table in ("tasks", "tasks_history"):
            trees |= _by_root(
                await self.database.fetch(f"select {COLUMNS} from {table} where root_task_id = any($1::uuid[])", wanted)
            )
            wanted = [one for one in wanted if one not in trees]
            if not wanted:
                break
        return trees


def _by_root(records: Iterable[Any]) -> dict[UUID, list[Any]]:
    trees: dict[UUID, list[Any]] = {}
    for record in records:
        trees.setdefault(record["root_task_id"], []).append(record)
    return trees
