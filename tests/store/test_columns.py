"""Columns of `tasks`: what is declared once fits the database and the engine; what was written reads the same."""

from collections.abc import Iterable
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta

import pytest

from orchestrator_agent.engine.state import Role, RootFacts, Row, Run, Status
from orchestrator_agent.store.columns import QUEUE_COLUMNS, TASK_COLUMNS, Column, Source, Written
from orchestrator_agent.store.pool import Database
from orchestrator_agent.store.records import (
    accepted_record,
    changed_record,
    facts_of,
    made_record,
    moved_record,
    row_of,
)
from protocol import new_id
from protocol.messages import ErrorInfo, Usage

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
ROOT, TASK = new_id(), new_id()
EMPTY = dict.fromkeys(TASK_COLUMNS.names)
CLAIM, MONTH = "claimed_until", "ended_on"


def step() -> Row:
    """Every field says something that no other row would by default."""
    return Row(
        root_task_id=ROOT,
        task_id=TASK,
        parent_task_id=ROOT,
        step="review",
        task_type="examine",
        status=Status.WAITING,
        role=Role.FALLBACK,
        iteration=2,
        item=3,
        workflow_version="v1",
        pinned_agent="a",
        agent="b",
        instance_id="b-1",
        attempt=4,
        failures=2,
        payload=b'{"text": "\\u0000"}',
        result=b'{"ok":1}',
        error=ErrorInfo(code="failed", message="no"),
        usage=Usage(input_tokens=1, output_tokens=2, cost_usd=0.5),
        reply_to="inbox.1",
        sticky="s",
        routing=b'{"why":1}',
        timeout_seconds=7.5,
        created_at=NOON,
        dispatched_at=NOON + timedelta(seconds=1),
        expires_at=NOON + timedelta(seconds=2),
        run_after=NOON + timedelta(seconds=3),
        completed_at=NOON + timedelta(seconds=4),
    )


def facts() -> RootFacts:
    return RootFacts(
        tenant="t",
        requester="alice",
        reply_to="inbox.2",
        session_id="s",
        priority=9,
        deadline_at=NOON,
        metadata={"a": "b"},
        traceparent="00-1",
        tracestate="x=1",
        idempotency_key="k",
        replay_of=new_id(),
        concurrency_key="chain:1",
        duplicate_of=new_id(),
    )


def a_run() -> Run:
    root = replace(step(), task_id=ROOT, parent_task_id=None, step=None, role=Role.STEP, reply_to=None)
    return Run(root=root, facts=facts(), version=6)


def names(columns: Iterable[Column]) -> set[str]:
    return {column.name for column in columns}


async def test_the_database_has_these_columns_and_no_others(database_url: str) -> None:
    async with Database(database_url) as database:
        found: dict[str, set[str]] = {"tasks": set(), "tasks_history": set()}
        for record in await database.fetch(
            "select table_name, column_name from information_schema.columns where table_name = any($1::text[])",
            list(found),
        ):
            found[record["table_name"]].add(record["column_name"])
    assert found["tasks"] == names(TASK_COLUMNS) | names(QUEUE_COLUMNS) | {CLAIM}
    assert found["tasks_history"] == names(TASK_COLUMNS) | {MONTH}


def test_every_value_of_the_engine_is_a_column_and_every_column_but_the_stores_own_is_written() -> None:
    engines = {field.name for target in (Row, RootFacts) for field in fields(target) if field.init}
    assert names(column for column in TASK_COLUMNS if column.source is not Source.STORE) == engines
    never = names(column for column in TASK_COLUMNS if column.written is Written.NEVER)
    assert never == names(TASK_COLUMNS) - engines == {"dispatched_by", "answered_at", "version"}


def test_a_root_that_was_accepted_reads_the_same() -> None:
    run = a_run()
    record = EMPTY | accepted_record(run)
    # No root is with an instance when it is accepted.
    assert row_of(record) == replace(run.root, instance_id=None)
    assert facts_of(record) == run.facts
    assert record["version"] == 1


def test_a_row_that_was_made_and_changed_reads_the_same() -> None:
    row = step()
    made = EMPTY | made_record(a_run(), row)
    assert (made["tenant"], made["priority"]) == ("t", 9)
    assert row_of(made | changed_record(row)) == row


def test_a_tree_that_moved_on_writes_what_became_of_its_root() -> None:
    run = a_run()
    began = replace(run.root, status=Status.RUNNING, result=None, error=None, usage=None, completed_at=None)
    record = EMPTY | accepted_record(replace(run, root=began)) | moved_record(run)
    assert row_of(record) == replace(run.root, instance_id=None)
    assert record["version"] == run.version + 1
    assert record["reply_to"] == run.facts.reply_to


@pytest.mark.parametrize("metadata", [{}, {"a": "b"}])
def test_metadata_is_written_where_there_is_some(metadata: dict[str, str]) -> None:
    run = a_run()
    run.facts.metadata = metadata
    record = EMPTY | accepted_record(run)
    assert (record["metadata"] is None) == (not metadata)
    assert facts_of(record).metadata == metadata
