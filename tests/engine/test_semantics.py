"""The control flow's corners, in examples: each of these was wrong once, or nearly was."""

import re
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from orchestrator_agent.engine.decisions import Rules
from orchestrator_agent.engine.events import (
    CancelRequested,
    DeadlinePassed,
    Delegated,
    PauseRequested,
    ResumeRequested,
    SignalReceived,
)
from orchestrator_agent.engine.state import Role, Row, Status
from orchestrator_agent.runtime.wire import task_request
from orchestrator_agent.workflows.plan import Plan
from protocol import ErrorInfo, new_id
from protocol.messages import Usage
from tests.engine.conftest import Driver, World


def task(**more: Any) -> dict[str, Any]:
    return {"task": "x", **more}


def compensable(**more: Any) -> dict[str, Any]:
    return task(compensate={"task": "undo", "with": {"was": "${result}"}}, **more)


def compensations(driver: Driver) -> list[Row]:
    return [row for row in driver.run.rows.values() if row.role is Role.COMPENSATION]


def compensate_next(driver: Driver) -> str:
    """Let the compensation at work end well; the step that it compensated."""
    row = next(row for row in compensations(driver) if row.status is Status.DISPATCHED)
    driver.happen(driver.responded(row, {}))
    return row.step or ""


def signal(driver: Driver, name: str, giver: str | None = None, **payload: Any) -> SignalReceived:
    return SignalReceived(driver.run.root_task_id, new_id(), name, payload, giver)


def outcome_of(driver: Driver, values: Any) -> Any:
    return driver.happen(values).outcomes[values.operation]


# -- signals --------------------------------------------------------------------------------------------------------


def wait(**more: Any) -> dict[str, Any]:
    return {"wait_for": {"signal": "go", **more}}


@pytest.mark.parametrize("restarted", [False, True])
def test_signals_of_one_name_are_taken_in_the_order_they_were_given(world: World, restarted: bool) -> None:
    steps = {"nap": {"sleep": 9}, "a": {**wait(), "needs": ["nap"]}, "b": {**wait(), "needs": ["a"]}}
    driver = world.dag(steps)
    for number in (1, 2, 3):
        driver.later(1)
        assert outcome_of(driver, signal(driver, "go", n=number))["taken"] is False
    if restarted:
        driver.restart()
    driver.later(9)
    driver.due("nap")
    assert driver.result["a"] == {"n": 1}
    assert driver.result["b"] == {"n": 2}
    kept = [row for row in driver.run.rows.values() if row.role is Role.SIGNAL and row.status == "skipped"]
    assert len(kept) == 1


def test_a_signal_goes_to_the_one_of_several_waits_that_may_take_it(world: World) -> None:
    driver = world.dag({"a": wait(**{"from": ["anna"]}), "b": wait(**{"from": ["bob"]})})
    refused = outcome_of(driver, signal(driver, "go", "eve"))
    assert isinstance(refused, ErrorInfo)
    assert refused.code == "forbidden"
    assert outcome_of(driver, signal(driver, "go", "bob", n=1))["taken"]
    assert driver.statuses()["b"] == "completed"
    assert outcome_of(driver, signal(driver, "go", "anna", n=2))["taken"]
    assert driver.result == {"a": {"n": 2}, "b": {"n": 1}}


def test_the_same_signal_given_twice_is_given_once(world: World) -> None:
    driver = world.dag({"a": wait(), "b": {**wait(), "needs": ["a"]}})
    values = signal(driver, "go", n=1)
    assert outcome_of(driver, values)["taken"]
    again = driver.happen(values)
    assert again.empty
    assert again.outcomes[values.operation] == {"task_id": str(driver.run.root_task_id), "signal": "go", "taken": True}
    assert driver.statuses()["b"] == "waiting"


def test_an_approval_is_what_says_so_and_is_by_who_gave_it(world: World) -> None:
    """A signal of its name ended the wait without `approved`, and its payload named the giver."""
    driver = world.dag({"ok": {"wait_for": {"approval": "go"}}})
    refused = outcome_of(driver, signal(driver, "go", "bob", by="anna"))
    assert isinstance(refused, ErrorInfo)
    assert refused.message == "'go' is an approval: payload.approved must be true or false"
    assert outcome_of(driver, signal(driver, "go", "bob", approved=True, by="anna"))["taken"]
    assert (driver.result["ok"]["approved"], driver.result["ok"]["by"]) == (True, "bob")


def test_a_signal_that_came_first_and_is_no_approval_is_left(world: World) -> None:
    driver = world.dag({"nap": {"sleep": 9}, "ok": {"wait_for": {"approval": "go"}, "needs": ["nap"]}})
    outcome_of(driver, signal(driver, "go", "bob"))
    driver.later(9)
    driver.due("nap")
    assert driver.statuses()["ok"] == "waiting"


# -- pauses ---------------------------------------------------------------------------------------------------------


def test_nobody_fails_for_want_of_an_agent_while_paused(world: World) -> None:
    driver = world.dag({"a": task(), "b": task(needs=["a"])})
    driver.happen(PauseRequested(driver.run.root_task_id))
    world.everything_served_by = None
    driver.complete("a")
    driver.later(3600)
    assert driver.due("b").empty
    driver.happen(ResumeRequested(driver.run.root_task_id))
    driver.later(29)
    driver.due("b")
    assert driver.statuses()["b"] == "ready"
    driver.later(1)
    driver.due("b")
    assert driver.error.code == "no_agent_available"


def test_a_paused_task_that_fails_compensates_what_it_did(world: World) -> None:
    driver = world.dag({"a": compensable(), "b": task(needs=["a"])})
    driver.complete("a", {"n": 1})
    driver.happen(PauseRequested(driver.run.root_task_id))
    driver.fail("b")
    assert driver.status == "compensating"
    assert compensate_next(driver) == "a"
    assert driver.status == "failed"


# -- cancelling -----------------------------------------------------------------------------------------------------


def test_a_second_cancel_changes_nothing_and_says_so(world: World) -> None:
    driver = world.dag({"a": compensable(), "b": task(needs=["a"])})
    driver.complete("a", {"n": 1})
    for changed in (True, False):
        cancel = CancelRequested(driver.run.root_task_id, "enough", new_id())
        assert outcome_of(driver, cancel)["changed"] is changed
        assert driver.status == "compensating"
    driver.restart()
    compensate_next(driver)
    assert (driver.status, driver.error.message) == ("cancelled", "enough")


def test_the_deadline_decides_how_a_task_ends_whichever_timer_is_noticed_first(world: World) -> None:
    """An agent that keeps the deadline, and a wait that is as long, ended it `step_failed` when they were faster."""
    for first in ("attempt", "agent", "wait", "deadline"):
        steps = {"a": task(retry={"max_attempts": 1}, timeout=60), "w": wait(timeout=60)}
        driver = world.dag(steps, deadline=world.now + timedelta(seconds=60))
        driver.later(60)
        if first == "attempt":
            driver.expire("a")
        elif first == "agent":
            driver.fail("a", "timeout")
        elif first == "wait":
            driver.due("w")
        else:
            driver.happen(DeadlinePassed(driver.run.root_task_id))
        assert driver.error.code == "deadline_exceeded"


# -- compensation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restarted", [False, True])
def test_a_workflow_that_compensates_may_finish_when_the_one_around_it_fails(world: World, restarted: bool) -> None:
    """What was being compensated was cancelled, and taken for done."""
    sub = {"steps": {"i": compensable(), "j": compensable(needs=["i"]), "k": task(needs=["j"])}}
    driver = world.dag({"first": compensable(), "sub": {**sub, "needs": ["first"]}, "beside": task(needs=["first"])})
    for result, path in enumerate(("first", "sub/i", "sub/j")):
        driver.later(1)
        driver.complete(path, result)
    driver.fail("sub/k")
    assert [row.step for row in compensations(driver)] == ["j"]
    driver.fail("beside", "worse")
    if restarted:
        driver.restart()
    assert driver.statuses()["sub"] == "compensating"
    assert [compensate_next(driver) for _ in range(3)] == ["j", "i", "first"]
    assert driver.error.step == "beside"
    assert driver.statuses()["sub"] == "failed"
    assert driver.status == "failed"


@pytest.mark.parametrize("restarted", [False, True])
def test_steps_of_a_workflow_by_name_two_levels_down_are_compensated_after_a_restart_too(
    world: World, restarted: bool
) -> None:
    world.add("inner", steps={"i": compensable()})
    world.add("outer", steps={"o": {"task": "inner"}})
    driver = world.dag({"a": {"task": "outer"}, "b": task(needs=["a"])})
    driver.complete("a/o/i", 1)
    if restarted:
        driver.restart()
    driver.fail("b")
    assert compensate_next(driver) == "i"
    assert driver.status == "failed"


def test_what_completed_inside_a_step_that_did_not_is_compensated_itself(world: World) -> None:
    """The step says how it is compensated; it never completed, so that is nothing to compensate."""
    sub = {"steps": {"i": compensable(), "j": task(needs=["i"])}, "compensate": {"task": "undo_all"}}
    driver = world.dag({"sub": sub, "b": task()})
    driver.complete("sub/i", 1)
    driver.fail("b")
    assert [(row.step, row.task_type) for row in compensations(driver)] == [("i", "undo")]


def test_an_item_that_fails_is_compensated_as_well_where_its_step_wants_it(world: World) -> None:
    driver = world.dag({"a": compensable(for_each=[1, 2, 3], on_error="compensate")})
    driver.complete("a[0]", {"n": 0})
    driver.later(1)
    driver.fail("a[1]")
    assert [compensate_next(driver) for _ in range(2)] == ["a", "a"]
    assert [row.item for row in compensations(driver)] == [1, 0]


def test_a_workflow_that_fails_beside_is_compensated_too_where_it_wants_to_be(world: World) -> None:
    sub = {
        "steps": {"i": compensable(), "j": task(needs=["i"])},
        "on_error": "compensate",
        "compensate": {"task": "undo"},
    }
    driver = world.dag({"sub": sub, "b": task()})
    driver.complete("sub/i", 1)
    driver.fail("sub/j")
    driver.fail("b")
    driver.later(1)
    assert [compensate_next(driver) for _ in range(2)] == ["i", "sub"]
    assert driver.error.step == "b"


def test_thousands_of_compensations_may_fail_before_any_agent_is_asked(world: World) -> None:
    """Each too large: one that called the next by recursion came to the end of the stack."""
    world.rules = Rules(max_payload_bytes=20_000)
    compensation = {"task": "undo", "with": {"was": "${result}", "more": "${input.more}"}}
    steps = {"a": task(for_each=list(range(600)), concurrency=1000, compensate=compensation), "b": task(needs=["a"])}
    driver = world.dag(steps, {"more": "x" * 19_980})
    driver.happen(*(driver.completed(f"a[{n}]", "result") for n in range(600)))
    driver.fail("b")
    assert driver.status == "failed"
    assert {row.error.code for row in compensations(driver) if row.error is not None} == {"too_large"}


def test_a_sub_workflow_whose_result_is_too_large_fails_and_is_compensated(world: World) -> None:
    world.rules = Rules(max_payload_bytes=200)
    sub = {"steps": {"i": compensable()}, "output": ["${i}", "${i}"], "on_error": "continue"}
    driver = world.dag({"a": sub})
    driver.complete("a/i", "x" * 150)
    assert compensate_next(driver) == "i"
    assert driver.result == {"a": None}


def test_a_signal_for_one_waiting_step_is_not_kept_for_the_next(world: World) -> None:
    """A second click on the first draft of a loop rejected the next draft unseen, and a late approval approved it."""
    steps = {"draft": task(), "ok": {"needs": ["draft"], "wait_for": {"approval": "release"}}}
    review = {"repeat": {"until": "review.approved", "max": 5}, "steps": steps, "output": "${ok}"}
    driver = world.request("execute_dag", {"steps": {"review": review}, "output": "${review}"})

    def approval(row: Row, *, approved: bool) -> SignalReceived:
        values = {"approved": approved}
        return SignalReceived(driver.run.root_task_id, new_id(), "release", values, None, row.task_id)

    driver.complete("review/draft")
    first = driver.row("review/ok")
    assert outcome_of(driver, approval(first, approved=False))["taken"]
    late = outcome_of(driver, approval(first, approved=True))
    assert late.code == "invalid_request"
    assert late.message == f"step 'review/ok' ({first.task_id}) waits for 'release' no more: it is completed"
    driver.complete("review/draft")
    second = driver.row("review/ok")
    assert second.status is Status.WAITING
    assert outcome_of(driver, signal(driver, "other", waiting=1))["taken"] is False
    wrong = outcome_of(driver, SignalReceived(driver.run.root_task_id, new_id(), "go", {}, None, second.task_id))
    assert wrong.message == f"step 'review/ok' ({second.task_id}) waits for 'release', not for 'go'"
    unknown = new_id()
    nothing = outcome_of(driver, SignalReceived(driver.run.root_task_id, new_id(), "release", {}, None, unknown))
    assert nothing.message == f"no step of task {driver.run.root_task_id} with the id {unknown} waits for a signal"
    assert outcome_of(driver, approval(second, approved=True))["taken"]
    assert driver.result["approved"] is True


# -- budgets --------------------------------------------------------------------------------------------------------


def test_a_retry_is_within_the_budget_or_not_made(world: World) -> None:
    """Only a step's first attempt was held against the budget: a step that failed at a price paid it four times."""
    driver = world.request("execute_dag", {"steps": {"a": task()}, "budget": {"tokens": 100}})
    row = driver.row("a")
    failed = driver.failed("a", retryable=True)
    driver.happen(driver.responded(row, None, error=failed.error, usage=Usage(input_tokens=100)))
    driver.later(60)
    assert not driver.due("a").dispatched
    assert driver.error.code == "budget_exceeded"


@pytest.mark.parametrize("restarted", [False, True])
def test_an_id_of_no_waiting_row_is_refused_and_the_task_goes_on(world: World, restarted: bool) -> None:
    """The root's own id, and after a restart that of a former iteration, ended the whole task with internal_error."""
    steps = {"draft": task(), "ok": {"needs": ["draft"], "wait_for": {"approval": "release"}}}
    driver = world.dag(
        {"review": {"repeat": {"until": "review.approved", "max": 5}, "steps": steps, "output": "${ok}"}}
    )

    def approval(row_id: UUID, *, approved: bool = True) -> SignalReceived:
        return SignalReceived(driver.run.root_task_id, new_id(), "release", {"approved": approved}, None, row_id)

    driver.complete("review/draft")
    former = [driver.row("review").task_id, driver.row("review/draft").task_id, driver.row("review/ok").task_id]
    assert outcome_of(driver, approval(former[-1], approved=False))["taken"]
    driver.complete("review/draft")
    if restarted:
        driver.restart()
    for row_id in (driver.run.root_task_id, *former):
        refused = outcome_of(driver, approval(row_id))
        assert isinstance(refused, ErrorInfo)
        assert refused.code == "invalid_request"
    assert outcome_of(driver, approval(driver.row("review/ok").task_id))["taken"]
    assert driver.result["review"]["approved"] is True


@pytest.mark.parametrize(
    ("budget", "price", "steps"), [(1, 0.1, 10), (0.8, 0.1, 8), (2.1, 0.7, 3), (1, 0.3, 4), (0.05, 0.01, 5)]
)
def test_money_is_counted_in_decimals(world: World, budget: float, price: float, steps: int) -> None:
    """Ten times 0.1 was less than 1 in binary, and an eleventh step ran."""
    chain = {f"s{number}": task(needs=[f"s{number - 1}"] if number else []) for number in range(14)}
    driver = world.request("execute_dag", {"steps": chain, "budget": {"cost_usd": budget}})
    for number in range(steps):
        assert driver.status == "running"
        driver.happen(driver.responded(driver.row(f"s{number}"), {}, usage=Usage(cost_usd=price)))
    assert driver.error.code == "budget_exceeded"
    assert driver.error.details == {"budget": "cost_usd", "limit": budget, "used": round(steps * price, 10)}


def test_signals_are_no_tasks_of_the_budget(world: World) -> None:
    driver = world.request("execute_dag", {"steps": {"w": wait(), "a": task(needs=["w"])}, "budget": {"tasks": 2}})
    for _ in range(5):
        outcome_of(driver, signal(driver, "other"))
    outcome_of(driver, signal(driver, "go"))
    driver.complete("a")
    assert driver.status == "completed"


def test_compensating_is_outside_of_the_budget_with_all_that_is_delegated_for_it(world: World) -> None:
    budget = {"tasks": 1}
    steps = {"a": compensable(), "b": task(needs=["a"])}
    driver = world.request("execute_dag", {"steps": steps, "budget": budget})
    driver.complete("a", 1)
    assert driver.status == "compensating"
    at_work = compensations(driver)[0]
    delegate(driver, at_work, "helper")
    assert "a/helper/helper" in driver.at_work()
    driver.complete("a/helper/helper", 1)
    compensate_next(driver)
    assert driver.error.code == "budget_exceeded"


def test_what_compensates_within_a_task_that_goes_on_is_outside_of_its_budget_too(world: World) -> None:
    """A sub-workflow that failed was compensated by an agent that delegated, which ended the whole task."""
    inner = {"steps": {"a": compensable(), "b": task(needs=["a"])}, "on_error": "continue"}
    driver = world.request("execute_dag", {"steps": {"s": inner}, "budget": {"depth": 1, "tasks": 3}})
    driver.complete("s/a", 1)
    driver.fail("s/b")
    delegate(driver, compensations(driver)[0], "helper")
    driver.restart()
    driver.complete("s/a/helper/helper", 1)
    compensate_next(driver)
    assert driver.result == {"s": None}


def test_what_compensates_has_its_time_although_the_deadline_has_passed(world: World) -> None:
    """What it delegated expired as it was dispatched, and its request named a deadline that had passed."""
    driver = world.dag({"a": compensable(), "b": task(needs=["a"])}, deadline=world.now + timedelta(minutes=1))
    driver.complete("a", 1)
    assert b'"deadline"' in task_request(driver.run, driver.row("b"))
    driver.later(60)
    driver.happen(DeadlinePassed(driver.run.root_task_id))
    delegate(driver, compensations(driver)[0], "helper")
    row = driver.row("a/helper/helper")
    assert row.expires_at == world.now + timedelta(minutes=5)
    for at_work in (row, compensations(driver)[0]):
        assert b'"deadline"' not in task_request(driver.run, at_work)
    driver.complete("a/helper/helper", 1)
    compensate_next(driver)
    assert driver.error.code == "deadline_exceeded"


# -- workflows that stand in, and that compensate ----------------------------------------------------------------------


@pytest.mark.parametrize("restarted", [False, True])
def test_a_fallback_may_be_a_workflow_by_its_name(world: World, restarted: bool) -> None:
    """It waited for an agent that serves it, for which there was none."""
    world.add("plan_b", steps={"i": compensable(**{"with": "${input}"})}, output="${i}")
    instead = {"task": "plan_b", "with": {"of": "${item}", "why": "${error.code}"}}
    driver = world.dag({"a": task(for_each=[7], fallback=instead), "b": task(needs=["a"])})
    driver.fail("a[0]")
    if restarted:
        driver.restart()
    assert driver.payload("a[0]/i") == {"of": 7, "why": "no"}
    driver.complete("a[0]/i", "well")
    assert driver.payload("b") == {}
    driver.fail("b")
    # What it did is compensated as what any workflow did.
    assert compensate_next(driver) == "i"
    assert driver.status == "failed"


@pytest.mark.parametrize("restarted", [False, True])
def test_a_workflow_may_compensate_and_its_failure_is_borne(world: World, restarted: bool) -> None:
    world.add("clean_up", steps={"one": compensable(**{"with": "${input}"}), "two": task(needs=["one"])})
    by_key = task(compensate={"task": "clean_up", "with": {"was": "${result}"}})
    driver = world.dag({"first": compensable(), "a": {**by_key, "needs": ["first"]}, "b": task(needs=["a"])})
    driver.complete("first", 0)
    driver.complete("a", 1)
    driver.fail("b")
    assert driver.payload("a/one") == {"was": 1}
    driver.complete("a/one", {"done": True})
    if restarted:
        driver.restart()
    driver.fail("a/two")
    # It compensates what it did itself before it has failed.
    assert compensate_next(driver) == "one"
    assert compensate_next(driver) == "first"
    assert driver.error.step == "b"
    assert {row.step: row.status.value for row in compensations(driver)} == {
        "a": "failed",
        "one": "completed",
        "first": "completed",
    }


# -- delegation -----------------------------------------------------------------------------------------------------


def delegate(driver: Driver, parent: Row, task_type: str, plan: Plan | None = None, **more: Any) -> UUID:
    task_id: UUID = more.pop("task_id", None) or new_id()
    made = plan or driver.world.library.single(task_type)
    payload = more.pop("payload", {})
    driver.happen(Delegated(driver.run.root_task_id, parent.task_id, task_id, task_type, payload, made, **more))
    return task_id


def test_a_graph_that_an_agent_gives_out_inline_survives_a_restart(world: World) -> None:
    """Its row held only the input: after a restart nobody knew the graph any more, and the whole task broke."""
    driver = world.dag({"a": task()})
    graph = {"steps": {"i": task(), "j": task(needs=["i"])}, "output": "${j}", "input": {"n": 1}}
    plan, values = world.library.inline(graph)
    child = delegate(driver, driver.row("a"), "execute_dag", plan, payload=values)
    driver.restart()
    driver.complete("a/execute_dag/i", 1)
    driver.restart()
    decisions = driver.complete("a/execute_dag/j", 2)
    assert [row.task_id for row in decisions.responses] == [child]
    assert driver.run.rows[child].result == b"2"


def test_a_graph_refused_for_its_depth_does_not_break_what_is_compensated_after_a_restart(world: World) -> None:
    """It never began, so its row has no graph; reading it back as a workflow broke the whole task."""
    steps = {"a": compensable(), "b": {"steps": {"i": task(needs=[])}, "needs": ["a"]}}
    driver = world.request("execute_dag", {"steps": steps, "budget": {"depth": 1}})
    driver.complete("a", 1)
    plan, values = world.library.inline({"steps": {"j": compensable()}})
    child = delegate(driver, driver.row("b/i"), "execute_dag", plan, payload=values)
    assert driver.run.rows[child].status is Status.CANCELLED
    driver.restart()
    assert all(scope.depth <= 1 for scope in driver.run.scopes.values())
    assert compensate_next(driver) == "a"
    assert driver.error.code == "budget_exceeded"
    assert driver.error.details == {"budget": "depth", "limit": 1, "used": 2}


@pytest.mark.parametrize("parent", ["compensation", "fallback"])
def test_what_is_delegated_by_a_compensation_or_a_fallback_survives_a_restart(world: World, parent: str) -> None:
    if parent == "compensation":
        driver = world.dag({"a": compensable(), "b": task(needs=["a"])})
        driver.complete("a", 1)
        driver.fail("b")
        row = compensations(driver)[0]
    else:
        driver = world.dag({"a": {"steps": {"i": task()}, "fallback": {"task": "instead"}}})
        driver.fail("a/i")
        row = next(found for found in driver.run.rows.values() if found.role is Role.FALLBACK)
    child = delegate(driver, row, "helper")
    driver.restart()
    decisions = driver.complete("a/helper/helper", 7)
    assert [ended.task_id for ended in decisions.responses] == [child]
    assert driver.run.rows[child].result == b"7"


def test_what_an_item_delegated_before_its_fallback_is_compensated_after_a_restart_too(world: World) -> None:
    plan = world.add("child", steps={"i": compensable()})
    driver = world.dag({"a": task(for_each=[1], fallback={"result": 7}), "b": task(needs=["a"])})
    delegate(driver, driver.row("a[0]"), "child", plan)
    driver.complete("a[0]/child/i", 1)
    driver.fail("a[0]")
    driver.restart()
    driver.fail("b")
    assert compensate_next(driver) == "i"
    assert driver.status == "failed"


def test_a_delegated_task_asked_for_again_is_responseed_where_it_is_asked_from(world: World) -> None:
    driver = world.dag({"a": task()})
    child = delegate(driver, driver.row("a"), "helper", reply_to="_INBOX.old")
    delegate(driver, driver.row("a"), "helper", task_id=child, reply_to="_INBOX.new")
    driver.restart()
    assert driver.run.rows[child].reply_to == "_INBOX.new"
    decisions = driver.complete("a/helper/helper", 7)
    assert [row.reply_to for row in decisions.responses] == ["_INBOX.new"]


def test_what_a_delegated_workflow_did_is_compensated_with_the_rest(world: World) -> None:
    plan = world.add("child", steps={"i": compensable()})
    driver = world.dag({"a": task(), "b": task(needs=["a"])})
    delegate(driver, driver.row("a"), "child", plan)
    driver.complete("a/child/i", {"n": 1})
    driver.complete("a")
    driver.restart()
    driver.fail("b")
    assert compensate_next(driver) == "i"
    assert driver.status == "failed"


# -- repeats --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restarted", [False, True])
def test_the_fallback_of_a_later_iteration_knows_the_one_before(world: World, restarted: bool) -> None:
    step = task(repeat={"until": "a.ok", "max": 3}, fallback={"result": {"ok": True, "last": "${a.n}"}})
    driver = world.dag({"a": step})
    driver.complete("a", {"ok": False, "n": 1})
    if restarted:
        driver.restart()
    driver.fail("a")
    assert driver.result == {"a": {"ok": True, "last": 1}}


# -- running again --------------------------------------------------------------------------------------------------


def test_a_retry_runs_again_what_was_compensated_and_what_came_of_it(world: World) -> None:
    """It reused the results of steps that had been compensated when the old task failed."""
    steps = {"a": compensable(), "b": task(**{"with": {"n": "${a}"}}), "beside": task(), "c": task(needs=["b"])}
    driver = world.dag(steps)
    driver.complete("a", 1)
    driver.complete("b", 2)
    driver.complete("beside", 3)
    driver.fail("c")
    compensate_next(driver)
    retried = driver.again()
    assert retried.statuses() == {"beside": "completed", "a": "dispatched"}
    for path in ("a", "b", "c"):
        retried.complete(path, 7)
    assert retried.result == {"a": 7, "b": 7, "beside": 3, "c": 7}


def test_a_retry_runs_again_what_was_compensated_however_deep_it_was_done(world: World) -> None:
    """Of a fan-out of workflows by name, and of what an agent delegated, the compensated work was reused."""
    plan = world.add("child", steps={"i": compensable()})
    steps = {"each": {"workflow": "child", "for_each": [1]}, "lead": task(), "beside": task()}
    driver = world.dag({**steps, "last": task(needs=["each", "lead", "beside"])})
    delegate(driver, driver.row("lead"), "child", plan)
    for path in ("each[0]/i", "lead/child/i", "lead", "beside"):
        driver.complete(path, 1)
    driver.fail("last")
    assert sorted([compensate_next(driver), compensate_next(driver)]) == ["i", "i"]
    again = driver.again().statuses()
    assert {name: again[name] for name in steps} == {"each": "running", "lead": "dispatched", "beside": "completed"}


def test_what_a_replay_took_over_stands_when_it_is_retried(world: World) -> None:
    """The replay compensated its own work, and the older one's ran again with it."""
    driver = world.dag({"a": compensable(), "b": compensable(needs=["a"]), "c": task(needs=["b"])})
    for path in ("a", "b", "c"):
        driver.complete(path)
    driver = driver.again(from_step="b")
    driver.complete("b")
    driver.fail("c")
    assert compensate_next(driver) == "b"
    assert driver.again().statuses() == {"a": "completed", "b": "dispatched"}


@pytest.mark.parametrize("step", [{"repeat": {"until": "a.done", "max": 5}}, {"with": {"k": "${a == null ? 0 : a.k}"}}])
def test_a_retry_goes_on_with_no_step_that_was_between_two_iterations(world: World, step: dict[str, Any]) -> None:
    """It took the result of the one before for the step's."""
    driver = world.dag({"a": task(**{"repeat": {"until": "has(a.done)", "max": 5}, **step}), "b": task(needs=["a"])})
    driver.complete("a", {"n": 1})
    assert driver.error.code == "expression_error"
    driver = driver.again()
    assert driver.statuses() == {"a": "dispatched"}
    driver.complete("a", {"done": True})
    driver.complete("b")
    assert driver.again(from_step="b").statuses() == {"a": "completed", "b": "dispatched"}


def test_a_replay_from_a_step_runs_again_a_failure_before_it_that_was_borne(world: World) -> None:
    """It was refused: what the step needs had not completed."""
    driver = world.dag({"a": task(on_error="continue"), "b": task(needs=["a"])})
    driver.fail("a")
    driver.complete("b")
    assert driver.again(from_step="b").statuses() == {"a": "dispatched"}


def test_a_replay_from_a_step_runs_again_what_was_compensated_before_it(world: World) -> None:
    driver = world.dag({"a": compensable(), "b": task(needs=["a"])})
    driver.complete("a", 1)
    driver.fail("b")
    compensate_next(driver)
    assert driver.again(from_step="b").statuses() == {"a": "dispatched"}


def test_a_retry_runs_again_what_went_on_without_a_step_that_failed(world: World) -> None:
    steps = {"a": task(on_error="continue"), "b": task(needs=["a"]), "c": task(needs=["b"])}
    driver = world.dag(steps)
    driver.fail("a")
    driver.complete("b")
    driver.fail("c")
    assert driver.again().statuses() == {"a": "dispatched"}


# -- the schema -----------------------------------------------------------------------------------------------------


def test_the_database_knows_the_same_roles() -> None:
    from migrations.versions import v0002_control_flow

    constraint = re.search(r"constraint tasks_role check \(role in \((.*?)\)\)", v0002_control_flow.COLUMNS)
    assert constraint is not None
    assert set(re.findall(r"'(\w*)'", constraint[1])) == {role.value for role in Role}
