"""The store's SQL mirrors the transitions that `engine.state` declares: statement by statement, and in a real
Postgres."""

import importlib
import pkgutil
import re
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime

import pytest
import pytest_asyncio

import orchestrator_agent.store
from orchestrator_agent.engine.decisions import Decisions
from orchestrator_agent.engine.state import ENDED, TRANSITIONS, RootFacts, Row, Run, Status
from orchestrator_agent.store.batch_statements import accept, apply, whole
from orchestrator_agent.store.columns import ACCEPTED_COLUMNS, CHANGED_COLUMNS, MADE_COLUMNS, MOVED_COLUMNS
from orchestrator_agent.store.concurrency import ConcurrencyStore
from orchestrator_agent.store.pool import Database
from orchestrator_agent.store.task_reader import TaskReader
from orchestrator_agent.store.tasks import TaskStore
from protocol import new_id

STATUSES = {status.value for status in Status}
# No root is skipped: what asks only about roots need not exclude it.
ROOTS_ENDED = ENDED - {Status.SKIPPED}
STATEMENT = re.compile(r"\s*(select|update|insert|delete|with)\b")


def statements() -> Iterator[tuple[str, str]]:
    """Every statement of the store, by its name."""
    for module in pkgutil.iter_modules(orchestrator_agent.store.__path__):
        loaded = importlib.import_module(f"orchestrator_agent.store.{module.name}")
        for name, value in vars(loaded).items():
            for text in value if isinstance(value, tuple) else (value,):
                if name.isupper() and isinstance(text, str) and STATEMENT.match(text):
                    yield f"{module.name}.{name}", text
    yield "apply", apply(whole(MOVED_COLUMNS), whole(CHANGED_COLUMNS), whole(MADE_COLUMNS))
    yield "accept", accept(whole(ACCEPTED_COLUMNS), whole(MADE_COLUMNS), check=True)


STATEMENTS = dict(statements())
SETS = re.compile(r"set status = '(\w+)'.*\bstatus = '(\w+)'", re.DOTALL)


def literals(text: str) -> set[str]:
    """The statuses that a statement names."""
    listed = re.findall(r"\bstatus (?:not )?in \(([^)]*)\)", text)
    compared = re.findall(r"\bstatus (?:=|<>|is distinct from) '(\w+)'", text)
    return {*compared, *(name for names in listed for name in re.findall(r"'(\w+)'", names))}


def test_the_statements_are_found() -> None:
    named = {"tasks.RESPONDED", "sweeps.DUE", "ready_queue.CLAIM", "history.COPY", "concurrency.ADMIT", "pauses.PAUSED"}
    assert named | {"processes.TAKE_OVER", "task_reader.STILL_OPEN", "workflows.SAVE", "apply"} <= set(STATEMENTS)


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_statement_names_only_statuses_that_there_are(name: str) -> None:
    assert literals(STATEMENTS[name]) <= STATUSES


@pytest.mark.parametrize("name", [name for name, text in STATEMENTS.items() if "status not in (" in text])
def test_what_is_left_out_of_a_statement_as_ended_is_what_has_no_transition(name: str) -> None:
    for names in re.findall(r"status not in \(([^)]*)\)", STATEMENTS[name]):
        assert set(re.findall(r"'(\w+)'", names)) in (ENDED, ROOTS_ENDED)


def test_a_status_that_a_statement_sets_follows_the_one_that_it_asks_for() -> None:
    found = {name: sets.groups() for name, text in STATEMENTS.items() if (sets := SETS.search(text)) is not None}
    assert found == {"concurrency.ADMIT": ("running", "waiting")}
    for after, before in found.values():
        assert Status(after) in TRANSITIONS[Status(before)]


@pytest_asyncio.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with Database(database_url) as made:
        yield made


def a_run(status: Status) -> Run:
    """A tree of a root at work and one step."""
    root_task_id, moment = new_id(), datetime.now(UTC)
    root = Row(root_task_id, root_task_id, None, None, "chain", Status.RUNNING, created_at=moment)
    step = Row(root_task_id, new_id(), root_task_id, "s", "echo", status, created_at=moment)
    facts = RootFacts("default", None, None, None, 5, None, {})
    return Run(root=root, facts=facts, rows={root.task_id: root, step.task_id: step})


def step_of(run: Run) -> Row:
    return next(row for row in run.rows.values() if row is not run.root)


async def status_of(reader: TaskReader, run: Run) -> Status:
    tree = (await reader.trees([run.root_task_id]))[run.root_task_id]
    return Status(next(record["status"] for record in tree if record["task_id"] == step_of(run).task_id))


@pytest.mark.parametrize("before", Status)
async def test_a_row_takes_every_status_that_follows_and_none_once_it_has_ended(
    database: Database, before: Status
) -> None:
    store, reader = TaskStore(database, new_id()), TaskReader(database)
    for after in TRANSITIONS[before] or STATUSES - {before.value}:
        run = a_run(before)
        assert await store.accept([(run, Decisions(made=[step_of(run)]))]) == {run.root_task_id}
        run.version = 1
        step = step_of(run)
        step.status = Status(after)
        assert await store.apply([(run, Decisions(changed={step.task_id: step}))]) == {run.root_task_id}
        assert await status_of(reader, run) == (before if before in ENDED else after)


async def test_what_was_decided_on_another_version_is_not_written(database: Database) -> None:
    store, reader = TaskStore(database, new_id()), TaskReader(database)
    run = a_run(Status.READY)
    step = step_of(run)
    await store.accept([(run, Decisions(made=[step]))])
    step.status = Status.DISPATCHED
    for version in (0, 2):
        run.version = version
        assert await store.apply([(run, Decisions(changed={step.task_id: step}))]) == set()
    assert await status_of(reader, run) is Status.READY


@pytest.mark.parametrize("before", Status)
async def test_a_concurrency_key_admits_roots_that_wait_and_no_others(database: Database, before: Status) -> None:
    run = a_run(Status.READY)
    run.root.status, run.facts.concurrency_key = before, "chain:1"
    await TaskStore(database, new_id()).accept([(run, Decisions())])
    admitted, _ = await ConcurrencyStore(database).admit("chain:1", bound=9, cancel_older=False)
    assert admitted == ([run.root_task_id] if before is Status.WAITING else [])
    record = (await TaskReader(database).roots([run.root_task_id]))[run.root_task_id]
    assert Status(record["status"]) is (Status.RUNNING if before is Status.WAITING else before)
