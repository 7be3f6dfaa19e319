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
from orchestrator_agent.store.batch_statements import Batch, accept, apply, columns_to_send
from orchestrator_agent.store.columns import (
    ACCEPTED_COLUMNS,
    CHANGED_COLUMNS,
    CHANGED_QUEUED_COLUMNS,
    MADE_COLUMNS,
    MADE_QUEUED_COLUMNS,
    MOVED_COLUMNS,
    QUEUE_COLUMNS,
    column_list,
)
from orchestrator_agent.store.pool import NO_FLUSH, Database
from orchestrator_agent.store.records import Arrays, accepted_arrays, changed_arrays, made_arrays, moved_arrays
from protocol.errors import PantheonError
from protocol.messages import now

# The note only saves a publish of the same bytes after a crash: it need not wait for the disk.
ANSWERED = f"""
update tasks t set answered_at = now() from unnest($1::uuid[], $2::uuid[]) as u(root_task_id, task_id)
where t.root_task_id = u.root_task_id and t.task_id = u.task_id and t.answered_at is null and {NO_FLUSH}
"""


# Of roots that have not ended, and that stand at another version than the one that is known. Each is looked at by its
# key, whatever the statistics say (the lateral's limit); then its tree is read.
NEWER = f"""
select {column_list("t")}
from unnest($1::uuid[], $2::uuid[], $3::bigint[]) as u(a, b, known),
lateral (
    select r.root_task_id, r.version, r.status from tasks r where r.root_task_id = u.a and r.task_id = u.b limit 1
) r
join tasks t on t.root_task_id = r.root_task_id
where r.version <> u.known and r.status not in ('completed', 'failed', 'cancelled', 'skipped')
"""
# No version is that of a root which is not known.
UNKNOWN = -1


class PoisonedBatch(PantheonError):
    """Postgres refuses something in a batch for its content; the batch is tried one root at a time."""


# Queue, flow and position of rows that wait, by their ids.
Places = dict[UUID, tuple[str, int, int | None]]
_NO_PLACE = (None, None, None)


def _queue_arrays(rows: Sequence[Row], places: Places) -> Arrays:
    """What QUEUE_COLUMNS hold of these rows."""
    if not rows:
        return [()] * len(QUEUE_COLUMNS)
    return [*zip(*(places.get(row.task_id, _NO_PLACE) for row in rows), strict=True)]


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
        roots = ACCEPTED_COLUMNS, accepted_arrays([run for run, _ in batch])
        moment = now()
        check = any(
            run.facts.idempotency_key is not None
            or not surely_new(run.root_task_id, moment, self.history_after_seconds)
            for run, _ in batch
        )
        (accepted, made), arrays = columns_to_send(roots, self._made(batch, places))
        records = await self._write(accept(accepted, made, check=check), self.process_id, *arrays)
        return self._written(batch, places, {record["root_task_id"] for record in records})

    async def apply(self, batch: Sequence[tuple[Run, Decisions]]) -> set[UUID]:
        """Write decisions; returns the roots whose version was still the expected one. The others wrote nothing.

        Raises StoreError, PoisonedBatch.
        """
        places = await self._enqueue(batch)
        # In one order for all processes: see `batch_statements.apply`.
        runs = sorted((run for run, _ in batch), key=lambda run: run.root_task_id)
        rows = [row for run, decisions in batch for row in decisions.changed.values() if row is not run.root]
        moving: Batch = MOVED_COLUMNS, moved_arrays(runs)
        changing: Batch = CHANGED_COLUMNS, changed_arrays(rows)
        if places:
            changing = CHANGED_QUEUED_COLUMNS, [*changing[1], *_queue_arrays(rows, places)]
        (roots, changed, made), arrays = columns_to_send(moving, changing, self._made(batch, places))
        records = await self._write(apply(roots, changed, made), self.process_id, *arrays)
        return self._written(batch, places, {record["root_task_id"] for record in records})

    def _made(self, batch: Sequence[tuple[Run, Decisions]], places: Places) -> Batch:
        rows = [(run, row) for run, decisions in batch for row in decisions.made]
        arrays = made_arrays(rows)
        if not places:
            return MADE_COLUMNS, arrays
        return MADE_QUEUED_COLUMNS, [*arrays, *_queue_arrays([row for _, row in rows], places)]

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
                await self.database.fetch(
                    f"select {column_list()} from {table} where root_task_id = any($1::uuid[])", wanted
                )
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
