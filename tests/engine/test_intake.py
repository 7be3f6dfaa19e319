"""Intake, wire and routing: requests to runs, runs to bytes, task types to agents. Without a server."""

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from orchestrator_agent.engine.decisions import Decisions
from orchestrator_agent.engine.events import Begin, ResponseReceived
from orchestrator_agent.engine.state import Role, Run, Status
from orchestrator_agent.intake.replay import ReplayRequest, make_replay
from orchestrator_agent.runtime.wire import attempt_id, final_response, request_headers, task_request
from protocol import TaskRequest, TaskResponse, new_id, parse_request, salvage_ids
from protocol.errors import InvalidRequest
from protocol.messages import ErrorInfo, Usage
from tests.engine.conftest import START, Driver, World

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def planned(
    world: World, task_type: str, payload: dict[str, Any] | None = None, **fields: Any
) -> tuple[Run, Decisions]:
    headers = fields.pop("headers", None)
    request = TaskRequest(task_id=new_id(), task_type=task_type, payload=payload or {}, **fields)
    return world.planner.plan(request, headers=headers, now=world.now)


def refused(world: World, task_type: str, payload: dict[str, Any] | None = None, **fields: Any) -> ErrorInfo:
    run, decisions = planned(world, task_type, payload, **fields)
    assert run.root.status is Status.FAILED
    assert run.root.completed_at == world.now
    assert decisions.root_ended
    assert (decisions.made, decisions.changed, decisions.dispatched) == ([], {}, {})
    assert [(entity, name) for entity, name, _ in decisions.events] == [("task", "failed")]
    assert run.root.error is not None
    response = TaskResponse.model_validate_json(final_response(run.root, run.facts))
    assert (response.status, response.error) == ("failed", run.root.error)
    return run.root.error


# -- intake ---------------------------------------------------------------------------------------------------------


def test_a_workflow_by_name_is_planned_with_its_inputs_defaults(world: World) -> None:
    plan = world.add(
        "greet", input={"properties": {"how": {"default": "hello"}}}, steps={"s": {"task": "x", "with": "${input}"}}
    )
    run, decisions = planned(world, "greet", {"who": "me"})
    assert run.root.workflow_version == plan.version
    assert json.loads(run.root.payload or b"") == {"how": "hello", "who": "me"}
    assert [row.payload for row in decisions.made] == [b'{"how":"hello","who":"me"}']


def test_what_a_request_says_of_itself_is_kept(world: World) -> None:
    parent = new_id()
    run, _ = planned(
        world,
        "x",
        requester="me",
        tenant="t",
        reply_to="_INBOX.me",
        session_id="s",
        idempotency_key="k",
        priority=9,
        attempt=3,
        timeout_seconds=7,
        deadline=START + timedelta(hours=1),
        metadata={"a": "b"},
        parent_task_id=parent,
        headers={"traceparent": TRACE, "tracestate": "v=1"},
    )
    facts = run.facts
    assert (facts.requester, facts.tenant, facts.reply_to, facts.session_id) == ("me", "t", "_INBOX.me", "s")
    assert (facts.idempotency_key, facts.priority, facts.metadata) == ("k", 9, {"a": "b"})
    assert facts.deadline_at == START + timedelta(hours=1)
    assert (facts.traceparent, facts.tracestate) == (TRACE, "v=1")
    assert (run.root.attempt, run.root.timeout_seconds, run.root.parent_task_id) == (3, 7, parent)


def test_the_timeout_is_the_settings_where_the_request_names_none(world: World) -> None:
    assert planned(world, "x")[0].root.timeout_seconds == world.planner.default_timeout_seconds
    assert planned(world, "x", timeout_seconds=300.0)[0].root.timeout_seconds == 300


@pytest.mark.parametrize(
    ("task_type", "payload", "code", "words"),
    [
        ("execute_dag", {}, "invalid_workflow", "payload.steps"),
        ("execute_dag", {"steps": {"a": {"task": "x", "needs": ["b"]}}}, "invalid_workflow", "step 'a'"),
        ("execute_dag", {"steps": {"a": {"task": "x", "with": {"t": "${b}"}}}}, "invalid_workflow", "step 'a'"),
        ("execute_dag", {"steps": {"a": {"task": "x"}}, "input": []}, "invalid_workflow", "payload.input"),
        ("mesh.nonsense", {}, "unknown_task_type", "mesh.nonsense"),
        ("strict", {}, "invalid_request", "text"),
    ],
)
def test_what_cannot_start_has_ended_with_the_reason(
    world: World, task_type: str, payload: dict[str, Any], code: str, words: str
) -> None:
    world.add("strict", input={"required": ["text"]}, steps={"s": {"task": "x"}})
    error = refused(world, task_type, payload)
    assert error.code == code
    assert words in error.message
    assert not error.retryable


def test_the_step_of_a_mistake_is_in_the_error(world: World) -> None:
    assert refused(world, "execute_dag", {"steps": {"a": {"task": "x", "needs": ["b"]}}}).step == "a"


@pytest.mark.parametrize(
    "body",
    [
        b'{"task_id":"%s","task_type":"x","priority":99,"reply_to":"_INBOX.me","attempt":2}',
        b'{"task_id":"%s","task_type":"X","attempt":0}',
        b'{"task_id":"%s"}',
    ],
)
def test_an_unreadable_request_becomes_a_task_that_has_failed(world: World, body: bytes) -> None:
    task_id = new_id()
    message = body % str(task_id).encode()
    with pytest.raises(InvalidRequest) as raised:
        parse_request(message)
    run, decisions = world.planner.unreadable(salvage_ids(message), raised.value, world.now)
    assert decisions.root_ended
    response = TaskResponse.model_validate_json(final_response(run.root, run.facts))
    assert (response.task_id, response.status) == (task_id, "failed")
    assert response.error is not None
    assert response.error.code == "invalid_request"
    assert run.facts.reply_to == ("_INBOX.me" if b"_INBOX" in body else None)


@pytest.mark.parametrize(
    "parent",
    [
        "",
        "nonsense",
        TRACE.upper(),
        TRACE[:-1],
        "00-0-0-0",
        f"{TRACE}\0",
        f"{TRACE}\n",
        "zz" + TRACE[2:],
        "a-b-c-d\0",
        "x" * 300,
        "00-é-b-c",
    ],
)
def test_a_trace_that_is_none_is_nobodys(world: World, parent: str) -> None:
    """It goes into a text column, which takes no NUL, and from there into headers."""
    run, _ = planned(world, "x", headers={"traceparent": parent, "tracestate": "v=1"})
    assert (run.facts.traceparent, run.facts.tracestate) == (None, None)


@pytest.mark.parametrize("state", ["x" * 513, "a\nb", "a\0b"])
def test_a_trace_state_that_is_none_is_dropped_alone(world: World, state: str) -> None:
    run, _ = planned(world, "x", headers={"traceparent": TRACE, "tracestate": state})
    assert (run.facts.traceparent, run.facts.tracestate) == (TRACE, None)


# -- replay ---------------------------------------------------------------------------------------------------------


STEPS = {
    "a": {"task": "x"},
    "b": {"task": "x", "with": {"a": "${a}"}},
    "c": {"task": "x", "with": {"b": "${b}"}},
    "d": {"task": "x"},
    "e": {"task": "x", "when": "false"},
}


def finished(world: World) -> Driver:
    driver = world.dag(STEPS, {"n": 1}, timeout_seconds=11.0)
    for name in ("a", "d", "b", "c"):
        driver.happen(driver.completed(name, f"old {name}", usage=Usage(input_tokens=100)))
    assert driver.status == "completed"
    return driver


def replay(
    world: World, old: Driver, from_step: str | None, *, only: set[str] | None = None, retry: bool = False
) -> tuple[Run, Decisions]:
    """`only`: of the old task's steps, these rows alone are there. `retry`: what completed is reused."""
    root_task_id = old.run.root_task_id
    records = [row for row in old.table.records.values() if only is None or row["step"] in only or row["step"] is None]
    replayed = make_replay(ReplayRequest(root_task_id, retry=False, from_step=from_step), records, world.library)
    replayed = replace(replayed, keep_completed=retry)
    request = TaskRequest(task_id=new_id(), task_type="mesh.replay", payload={"task_id": str(root_task_id)})
    return world.planner.plan(request, headers=None, now=world.now, replayed=replayed)


def test_a_replay_is_a_new_task_that_names_the_old_one(world: World) -> None:
    old = finished(world)
    run, decisions = replay(world, old, None)
    assert run.facts.replay_of == old.run.root_task_id
    assert run.root_task_id != old.run.root_task_id
    assert (run.root.task_type, run.root.timeout_seconds) == ("execute_dag", 11.0)
    assert {row.step: row.status.value for row in decisions.made} == {
        "a": "dispatched",
        "d": "dispatched",
        "e": "skipped",
    }


def test_a_replay_from_a_step_keeps_what_does_not_depend_on_it(world: World) -> None:
    old = finished(world)
    run, decisions = replay(world, old, "b")
    driver = Driver(world, run, decisions)
    assert driver.statuses() == {"a": "completed", "d": "completed", "e": "skipped", "b": "dispatched"}
    assert driver.payload("b") == {"a": "old a"}
    assert {row.root_task_id for row in run.rows.values()} == {run.root_task_id}
    driver.restart()
    driver.happen(driver.completed("b", "new b", usage=Usage(input_tokens=1)))
    assert driver.payload("c") == {"b": "new b"}
    driver.complete("c", "new c")
    assert driver.result == {"a": "old a", "b": "new b", "c": "new c", "d": "old d", "e": None}
    # What was reused has cost nothing this time.
    assert driver.run.root.usage == Usage(input_tokens=1)


def test_a_replay_waits_for_its_turn_and_then_goes_on_behind_what_it_reuses(world: World) -> None:
    """It began at once, beside as many as the concurrency key allows."""
    world.add("keyed", steps=STEPS, concurrency={"max": 1})
    old = world.request("keyed")
    assert old.status == "waiting"
    admit(old)
    for name in ("a", "d", "b", "c"):
        old.happen(old.completed(name, f"old {name}"))
    world.now += timedelta(minutes=1)
    driver = Driver(world, *replay(world, old, "b"))
    assert driver.statuses() == {"a": "completed", "d": "completed", "e": "skipped"}
    assert (driver.status, driver.run.facts.concurrency_key) == ("waiting", old.run.facts.concurrency_key)
    admit(driver)
    assert driver.statuses() == {"a": "completed", "d": "completed", "e": "skipped", "b": "dispatched"}
    admit(driver)
    assert driver.statuses()["b"] == "dispatched"
    driver.complete("b", "new b")
    driver.complete("c", "new c")
    assert driver.result == {"a": "old a", "b": "new b", "c": "new c", "d": "old d", "e": None}


def test_a_replay_of_which_nothing_is_left_to_do_ends_when_its_turn_has_come(world: World) -> None:
    world.add("keyed", steps={"a": {"task": "x"}}, concurrency={"max": 1})
    old = world.request("keyed")
    admit(old)
    old.happen(old.completed("a", 1))
    world.now += timedelta(minutes=1)
    driver = Driver(world, *replay(world, old, None, retry=True))
    admit(driver)
    assert (driver.status, driver.result) == ("completed", {"a": 1})


def test_what_a_replay_reuses_is_not_compensated_when_it_fails(world: World) -> None:
    """The old task had completed, and stays so: its seat was given back all the same."""
    compensation = {"compensate": {"task": "undo", "with": {"of": "${result}"}}}
    steps = {"seat": {"task": "x", **compensation}, "mail": {"task": "x", "needs": ["seat"], **compensation}}
    world.add("trip", steps={**steps, "pay": {"task": "x", "needs": ["mail"], "retry": {"max_attempts": 1}}})
    old = world.request("trip")
    for name in ("seat", "mail", "pay"):
        old.happen(old.completed(name, f"old {name}"))
    assert old.status == "completed"
    world.now += timedelta(minutes=1)
    driver = Driver(world, *replay(world, old, "mail"))
    driver.restart()
    driver.happen(driver.completed("mail", "new mail"))
    driver.happen(driver.failed("pay"))
    assert driver.status == "compensating"
    compensated = [row for row in driver.run.rows.values() if row.role is Role.COMPENSATION]
    assert [json.loads(row.payload or b"") for row in compensated] == [{"of": "new mail"}]
    driver.restart()
    (row,) = compensated
    driver.happen(ResponseReceived(row.root_task_id, row.task_id, row.attempt, "completed"))
    assert driver.status == "failed"
    assert driver.run.root.error is not None
    assert driver.run.root.error.code == "step_failed"


def admit(driver: Driver) -> None:
    """What `ConcurrencyStore.admit` writes, and what is posted then."""
    root = driver.table.records[driver.run.root_task_id]
    if root["status"] == "waiting":
        root["status"] = "running"
    driver.restart()
    driver.happen(Begin(driver.run.root_task_id))


def test_a_replay_from_the_first_step_runs_all_that_follows(world: World) -> None:
    run, decisions = replay(world, finished(world), "a")
    assert Driver(world, run, decisions).statuses() == {"a": "dispatched", "d": "completed", "e": "skipped"}


def test_a_replay_from_nowhere_is_an_invalid_request(world: World) -> None:
    old = finished(world)
    run, _ = replay(world, old, "nobody")
    assert run.root.error is not None
    assert (run.root.error.code, run.root.status) == ("invalid_request", Status.FAILED)
    assert "there is no step 'nobody'" in run.root.error.message
    run, _ = replay(world, old, "c", only={"a", "d"})
    assert run.root.error is not None
    assert "step 'c' needs b, which did not complete" in run.root.error.message


# -- wire -----------------------------------------------------------------------------------------------------------


def test_an_attempts_request_is_a_task_request(world: World) -> None:
    deadline = START + timedelta(seconds=100)
    driver = world.dag(
        {"sub": {"steps": {"s": {"task": "x", "with": {"t": "é\0\u2028", "n": 1.0}}}}},
        tenant="t",
        priority=7,
        session_id='s"\\',
        deadline=deadline,
        timeout_seconds=50,
    )
    row = driver.row("sub/s")
    request = parse_request(task_request(driver.run, row))
    assert request.payload == {"t": "é\0\u2028", "n": 1.0}
    assert (request.task_id, request.root_task_id) == (row.task_id, driver.run.root_task_id)
    assert request.parent_task_id == driver.row("sub").task_id
    assert (request.task_type, request.attempt, request.timeout_seconds) == ("x", 1, 50)
    assert (request.tenant, request.priority, request.session_id) == ("t", 7, 's"\\')
    assert (request.deadline, request.created_at) == (deadline, START)
    assert request.metadata == {"step": "sub/s"}
    assert request.reply_to is None
    assert attempt_id(row) == f"{row.task_id}:1"


def test_a_request_says_only_what_is_not_the_default(world: World) -> None:
    driver = world.dag({"s": {"task": "x"}})
    fields = json.loads(task_request(driver.run, driver.row("s")))
    assert set(fields) == {
        "task_id",
        "root_task_id",
        "parent_task_id",
        "task_type",
        "attempt",
        "timeout_seconds",
        "requester",
        "payload",
        "metadata",
        "created_at",
    }


@pytest.mark.parametrize(
    ("after", "ttl"),
    [
        (0, "60s"),
        (0.5, "59s"),  # rounded down: rather dropped than run when nobody waits any more
        (58.9, "1s"),
        (59.9, "1s"),  # the least the broker takes
        (100, "1s"),
    ],
)
def test_a_request_lives_as_long_as_its_attempt(world: World, after: float, ttl: str) -> None:
    driver = world.dag({"s": {"task": "x"}}, timeout_seconds=60)
    headers = request_headers(driver.run, driver.row("s"), START + timedelta(seconds=after))
    assert headers == {"Nats-TTL": ttl}


def test_an_attempt_belongs_to_its_requesters_trace(world: World) -> None:
    run, _ = planned(world, "x", headers={"traceparent": TRACE, "tracestate": "v=1"})
    row = next(run.active())
    headers = request_headers(run, row, world.now)
    version, trace, span, flags = headers["traceparent"].split("-")
    assert (version, trace, flags) == ("00", "0af7651916cd43dd8448eb211c80319c", "01")
    assert len(span) == 16
    assert span != "b7ad6b7169203331"
    assert headers["tracestate"] == "v=1"


def test_the_final_response_is_the_same_bytes_however_often_it_is_made(world: World) -> None:
    driver = world.dag({"s": {"task": "x"}}, idempotency_key="k")
    driver.later(1.234567)
    driver.happen(driver.completed("s", {"é": [1, 1.0, None, "\0"]}, usage=Usage(input_tokens=3, cost_usd=0.1)))
    mine = final_response(driver.run.root, driver.run.facts)
    again = driver.read_back()
    assert final_response(again.root, again.facts) == mine
    response = TaskResponse.model_validate_json(mine)
    assert response.result == {"s": {"é": [1, 1.0, None, "\0"]}}
    assert (response.task_id, response.root_task_id) == (driver.run.root_task_id, driver.run.root_task_id)
    assert (response.agent, response.task_type, response.attempt) == ("orchestrator_agent", "execute_dag", 1)
    assert response.usage == Usage(input_tokens=3, cost_usd=0.1)
    assert response.started_at == START
    assert response.completed_at == START + timedelta(seconds=1.234567)
    assert (response.error, response.duplicate_of) == (None, None)


def test_a_failed_response_is_the_same_bytes_too(world: World) -> None:
    driver = world.dag({"s": {"task": "x"}})
    row = driver.row("s")
    error = ErrorInfo(code="no", message="é", details={"nan": float("nan"), "none": None, "n": 1.5})
    driver.happen(ResponseReceived(driver.run.root_task_id, row.task_id, 1, "failed", error=error))
    again = driver.read_back()
    assert final_response(again.root, again.facts) == final_response(driver.run.root, driver.run.facts)


# -- routing --------------------------------------------------------------------------------------------------------


def test_a_run_that_was_planned_needs_no_other_clock(world: World) -> None:
    """Nothing in a transition asks the time or the world of itself: the same values give the same rows."""
    request = TaskRequest(task_id=UUID(int=7), task_type="execute_dag", payload={"steps": STEPS})
    rows = []
    for _ in range(2):
        run, _ = world.planner.plan(request, headers=None, now=START)
        world.advance(run)
        rows.append(run.rows)
    assert rows[0] == rows[1]
