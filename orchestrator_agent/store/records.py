"""Records: rows of `tasks` as Postgres has them, to and from the engine's Row and RootFacts.

Batches go out as one array a column (`*_arrays`), rows come in one at a time (`row_of`, `facts_of`). `*_record` is what
the arrays hold of a single row, by the names of its columns, for a table that is not Postgres's.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields
from operator import attrgetter, itemgetter
from typing import Any

from orchestrator_agent.engine.state import RootFacts, Row, Run
from orchestrator_agent.store.columns import (
    ACCEPTED_COLUMNS,
    CHANGED_COLUMNS,
    MADE_COLUMNS,
    MOVED_COLUMNS,
    TASK_COLUMNS,
    Columns,
    Source,
)

# asyncpg.Record, which has a mapping's look-ups without being one.
Record = Any
# One array for each column of a set.
Arrays = list[Sequence[Any]]


class _Writer:
    """Makes the arrays of a set of columns. The attributes are taken in C: this runs for every row that is written."""

    def __init__(self, columns: Columns) -> None:
        self._width = sum(column.source is not Source.STORE for column in columns)
        self._of_row = _attributes(columns, Source.ROW)
        self._of_facts = _attributes(columns, Source.FACTS)
        self._writes = [(index, column.codec.write) for index, column in enumerate(columns) if column.codec is not None]

    def arrays(self, rows: Sequence[Row], facts: Sequence[RootFacts]) -> Arrays:
        if not rows:
            return [()] * self._width
        arrays: Arrays = [*zip(*map(self._of_row, rows), strict=True)]
        arrays += zip(*map(self._of_facts, facts), strict=True)
        for index, write in self._writes:
            values = arrays[index]
            if write is not None and values.count(None) != len(values):
                arrays[index] = [None if value is None else write(value) for value in values]
        return arrays


def _attributes(columns: Columns, source: Source) -> Callable[[Any], tuple[Any, ...]]:
    names = [column.name for column in columns if column.source is source]
    if len(names) > 1:
        return attrgetter(*names)
    if not names:
        return lambda found: ()
    only = attrgetter(*names)
    # Of a single name, attrgetter gives the value itself.
    return lambda found: (only(found),)


_MADE, _CHANGED = _Writer(MADE_COLUMNS), _Writer(CHANGED_COLUMNS)
_ACCEPTED, _MOVED = _Writer(ACCEPTED_COLUMNS), _Writer(MOVED_COLUMNS)


def made_arrays(rows: Sequence[tuple[Run, Row]]) -> Arrays:
    """What MADE_COLUMNS hold of rows that are inserted."""
    return _MADE.arrays([row for _, row in rows], [run.facts for run, _ in rows])


def changed_arrays(rows: Sequence[Row]) -> Arrays:
    """What CHANGED_COLUMNS hold of rows that are no roots."""
    return _CHANGED.arrays(rows, ())


def accepted_arrays(runs: Sequence[Run]) -> Arrays:
    """What ACCEPTED_COLUMNS hold of new roots."""
    return _ACCEPTED.arrays([run.root for run in runs], [run.facts for run in runs])


def moved_arrays(runs: Sequence[Run]) -> Arrays:
    """What MOVED_COLUMNS hold of roots whose trees were moved on from the version that their runs have."""
    arrays = _MOVED.arrays([run.root for run in runs], [run.facts for run in runs])
    return [*arrays, [run.version for run in runs]]


def made_record(run: Run, row: Row) -> dict[str, Any]:
    return _record(MADE_COLUMNS, made_arrays([(run, row)]))


def changed_record(row: Row) -> dict[str, Any]:
    return _record(CHANGED_COLUMNS, changed_arrays([row]))


def accepted_record(run: Run) -> dict[str, Any]:
    return _record(ACCEPTED_COLUMNS, accepted_arrays([run])) | {"version": 1}


def moved_record(run: Run) -> dict[str, Any]:
    """What a transition writes to a root's row, its next version too."""
    record = _record(MOVED_COLUMNS, moved_arrays([run]))
    return record | {"version": record.pop("known_version") + 1}


def _record(columns: Columns, arrays: Arrays) -> dict[str, Any]:
    return {column.name: array[0] for column, array in zip(columns, arrays, strict=True)}


class _Reader:
    """Makes the values that a dataclass of the engine begins with, in the order of its fields."""

    def __init__(self, target: type) -> None:
        codecs = {column.name: column.codec for column in TASK_COLUMNS}
        names = [field.name for field in fields(target) if field.init]
        self._of_record = itemgetter(*names)
        self._reads = [(index, codec.read) for index, name in enumerate(names) if (codec := codecs[name]) is not None]

    def values(self, record: Record) -> list[Any]:
        values = list(self._of_record(record))
        for index, read in self._reads:
            if values[index] is not None:
                values[index] = read(values[index])
        return values


_ROW, _FACTS = _Reader(Row), _Reader(RootFacts)


def row_of(record: Record) -> Row:
    row = Row(*_ROW.values(record))
    if record["task_id"] == record["root_task_id"]:
        # A root's own is among its facts.
        row.reply_to = None
    return row


def facts_of(record: Record) -> RootFacts:
    """Of a root's record."""
    facts = RootFacts(*_FACTS.values(record))
    facts.metadata = facts.metadata or {}
    return facts
