"""TaskStore: what transitions write to `tasks`, set-based, one statement a batch.

The statements are those of `batch_statements`; they mirror `engine.state.TRANSITIONS`: a root is written only at the
version that was decided on, and what has ended is never written again.
"""

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol
from uuid import UUID

import asyncpg

from orchestrator_agent.engine.decisions import Decisions
from orchestrator_agent.engine.state import Row, Run
from orchestrator_agent.store.batch_statements import Batch, accept, apply, columns_to_send
from orchestrator_agent.store.columns import (
    ACCEPTED_COLUMNS,
    CHANGED_COLUMNS,
    CHANGED_QUEUED_COLUMNS,
    MADE_COLUMNS,
    MADE_QUEUED_COLUMNS,
    MOVED_COLUMNS,
    QUEUE_COLUMNS,
)
from orchestrator_agent.store.history import surely_new
from orchestrator_agent.store.pool import NO_FLUSH, Database
from orchestrator_agent.store.records import Arrays, accepted_arrays, changed_arrays, made_arrays, moved_arrays
from protocol.errors import PantheonError
from protocol.messages import now

# Notes that final responses were acknowledged, by the primary key. The note only saves a publish of the same bytes
# after a crash: it need not wait for the disk.
RESPONDED = f"""
update tasks t set answered_at = now() from unnest($1::uuid[], $2::uuid[]) as u(root_task_id, task_id)
where t.root_task_id = u.root_task_id and t.task_id = u.task_id and t.answered_at is null and {NO_FLUSH}
"""

Decided = Sequence[tuple[Run, Decisions]]


class PoisonedBatch(PantheonError):
    """Postgres refuses something in a batch for its content; the batch is tried one root at a time."""


class QueuePosition(NamedTuple):
    """Where a ready row is queued, the columns QUEUE_COLUMNS; `position` is None while its task is paused."""

    queue: str
    fairness_key: int
    position: int | None


Positions = dict[UUID, QueuePosition]
_NOT_QUEUED = (None, None, None)


class Enqueuer(Protocol):
    """Gives the rows of a batch that no agent has room for their positions in the ready queue: `dispatch.admission`."""

    async def enqueue(self, batch: Decided) -> Positions: ...
    def joined(self, queues: Iterable[str]) -> None: ...
    def written(self, batch: Decided, roots: Set[UUID]) -> None: ...


@dataclass
class TaskStore:
    """Writes of one orchestrator process; `process_id` goes into `dispatched_by` of all that it writes.

    Without an `enqueuer`, ready rows are in no queue.
    """

    database: Database
    process_id: UUID
    enqueuer: Enqueuer | None = None
    history_after_seconds: float = 3600.0

    async def accept(self, batch: Decided) -> set[UUID]:
        """Insert new roots and their first steps; returns the ids of those that were new.

        Raises StoreError, PoisonedBatch.
        """
        positions = await self._enqueue(batch)
        moment = now()
        # Whether one of them may be in the history.
        check = any(
            run.facts.idempotency_key is not None
            or not surely_new(run.root_task_id, moment, self.history_after_seconds)
            for run, _ in batch
        )
        roots = ACCEPTED_COLUMNS, accepted_arrays([run for run, _ in batch])
        (accepted, made), arrays = columns_to_send(roots, self._made(batch, positions))
        records = await self._write(accept(accepted, made, check=check), self.process_id, *arrays)
        return self._written(batch, positions, {record["root_task_id"] for record in records})

    async def apply(self, batch: Decided) -> set[UUID]:
        """Write decisions; returns the roots whose version was still the expected one. The others wrote nothing.

        Raises StoreError, PoisonedBatch.
        """
        positions = await self._enqueue(batch)
        # In one order for all processes: see `batch_statements.apply`.
        runs = sorted((run for run, _ in batch), key=lambda run: run.root_task_id)
        moving = MOVED_COLUMNS, moved_arrays(runs)
        (moved, changed, made), arrays = columns_to_send(
            moving, self._changed(batch, positions), self._made(batch, positions)
        )
        records = await self._write(apply(moved, changed, made), self.process_id, *arrays)
        return self._written(batch, positions, {record["root_task_id"] for record in records})

    async def mark_responded(self, task_ids: Sequence[UUID]) -> None:
        """Note that final responses were acknowledged by the broker. Raises StoreError."""
        await self.database.execute(RESPONDED, list(task_ids), list(task_ids))

    def _changed(self, batch: Decided, positions: Positions) -> Batch:
        rows = [row for run, decisions in batch for row in decisions.changed.values() if row is not run.root]
        arrays = changed_arrays(rows)
        if not positions:
            return CHANGED_COLUMNS, arrays
        return CHANGED_QUEUED_COLUMNS, [*arrays, *_queue_arrays(rows, positions)]

    def _made(self, batch: Decided, positions: Positions) -> Batch:
        rows = [(run, row) for run, decisions in batch for row in decisions.made]
        arrays = made_arrays(rows)
        if not positions:
            return MADE_COLUMNS, arrays
        return MADE_QUEUED_COLUMNS, [*arrays, *_queue_arrays([row for _, row in rows], positions)]

    async def _enqueue(self, batch: Decided) -> Positions:
        return await self.enqueuer.enqueue(batch) if self.enqueuer is not None else {}

    def _written(self, batch: Decided, positions: Positions, roots: set[UUID]) -> set[UUID]:
        if self.enqueuer is not None:
            self.enqueuer.written(batch, roots)
            if positions:
                self.enqueuer.joined({entry.queue for entry in positions.values() if entry.position is not None})
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


def _queue_arrays(rows: Sequence[Row], positions: Positions) -> Arrays:
    """What QUEUE_COLUMNS hold of these rows."""
    if not rows:
        return [()] * len(QUEUE_COLUMNS)
    return [*zip(*(positions.get(row.task_id, _NOT_QUEUED) for row in rows), strict=True)]
