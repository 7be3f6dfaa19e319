"""TaskStore: what transitions write to `tasks`, set-based, one statement a batch. The SQL mirrors
`engine.state.TRANSITIONS`."""

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

import asyncpg

from orchestrator_agent.engine.decisions import Decisions
from orchestrator_agent.engine.state import Row, Run
from orchestrator_agent.store.age import surely_new
from orchestrator_agent.store.pool import Database
from orchestrator_agent.store.rows import COLUMNS
from protocol.errors import PantheonError
from protocol.messages import Usage, json_bytes, now

# (column, array type, cast of one element). The order is the order of the arrays.
_MADE: tuple[tuple[str, str, str], ...] = (
    ("root_task_id", "uuid[]", ""),
    ("task_id", "uuid[]", ""),
    ("parent_task_id", "uuid[]", ""),
    ("tenant", "text[]", ""),
    ("step", "text[]", ""),
    ("role", "text[]", ""),
    ("iteration", "int[]", ""),
    ("item", "int[]", ""),
    ("task_type", "text[]", ""),
    ("workflow_version", "text[]", ""),
    ("pinned_agent", "text[]", ""),
    ("agent", "text[]", ""),
    ("status", "text[]", ""),
    ("attempt", "int[]", ""),
    ("failures", "int[]", ""),
    ("priority", "int[]", ""),
    ("payload", "text[]", "::json"),
    ("result", "text[]", "::json"),
    ("error", "text[]", "::json"),
    ("usage", "text[]", "::json"),
    ("timeout_seconds", "float8[]", ""),
    ("created_at", "timestamptz[]", ""),
    ("dispatched_at", "timestamptz[]", ""),
    ("expires_at", "timestamptz[]", ""),
    ("run_after", "timestamptz[]", ""),
    ("completed_at", "timestamptz[]", ""),
    ("reply_to", "text[]", ""),
    ("sticky", "text[]", ""),
    ("routing", "text[]", "::json"),
)
_CHANGED: tuple[tuple[str, str, str], ...] = (
    ("root_task_id", "uuid[]", ""),
    ("task_id", "uuid[]", ""),
    ("agent", "text[]", ""),
    ("instance_id", "text[]", ""),
    ("status", "text[]", ""),
    ("attempt", "int[]", ""),
    ("failures", "int[]", ""),
    ("result", "text[]", "::json"),
    ("error", "text[]", "::json"),
    ("usage", "text[]", "::json"),
    ("dispatched_at", "timestamptz[]", ""),
    ("expires_at", "timestamptz[]", ""),
    ("run_after", "timestamptz[]", ""),
    ("completed_at", "timestamptz[]", ""),
    ("reply_to", "text[]", ""),
    ("routing", "text[]", "::json"),
)
# A root's id stands here twice. Where a statement asks for one column by both names, Postgres concludes that
# task_id = root_task_id, which is what the partial indexes on roots say: it would then walk all roots for each batch.
_ROOTS: tuple[tuple[str, str, str], ...] = (
    ("root_task_id", "uuid[]", ""),
    ("task_id", "uuid[]", ""),
    ("known_version", "bigint[]", ""),
    ("status", "text[]", ""),
    ("result", "text[]", "::json"),
    ("error", "text[]", "::json"),
    ("usage", "text[]", "::json"),
    ("completed_at", "timestamptz[]", ""),
    ("reply_to", "text[]", ""),
)
_ACCEPTED: tuple[tuple[str, str, str], ...] = (
    *_MADE,
    ("requester", "text[]", ""),
    ("session_id", "text[]", ""),
    ("idempotency_key", "text[]", ""),
    ("metadata", "text[]", "::json"),
    ("traceparent", "text[]", ""),
    ("tracestate", "text[]", ""),
    ("deadline_at", "timestamptz[]", ""),
    ("duplicate_of", "uuid[]", ""),
    ("replay_of", "uuid[]", ""),
    ("concurrency_key", "text[]", ""),
)


def _unnest(columns: Sequence[tuple[str, str, str]], alias: str, first: int) -> str:
    arrays = ", ".join(f"${first + index}::{kind}" for index, (_, kind, _) in enumerate(columns))
    names = ", ".join(name for name, _, _ in columns)
    return f"unnest({arrays}) as {alias}({names})"


def _values(columns: Sequence[tuple[str, str, str]], alias: str) -> str:
    return ", ".join(f"{alias}.{name}{cast}" for name, _, cast in columns)


def _names(columns: Sequence[tuple[str, str, str]]) -> str:
    return ", ".join(name for name, _, _ in columns)


def _sets(columns: Sequence[tuple[str, str, str]], alias: str) -> str:
    keys = ("root_task_id", "task_id", "known_version")
    return ", ".join(f"{name} = {alias}.{name}{cast}" for name, _, cast in columns if name not in keys)


# Where a row waits: only written in batches in which one does.
_PLACE: tuple[tuple[str, str, str], ...] = (
    ("queue", "text[]", ""),
    ("flow", "bigint[]", ""),
    ("position", "bigint[]", ""),
)

_R = len(_ROOTS)


def _apply(placed: tuple[tuple[str, str, str], ...]) -> str:
    """One round trip: lock the roots whose version is still the one the decisions were made on, and write only theirs.

    Who lost the race to another process is told by its absence from the answer, and decides again on fresh rows.
    A row that waits keeps the place in line that it has; any other has none.
    """
    changed, made = (*_CHANGED, *placed), (*_MADE, *placed)
    position = "null"
    if placed:
        position = "case when u.status = 'ready' and u.position is not null then coalesce(t.position, u.position) end"
        position += ", queue = coalesce(u.queue, t.queue), flow = coalesce(u.flow, t.flow)"
    return f"""
with roots as materialized (
    select r.* from {_unnest(_ROOTS, "r", 2)}
), locked as materialized (
    select t.root_task_id from tasks t
    where (t.root_task_id, t.task_id, t.version) in
          (select r.root_task_id, r.task_id, r.known_version from roots r)
    order by t.root_task_id
    for no key update
), root_rows as (
    update tasks t set version = u.known_version + 1, dispatched_by = $1, {_sets(_ROOTS, "u")},
        concurrency_key = case when u.completed_at is null then t.concurrency_key end
    from roots u
    where u.root_task_id in (select root_task_id from locked)
      and t.root_task_id = u.root_task_id and t.task_id = u.task_id
), changed as (
    update tasks t set dispatched_by = $1, {_sets(_CHANGED, "u")}, position = {position}
    from {_unnest(changed, "u", 2 + _R)}
    where u.root_task_id in (select root_task_id from locked)
      and t.root_task_id = u.root_task_id and t.task_id = u.task_id
      and t.status not in ('completed', 'failed', 'cancelled', 'skipped')
), made as (
    insert into tasks ({_names(made)}, dispatched_by)
    select {_values(made, "u")}, $1 from {_unnest(made, "u", 2 + _R + len(changed))}
    where u.root_task_id in (select root_task_id from locked)
)
select root_task_id from locked
"""


APPLY, APPLY_WAITING = _apply(()), _apply(_PLACE)

_A = len(_ACCEPTED)


# A task that has moved to the history is known as well. Sub-selects of one row: the planner can make nothing of them
# but a look into the index for each root.
_NOT_IN_HISTORY = """
    where (select h.task_id from tasks_history h
           where h.root_task_id = u.root_task_id and h.task_id = u.task_id limit 1) is null
      and (u.idempotency_key is null or u.duplicate_of is not null or
           (select h.task_id from tasks_history h
            where h.tenant = u.tenant and coalesce(h.requester, '') = coalesce(u.requester, '')
              and h.idempotency_key = u.idempotency_key and h.idempotency_key is not null and h.duplicate_of is null
            limit 1) is null)
"""


def _accept(placed: tuple[tuple[str, str, str], ...], *, check: bool) -> str:
    """A root that is known already, by its id or by its key, is not in the answer; nor are its steps made."""
    made = (*_MADE, *placed)
    return f"""
with accepted as (
    insert into tasks ({_names(_ACCEPTED)}, dispatched_by, version)
    select {_values(_ACCEPTED, "u")}, $1, 1 from {_unnest(_ACCEPTED, "u", 2)}
    {_NOT_IN_HISTORY if check else ""}
    on conflict do nothing
    returning root_task_id
), made as (
    insert into tasks ({_names(made)}, dispatched_by)
    select {_values(made, "u")}, $1 from {_unnest(made, "u", 2 + _A)}
    where u.root_task_id in (select root_task_id from accepted)
)
select root_task_id from accepted
"""


# By whether a row of the batch waits, and whether one may be in the history.
ACCEPT = {
    (waiting, check): _accept(_PLACE if waiting else (), check=check)
    for waiting in (False, True)
    for check in (False, True)
}

ANSWERED = """
update tasks t set answered_at = now() from unnest($1::uuid[], $2::uuid[]) as u(root_task_id, task_id)
where t.root_task_id = u.root_task_id and t.task_id = u.task_id and t.answered_at is null
"""


OPEN = """
select t.task_id from tasks t
where (t.root_task_id, t.task_id) in (select u.a, u.b from unnest($1::uuid[], $2::uuid[]) u(a, b))
  and t.status not in ('completed', 'failed', 'cancelled', 'skipped')
"""


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
        row.role.value,
        row.iteration,
        row.item,
        row.task_type,
        row.workflow_version,
        row.pinned_agent,
        row.agent,
        row.status.value,
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
        row.status.value,
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
    """Who gives waiting rows their places: see `flow.gate.Gate`."""

    async def line_up(self, batch: Sequence[tuple[Run, Decisions]]) -> Places: ...
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
        places = await self._line_up(batch)
        roots = _columns((_accepted_values(run) for run, _ in batch), _A)
        made = self._made(batch, places)
        moment = now()
        check = any(
            run.facts.idempotency_key is not None
            or not surely_new(run.root_task_id, moment, self.history_after_seconds)
            for run, _ in batch
        )
        records = await self._write(ACCEPT[bool(places), check], self.process_id, *roots, *made)
        return self._written(batch, places, {record["root_task_id"] for record in records})

    async def apply(self, batch: Sequence[tuple[Run, Decisions]]) -> set[UUID]:
        """Write decisions; returns the roots whose version was still the expected one. The others wrote nothing.

        Raises StoreError, PoisonedBatch.
        """
        places = await self._line_up(batch)
        roots = _columns(
            (
                (
                    run.root_task_id,
                    run.root_task_id,
                    run.version,
                    run.root.status.value,
                    _text(run.root.result),
                    _error(run.root),
                    _usage(run.root.usage),
                    run.root.completed_at,
                    run.facts.reply_to,
                )
                for run, _ in batch
            ),
            _R,
        )
        rows = [row for run, decisions in batch for row in decisions.changed.values() if row is not run.root]
        if places:
            width = len(_CHANGED) + len(_PLACE)
            changed = _columns(((*_changed_values(row), *places.get(row.task_id, _NO_PLACE)) for row in rows), width)
        else:
            changed = _columns((_changed_values(row) for row in rows), len(_CHANGED))
        made = self._made(batch, places)
        records = await self._write(APPLY_WAITING if places else APPLY, self.process_id, *roots, *changed, *made)
        return self._written(batch, places, {record["root_task_id"] for record in records})

    def _made(self, batch: Sequence[tuple[Run, Decisions]], places: Places) -> list[list[Any]]:
        rows = [(run, row) for run, decisions in batch for row in decisions.made]
        if not places:
            return _columns((_made_values(run, row) for run, row in rows), len(_MADE))
        return _columns(
            ((*_made_values(run, row), *places.get(row.task_id, _NO_PLACE)) for run, row in rows),
            len(_MADE) + len(_PLACE),
        )

    async def _line_up(self, batch: Sequence[tuple[Run, Decisions]]) -> Places:
        return await self.gate.line_up(batch) if self.gate is not None else {}

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

    async def mark_answered(self, task_ids: Sequence[UUID]) -> None:
        """Note that final responses were acknowledged by the broker. Raises StoreError."""
        await self.database.execute(ANSWERED, list(task_ids), list(task_ids))

    async def trees(self, root_task_ids: Sequence[UUID], *, open_only: bool = False) -> dict[UUID, list[Any]]:
        """All rows of these roots; `open_only`: of those that have not ended. Raises StoreError."""
        wanted = list(root_task_ids)
        if open_only:
            # An answer that comes late, or again, must not cost the reading of a whole tree that has ended.
            found = await self.database.fetch(OPEN, wanted, wanted)
            wanted = [record["task_id"] for record in found]
            if not wanted:
                return {}
        trees: dict[UUID, list[Any]] = {}
        for table in ("tasks", "tasks_history"):
            records = await self.database.fetch(
                f"select {COLUMNS} from {table} where root_task_id = any($1::uuid[])", wanted
            )
            for record in records:
                trees.setdefault(record["root_task_id"], []).append(record)
            wanted = [one for one in wanted if one not in trees]
            if open_only or not wanted:
                break
        return trees
