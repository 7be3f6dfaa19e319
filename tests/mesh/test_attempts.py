"""Attempts on a real mesh: retries, timeouts, cancels, delegation, replay, usage."""

import asyncio
import json
import uuid
from contextlib import AsyncExitStack
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from nats.aio.msg import Msg

from orchestrator_agent.parts import Tuning
from orchestrator_agent.service import load_library, orchestrator
from pantheon import Agent, Mesh, TaskCancelled, TaskContext, TaskFailed
from pantheon.client.mesh import result_of
from pantheon.process.agent_process import AgentProcess
from pantheon.runtime.settings import MeshSettings
from protocol.errors import NotAccepted, PantheonError
from protocol.messages import now
from tests.mesh.agents import Seen, orchestrator_process, rows, words_agent
from tests.mesh.conftest import PlainClient
from tests.mesh.cut_line import CutLine
from tests.waiting import PATIENCE_SECONDS, until

QUICK = {"initial_seconds": 0.05, "max_seconds": 0.1}


async def test_a_failed_attempt_is_retried_with_the_same_key_until_it_succeeds(
    words: AgentProcess, mesh: Mesh, seen: Seen, settings: MeshSettings
) -> None:
    dag = {"steps": {"try": {"task": "flaky", "with": {"failures": 2}, "retry": QUICK}}, "output": "${try}"}
    task_id = await mesh.submit("execute_dag", dag)
    response = await mesh.wait(task_id)
    assert response.result["attempt"] == 3
    assert [attempt for name, _, attempt in seen.calls if name == "flaky"] == [1, 2, 3]
    row = (await rows(settings, "select attempt, failures from tasks where step = 'try'"))[0]
    assert (row["attempt"], row["failures"]) == (3, 2)
    tree = (await mesh.query("task", {"task_id": str(task_id)}))["tasks"]
    key = f"{task_id}:{next(one['task_id'] for one in tree if one.get('step') == 'try')}"
    assert response.result["key"] == key


async def test_max_attempts_bounds_the_retries(words: AgentProcess, mesh: Mesh, seen: Seen) -> None:
    dag = {"steps": {"try": {"task": "flaky", "with": {"failures": 9}, "retry": {**QUICK, "max_attempts": 2}}}}
    with pytest.raises(TaskFailed) as failed:
        await mesh.run("execute_dag", dag)
    assert failed.value.code == "step_failed"
    assert failed.value.response.error.details["code"] == "not_yet"
    assert seen.count("flaky") == 2


async def test_an_error_that_is_not_retryable_is_not_retried(words: AgentProcess, mesh: Mesh, seen: Seen) -> None:
    with pytest.raises(TaskFailed):
        await mesh.run("refuse", {})
    assert seen.count("refuse") == 1


async def test_an_attempt_that_takes_too_long_is_stopped_and_tried_again(
    words: AgentProcess, mesh: Mesh, seen: Seen
) -> None:
    # Time enough to reach the handler: an attempt may also run out on its way to it.
    step = {"task": "sleep", "with": {"seconds": 300}, "timeout": 3, "retry": {**QUICK, "max_attempts": 2}}
    with pytest.raises(TaskFailed) as failed:
        await mesh.run("execute_dag", {"steps": {"long": step}}, wait_seconds=PATIENCE_SECONDS)
    assert failed.value.response.error.details["code"] == "timeout"
    assert seen.count("sleep") == 2
    await until(lambda: not words.worker.active, "the handler's end")


async def test_an_agent_that_answers_nothing_costs_one_attempt(
    orchestrated: AgentProcess, mesh: Mesh, plain: PlainClient, settings: MeshSettings
) -> None:
    """The registered agent never pulls: the orchestrator's own clock ends the attempt."""
    record = {"protocol": 1, "name": "mute_agent", "instance_id": "m1", "task_types": ["nothing"], "max_concurrency": 1}
    bucket = await plain.connection.jetstream().key_value("agents")
    await bucket.put("mute_agent.m1", json.dumps({**record, "version": "1.0.0", "status": "ready"}).encode())
    step = {"task": "nothing", "timeout": 1, "retry": {"max_attempts": 1}}
    with pytest.raises(TaskFailed) as failed:
        await mesh.run("execute_dag", {"steps": {"mute": step}}, wait_seconds=PATIENCE_SECONDS)
    assert failed.value.response.error.details["code"] == "timeout"
    assert "mute_agent" in failed.value.message


async def mute_agent(plain: PlainClient) -> None:
    """One that is registered, and does what the test does for it."""
    await plain.overhear("mute_agent")
    record = {"protocol": 1, "name": "mute_agent", "instance_id": "m1", "task_types": ["nothing"], "max_concurrency": 9}
    bucket = await plain.connection.jetstream().key_value("agents")
    await bucket.put("mute_agent.m1", json.dumps(record).encode())


async def test_of_two_answers_to_one_attempt_the_first_counts_whatever_came_with_it(
    orchestrated: AgentProcess, plain: PlainClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that arrived with an answer that could not be read was overtaken while that one became a dead letter."""
    letters = asyncio.Event()

    async def write_letter(*_: Any) -> None:
        await letters.wait()

    monkeypatch.setattr("orchestrator_agent.runtime.responses.publish_dead_letter", write_letter)
    await mute_agent(plain)
    ids = [await plain.send("nothing"), await plain.send("nothing")]
    await plain.until(lambda: len(plain.overheard) == 2)
    attempts = {one["root_task_id"]: one["task_id"] for one, _ in plain.overheard}

    async def answer(root_task_id: str, **fields: Any) -> None:
        known = {"task_id": attempts[root_task_id], "root_task_id": root_task_id, "attempt": 1, "agent": "mute_agent"}
        body = json.dumps({**known, **fields})
        await plain.connection.publish("agent.mute_agent.response", body.encode())

    await answer(ids[0], status="nonsense")
    await answer(ids[1], status="completed", result="first")
    await plain.connection.flush()
    await answer(ids[1], status="failed", error={"code": "second", "message": "not the first"})
    assert (await plain.answer(ids[1]))["result"] == "first"
    assert (await plain.answer(ids[0]))["error"]["details"]["code"] == "invalid_response"
    letters.set()


@pytest.mark.parametrize("tuning", [Tuning(cancel_again_seconds=())], ids=[""])
async def test_an_order_to_stop_is_given_again_as_long_as_a_heartbeat_shows_the_attempt(
    tuning: Tuning, orchestrated: AgentProcess, plain: PlainClient
) -> None:
    """It was given three times within six seconds: an agent that was cut off for longer worked on."""
    orders: list[dict[str, Any]] = []

    async def hear(message: Msg) -> None:
        orders.append(json.loads(message.data))

    await plain.connection.subscribe("agent.mute_agent.control", cb=hear)
    await mute_agent(plain)
    task_id = await plain.send("nothing")
    await plain.until(lambda: plain.overheard)
    attempt = {"task_id": plain.overheard[0][0]["task_id"], "attempt": 1}
    assert (await plain.ask("mesh.cancel", {"task_id": task_id}))["result"]["changed"] is True
    await until(lambda: len(orders) == 1, "the order")

    async def beat(*running: dict[str, Any]) -> None:
        heartbeat = {"agent": "mute_agent", "instance_id": "m1", "active": len(running), "max_concurrency": 9}
        body = json.dumps({**heartbeat, "running": running, "at": now().isoformat()})
        await plain.connection.publish("agent.mute_agent.heartbeat", body.encode())

    async with asyncio.timeout(PATIENCE_SECONDS):
        # The first ones may come before the orchestrator listens.
        while len(orders) < 3:
            await beat({**attempt, "attempt": 2}, {**attempt, "task_id": str(uuid.uuid4())})
            await beat(attempt)
            await asyncio.sleep(0.1)
    assert [{name: order[name] for name in ("command", *attempt)} for order in orders] == [
        {"command": "cancel", **attempt}
    ] * len(orders)
    assert {order["instance_id"] for order in orders[1:]} == {"m1"}


async def test_an_attempt_that_was_given_up_is_stopped_though_the_orchestrator_that_did_so_died(
    settings: MeshSettings, mesh: Mesh, plain: PlainClient, seen: Seen
) -> None:
    """Orders to stop are in memory: the next orchestrator knew of none, and the agent worked on to its end."""
    gate = seen.gates["echo"] = asyncio.Event()
    async with (
        CutLine(settings.nats_url).listening() as line,
        AgentProcess(words_agent(seen), settings.model_copy(update={"nats_url": line.url})) as agent,
    ):
        async with orchestrator_process(settings):
            unwanted, wanted = [await mesh.submit("echo", {"n": number}) for number in range(2)]
            await seen.until_called("echo", 2)
            line.refuse()
            assert (await mesh.cancel(unwanted))["changed"] is True
        await line.restore()
        # What is not in the database is somebody else's own.
        foreign = {"task_id": str(uuid.uuid4()), "task_type": "echo", "payload": {"n": 2}}
        await plain.connection.publish("agent.words_agent.task", json.dumps(foreign).encode())
        await seen.until_called("echo", 3)
        async with orchestrator(settings, load_library([])):
            await until(lambda: len(agent.worker.running) == 2, "the end of what nobody wants")
            assert str(unwanted) not in {str(one.root_task_id) for one in agent.worker.running}
            gate.set()
            assert (await mesh.wait(wanted)).result == {"n": 1}


@pytest.mark.parametrize(("roots", "orchestrators"), [(1, 1), (12, 2)])
async def test_an_agent_gives_tasks_to_itself_however_few_its_places(
    settings: MeshSettings, mesh: Mesh, roots: int, orchestrators: int
) -> None:
    """Its places, and those that it has in the broker, were taken by attempts that waited for what only a free place
    could bring: all of it waited until its timeout."""
    agent = Agent("nesting_agent", max_concurrency=1)
    at_work = most = 0

    @agent.task("nest")
    async def nest(task: dict[str, Any], ctx: TaskContext) -> dict[str, Any]:
        nonlocal at_work, most
        counts = [1]
        if task["depth"]:
            below = {"depth": task["depth"] - 1}
            results = await asyncio.gather(*(ctx.run("nest", below) for _ in range(2)))
            counts += [one["count"] for one in results]
        # Waiting is free; work is not.
        at_work += 1
        most = max(most, at_work)
        await asyncio.sleep(0.01)
        at_work -= 1
        return {"count": sum(counts)}

    async with AsyncExitStack() as stack:
        for _ in range(orchestrators):
            await stack.enter_async_context(orchestrator(settings, load_library([])))
        await stack.enter_async_context(AgentProcess(agent, settings))
        asked = [mesh.run("nest", {"depth": 2}, wait_seconds=PATIENCE_SECONDS) for _ in range(roots)]
        assert await asyncio.gather(*asked) == [{"count": 7}] * roots
    assert most == 1


async def test_a_deadline_stops_everything_that_runs(words: AgentProcess, mesh: Mesh, seen: Seen) -> None:
    request = mesh.request("sleep", {"seconds": 300}, deadline=now() + timedelta(seconds=2))
    await mesh.submit(request)
    response = await mesh.wait(request.task_id, timeout_seconds=PATIENCE_SECONDS)
    assert response.error is not None
    assert response.error.code == "deadline_exceeded"
    await until(lambda: not words.worker.active, "the handler's end")


async def test_a_control_message_to_the_orchestrator_cancels_a_task(
    words: AgentProcess, mesh: Mesh, plain: PlainClient, seen: Seen
) -> None:
    task_id = await mesh.submit("sleep", {"seconds": 300})
    await seen.until_called("sleep")
    order = {"command": "cancel", "task_id": str(task_id), "reason": "not wanted"}
    await plain.connection.publish("agent.orchestrator_agent.control", json.dumps(order).encode())
    response = await mesh.wait(task_id, timeout_seconds=PATIENCE_SECONDS)
    assert response.status == "cancelled"
    assert response.error is not None
    assert (response.error.code, response.error.message) == ("cancelled", "not wanted")
    await until(lambda: not words.worker.active, "the handler's end")
    with pytest.raises(TaskCancelled):
        result_of(response)


async def test_a_failed_step_stops_its_siblings(words: AgentProcess, mesh: Mesh, settings: MeshSettings) -> None:
    steps = {"slow": {"task": "sleep", "with": {"seconds": 300}}, "bad": {"task": "refuse"}}
    with pytest.raises(TaskFailed):
        await mesh.run("execute_dag", {"steps": steps}, wait_seconds=PATIENCE_SECONDS)
    found = await rows(settings, "select step, status from tasks where step is not null")
    assert {row["step"]: row["status"] for row in found} == {"slow": "cancelled", "bad": "failed"}


async def test_a_task_waits_for_an_agent_that_starts_late(settings: MeshSettings, mesh: Mesh, seen: Seen) -> None:
    patient = settings.model_copy(update={"no_agent_wait_seconds": PATIENCE_SECONDS})

    async def ready() -> bool:
        return bool(await rows(settings, "select 1 from tasks where status = 'ready'"))

    async with orchestrator(patient, load_library([])):
        running = asyncio.create_task(mesh.run("uppercase", {"text": "late"}))
        await until(ready, "the step that waits")
        async with AgentProcess(words_agent(seen), settings):
            assert await running == {"text": "LATE"}


async def test_replay_reuses_what_completed_before_the_step(
    words: AgentProcess, mesh: Mesh, seen: Seen, settings: MeshSettings
) -> None:
    dag = {
        "input": {"text": "a"},
        "steps": {
            "one": {"task": "uppercase", "with": {"text": "${input.text}"}},
            "two": {"task": "repeat", "with": {"text": "${one.text}", "times": 2}},
            "side": {"task": "echo", "with": {"x": 1}},
            "three": {"task": "echo", "with": {"all": "${two.text}"}},
        },
        "output": "${three.all}",
    }
    old = await mesh.submit("execute_dag", dag)
    assert (await mesh.wait(old)).result == "AA"
    seen.calls.clear()
    new = await mesh.submit("mesh.replay", {"task_id": str(old), "from": "two"})
    assert (await mesh.wait(new)).result == "AA"
    assert [name for name, _, _ in seen.calls] == ["repeat", "echo"]
    root = (await rows(settings, "select replay_of, task_type from tasks where task_id = $1", new))[0]
    assert (root["replay_of"], root["task_type"]) == (old, "execute_dag")
    seen.calls.clear()
    assert await mesh.run("mesh.replay", {"task_id": str(new)}) == "AA"
    assert sorted(name for name, _, _ in seen.calls) == ["echo", "echo", "repeat", "uppercase"]
    with pytest.raises(TaskFailed, match="there is no step 'nowhere'"):
        await mesh.run("mesh.replay", {"task_id": str(old), "from": "nowhere"})
    with pytest.raises(TaskFailed, match="there is no task"):
        await mesh.run("mesh.replay", {"task_id": str(uuid.uuid4())})
    with pytest.raises(TaskFailed, match="must be the id of a task"):
        await mesh.run("mesh.replay", {})


async def test_a_failed_task_is_replayed_from_its_failed_step(words: AgentProcess, mesh: Mesh, seen: Seen) -> None:
    dag = {
        "steps": {
            "good": {"task": "echo", "with": {"x": 1}},
            "bad": {"task": "flaky", "with": {"failures": 1, "x": "${good.x}"}, "retry": {"max_attempts": 1}},
        }
    }
    old = await mesh.submit("execute_dag", dag)
    assert (await mesh.wait(old)).status == "failed"
    seen.calls.clear()
    response = await mesh.wait(await mesh.submit("mesh.replay", {"task_id": str(old), "from": "bad"}))
    assert [name for name, _, _ in seen.calls] == ["flaky"]
    assert response.status == "failed"


async def test_what_names_a_tree_that_takes_nothing_is_answered(
    words: AgentProcess, plain: PlainClient, seen: Seen
) -> None:
    """It was dropped without a word, however often it was sent."""
    gate = seen.gates["uppercase"] = asyncio.Event()
    running = await plain.submit("uppercase", {"text": "a"})
    await seen.until_called("uppercase")
    gate.set()
    await plain.answer(running)
    for root, parent in ((running, running), (running, str(uuid.uuid4()))):
        task_id = await plain.send("echo", {}, root_task_id=root, parent_task_id=parent)
        error = (await plain.answer(task_id))["error"]
        assert (error["code"], error["details"]["field"]) == ("invalid_request", "parent_task_id")
        await plain.send("echo", {}, task_id=task_id, root_task_id=root, parent_task_id=parent)
        await plain.until(partial(_answered_twice, plain, task_id))
        assert len(set(plain.responses[task_id])) == 1
    assert seen.count("echo") == 0


def _answered_twice(plain: PlainClient, task_id: str) -> bool:
    return len(plain.responses[task_id]) == 2


async def test_a_child_is_answered_again_when_its_tree_has_ended(
    words: AgentProcess, plain: PlainClient, seen: Seen
) -> None:
    gate = seen.gates["uppercase"] = asyncio.Event()
    await plain.overhear("words_agent")
    root = await plain.submit("uppercase", {"text": "a"})
    await plain.until(lambda: plain.overheard)
    given = {"root_task_id": root, "parent_task_id": plain.overheard[0][0]["task_id"]}
    child = await plain.send("echo", {"n": 1}, **given)
    assert (await plain.answer(child))["root_task_id"] == root
    gate.set()
    await plain.answer(root)
    await plain.send("echo", {"n": 1}, task_id=child, **given)
    await plain.until(partial(_answered_twice, plain, child))
    assert len(set(plain.responses[child])) == 1
    assert seen.count("echo") == 1


async def test_an_agent_delegates_from_inside_a_task_and_usage_adds_up(
    words: AgentProcess, settings: MeshSettings, mesh: Mesh, seen: Seen
) -> None:
    agent = Agent("boss_agent")
    delegated: list[str] = []

    @agent.on_delegation
    async def note(ctx: TaskContext, request: Any) -> None:
        delegated.append(request.task_type)

    @agent.task("lead")
    async def lead(task: dict[str, Any], ctx: TaskContext) -> dict[str, Any]:
        ctx.report_usage(input_tokens=3, output_tokens=1, cost_usd=0.5)
        loud = await ctx.run("uppercase", {"text": task["text"]})
        if ctx.attempt == 1:
            raise RuntimeError("dies after delegating")
        return {"loud": loud["text"], "attempt": ctx.attempt}

    async with AgentProcess(agent, settings):
        dag = {"steps": {"do": {"task": "lead", "with": {"text": "x"}, "retry": QUICK}}, "output": "${do}"}
        response = await mesh.wait(await mesh.submit("execute_dag", dag))
    assert response.result == {"loud": "X", "attempt": 2}
    assert delegated == ["uppercase", "uppercase"]
    assert seen.count("uppercase") == 1
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.cost_usd) == (6, 1.0)


async def test_progress_and_steps_can_be_watched(words: AgentProcess, mesh: Mesh, seen: Seen) -> None:
    gate = seen.gates["sleep"] = asyncio.Event()
    task_id = await mesh.submit("execute_dag", {"steps": {"nap": {"task": "sleep", "with": {"seconds": 0.05}}}})
    kinds: list[str] = []
    messages: list[tuple[str, str, float]] = []
    async for one in mesh.watch(task_id, on_listening=gate.set):
        kinds.append(one.kind)
        if one.kind == "progress":
            messages.append((one.data["step"], one.data["message"], one.data["percent"]))
    assert messages == [("nap", "half way", 50.0)]
    assert kinds[-2:] == ["step.completed", "task.completed"]
    assert (await mesh.wait(task_id)).status == "completed"


async def test_who_stops_watching_leaves_nothing_waiting(words: AgentProcess, mesh: Mesh, seen: Seen) -> None:
    """What waited for the next event was left pending: "Task was destroyed", some time later."""
    gate = seen.gates["sleep"] = asyncio.Event()
    task_id = await mesh.submit("execute_dag", {"steps": {"nap": {"task": "sleep", "with": {"seconds": 0.05}}}})
    before = asyncio.all_tasks()
    listening = asyncio.Event()

    async def watch() -> None:
        async for _ in mesh.watch(task_id, on_listening=listening.set):
            pass

    watching = asyncio.create_task(watch(), name="the watcher")
    await listening.wait()
    parts = ("Queue.get", "_until_ended")

    def waiting() -> list[str]:
        new = asyncio.all_tasks() - before
        return [name for one in new if (name := getattr(one.get_coro(), "__qualname__", "")).endswith(parts)]

    await until(lambda: len(waiting()) == 2, "a watcher that waits for an event and for the end")
    watching.cancel()
    await asyncio.wait({watching})
    assert waiting() == []
    gate.set()
    assert (await mesh.wait(task_id)).status == "completed"


async def test_nobody_accepts_without_an_orchestrator(broker: Any) -> None:
    async with Mesh(broker.url) as mesh:
        with pytest.raises(NotAccepted, match="is an orchestrator running"):
            await mesh.submit("uppercase", {"text": "x"}, accept_seconds=1.5)


async def test_a_wrong_address_is_one_clear_line() -> None:
    with pytest.raises(PantheonError, match=r"no NATS server answers at nats://127\.0\.0\.1:1") as raised:
        async with Mesh("nats://127.0.0.1:1", connect_seconds=0.5):
            pass
    assert "\n" not in str(raised.value)


async def test_a_payload_that_the_mesh_does_not_carry_fails_with_both_numbers(
    settings: MeshSettings, seen: Seen, mesh: Mesh
) -> None:
    small = settings.model_copy(update={"max_payload_bytes": 1024 * 1024})
    async with orchestrator(small, load_library([])), AgentProcess(words_agent(seen), settings):
        dag = {
            "steps": {
                "grow": {"for_each": list(range(60)), "task": "repeat", "with": {"text": "x" * 1000, "times": 200}},
            }
        }
        with pytest.raises(TaskFailed) as failed:
            await mesh.run("execute_dag", dag)
    error = failed.value.response.error
    assert error.code == "too_large"
    assert error.details["size_bytes"] > error.details["limit_bytes"] > 0
