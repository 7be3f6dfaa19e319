"""advance: one transition after the other, in examples. Each is also read back from its rows (see conftest)."""

import json
from datetime import timedelta
from typing import Any

import pytest

from orchestrator_agent.engine.assignment import route_request_of
from orchestrator_agent.engine.decisions import Rules
from orchestrator_agent.engine.events import (
    AttemptAbandoned,
    Broken,
    CancelRequested,
    DeadlinePassed,
    Due,
    Expired,
    OriginalEnded,
    Reattached,
    ResponseReceived,
)
from orchestrator_agent.engine.state import TRANSITIONS, Row, Status
from orchestrator_agent.runtime.wire import final_response
from protocol import TaskRequest, TaskResponse, new_id
from protocol.messages import ErrorInfo, Usage
from protocol.workflow import MAX_DEPTH
from tests.engine.conftest import START, World

CONTRACT: dict[str, Any] = {
    "shout": {"task": "uppercase", "with": {"text": "${input.text}"}},
    "twice": {"task": "repeat", "with": {"text": "${shout.text}", "times": 2}, "needs": ["shout"]},
}


def task(**more: Any) -> dict[str, Any]:
    return {"task": "x", **more}


# -- the plain way --------------------------------------------------------------------------------------------------


def test_the_contracts_example_runs_step_by_step(world: World) -> None:
    driver = world.dag(CONTRACT, {"text": "hello"}, output={"text": "${twice.text}"})
    assert driver.statuses() == {"shout": "dispatched"}
    assert driver.payload("shout") == {"text": "hello"}
    decisions = driver.complete("shout", {"text": "HELLO"})
    assert [row.step for row in decisions.made] == ["twice"]
    assert driver.payload("twice") == {"text": "HELLO", "times": 2}
    decisions = driver.complete("twice", {"text": "HELLOHELLO"})
    assert decisions.root_ended
    assert driver.result == {"text": "HELLOHELLO"}
    assert driver.events() == [
        "task.started",
        "step.dispatched",
        "step.completed",
        "step.dispatched",
        "step.completed",
        "task.completed",
    ]


def test_without_output_the_result_is_every_steps_by_name(world: World) -> None:
    driver = world.dag({"a": task(), "b": task(needs=["a"]), "c": task(when="false")})
    driver.complete("a", 1)
    driver.complete("b", [2])
    assert driver.result == {"a": 1, "b": [2], "c": None}


def test_numbers_keep_their_kind_from_input_to_result(world: World) -> None:
    steps = {"a": task(**{"with": {"i": "${input.i}", "d": "${input.d}", "s": "${input.i + 1}"}})}
    driver = world.dag(steps, {"i": 1, "d": 1.0}, output={"i": "${a.i}", "d": "${a.d}", "t": "${a.i} ${a.d}"})
    assert driver.row("a").payload == b'{"i":1,"d":1.0,"s":2}'
    driver.complete("a", {"i": 1, "d": 1.0})
    assert driver.run.root.result == b'{"i":1,"d":1.0,"t":"1 1.0"}'


def test_steps_without_needs_begin_together_and_a_join_waits_for_all(world: World) -> None:
    driver = world.dag({"a": task(), "b": task(), "join": task(needs=["a", "b"])})
    assert set(driver.at_work()) == {"a", "b"}
    driver.complete("b")
    assert set(driver.at_work()) == {"a"}
    driver.complete("a")
    assert set(driver.at_work()) == {"join"}


def test_a_batch_is_applied_in_order(world: World) -> None:
    driver = world.dag({"a": task(), "b": task(), "join": task(needs=["a", "b"])})
    decisions = driver.happen(driver.completed("a"), driver.completed("b"), driver.completed("a", "again"))
    assert [row.step for row in decisions.made] == ["join"]
    assert len(decisions.changed) == 2


def test_usage_adds_up_over_steps_attempts_and_ends(world: World) -> None:
    driver = world.dag({"a": task(), "b": task(needs=["a"])})
    row = driver.row("a")
    used = Usage(input_tokens=1, cost_usd=0.5)
    error = ErrorInfo(code="no", message="no", retryable=True)
    driver.happen(ResponseReceived(driver.run.root_task_id, row.task_id, 1, "failed", error=error, usage=used))
    driver.later(10)
    driver.due("a")
    driver.happen(driver.completed("a", {}, usage=Usage(output_tokens=2)))
    driver.happen(driver.completed("b", {}, usage=used))
    assert driver.run.root.usage == Usage(input_tokens=2, output_tokens=2, cost_usd=1.0)


def test_a_request_that_an_agent_serves_is_one_step_and_its_result_the_agents_own(world: World) -> None:
    driver = world.request("translate", {"text": "hello"})
    assert driver.payload("translate") == {"text": "hello"}
    driver.complete("translate", ["any", "json"])
    assert driver.result == ["any", "json"]


def test_the_timeout_of_an_attempt_is_the_steps_or_the_requests(world: World) -> None:
    driver = world.dag({"a": task(), "b": task(timeout=7)}, timeout_seconds=60)
    assert driver.row("a").expires_at == START + timedelta(seconds=60)
    assert driver.row("b").expires_at == START + timedelta(seconds=7)


def test_no_attempt_outlives_the_deadline(world: World) -> None:
    driver = world.dag({"a": task()}, deadline=START + timedelta(seconds=5))
    assert driver.row("a").expires_at == START + timedelta(seconds=5)


# -- attempts fence -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attempt", [0, 2, 99])
def test_a_response_of_another_attempt_changes_nothing(world: World, attempt: int) -> None:
    driver = world.dag({"a": task()})
    for response in (driver.completed("a", {}, attempt=attempt), driver.failed("a", attempt=attempt)):
        assert driver.happen(response).empty
    assert driver.at_work().keys() == {"a"}


def test_a_late_response_of_an_old_attempt_changes_nothing(world: World) -> None:
    driver = world.dag({"a": task()})
    driver.fail("a", retryable=True)
    assert driver.happen(driver.completed("a", "late", attempt=1)).empty
    driver.later(10)
    driver.due("a")
    assert driver.row("a").attempt == 2
    assert driver.happen(driver.completed("a", "late", attempt=1)).empty
    driver.complete("a", "right")
    assert driver.result == {"a": "right"}


def test_a_response_to_nothing_that_is_known_changes_nothing(world: World) -> None:
    driver = world.dag({"a": task()})
    for task_id in (new_id(), driver.run.root_task_id):
        assert driver.happen(ResponseReceived(driver.run.root_task_id, task_id, 1, "completed", result={})).empty
        assert driver.happen(Expired(driver.run.root_task_id, task_id, 1)).empty
        assert driver.happen(Due(driver.run.root_task_id, task_id)).empty


def test_after_the_end_nothing_happens(world: World) -> None:
    driver = world.dag({"a": task()}, deadline=START + timedelta(seconds=5))
    late = driver.completed("a", "late")
    driver.complete("a", "first")
    driver.later(3600)
    root = driver.run.root_task_id
    error = ErrorInfo(code="c", message="m")
    for run_event in (
        late,
        Expired(root, late.task_id, 1),
        Due(root, late.task_id),
        DeadlinePassed(root),
        CancelRequested(root),
        Broken(root, error),
        OriginalEnded(root, "failed", error=error),
        Reattached(root, "_INBOX.x"),
    ):
        assert driver.happen(run_event).empty
    assert driver.result == {"a": "first"}


def test_an_attempt_that_ran_out_while_the_broker_was_away_is_made_again_and_counts_as_no_failure(world: World) -> None:
    driver = world.dag({"a": task(timeout=10, retry={"max_attempts": 1})})
    row = driver.row("a")
    lost = Expired(row.root_task_id, row.task_id, 1, broker_was_down=True)
    assert driver.happen(lost).empty, "its time is not over"
    driver.later(11)
    decisions = driver.happen(lost)
    assert [row.attempt for row in decisions.dispatched.values()] == [2]
    assert [(attempt, reason) for *_, attempt, reason in decisions.stopped] == [(1, "its time is over")]
    assert (row.attempt, row.failures) == (2, 0)
    assert driver.happen(driver.completed("a", "late", attempt=1)).empty
    driver.complete("a", "right")
    assert driver.result == {"a": "right"}


def abandoned(row: Row, *, died: bool = False, agent: str | None = None) -> AttemptAbandoned:
    return AttemptAbandoned(row.root_task_id, row.task_id, row.attempt, agent or row.agent or "", "it is gone", died)


def test_an_attempt_whose_agent_is_gone_is_made_again_and_counts_as_no_failure(world: World) -> None:
    driver = world.dag({"a": task(retry={"max_attempts": 1})})
    row = driver.row("a")
    decisions = driver.happen(abandoned(row))
    assert [row.attempt for row in decisions.dispatched.values()] == [2]
    assert [(attempt, reason) for *_, attempt, reason in decisions.stopped] == [(1, "it is gone")]
    assert (row.attempt, row.failures, row.deaths) == (2, 0, 0)
    assert driver.happen(driver.completed("a", "late", attempt=1)).empty
    driver.complete("a", "right")
    assert driver.result == {"a": "right"}


def test_an_attempt_stays_where_it_is_while_there_is_no_agent_for_another(world: World) -> None:
    """Its agent may come back, and finds it in its queue."""
    driver = world.dag({"a": task()})
    row = driver.row("a")
    world.everything_served_by = None
    assert driver.happen(abandoned(row)).empty
    assert driver.happen(abandoned(row, agent="another")).empty
    assert (row.attempt, row.status) == (1, Status.DISPATCHED)


def test_a_task_that_five_processes_died_on_is_poison(world: World) -> None:
    driver = world.dag({"a": task()})
    row = driver.row("a")
    for deaths in range(1, 5):
        driver.happen(abandoned(row, died=True))
        assert (row.deaths, row.failures, row.status) == (deaths, 0, Status.DISPATCHED)
        assert route_request_of(driver.run, row).suspect is (deaths > 1)
    driver.happen(abandoned(row, died=True))
    assert driver.status == "failed"
    assert driver.error.details is not None
    assert driver.error.details["code"] == "poison"
    assert driver.error.message == (
        "step 'a' failed: 5 processes of agents died while they worked on it, the last one of worker"
    )


# -- failing --------------------------------------------------------------------------------------------------------


def test_a_steps_failure_is_the_tasks_with_the_agents_error_in_its_details(world: World) -> None:
    driver = world.dag({"a": task(), "b": task(), "c": task(needs=["a"])})
    row = driver.row("a")
    error = ErrorInfo(code="no_paper", message="fill the tray", details={"tray": 2})
    decisions = driver.happen(ResponseReceived(driver.run.root_task_id, row.task_id, 1, "failed", error=error))
    assert driver.status == "failed"
    assert driver.error.model_dump() == {
        "code": "step_failed",
        "message": "step 'a' failed: fill the tray",
        "retryable": False,
        "step": "a",
        "details": {"code": "no_paper", "message": "fill the tray", "retryable": False, "details": {"tray": 2}},
    }
    assert driver.statuses() == {"a": "failed", "b": "cancelled"}
    # The attempts of the other steps are stopped.
    other = driver.row("b")
    assert [(agent, task_id, attempt) for agent, task_id, attempt, _ in decisions.stopped] == [
        ("worker", other.task_id, 1)
    ]


def test_a_failure_without_a_reason_has_one_all_the_same(world: World) -> None:
    driver = world.dag({"a": task()})
    driver.happen(ResponseReceived(driver.run.root_task_id, driver.row("a").task_id, 1, "cancelled"))
    assert driver.error.code == "step_failed"
    assert driver.error.details is not None
    assert driver.error.details["code"] == "internal_error"


def test_failures_are_tried_again_up_to_the_settings_number(world: World) -> None:
    driver = world.dag({"a": task()})
    for attempt in range(1, world.rules.default_max_attempts):
        assert driver.row("a").attempt == attempt
        decisions = driver.fail("a", "busy", retryable=True)
        assert driver.statuses() == {"a": "waiting"}
        wait = driver.row("a").run_after
        assert wait is not None
        assert decisions.wake_at == [wait]
        assert driver.due("a").empty, "before its time"
        world.now = wait
        assert driver.due("a").dispatched
    driver.fail("a", "busy", retryable=True)
    assert driver.error.code == "step_failed"
    assert driver.error.retryable
    assert driver.events().count("step.retrying") == 3


def test_a_steps_own_retry_wins(world: World) -> None:
    driver = world.dag({"a": task(retry={"max_attempts": 1})})
    driver.fail("a", retryable=True)
    assert driver.status == "failed"


def test_an_attempt_without_response_expires_and_is_tried_again(world: World) -> None:
    driver = world.dag({"a": task(timeout=5, retry={"max_attempts": 2})})
    assert driver.expire("a").empty, "before its time"
    driver.later(5)
    decisions = driver.expire("a")
    assert [attempt for _, _, attempt, _ in decisions.stopped] == [1]
    assert driver.statuses() == {"a": "waiting"}
    driver.later(60)
    driver.due("a")
    assert driver.happen(Expired(driver.run.root_task_id, driver.row("a").task_id, 1)).empty, "an old attempt's"
    driver.later(5)
    driver.expire("a")
    assert driver.error.code == "step_failed"
    assert driver.error.details is not None
    assert driver.error.details["code"] == "timeout"
    assert "no answer from worker within 5 s" in driver.error.message


def test_failures_are_counted_apart_from_attempts(world: World) -> None:
    driver = world.dag({"a": task()})
    row = driver.row("a")
    assert (row.attempt, row.failures) == (1, 0)
    driver.fail("a", retryable=True)
    row = driver.row("a")
    assert (row.attempt, row.failures) == (2, 1)


def test_an_expression_that_fails_names_its_step(world: World) -> None:
    for step in (
        task(**{"with": {"x": "${input.nothing}"}}),
        task(**{"with": "${input.text}"}),
        task(when="input.nothing"),
        task(when="input.text"),
        task(for_each="${input.nothing}"),
        task(for_each="${input.text}"),
        task(for_each=[1], **{"with": {"x": "${item.nothing}"}}),
        task(for_each=[1], **{"with": "${item}"}),
    ):
        driver = world.dag({"ok": task(), "bad": step}, {"text": "hello"})
        assert (driver.status, driver.error.code) == ("failed", "expression_error")
        assert "step 'bad" in driver.error.message
        assert driver.error.step is not None
        assert driver.error.step.startswith("bad")
        assert set(driver.statuses().values()) <= {"cancelled", "failed"}


def test_an_output_that_fails_is_an_expression_error(world: World) -> None:
    driver = world.dag({"a": task()}, output="${a.nothing}")
    driver.complete("a", {})
    assert driver.error.code == "expression_error"
    assert "output" in driver.error.message


def test_an_until_that_fails_is_an_expression_error(world: World) -> None:
    driver = world.dag({"a": task(repeat={"until": "a.nothing", "max": 3})})
    driver.complete("a", {})
    assert (driver.error.code, driver.error.step) == ("expression_error", "a")


@pytest.mark.parametrize("time", ["9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00", "2030-01-31T08:00:00", "x"])
def test_a_time_that_no_clock_will_show_is_an_expression_error(world: World, time: str) -> None:
    driver = world.dag({"a": {"until": f"'{time}'"}})
    assert (driver.error.code, driver.error.step) == ("expression_error", "a")
    assert time in driver.error.message


def test_what_is_too_large_says_both_sizes(world: World) -> None:
    world.rules = Rules(max_payload_bytes=1000)
    driver = world.dag({"a": task(), "b": task(needs=["a"], **{"with": {"twice": "${a.text}${a.text}"}})})
    driver.complete("a", {"text": "x" * 600})
    assert (driver.error.code, driver.error.step) == ("too_large", "b")
    assert "1000" in driver.error.message
    driver = world.dag({"a": task()})
    driver.complete("a", {"text": "x" * 1000})
    assert (driver.error.code, driver.error.step) == ("too_large", "a")
    driver = world.dag({"a": task(), "b": task()})
    driver.complete("a", {"text": "x" * 600})
    driver.complete("b", {"text": "x" * 600})
    assert (driver.error.code, driver.error.step) == ("too_large", None)


@pytest.mark.parametrize("size", [10_000, 400_000, 900_000])
def test_an_agents_error_of_any_size_leaves_a_response_that_can_be_sent(world: World, size: int) -> None:
    """The error of a step was in the task's response twice; beyond the broker's limit, it was never sent."""
    driver = world.dag({"outer": {"steps": {"a": task()}}})
    row = driver.row("outer/a")
    error = ErrorInfo(code="no", message="m" * size, details={"trace": "t" * size})
    driver.happen(ResponseReceived(driver.run.root_task_id, row.task_id, 1, "failed", error=error))
    response = final_response(driver.run.root, driver.run.facts)
    assert TaskResponse.model_validate_json(response).status == "failed"
    assert len(response) < world.rules.max_payload_bytes


# -- no agent -------------------------------------------------------------------------------------------------------


def test_a_task_that_nobody_serves_waits_and_is_placed_when_somebody_comes(world: World) -> None:
    world.everything_served_by = None
    driver = world.dag({"a": task()})
    assert driver.statuses() == {"a": "ready"}
    assert driver.due("a").empty
    assert driver.events()[-1] == "step.ready"
    world.agents["x"] = "late_agent"
    assert driver.due("a").dispatched
    assert driver.row("a").agent == "late_agent"


def test_after_the_wait_it_fails_naming_step_type_and_agent(world: World) -> None:
    world.everything_served_by = None
    driver = world.dag({"a": task(), "b": task(agent="pinned_agent")})
    driver.later(world.rules.no_agent_wait_seconds)
    driver.due("b")
    assert (driver.error.code, driver.error.step) == ("no_agent_available", "b")
    assert "'x' of agent 'pinned_agent' within 30 s" in driver.error.message
    driver = world.dag({"a": task()})
    driver.later(30)
    driver.due("a")
    assert "step 'a': no agent took 'x' within 30 s: nobody serves 'x'" in driver.error.message


def test_a_request_that_is_no_workflow_and_nobody_serves_is_of_an_unknown_type(world: World) -> None:
    world.everything_served_by = None
    driver = world.request("nonsense")
    driver.later(29)
    assert driver.due("nonsense").empty
    driver.later(1)
    driver.due("nonsense")
    assert driver.error.code == "unknown_task_type"
    assert "nonsense" in driver.error.message


def test_a_retry_whose_agent_has_gone_waits_for_another(world: World) -> None:
    driver = world.dag({"a": task()})
    driver.fail("a", retryable=True)
    world.everything_served_by = None
    driver.later(100)
    driver.due("a")
    assert driver.statuses() == {"a": "ready"}
    driver.later(30)
    driver.due("a")
    assert driver.error.code == "no_agent_available"


def test_a_pinned_agent_is_the_only_one(world: World) -> None:
    world.agents = {"x": "one_agent"}
    assert world.dag({"a": task(agent="one_agent")}).row("a").agent == "one_agent"
    assert world.dag({"a": task(agent="other_agent")}).statuses() == {"a": "ready"}


# -- conditions, repeats --------------------------------------------------------------------------------------------


def test_a_step_that_is_not_wanted_is_skipped_and_null_for_those_behind_it(world: World) -> None:
    driver = world.dag(
        {
            "a": task(when="input.go"),
            "b": task(needs=["a"], **{"with": {"a": "${a}"}}),
            "c": task(when="a != null"),
        },
        {"go": False},
    )
    assert driver.statuses() == {"a": "skipped", "b": "dispatched", "c": "skipped"}
    assert driver.payload("b") == {"a": None}
    driver.complete("b", 1)
    assert driver.result == {"a": None, "b": 1, "c": None}


def test_a_field_of_a_skipped_step_is_an_expression_error(world: World) -> None:
    driver = world.dag({"a": task(when="false"), "b": task(**{"with": {"x": "${a.text}"}})})
    assert driver.error.code == "expression_error"
    assert "null" in driver.error.message


def test_a_task_of_which_nothing_is_wanted_completes(world: World) -> None:
    assert world.dag({"a": task(when="false"), "b": task(needs=["a"], when="false")}).result == {"a": None, "b": None}


def test_thousands_of_steps_are_skipped_in_a_row(world: World) -> None:
    steps = {f"s{n}": task(when="false", needs=[f"s{n - 1}"] if n else []) for n in range(3000)}
    assert len(world.dag(steps).result) == 3000


def test_a_step_repeats_until_it_is_well_or_often_enough(world: World) -> None:
    step = task(repeat={"until": "a.ok", "max": 3}, **{"with": {"last": "${a}"}})
    driver = world.dag({"a": step, "b": task(**{"with": {"x": "${a.n}"}})})
    assert driver.payload("a") == {"last": None}
    driver.complete("a", {"ok": False, "n": 1})
    assert driver.payload("a") == {"last": {"ok": False, "n": 1}}
    assert driver.row("a").iteration == 1
    driver.complete("a", {"ok": True, "n": 2})
    assert driver.payload("b") == {"x": 2}
    driver = world.dag({"a": step})
    for n in range(3):
        driver.complete("a", {"ok": False, "n": n})
    assert driver.result == {"a": {"ok": False, "n": 2}}


def test_each_iteration_has_attempts_of_its_own(world: World) -> None:
    driver = world.dag({"a": task(repeat={"until": "a.ok", "max": 2}, retry={"max_attempts": 2})})
    for ok in (False, True):
        driver.fail("a", retryable=True)
        driver.later(60)
        driver.due("a")
        driver.complete("a", {"ok": ok})
    assert driver.status == "completed"


def test_a_response_of_the_iteration_before_changes_nothing(world: World) -> None:
    driver = world.dag({"a": task(repeat={"until": "a.ok", "max": 3})})
    first = driver.completed("a", {"ok": False})
    driver.happen(first)
    assert driver.happen(first).empty
    assert driver.row("a").iteration == 1


# -- sub-workflows --------------------------------------------------------------------------------------------------


def test_a_step_may_be_a_workflow_by_name_or_inline(world: World) -> None:
    plan = world.add(
        "inner",
        input={"properties": {"style": {"default": "plain"}}},
        steps={"i": task(**{"with": {"style": "${input.style}", "text": "${input.text}"}})},
        output="${i.text}",
    )
    inline = {"steps": {"i": task(**{"with": "${input}"})}, "with": {"text": "${named}"}, "output": {"got": "${i}"}}
    driver = world.dag({"named": {"task": "inner", "with": {"text": "a"}}, "inline": inline})
    assert driver.row("named").workflow_version == plan.version
    assert driver.statuses() == {"named": "running", "named/i": "dispatched"}
    assert driver.payload("named/i") == {"style": "plain", "text": "a"}
    driver.complete("named/i", {"text": "b"})
    assert driver.payload("inline/i") == {"text": "b"}
    driver.complete("inline/i", 7)
    assert driver.result == {"named": "b", "inline": {"got": 7}}


def test_a_running_sub_workflow_stays_on_its_version(world: World) -> None:
    world.add("inner", steps={"i": task(), "j": task(needs=["i"])})
    driver = world.dag({"a": {"task": "inner"}})
    world.add("inner", steps={"other": task()})
    driver.restart()
    driver.complete("a/i", 1)
    driver.complete("a/j", 2)
    assert driver.result == {"a": {"i": 1, "j": 2}}


def test_a_failure_below_ends_all_above_and_stops_what_is_beside(world: World) -> None:
    driver = world.dag({"a": {"steps": {"i": task(), "j": {"steps": {"k": task(), "l": task()}}}}, "b": task()})
    driver.fail("a/j/k", "deep")
    assert (driver.error.code, driver.error.step) == ("step_failed", "a/j/k")
    assert driver.statuses() == {
        "a": "failed",
        "a/i": "cancelled",
        "a/j": "failed",
        "a/j/k": "failed",
        "a/j/l": "cancelled",
        "b": "cancelled",
    }
    assert len(driver.log[-1].stopped) == 3


def test_an_input_that_a_sub_workflow_refuses_fails_the_step(world: World) -> None:
    world.add("inner", input={"required": ["text"]}, steps={"i": task()})
    driver = world.dag({"a": {"task": "inner"}})
    assert (driver.error.code, driver.error.step) == ("step_failed", "a")
    assert driver.error.details is not None
    assert driver.error.details["code"] == "invalid_request"


def test_workflows_that_call_each_other_for_ever_are_stopped(world: World) -> None:
    world.add("loop", steps={"again": {"task": "loop"}})
    driver = world.request("loop")
    assert driver.error.code == "invalid_workflow"
    assert str(MAX_DEPTH) in driver.error.message


def test_a_step_that_pins_an_agent_is_no_workflow(world: World) -> None:
    world.add("x", steps={"i": task()})
    driver = world.dag({"a": task(agent="worker")})
    assert driver.statuses() == {"a": "dispatched"}


def test_a_step_that_pins_the_orchestrator_is_one_of_its_workflows(world: World) -> None:
    """The orchestrator is an agent too, and its task types are workflows; no agent was found that served it."""
    world.add("inner", steps={"i": task()})
    driver = world.dag({"a": {"task": "inner", "agent": "orchestrator_agent"}})
    driver.restart()
    driver.complete("a/i", 1)
    assert driver.result == {"a": {"i": 1}}


def test_a_workflow_in_a_workflow_may_repeat(world: World) -> None:
    step = {"steps": {"i": task(**{"with": {"last": "${input.last}"}})}, "with": {"last": "${a}"}, "output": "${i}"}
    driver = world.dag({"a": {**step, "repeat": {"until": "a.ok", "max": 5}}})
    driver.complete("a/i", {"ok": False})
    assert driver.payload("a/i") == {"last": {"ok": False}}
    driver.complete("a/i", {"ok": True})
    assert driver.result == {"a": {"ok": True}}


def test_many_sub_workflows_that_end_at_once_end_in_a_row(world: World) -> None:
    """Each of a chain has nothing to do; a transition that calls itself for each comes to the end of the stack."""
    nothing = {"steps": {"i": task(when="false")}}
    steps = {f"s{n}": {**nothing, "needs": [f"s{n - 1}"] if n else []} for n in range(500)}
    assert len(world.dag(steps).result) == 500


def test_a_sub_workflow_that_ends_at_once_may_repeat_often(world: World) -> None:
    step = {"steps": {"i": task(when="false")}, "repeat": {"until": "false", "max": 1000}}
    assert world.dag({"a": step}).result == {"a": {"i": None}}


def test_a_fan_out_of_nothing_may_repeat_often(world: World) -> None:
    assert world.dag({"a": task(for_each=[], repeat={"until": "false", "max": 1000})}).result == {"a": []}


def test_many_items_that_end_at_once_end_in_a_row(world: World) -> None:
    step = {"for_each": "${input.l}", "concurrency": 2, "steps": {"i": task(when="false")}}
    assert len(world.dag({"a": step}, {"l": list(range(1000))}).result["a"]) == 1000


# -- fan-out --------------------------------------------------------------------------------------------------------


def test_a_fan_out_runs_each_item_and_keeps_their_order(world: World) -> None:
    step = task(for_each="${input.l}", **{"with": {"item": "${item}", "at": "${index}"}})
    driver = world.dag({"a": step}, {"l": ["x", "y", "z"]})
    assert {path: driver.payload(path) for path in driver.at_work()} == {
        "a[0]": {"item": "x", "at": 0},
        "a[1]": {"item": "y", "at": 1},
        "a[2]": {"item": "z", "at": 2},
    }
    for path in ("a[2]", "a[0]", "a[1]"):
        driver.complete(path, path)
    assert driver.result == {"a": ["a[0]", "a[1]", "a[2]"]}


def test_a_fan_out_of_nothing_is_an_empty_list(world: World) -> None:
    assert world.dag({"a": task(for_each=[])}).result == {"a": []}


def test_no_more_items_than_the_concurrency_are_at_work(world: World) -> None:
    driver = world.dag({"a": task(for_each=[1, 2, 3, 4], concurrency=2)})
    assert set(driver.at_work()) == {"a[0]", "a[1]"}
    driver.complete("a[1]")
    assert set(driver.at_work()) == {"a[0]", "a[2]"}
    driver.restart()
    driver.complete("a[0]")
    driver.complete("a[3]")
    driver.complete("a[2]")
    assert driver.status == "completed"


@pytest.mark.parametrize("on_error", ["fail", "continue", "compensate"])
def test_an_items_expression_that_fails_ends_the_workflow_whatever_its_step_says(world: World, on_error: str) -> None:
    step = task(for_each=[{"n": 1}, {}, {"n": 3}], on_error=on_error, **{"with": {"n": "${item.n}"}})
    driver = world.dag({"a": step, "b": task()})
    assert (driver.status, driver.error.code, driver.error.step) == ("failed", "expression_error", "a[1]")
    assert set(driver.statuses().values()) == {"cancelled"}


def test_a_list_that_is_too_large_altogether_says_so(world: World) -> None:
    world.rules = Rules(max_payload_bytes=100)
    driver = world.dag({"a": task(), "b": task(), "c": task(for_each="${a + b}", fallback={"result": 1})})
    driver.complete("a", ["x" * 60])
    driver.complete("b", ["y" * 60])
    assert (driver.error.code, driver.error.step) == ("too_large", "c")


def test_an_item_that_fails_ends_the_others(world: World) -> None:
    driver = world.dag({"a": task(for_each=[1, 2, 3])})
    driver.fail("a[1]")
    assert (driver.error.code, driver.error.step) == ("step_failed", "a[1]")
    assert driver.statuses() == {"a": "failed", "a[0]": "cancelled", "a[1]": "failed", "a[2]": "cancelled"}


# -- the whole task -------------------------------------------------------------------------------------------------


def test_a_cancelled_task_stops_all_it_has_at_work(world: World) -> None:
    driver = world.dag({"a": task(), "b": {"steps": {"i": task()}}, "c": task(for_each=[1])})
    decisions = driver.happen(CancelRequested(driver.run.root_task_id, "enough"))
    assert driver.status == "cancelled"
    assert (driver.error.code, driver.error.message) == ("cancelled", "enough")
    assert set(driver.statuses().values()) == {"cancelled"}
    assert len(decisions.stopped) == 3
    assert {reason for *_, reason in decisions.stopped} == {"enough"}


def test_an_attempt_that_was_never_sent_need_not_be_stopped(world: World) -> None:
    driver = world.dag({"a": task(), "b": task(needs=["a"])})
    decisions = driver.happen(driver.completed("a"), CancelRequested(driver.run.root_task_id))
    assert decisions.dispatched == {}
    assert decisions.stopped == []
    assert driver.statuses() == {"a": "completed", "b": "cancelled"}


def test_a_task_ends_at_its_deadline_and_not_before(world: World) -> None:
    driver = world.dag({"a": task()}, deadline=START + timedelta(seconds=5))
    root = driver.run.root_task_id
    assert driver.happen(DeadlinePassed(root)).empty
    driver.later(5)
    driver.happen(DeadlinePassed(root))
    assert driver.error.code == "deadline_exceeded"
    driver = world.dag({"a": task()})
    assert driver.happen(DeadlinePassed(driver.run.root_task_id)).empty


def test_a_task_whose_deadline_has_passed_is_not_begun(world: World) -> None:
    driver = world.dag({"a": task()}, deadline=START)
    assert (driver.status, driver.error.code) == ("failed", "deadline_exceeded")
    assert driver.statuses() == {}


def test_a_broken_run_ends_with_the_reason(world: World) -> None:
    driver = world.dag({"a": task()})
    driver.happen(Broken(driver.run.root_task_id, ErrorInfo(code="internal_error", message="no")))
    assert (driver.status, driver.error.code) == ("failed", "internal_error")


def test_a_requester_that_comes_again_is_responseed_where_it_is(world: World) -> None:
    driver = world.dag({"a": task()}, reply_to="_INBOX.old")
    assert driver.happen(Reattached(driver.run.root_task_id, "_INBOX.old")).empty
    driver.happen(Reattached(driver.run.root_task_id, "_INBOX.new"))
    assert driver.read_back().facts.reply_to == "_INBOX.new"


def test_a_duplicate_ends_as_its_original_does(world: World) -> None:
    for status, result, error in (
        ("completed", b'{"a":1}', None),
        ("failed", None, ErrorInfo(code="no", message="no")),
        ("cancelled", None, ErrorInfo(code="cancelled", message="no")),
    ):
        request = TaskRequest(task_id=new_id(), task_type="x", idempotency_key="k")
        original = new_id()
        run, decisions = world.planner.duplicate(request, original, headers=None, now=world.now)
        assert run.root.status is Status.WAITING
        assert decisions.empty
        for run_event in (Due(run.root_task_id, run.root_task_id), DeadlinePassed(run.root_task_id)):
            assert world.advance(run, run_event).empty
        world.advance(run, OriginalEnded(run.root_task_id, status, result, error))  # type: ignore[arg-type]
        assert (run.root.status.value, run.root.result, run.root.error) == (status, result, error)
        response = json.loads(final_response(run.root, run.facts))
        assert response["duplicate_of"] == str(original)


def test_only_a_duplicate_ends_as_another_task_does(world: World) -> None:
    driver = world.dag({"a": task()})
    assert driver.happen(OriginalEnded(driver.run.root_task_id, "completed", b"{}")).empty


# -- restarts -------------------------------------------------------------------------------------------------------


def test_an_input_of_null_is_an_empty_one_before_and_after_a_restart(world: World) -> None:
    steps = {"a": task(), "b": task(needs=["a"], when="!has(input.x)")}
    driver = world.request("execute_dag", {"steps": steps, "input": None})
    driver.restart()
    driver.complete("a", 1)
    driver.complete("b", 2)
    assert driver.result == {"a": 1, "b": 2}


def test_a_step_that_was_skipped_is_skipped_after_a_restart(world: World) -> None:
    steps = {"a": {"steps": {"i": task()}, "when": "false"}, "b": task(needs=["a"]), "c": task(needs=["b"])}
    driver = world.dag(steps)
    driver.restart()
    driver.complete("b", 1)
    driver.restart()
    driver.complete("c", 2)
    assert driver.result == {"a": None, "b": 1, "c": 2}


def test_a_value_that_json_lacks_is_null_before_and_after_a_restart(world: World) -> None:
    steps = {
        "sub": {
            "with": {"n": "${1.0 / 0.0}"},
            "steps": {"i": task(), "j": task(needs=["i"], when="input.n == null")},
            "output": {"n": "${0.0 / 0.0}"},
        },
        "after": task(when="sub.n == null"),
    }
    ends = []
    for restarted in (False, True):
        driver = world.dag(steps)
        for path in ("sub/i", "sub/j", "after"):
            if restarted:
                driver.restart()
            driver.complete(path, 1)
        ends.append(driver.result)
    assert ends[0] == ends[1] == {"sub": {"n": None}, "after": 1}


# -- statuses -------------------------------------------------------------------------------------------------------


def a_row(status: Status) -> Row:
    task_id = new_id()
    return Row(task_id, task_id, None, None, "x", status)


@pytest.mark.parametrize("before", list(Status))
@pytest.mark.parametrize("after", list(Status))
def test_a_row_changes_along_the_table_and_no_other_way(before: Status, after: Status) -> None:
    row = a_row(before)
    if after in TRANSITIONS[before]:
        row.become(after)
        assert row.status is after
    else:
        with pytest.raises(AssertionError, match=f"cannot become {after} from {before}"):
            row.become(after)
        assert row.status is before


def test_every_status_is_in_the_table_and_ends_lead_nowhere() -> None:
    assert set(TRANSITIONS) == set(Status)
    for status in Status:
        assert a_row(status).ended == (not TRANSITIONS[status])


def test_the_database_knows_the_same_statuses() -> None:
    import re

    from migrations.versions import v0001_tasks

    constraint = re.search(r"constraint tasks_status check \(status in\s*\((.*?)\)\)", v0001_tasks.TASKS, re.DOTALL)
    assert constraint is not None
    assert set(re.findall(r"'(\w+)'", constraint[1])) == {status.value for status in Status}
