"""TestMesh: workflows on the engine itself, with agents that are functions, in a time that the test moves."""

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest
from pydantic import BaseModel

from pantheon import Agent, TaskCancelled, TaskContext, TaskFailed, TaskFailure
from pantheon.testing import NO_ANSWER, Stuck, TestMesh, in_turn
from protocol.errors import InvalidWorkflow, PantheonError
from testkit.clock import START

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)


def work(**more: Any) -> dict[str, Any]:
    return {"task": "work", **more}


def compensable(name: str, **more: Any) -> dict[str, Any]:
    return work(**{"with": {"do": name}}, compensate={"task": "undo", "with": {"undo": name}}, **more)


# -- agents ---------------------------------------------------------------------------------------------------------


async def test_a_workflow_runs_with_functions_for_agents(mesh: TestMesh) -> None:
    mesh.agent("shout", lambda payload: {"text": payload["text"].upper()})
    steps = {"one": {"task": "shout", "with": {"text": "${input.text}"}}}
    assert await mesh.dag(steps, {"text": "hi"}, output="${one.text}") == "HI"
    assert mesh.now == START, "no time has passed"
    assert [(call.task_type, call.payload, call.step) for call in mesh.calls()] == [("shout", {"text": "hi"}, "one")]


class Text(BaseModel):
    text: str


async def test_an_agents_function_may_take_and_give_what_a_handler_may(mesh: TestMesh) -> None:
    async def with_context(payload: dict[str, Any], ctx: Any) -> dict[str, Any]:
        await ctx.progress(50, "half")
        ctx.report_usage(input_tokens=3)
        return {"step": ctx.metadata["step"], "attempt": ctx.attempt}

    def typed(task: Text, ctx: TaskContext) -> Text:
        return Text(text=f"{task.text} {ctx.attempt}")

    mesh.agent("nothing", lambda: 1)
    mesh.agent("literal", {"a": 1})
    mesh.agent("context", with_context)
    mesh.agent("typed", typed)
    steps = {name: {"task": name, "with": {"text": "x"}} for name in ("nothing", "literal", "context", "typed")}
    task = mesh.start("execute_dag", {"steps": steps})
    assert await task.result() == {
        "nothing": 1,
        "literal": {"a": 1},
        "context": {"step": "context", "attempt": 1},
        "typed": {"text": "x 1"},
    }
    assert task.usage is not None
    assert task.usage.input_tokens == 3
    with pytest.raises(TaskFailed, match=r"payload\.text") as failed:
        await mesh.dag({"typed": {"task": "typed", "with": {"text": 7}}})
    assert failed.value.details["code"] == "invalid_request"


async def test_an_agent_object_serves_all_it_has_with_its_hooks(mesh: TestMesh) -> None:
    agent = Agent("words_agent", metadata={"model": "m"})
    calls: list[str] = []

    @agent.on_startup
    async def began() -> None:
        calls.append("startup")

    @agent.on_shutdown
    async def ended() -> None:
        calls.append("shutdown")

    @agent.before_task
    async def before(ctx: TaskContext) -> None:
        calls.append(f"before {ctx.task_type}")

    @agent.on_error
    async def wrong(ctx: TaskContext, error: Exception) -> None:
        calls.append(f"error {error}")

    @agent.task("shout")
    def shout(task: Text) -> Text:
        assert threading.current_thread() is not threading.main_thread()
        return Text(text=task.text.upper())

    @agent.task("refuse")
    async def refuse(task: dict[str, Any]) -> None:
        raise TaskFailure("no", "no way")

    async with mesh:
        mesh.agent(agent)
        assert await mesh.run("shout", {"text": "a"}) == {"text": "A"}
        with pytest.raises(TaskFailed, match="no way"):
            await mesh.run("refuse")
    assert calls == ["startup", "before shout", "before refuse", "error no way", "shutdown"]


async def test_an_error_that_no_response_can_carry_is_what_an_agents_process_makes_of_it(mesh: TestMesh) -> None:
    """It was an error of the mesh's own, from deep within."""
    mesh.agent("work", TaskFailure("c" * 200, "too long a code"))
    with pytest.raises(TaskFailed) as failed:
        await mesh.run("work")
    details = failed.value.details
    assert (details["code"], details["message"]) == ("internal_error", f"{'c' * 200}: too long a code")


async def test_an_agents_own_timeout_is_the_smaller_one(mesh: TestMesh) -> None:
    agent = Agent("slow_agent")

    @agent.task("slow", timeout_seconds=5)
    async def slow(task: dict[str, Any]) -> None:
        await mesh.sleep(60)

    mesh.agent(agent)
    with pytest.raises(TaskFailed, match="did not end within 5 s"):
        await mesh.dag({"a": {"task": "slow", "retry": {"max_attempts": 1}}})
    assert mesh.now == START + timedelta(seconds=5)


async def test_an_agent_takes_its_time_and_so_many_at_once(mesh: TestMesh) -> None:
    mesh.agent("work", takes="10m", max_concurrency=2)
    task = mesh.start("execute_dag", {"steps": {"all": work(for_each=[1, 2, 3, 4, 5])}}, timeout_seconds=7200)
    await task.result()
    assert mesh.now == START + timedelta(minutes=30)
    assert [call.at - START for call in mesh.calls()] == [0 * MINUTE] * 2 + [10 * MINUTE] * 2 + [20 * MINUTE]


async def test_agents_that_really_do_something_are_waited_for(mesh: TestMesh) -> None:
    async def slowly(payload: dict[str, Any]) -> int:
        await asyncio.sleep(0.02)
        return 1

    mesh.agent("work", slowly)
    mesh.agent("quick", 2, takes="1s")
    assert await mesh.dag({"a": work(), "b": {"task": "quick"}}) == {"a": 1, "b": 2}


async def test_an_agent_that_waits_for_something_else_for_ever_is_told_of() -> None:
    mesh = TestMesh(patience_seconds=0.05)
    mesh.agent("work", lambda payload: asyncio.Event().wait())
    with pytest.raises(Stuck, match=r"'work' of step 'a', attempt 1 has done nothing for 0\.05 s"):
        await mesh.dag({"a": work()})


async def test_a_hook_that_only_looks_on_changes_nothing_and_one_that_starts_must_work(mesh: TestMesh) -> None:
    good, bad = Agent("good_agent"), Agent("bad_agent")

    @good.after_task
    async def after(ctx: TaskContext, response: Any) -> None:
        raise ValueError("after")

    @good.task("good")
    async def do(task: dict[str, Any]) -> int:
        return 1

    @bad.on_startup
    async def began() -> None:
        raise ConnectionError("no database")

    bad.task("bad")(do)
    mesh.agent(good)
    assert await mesh.run("good") == 1
    mesh.agent(bad)
    with pytest.raises(ConnectionError, match="no database"):
        await mesh.run("bad")


async def test_a_result_that_is_no_json_fails_as_on_the_wire(mesh: TestMesh) -> None:
    mesh.agent("work", {"text": "\ud800"})
    task = mesh.start("work")
    await task.response()
    assert "cannot be written as JSON" in task.assert_failed("internal_error").message


async def test_functions_of_all_kinds_are_called_as_they_are(mesh: TestMesh) -> None:
    class Callable:
        def __call__(self, payload: dict[str, Any]) -> int:
            return len(payload)

    mesh.agent("mock", AsyncMock(return_value=5))
    mesh.agent("object", Callable())
    mesh.agent("partial", partial(lambda n, payload: [n, payload], 3))
    values = {"with": {"a": 1}}
    result = await mesh.dag({name: {"task": name, **values} for name in ("mock", "object", "partial")})
    assert result == {"mock": 5, "object": 1, "partial": [3, {"a": 1}]}
    with pytest.raises(TypeError, match="takes 3 arguments"):
        mesh.agent("work", lambda a, b, c: 1)
    with pytest.raises(ValueError, match="at least one outcome"):
        in_turn()
    with pytest.raises(ValueError, match="with a zone"):
        TestMesh(start=datetime(2026, 1, 1))  # noqa: DTZ001


async def test_what_an_agent_delegates_too_late_is_refused_as_an_orchestrator_refuses_it(mesh: TestMesh) -> None:
    """It was a task of its own here, which it is nowhere else."""
    refusals: list[str] = []

    async def lead(payload: dict[str, Any], ctx: TaskContext) -> int:
        try:
            await mesh.sleep("1h")
        except asyncio.CancelledError:
            with pytest.raises(TaskFailed, match="is with no agent, so it gives out nothing") as refused:
                await ctx.run("work")
            refusals.append(refused.value.code)
            raise
        return 1

    mesh.agent("lead", lead)
    mesh.agent("work", 7)
    task = mesh.start("execute_dag", {"steps": {"do": {"task": "lead", "timeout": 60, "retry": {"max_attempts": 1}}}})
    await task.response()
    task.assert_failed("timeout")
    await mesh.sleep(1)
    assert refusals == ["invalid_request"]
    assert [(task.task_type, task.status) for task in mesh.tasks] == [("execute_dag", "failed"), ("work", "failed")]
    mesh.assert_called("work", 0)


async def test_a_graph_and_what_is_wrong_may_be_delegated_too(mesh: TestMesh) -> None:
    async def lead(payload: dict[str, Any], ctx: TaskContext) -> Any:
        try:
            return await ctx.run("execute_dag", payload, timeout_seconds=60)
        except TaskFailed as failed:
            return failed.code

    mesh.agent("lead", lead)
    mesh.agent("work", 7)
    assert await mesh.run("lead", {"steps": {"a": work()}, "output": "${a}"}) == 7
    assert await mesh.run("lead", {"steps": {}}) == "invalid_workflow"


# -- failures and time ----------------------------------------------------------------------------------------------


async def test_failures_are_retried_after_their_wait(mesh: TestMesh) -> None:
    flaky = TaskFailure("busy", "not now", retryable=True)
    mesh.agent("work", in_turn(flaky, flaky, lambda payload: {"n": payload["n"]}))
    task = mesh.start("execute_dag", {"steps": {"a": work(**{"with": {"n": 1}}, retry={"initial_seconds": 60})}})
    assert await task.result() == {"a": {"n": 1}}
    assert timedelta(seconds=96) <= mesh.now - START <= timedelta(seconds=144)
    assert (task.step("a").attempt, task.step("a").failures) == (3, 2)
    assert [event.name for event in task.events if event.name == "step.retrying"] == ["step.retrying"] * 2
    mesh.assert_called("work", 3)


@pytest.mark.parametrize("seconds", [0.5, 5, 30])
async def test_the_wait_for_an_agent_ends_when_it_is_over_between_two_sweeps_too(seconds: float) -> None:
    """The clock stood still for ever before a moment that was no sweep's."""
    mesh = TestMesh(no_agent_wait_seconds=seconds)
    task = mesh.start("execute_dag", {"steps": {"a": work()}})
    await task.response()
    assert task.assert_failed("no_agent_available").step == "a"
    assert mesh.now - START == timedelta(seconds=seconds)


async def test_an_attempt_that_is_never_responded_to_times_out(mesh: TestMesh) -> None:
    mesh.agent("work", in_turn(NO_ANSWER, 7))
    task = mesh.start("execute_dag", {"steps": {"a": work(timeout="10m")}})
    await mesh.skip("9m")
    task.assert_waits_for("step 'a' is with work_agent ('work', attempt 1)")
    assert await task.result() == {"a": 7}
    assert mesh.now - START > 10 * MINUTE
    mesh.agent("work", NO_ANSWER)
    task = mesh.start("execute_dag", {"steps": {"a": work(timeout=5, retry={"max_attempts": 1})}})
    with pytest.raises(TaskFailed, match="no answer from work_agent within 5 s"):
        await task.result()
    task.assert_failed("timeout", step="a")


async def test_responses_may_come_twice_or_never(mesh: TestMesh) -> None:
    mesh.agent("work", 1, answers=2)
    mesh.agent("lost", 2, answers=0)
    task = mesh.start("execute_dag", {"steps": {"a": work(), "b": {"task": "lost", "on_error": "continue"}}})
    assert await task.result() == {"a": 1, "b": None}
    assert task.steps == {"a": "completed", "b": "failed"}


async def test_any_other_exception_is_an_internal_error_that_is_retried(mesh: TestMesh) -> None:
    mesh.agent("work", in_turn(ValueError("odd"), 1))
    assert await mesh.dag({"a": work()}) == {"a": 1}
    mesh.agent("work", ValueError("odd"))
    task = mesh.start("work")
    assert (await task.response()).status == "failed"
    assert "ValueError: odd" in task.assert_failed("internal_error").message
    mesh.assert_called("work", 2 + 4)


@pytest.mark.parametrize("error", [SystemExit(3), asyncio.CancelledError(), BaseExceptionGroup("two", [SystemExit(1)])])
async def test_what_is_no_exception_is_an_internal_error_too(mesh: TestMesh, error: BaseException) -> None:
    """The attempt had no response, and the test waited for ever."""
    mesh.agent("work", error)
    with pytest.raises(TaskFailed) as failed:
        await mesh.dag({"a": work(retry={"max_attempts": 1})})
    details = failed.value.details
    assert (details["code"], details["retryable"]) == ("internal_error", True)
    assert type(error).__name__ in details["message"]
    mesh.assert_called("work", 1)


async def test_sleeps_and_waits_take_no_real_time(mesh: TestMesh) -> None:
    steps = {
        "nap": {"sleep": "2d"},
        "until": {"until": "'2027-01-01T00:00:00Z'", "needs": ["nap"]},
        "after": work(needs=["until"]),
    }
    mesh.agent("work", 1)
    task = mesh.start("execute_dag", {"steps": steps})
    await mesh.skip("47h")
    task.assert_steps(nap="waiting")
    await mesh.skip("1h")
    task.assert_steps(nap="completed", until="waiting")
    assert (await task.result())["after"] == 1
    assert mesh.now == datetime(2027, 1, 1, tzinfo=UTC)


async def test_a_task_ends_at_its_deadline(mesh: TestMesh) -> None:
    mesh.agent("work", takes="1h")
    task = mesh.start("work", deadline=mesh.now + 30 * MINUTE, timeout_seconds=7200)
    with pytest.raises(TaskFailed) as failed:
        await task.result()
    assert (failed.value.code, mesh.now - START) == ("deadline_exceeded", 30 * MINUTE)
    task.assert_failed("deadline_exceeded")


async def test_without_an_agent_a_step_fails_after_the_wait(mesh: TestMesh) -> None:
    task = mesh.start("execute_dag", {"steps": {"a": work()}})
    task.assert_waits_for("step 'a'", "none serves 'work'")
    await mesh.skip(20)
    mesh.agent("work", 1)
    assert await task.result() == {"a": 1}
    mesh.remove_agent("work_agent")
    with pytest.raises(TaskFailed, match="no agent took 'work' within 30 s: nobody serves 'work'"):
        await mesh.dag({"a": work()})


async def test_an_agent_that_leaves_responses_nothing_more(mesh: TestMesh) -> None:
    mesh.agent("work", 1, takes=10)
    task = mesh.start("execute_dag", {"steps": {"a": work(timeout=60)}})
    await mesh.settle()
    mesh.remove_agent("work_agent")
    await mesh.skip(50)
    assert task.status == "running"
    mesh.agent("work", 2, name="other_agent")
    assert await task.result() == {"a": 2}
    assert task.step("a").agent == "other_agent"


# -- routing --------------------------------------------------------------------------------------------------------


async def test_tasks_are_routed_as_on_a_mesh(mesh: TestMesh) -> None:
    mesh.agent("work", "small", name="small_agent", model="s", tags=("eu",))
    mesh.agent("work", "large", name="large_agent", model="l", tags=("us",))
    steps = {
        "pinned": work(agent="small_agent"),
        "model": work(requires={"model": "l"}),
        "tag": work(requires={"tags": ["eu"]}),
    }
    assert await mesh.dag(steps) == {"pinned": "small", "model": "large", "tag": "small"}
    task = mesh.start("execute_dag", {"steps": {"none": work(requires={"model": "xl"})}})
    task.assert_waits_for("large_agent: its model is 'l', 'xl' is required")
    with pytest.raises(TaskFailed, match="no agent"):
        await task.result()


async def test_a_retry_prefers_another_agent(mesh: TestMesh) -> None:
    mesh.agent("work", TaskFailure("broken", "no", retryable=True), name="bad_agent")
    mesh.agent("work", "well", name="good_agent")
    for _ in range(5):
        assert await mesh.dag({"a": work()}) == {"a": "well"}


async def test_the_same_seed_draws_the_same(mesh: TestMesh) -> None:
    async def one(seed: int) -> list[tuple[str, datetime]]:
        other = TestMesh(seed=seed)
        for name in ("a_agent", "b_agent", "c_agent"):
            other.agent("work", in_turn(ValueError("x"), 1), name=name)
        await other.dag({"all": work(for_each=list(range(12)))})
        return [(call.agent, call.at) for call in other.calls()]

    assert await one(1) == await one(1) != await one(2)


async def test_a_paused_agent_gets_nothing_until_it_is_resumed(mesh: TestMesh) -> None:
    mesh.agent("work", 1)
    mesh.pause(agent="work_agent")
    task = mesh.start("work")
    await mesh.skip("10m")
    task.assert_waits_for("work_agent: it is paused")
    with pytest.raises(Stuck, match="it is paused"):
        await task.result()
    mesh.resume(agent="work_agent")
    assert await task.result() == 1
    mesh.workflow({"name": "flow", "steps": {"a": work()}})
    mesh.pause(workflow="flow")
    task = mesh.start("flow")
    task.assert_waits_for("the workflow 'flow' is paused")
    mesh.resume(workflow="flow")
    assert await task.result() == {"a": 1}


# -- what people do -------------------------------------------------------------------------------------------------


async def test_signals_and_approvals(mesh: TestMesh) -> None:
    mesh.agent("work", lambda payload: payload)
    steps = {
        "go": {"wait_for": {"signal": "go", "schema": {"required": ["n"]}}},
        "ok": {"wait_for": {"approval": "ok", "from": ["anna"], "timeout": "1d"}, "needs": ["go"]},
        "after": work(**{"with": {"n": "${go.n}", "by": "${ok.by}"}}),
    }
    task = mesh.start("execute_dag", {"steps": steps, "output": "${after}"})
    with pytest.raises(Stuck, match="step 'go' waits for the signal 'go' for ever"):
        await task.result()
    with pytest.raises(PantheonError, match='"n" is a required property'):
        await task.signal("go")
    assert await task.signal("go", {"n": 1})
    task.assert_waits_for("waits for the approval 'ok' from anna until 2026-02-01T12:00:00Z")
    with pytest.raises(PantheonError, match="anna, not by bob") as refused:
        await task.approve("ok", by="bob")
    assert refused.value.code == "forbidden"
    waiting_id = task.step("ok").task_id
    with pytest.raises(PantheonError, match="waits for a signal"):
        await task.approve("ok", by="anna", waiting_id=task.task_id)
    assert await task.approve("ok", by="anna", comment="fine", waiting_id=waiting_id)
    assert await task.result() == {"n": 1, "by": "anna"}
    with pytest.raises(PantheonError, match="nothing waits"):
        await task.signal("go", {"n": 2})


async def test_a_signal_may_come_first(mesh: TestMesh) -> None:
    task = mesh.start(
        "execute_dag", {"steps": {"n": {"sleep": 9}, "go": {"wait_for": {"signal": "go"}, "needs": ["n"]}}}
    )
    assert not await task.signal("go", {"a": 1})
    assert (await task.result())["go"] == {"a": 1}


async def test_what_completed_is_compensated_when_a_task_is_cancelled(mesh: TestMesh) -> None:
    mesh.agent("work", lambda payload: payload)
    mesh.agent("long", takes="1h")
    mesh.agent("undo", lambda payload: payload)
    steps = {"a": compensable("a"), "b": compensable("b", needs=["a"]), "c": {"task": "long", "needs": ["b"]}}
    task = mesh.start("execute_dag", {"steps": steps}, timeout_seconds=7200)
    await mesh.skip("10m")
    assert await task.cancel("enough")
    with pytest.raises(TaskCancelled, match="enough"):
        await task.result()
    task.assert_undone("b", "a")
    task.assert_steps(a="completed", c="cancelled")
    assert not await task.cancel()


async def test_a_paused_task_begins_nothing(mesh: TestMesh) -> None:
    mesh.agent("work", 1, takes=60)
    task = mesh.start("execute_dag", {"steps": {"a": work(), "b": work(needs=["a"])}})
    assert await task.pause()
    assert not await task.pause()
    await mesh.skip("1h")
    task.assert_status("paused")
    task.assert_steps(a="completed", b="ready")
    with pytest.raises(Stuck, match="the task is paused"):
        await task.result()
    assert await task.resume()
    assert await task.result() == {"a": 1, "b": 1}


async def test_a_failed_task_is_retried_from_what_failed_and_replayed_from_a_step(mesh: TestMesh) -> None:
    mesh.agent("work", lambda payload: payload)
    mesh.agent("bad", in_turn(TaskFailure("no", "no"), 1))
    steps = {"a": work(**{"with": {"n": "${input.n}"}}), "b": {"task": "bad", "needs": ["a"]}}
    task = mesh.start("execute_dag", {"steps": steps, "input": {"n": 1}})
    await task.response()
    task.assert_failed("no", step="b")
    again = task.retry()
    assert await again.result() == {"a": {"n": 1}, "b": 1}
    assert again.replay_of == task.task_id
    mesh.assert_called("work", 1)
    with pytest.raises(PantheonError, match="only a failed or cancelled one"):
        again.retry()
    assert await again.replay(from_step="a", input={"n": 2}).result() == {"a": {"n": 2}, "b": 1}


# -- the mesh as a whole --------------------------------------------------------------------------------------------


async def test_agents_delegate_into_the_same_tree(mesh: TestMesh) -> None:
    async def lead(payload: dict[str, Any], ctx: Any) -> Any:
        one, two = await asyncio.gather(ctx.run("work", {"n": 1}), ctx.run("flow", {"n": 2}))
        return [one, two]

    mesh.agent("lead", lead)
    mesh.agent("work", lambda payload: payload["n"], takes="1m")
    mesh.workflow({"name": "flow", "steps": {"w": work(**{"with": "${input}"})}, "output": "${w}"})
    task = mesh.start("execute_dag", {"steps": {"do": {"task": "lead"}}})
    assert await task.result() == {"do": [1, 2]}
    assert mesh.now == START + MINUTE
    assert [view.role for view in task.history].count("delegated") == 2
    assert len(mesh.tasks) == 1


async def test_a_retried_attempt_gets_the_outcome_of_what_the_first_one_delegated(mesh: TestMesh) -> None:
    async def lead(payload: dict[str, Any], ctx: Any) -> Any:
        n = await ctx.run("work")
        if ctx.attempt == 1:
            raise TaskFailure("later", "later", retryable=True)
        return n

    mesh.agent("lead", lead)
    mesh.agent("work", in_turn(1, 2))
    assert await mesh.dag({"do": {"task": "lead"}}) == {"do": 1}
    mesh.assert_called("work", 1)


async def test_schedules_start_tasks_when_it_is_time(mesh: TestMesh) -> None:
    mesh.agent("work", lambda payload: payload)
    schedule = {"cron": "0 3 * * *", "timezone": "Europe/Berlin", "input": {"n": 1}}
    mesh.workflow({"name": "nightly", "schedule": schedule, "steps": {"w": work(**{"with": "${input}"})}})
    await mesh.skip("3d")
    assert [task.metadata["scheduled_for"] for task in mesh.tasks] == [
        f"2026-02-0{day}T03:00:00+01:00" for day in (1, 2, 3)
    ]
    assert [call.payload for call in mesh.calls("work")] == [{"n": 1}] * 3
    assert {task.status for task in mesh.tasks} == {"completed"}


@pytest.mark.parametrize(("catch_up", "started"), [("all", 3), ("last", 1), ("none", 0)])
async def test_an_outage_is_made_up_for_as_the_schedule_says(mesh: TestMesh, catch_up: str, started: int) -> None:
    mesh.agent("work")
    mesh.workflow({"name": "daily", "schedule": {"cron": "0 3 * * *", "catch_up": catch_up}, "steps": {"w": work()}})
    await mesh.outage("3d")
    assert len(mesh.tasks) == started


async def test_overdue_timers_fire_after_an_outage(mesh: TestMesh) -> None:
    mesh.agent("work", 1)
    task = mesh.start("execute_dag", {"steps": {"nap": {"sleep": "1h"}, "w": work(needs=["nap"])}})
    await mesh.outage("5h")
    assert task.status == "completed"
    assert mesh.now == START + 5 * HOUR


async def test_tasks_of_a_key_take_turns(mesh: TestMesh) -> None:
    def key(when_full: str) -> dict[str, Any]:
        keyed = {"group_by": "input.user", "max": 1, "when_full": when_full}
        return {"name": when_full, "concurrency": keyed, "steps": {"w": work()}}

    mesh.agent("work", takes="1m")
    mesh.workflow(key("queue"))
    mesh.workflow(key("cancel_older"))
    tasks = [mesh.start("queue", {"user": user}) for user in ("a", "a", "b")]
    await mesh.settle()
    assert [task.status for task in tasks] == ["running", "waiting", "running"]
    tasks[1].assert_waits_for("its turn")
    await tasks[1].result()
    assert mesh.now == START + 2 * MINUTE
    older, newer = (mesh.start("cancel_older", {"user": "a"}) for _ in range(2))
    assert (await older.response()).status == "cancelled"
    assert (await newer.response()).status == "completed"


async def test_a_second_task_of_an_idempotency_key_ends_as_the_first(mesh: TestMesh) -> None:
    mesh.agent("work", in_turn(1, 2), takes="1m")
    first = mesh.start("work", idempotency_key="k")
    second = mesh.start("work", idempotency_key="k")
    assert second.duplicate_of == first.task_id
    second.assert_waits_for(str(first.task_id))
    assert await second.result() == 1
    third = mesh.start("work", idempotency_key="k")
    assert await third.result() == 1
    assert mesh.start("work", task_id=first.task_id).task_id == first.task_id


async def test_an_orchestrator_that_dies_changes_nothing(mesh: TestMesh) -> None:
    mesh.agent("work", lambda payload: payload, takes="1m")
    steps = {"a": work(for_each=[1, 2, 3], concurrency=1, **{"with": {"n": "${item}"}}), "nap": {"sleep": "90s"}}
    task = mesh.start("execute_dag", {"steps": steps, "output": "${a.map(x, x.n)}"})
    while task.status == "running":
        mesh.restart()
        await mesh.skip("20s")
    assert await task.result() == [1, 2, 3]
    assert task.step("a[2]").payload == {"n": 3}


async def test_workflows_come_from_files_text_and_objects(mesh: TestMesh, tmp_path: Path) -> None:
    mesh.agent("work", 1)
    file = tmp_path / "from_file.yaml"
    file.write_text("steps: {a: {task: work}}")
    assert mesh.workflow(file) == "from_file"
    assert mesh.workflow("name: from_text\nsteps: {a: {task: work}}") == "from_text"
    assert mesh.workflow({"steps": {"a": work()}}, name="from_object") == "from_object"
    for name in ("from_file", "from_text", "from_object"):
        assert await mesh.run(name) == {"a": 1}
    with pytest.raises(InvalidWorkflow, match="workflow:2:13: a step has no 'tusk'"):
        mesh.workflow("name: x\nsteps: {a: {tusk: work}}")


async def test_a_key_that_would_do_nothing_on_a_workflow_is_refused_when_that_is_known(mesh: TestMesh) -> None:
    """It was ignored: `retry` of a step whose task turned out to be a workflow retried nothing."""
    mesh.agent("work", 1)
    retried = {"steps": {"a": {"task": "later", "retry": {"max_attempts": 2}}}}
    mesh.workflow(retried, name="outer")
    mesh.workflow({"steps": {"a": work()}}, name="later")
    with pytest.raises(TaskFailed, match="'retry' would do nothing, as 'later' is a workflow") as failed:
        await mesh.run("outer")
    assert failed.value.code == "invalid_workflow"
    with pytest.raises(TaskFailed, match="would do nothing"):
        await mesh.run("execute_dag", retried)
    assert not mesh.calls()


async def test_assertions_say_what_is(mesh: TestMesh) -> None:
    mesh.agent("work", 1)
    task = mesh.start("execute_dag", {"steps": {"a": work(), "go": {"wait_for": {"signal": "go"}}}})
    await mesh.settle()
    with pytest.raises(AssertionError, match=r"is not completed:\n.*\n  step 'go' waits for the signal 'go'"):
        task.assert_status("completed")
    with pytest.raises(AssertionError, match="'a' is completed, not failed"):
        task.assert_steps(a="failed")
    with pytest.raises(AssertionError, match=r"there is no step 'b'.*there is a, go"):
        task.step("b")
    with pytest.raises(AssertionError, match="undone was nothing, not a"):
        task.assert_undone("a")
    with pytest.raises(AssertionError, match="asked for 1 times, not 2 times; asked for was work"):
        mesh.assert_called("work", 2)
    with pytest.raises(AssertionError, match="does not wait for 'x'"):
        task.assert_waits_for("x")
    with pytest.raises(Stuck, match="has not ended within 60"):
        await mesh.start("execute_dag", {"steps": {"nap": {"sleep": "1h"}}}).result(within=60)


async def test_the_built_in_workflows_are_there(mesh: TestMesh) -> None:
    mesh.agent(
        "generate_content",
        {"title": "T", "markdown": "# T", "summary": "s", "citations": [], "offline": True, "model": None},
    )
    mesh.agent("summarize_content", {"summary": "s", "key_points": [], "offline": True, "model": None})
    mesh.agent("enhance_content", {"markdown": "# T", "changes": [], "readability": {}, "offline": True, "model": None})
    mesh.agent(
        "review_content",
        {"verdict": "approve", "score": 90, "issues": [], "summary": "s", "offline": True, "model": None},
    )
    mesh.agent("export_document", {"files": []})
    mesh.agent("publish_content", {"publications": [{"channel": "site", "status": "created", "url": "x"}]})
    task = mesh.start("create_blog_post", {"topic": "AI ethics", "sources": [{"text": "one", "title": "One"}]})
    await task.response()
    task.assert_status("completed")
