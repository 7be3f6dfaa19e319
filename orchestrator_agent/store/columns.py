"""Columns: what a row of `tasks` is made of, declared once.

Everything else follows from the declaration: the list that trees are read by and that the history keeps, what each
batch statement writes (`batch_statements`), and how values become those of the engine and back (`records`).
"""

import json
from collections.abc import Callable, Iterable
from enum import Enum, Flag, auto
from typing import Any, NamedTuple

from orchestrator_agent.engine.state import Role, Status
from protocol.messages import ErrorInfo, Usage, json_bytes


class Source(Enum):
    """Whose attribute, of the same name, a column's value is."""

    ROW = auto()
    FACTS = auto()  # RootFacts: columns of root rows, and those that a tree's rows share
    STORE = auto()  # no attribute: the statements set it themselves, or its value comes with the batch


class Written(Flag):
    """Which parts of the batch statements write a column."""

    NEVER = 0
    MADE = auto()  # a row is inserted
    CHANGED = auto()  # a row that is no root changes
    ACCEPTED = auto()  # a root is inserted: these beside the columns of every row
    MOVED = auto()  # a tree moves on by one version, which its root's row holds


class Codec(NamedTuple):
    """How a value of the engine is written (None: as it is) and read. Neither is called for null."""

    write: Callable[[Any], str | None] | None
    read: Callable[[str], Any]


def _write_error(error: ErrorInfo) -> str:
    return error.model_dump_json(exclude_none=True)


def _write_metadata(metadata: dict[str, str]) -> str | None:
    return json_bytes(metadata).decode() if metadata else None


def _read_metadata(text: str) -> dict[str, str]:
    metadata: dict[str, str] = json.loads(text)
    return metadata


STATUS, ROLE = Codec(None, Status), Codec(None, Role)
# JSON stays text in the engine too: values are parsed where an expression needs them.
JSON = Codec(bytes.decode, str.encode)
ERROR = Codec(_write_error, ErrorInfo.model_validate_json)
USAGE = Codec(Usage.model_dump_json, Usage.model_validate_json)
METADATA = Codec(_write_metadata, _read_metadata)


class Usual(NamedTuple):
    """What most rows hold in a column: a batch whose rows all do need not send it."""

    sql: str
    value: Any


NULL = Usual("null", None)


class Column(NamedTuple):
    """`kind` is the SQL type of one element of the column's array, `cast` what an element is cast to. Without `usual`,
    the column is always sent."""

    name: str
    kind: str
    written: Written = Written.NEVER
    source: Source = Source.ROW
    usual: Usual | None = None
    codec: Codec | None = None
    cast: str = ""

    def value(self, alias: str, *, sent: bool) -> str:
        """The column's value in a statement, of the arrays that were unnested as `alias`."""
        if sent or self.usual is None:
            return f"{alias}.{self.name}{self.cast}"
        return f"{self.usual.sql}{self.cast or f'::{self.kind}'}"


class Columns(tuple[Column, ...]):
    """The columns of an unnest, in the order of their arrays. Each set is made once, so it is compared by identity."""

    # Of each column what most rows hold, None where it is always sent: asked for at every batch.
    usual: tuple[tuple[Any] | None, ...]
    __hash__ = object.__hash__

    def __init__(self, columns: Iterable[Column]) -> None:
        self.usual = tuple(None if column.usual is None else (column.usual.value,) for column in self)

    def __eq__(self, other: object) -> bool:
        return self is other

    @property
    def names(self) -> list[str]:
        return [column.name for column in self]


MADE, CHANGED, ACCEPTED, MOVED = Written.MADE, Written.CHANGED, Written.ACCEPTED, Written.MOVED


def _always(name: str, kind: str, written: Written, codec: Codec | None = None) -> Column:
    return Column(name, kind, written, codec=codec)


def _seldom(name: str, kind: str, written: Written, usual: Usual = NULL, codec: Codec | None = None) -> Column:
    return Column(name, kind, written, usual=usual, codec=codec)


def _json(name: str, written: Written, codec: Codec = JSON, source: Source = Source.ROW) -> Column:
    return Column(name, "text", written, source, NULL, codec, cast="::json")


def _fact(name: str, kind: str, written: Written = ACCEPTED, usual: Usual = NULL) -> Column:
    return Column(name, kind, written, Source.FACTS, usual)


def _own(name: str, kind: str, usual: Usual | None = None) -> Column:
    return Column(name, kind, source=Source.STORE, usual=usual)


TASK_COLUMNS = Columns(
    (
        _always("root_task_id", "uuid", MADE | CHANGED | MOVED),
        _always("task_id", "uuid", MADE | CHANGED | MOVED),
        _seldom("parent_task_id", "uuid", MADE),
        _fact("tenant", "text", MADE, Usual("'default'", "default")),
        _fact("requester", "text"),
        _always("step", "text", MADE),
        _seldom("role", "text", MADE, Usual("''", ""), ROLE),
        _seldom("iteration", "int", MADE, Usual("0", 0)),
        _seldom("item", "int", MADE, Usual("-1", -1)),
        _always("task_type", "text", MADE),
        _seldom("workflow_version", "text", MADE),
        _seldom("pinned_agent", "text", MADE),
        _seldom("agent", "text", MADE | CHANGED),
        _seldom("instance_id", "text", CHANGED),
        _always("status", "text", MADE | CHANGED | MOVED, STATUS),
        _seldom("attempt", "int", MADE | CHANGED, Usual("1", 1)),
        _seldom("failures", "int", MADE | CHANGED, Usual("0", 0)),
        _seldom("deaths", "int", MADE | CHANGED, Usual("0", 0)),
        _fact("priority", "int", MADE, Usual("5", 5)),
        _fact("session_id", "text"),
        _fact("idempotency_key", "text"),
        _seldom("reply_to", "text", MADE | CHANGED | MOVED),
        _json("payload", MADE),
        _json("result", MADE | CHANGED | MOVED),
        _json("error", MADE | CHANGED | MOVED, ERROR),
        _json("usage", MADE | CHANGED | MOVED, USAGE),
        _json("metadata", ACCEPTED, METADATA, Source.FACTS),
        _fact("traceparent", "text"),
        _fact("tracestate", "text"),
        _always("timeout_seconds", "float8", MADE),
        _always("created_at", "timestamptz", MADE),
        _seldom("dispatched_at", "timestamptz", MADE | CHANGED),
        _own("dispatched_by", "uuid"),
        _fact("deadline_at", "timestamptz"),
        _seldom("expires_at", "timestamptz", MADE | CHANGED),
        _seldom("run_after", "timestamptz", MADE | CHANGED),
        _seldom("completed_at", "timestamptz", MADE | CHANGED | MOVED),
        _own("answered_at", "timestamptz"),
        _fact("duplicate_of", "uuid"),
        _fact("replay_of", "uuid"),
        _seldom("sticky", "text", MADE),
        _json("routing", MADE | CHANGED),
        _fact("concurrency_key", "text"),
        _fact("request_sequence", "bigint"),
        _own("version", "bigint"),
    )
)
# Where a row stands in the ready queue: a matter of dispatch alone, in no run and not in the history.
QUEUE_COLUMNS = Columns(
    (_own("queue", "text", NULL), _own("flow", "bigint", NULL), _own("position", "bigint", NULL)),
)


def column_list(alias: str = "") -> str:
    """All columns of a task, as a select names them."""
    return ", ".join(f"{alias}.{name}" if alias else name for name in TASK_COLUMNS.names)


def _written(parts: Written, **of_roots: dict[str, Any]) -> Iterable[Column]:
    """What these parts write, a row's own columns before those of its tree's facts; `of_roots` is what is different
    about a column where it is a root's."""
    columns = [column for column in TASK_COLUMNS if column.written & parts]
    columns = [column._replace(**of_roots.get(column.name, {})) for column in columns]
    return sorted(columns, key=lambda column: column.source is Source.FACTS)


# A root's own is among its facts.
_REPLY_TO = {"source": Source.FACTS}
# Most trees are at work when they are written.
_AT_WORK = {"usual": Usual("'running'", "running")}

# What each part of the batch statements sends.
MADE_COLUMNS = Columns(_written(MADE))
CHANGED_COLUMNS = Columns(_written(CHANGED))
ACCEPTED_COLUMNS = Columns(_written(MADE | ACCEPTED, reply_to=_REPLY_TO))
# A root's id stands here twice, as root_task_id and task_id. Where a statement asks for one column by both names,
# Postgres concludes that task_id = root_task_id, which is the predicate of the partial indexes on roots: it would then
# walk all roots for each batch.
MOVED_COLUMNS = Columns((*_written(MOVED, reply_to=_REPLY_TO, status=_AT_WORK), _own("known_version", "bigint")))
# Rows of a batch in which some are queued.
MADE_QUEUED_COLUMNS = Columns((*MADE_COLUMNS, *QUEUE_COLUMNS))
CHANGED_QUEUED_COLUMNS = Columns((*CHANGED_COLUMNS, *QUEUE_COLUMNS))


# Where a task is: among those at work, or moved away after it ended.
TASK_TABLES = ("tasks", "tasks_history")


def in_each_table(statement: str) -> tuple[str, ...]:
    """A statement about `{table}`, for each of the tables that a task can be in."""
    return tuple(statement.format(table=table) for table in TASK_TABLES)
