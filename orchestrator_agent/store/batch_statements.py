"""Batch statements: the two that write `tasks`, one round trip a batch, arrays in, a row for each root out.

Most batches are of steps that were made, dispatched and completed: half of their columns hold what they usually hold. A
column that does so in all rows of a batch is not sent; the statement has the value itself. For each set of columns that
are sent there is a statement of its own, prepared when it is first needed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from orchestrator_agent.store.columns import CHANGED_QUEUED_COLUMNS, QUEUE_COLUMNS, Columns

# Each is prepared on every connection that needs it; beyond so many sets, all columns are sent.
MAX_VARIANTS = 24
# What a row is found by. It never changes.
_KEYS = ("root_task_id", "task_id", "known_version")


@dataclass(frozen=True)
class Part:
    """One unnest of a statement: its columns, and which of them are sent."""

    columns: Columns
    sent: tuple[bool, ...]

    def unnest(self, alias: str, first: int) -> str:
        names = [column.name for column, sent in zip(self.columns, self.sent, strict=True) if sent]
        kinds = [column.kind for column, sent in zip(self.columns, self.sent, strict=True) if sent]
        arrays = ", ".join(f"${first + index}::{kind}[]" for index, kind in enumerate(kinds))
        return f"unnest({arrays}) as {alias}({', '.join(names)})"

    def value(self, name: str, alias: str) -> str:
        index = next(index for index, column in enumerate(self.columns) if column.name == name)
        return self.columns[index].value(alias, sent=self.sent[index])

    @property
    def names(self) -> str:
        return ", ".join(self.columns.names)

    def values(self, alias: str) -> str:
        return ", ".join(self.value(column.name, alias) for column in self.columns)

    def sets(self, alias: str, *, but: Iterable[str] = ()) -> str:
        names = [column.name for column in self.columns if column.name not in (*_KEYS, *but)]
        return ", ".join(f"{name} = {self.value(name, alias)}" for name in names)

    @property
    def width(self) -> int:
        return sum(self.sent)


def whole(columns: Columns) -> Part:
    """All columns sent."""
    return Part(columns, (True,) * len(columns))


Batch = tuple[Columns, Sequence[Sequence[Any]]]
_seen: set[tuple[tuple[bool, ...], ...]] = set()


def columns_to_send(*batches: Batch) -> tuple[tuple[Part, ...], list[Sequence[Any]]]:
    """Of columns and the arrays of their values: which must be sent, and these arrays."""
    sent = tuple(
        tuple(
            usual is None or values.count(usual[0]) != len(values)
            for usual, values in zip(columns.usual, arrays, strict=True)
        )
        for columns, arrays in batches
    )
    if sent not in _seen:
        if len(_seen) >= MAX_VARIANTS:
            sent = tuple((True,) * len(columns) for columns, _ in batches)
        else:
            _seen.add(sent)
    parts = tuple(Part(columns, flags) for (columns, _), flags in zip(batches, sent, strict=True))
    return parts, [
        values
        for (_, arrays), flags in zip(batches, sent, strict=True)
        for values, flag in zip(arrays, flags, strict=True)
        if flag
    ]


@lru_cache(maxsize=4 * MAX_VARIANTS)
def apply(moved: Part, changed: Part, made: Part) -> str:
    """Moves on the roots whose version is still the one that was decided on, changes and makes rows of their trees
    alone, and returns these roots. All rows are found by the primary key.

    The update of a root's row is its lock. Roots come in the order of their ids (`TaskStore.apply` sorts them), so that
    two processes that move on the same roots wait for each other without a deadlock. Of a root that is not returned
    another process was faster: what was decided on it must be decided again, on fresh rows.
    A ready row keeps the position in its queue that it has; a row of any other status has none.
    """
    queued = "position = null"
    if changed.columns is CHANGED_QUEUED_COLUMNS:
        status, position = changed.value("status", "u"), changed.value("position", "u")
        queued = (
            f"position = case when {status} = 'ready' and {position} is not null "
            f"then coalesce(t.position, {position}) end, "
            f"queue = coalesce({changed.value('queue', 'u')}, t.queue), "
            f"flow = coalesce({changed.value('flow', 'u')}, t.flow)"
        )
    return f"""
with moved as (
    update tasks t set version = u.known_version + 1, dispatched_by = $1, {moved.sets("u")},
        concurrency_key = case when {moved.value("completed_at", "u")} is null then t.concurrency_key end
    from {moved.unnest("u", 2)}
    where t.root_task_id = u.root_task_id and t.task_id = u.task_id and t.version = u.known_version
    returning t.root_task_id
), changed as (
    update tasks t set dispatched_by = $1, {changed.sets("u", but=QUEUE_COLUMNS.names)}, {queued}
    from {changed.unnest("u", 2 + moved.width)}
    where u.root_task_id in (select root_task_id from moved)
      and t.root_task_id = u.root_task_id and t.task_id = u.task_id
      and t.status not in ('completed', 'failed', 'cancelled', 'skipped')
), made as (
    insert into tasks ({made.names}, dispatched_by)
    select {made.values("u")}, $1 from {made.unnest("u", 2 + moved.width + changed.width)}
    where u.root_task_id in (select root_task_id from moved)
)
select root_task_id from moved
"""


def not_in_history(accepted: Part) -> str:
    """Leaves out roots that have moved to the history, by their id (tasks_history_tree) or their idempotency key
    (tasks_history_idempotency). Sub-selects of one row: whatever the statistics are, each root
    costs one look-up in the index."""
    key, duplicate = accepted.value("idempotency_key", "u"), accepted.value("duplicate_of", "u")
    tenant, requester = accepted.value("tenant", "u"), accepted.value("requester", "u")
    return f"""
    where (select h.task_id from tasks_history h
           where h.root_task_id = u.root_task_id and h.task_id = u.task_id limit 1) is null
      and ({key} is null or {duplicate} is not null or
           (select h.task_id from tasks_history h
            where h.tenant = {tenant} and coalesce(h.requester, '') = coalesce({requester}, '')
              and h.idempotency_key = {key} and h.idempotency_key is not null and h.duplicate_of is null
            limit 1) is null)
"""


@lru_cache(maxsize=4 * MAX_VARIANTS)
def accept(accepted: Part, made: Part, *, check: bool) -> str:
    """Inserts roots and the first rows of their trees, and returns these roots. A root that is known already, by its id
    (the primary key) or by its idempotency key (tasks_idempotency), is not among them, and no rows of it are made.
    `check`: one of them may be in the history."""
    return f"""
with accepted as (
    insert into tasks ({accepted.names}, dispatched_by, version)
    select {accepted.values("u")}, $1, 1 from {accepted.unnest("u", 2)}
    {not_in_history(accepted) if check else ""}
    on conflict do nothing
    returning root_task_id
), made as (
    insert into tasks ({made.names}, dispatched_by)
    select {made.values("u")}, $1 from {made.unnest("u", 2 + accepted.width)}
    where u.root_task_id in (select root_task_id from accepted)
)
select root_task_id from accepted
"""
