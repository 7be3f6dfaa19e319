"""The control flow on a real mesh: waits, signals, fallbacks, compensation, pauses, budgets, turns, schedules."""

import asyncio
import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator_agent.service import load_library, orchestrator
from pantheon import Agent, Mesh, TaskContext, TaskFailed
from pantheon.client.mesh import result_of
from pantheon.process.agent_process import AgentProcess
from pantheon.runtime.settings import MeshSettings
from protocol.messages import now
from tests.mesh.agents import Seen, registry_of, rows, words_agent
from tests.mesh.conftest import PlainClient
from tests.waiting import PATIENCE_SECONDS, until

QUICK = {"initial_seconds": 0.05, "max_seconds": 0.1, "max_attempts": 1}


async def until_row(settings: MeshSettings, query: str, *arguments: Any) -> Any:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not (found := await rows(settings, query, *arguments)):  # noqa: ASYNC110 - a row has no event
            await asyncio.sleep(0.03)
    return found[0]


async def test_a_step_sleeps_and_another_waits_for_a_time(words: AgentProcess, mesh: Mesh) -> None:
    started = now()
    wake = (started + timedelta(seconds=0.5)).isoformat()
    steps = {
        "nap": {"sleep": "300ms"},
        "dream": {"until": "input.wake"},
        "after": {"task": "echo", "with": {"woke": "${dream.at}"}, "needs": ["nap"]},
    }
    result = await mesh.run("execute_dag", {"input": {"wake": wake}, "steps": steps, "output": "${after.woke}"})
    assert (now() - started).total_seconds() >= 0.4
    assert result[:19] == wake[:19]


async def test_a_signal_ends_the_wait_for_it_also_when_it_came_first(
    words: AgentProcess, mesh: Mesh, seen: Seen, settings: MeshSettings
) -> None:
    gate = seen.gates["uppercase"] = asyncio.Event()
    steps = {
        "first": {"task": "uppercase", "with": {"text": "x"}},
        "go": {"wait_for": {"signal": "go", "schema": {"required": ["n"]}}, "needs": ["first"]},
        "after": {"task": "echo", "with": {"n": "${go.n}"}},
    }
    early = await mesh.submit("execute_dag", {"steps": steps, "output": "${after.n}"})
    told = await mesh.run("mesh.signal", {"task_id": str(early), "signal": "go", "payload": {"n": 1}})
    assert told == {"task_id": str(early), "signal": "go", "taken": False}
    gate.set()
    assert (await mesh.wait(early)).result == 1
    late = await mesh.submit("execute_dag", {"steps": steps, "output": "${after.n}"})
    await until_row(settings, "select 1 from tasks where root_task_id = $1 and step = 'go'", late)
    with pytest.raises(TaskFailed, match='"n" is a required property') as failed:
        await mesh.run("mesh.signal", {"task_id": str(late), "signal": "go", "payload": {}})
    assert failed.value.code == "invalid_request"
    assert (await mesh.run("mesh.signal", {"task_id": str(late), "signal": "go", "payload": {"n": 2}}))["taken"]
    assert (await mesh.wait(late)).result == 2
    with pytest.raises(TaskFailed, match="completed"):
        await mesh.run("mesh.signal", {"task_id": str(late), "signal": "go", "payload": {"n": 3}})


async def test_a_signal_whose_operation_begins_again_after_the_tasks_end_was_given(
    words: AgentProcess, mesh: Mesh, settings: MeshSettings
) -> None:
    """The process died after it had given the signal, and before it had noted so: the operation had failed."""
    task_id = await mesh.submit("execute_dag", {"steps": {"go": {"wait_for": {"signal": "go"}}}})
    await until_row(settings, "select 1 from tasks where root_task_id = $1 and step = 'go'", task_id)
    operation = mesh.request("mesh.signal", {"task_id": str(task_id), "signal": "go"})
    await mesh.submit(operation)
    assert (await mesh.wait(operation.task_id)).status == "completed"
    assert (await mesh.wait(task_id)).status == "completed"
    await until_row(settings, "select 1 from tasks where task_id = $1 and answered_at is not null", operation.task_id)
    await rows(
        settings,
        "update tasks set status = 'running', version = version + 1, result = null, completed_at = null, "
        "answered_at = null where task_id = $1",
        operation.task_id,
    )
    await until_row(settings, "select 1 from tasks where task_id = $1 and completed_at is not null", operation.task_id)
    found = (await rows(settings, "select status, result from tasks where task_id = $1", operation.task_id))[0]
    assert found["status"] == "completed"
    assert json.loads(found["result"])["taken"]


async def test_only_those_named_may_approve(words: AgentProcess, settings: MeshSettings) -> None:
    steps = {
        "ok": {"wait_for": {"approval": "release", "from": ["anna"]}},
        "after": {"task": "echo", "with": {"by": "${ok.by}", "approved": "${ok.approved}"}},
    }
    async with Mesh(settings.nats_url, requester="bob") as bob, Mesh(settings.nats_url, requester="anna") as anna:
        task_id = await bob.submit("execute_dag", {"steps": steps, "output": "${after}"})
        await until_row(settings, "select 1 from tasks where root_task_id = $1 and step = 'ok'", task_id)
        with pytest.raises(TaskFailed, match="anna, not by bob") as failed:
            await bob.run("mesh.approve", {"task_id": str(task_id), "approval": "release"})
        assert failed.value.code == "forbidden"
        await anna.run("mesh.approve", {"task_id": str(task_id), "approval": "release", "approved": False})
        assert (await bob.wait(task_id)).result == {"by": "anna", "approved": False}


async def test_a_wait_that_nobody_ends_times_out(words: AgentProcess, mesh: Mesh) -> None:
    wait: dict[str, Any] = {"signal": "never", "timeout": 0.3}
    with pytest.raises(TaskFailed, match="nobody gave 'never'") as failed:
        await mesh.run("execute_dag", {"steps": {"w": {"wait_for": wait}}})
    assert failed.value.code == "timeout"
    steps = {"w": {"wait_for": {**wait, "on_timeout": "continue"}}}
    assert await mesh.run("execute_dag", {"steps": steps}) == {"w": None}


async def test_a_failed_step_falls_back_or_is_borne(words: AgentProcess, mesh: Mesh) -> None:
    steps = {
        "task": {"task": "refuse", "fallback": {"task": "echo", "with": {"why": "${error.code}"}}},
        "literal": {"task": "refuse", "fallback": {"result": {"default": "${input.d}"}}},
        "borne": {"task": "refuse", "on_error": "continue"},
        "items": {
            "for_each": [1, 2],
            "task": "refuse",
            "with": {"n": "${item}"},
            "fallback": {"result": "${item * 10}"},
        },
        "after": {"task": "echo", "with": {"borne": "${borne}"}},
    }
    result = await mesh.run("execute_dag", {"input": {"d": 7}, "steps": steps})
    assert result == {
        "task": {"why": "no_way"},
        "literal": {"default": 7},
        "borne": None,
        "items": [10, 20],
        "after": {"borne": None},
    }


async def test_what_completed_is_undone_in_reverse_when_the_workflow_fails(
    words: AgentProcess, mesh: Mesh, seen: Seen
) -> None:
    def undoable(name: str, **more: Any) -> dict[str, Any]:
        undo = {"task": "echo", "with": {"undo": name, "was": "${result.do}"}}
        return {"task": "echo", "with": {"do": name}, "compensate": undo, **more}

    steps = {
        "a": undoable("a"),
        "sub": {"needs": ["a"], "steps": {"inner": undoable("inner")}},
        "c": undoable("c", needs=["sub"]),
        "bad": {"task": "refuse", "needs": ["c"]},
    }
    with pytest.raises(TaskFailed) as failed:
        await mesh.run("execute_dag", {"steps": steps}, wait_seconds=PATIENCE_SECONDS)
    assert failed.value.code == "step_failed"
    undone = [payload for name, payload, _ in seen.calls if name == "echo" and "undo" in payload]
    assert undone == [{"undo": "c", "was": "c"}, {"undo": "inner", "was": "inner"}, {"undo": "a", "was": "a"}]


async def test_cancel_is_durable_undoes_and_is_idempotent(
    words: AgentProcess, mesh: Mesh, seen: Seen, settings: MeshSettings
) -> None:
    steps = {
        "a": {"task": "echo", "with": {"do": 1}, "compensate": {"task": "echo", "with": {"undo": 1}}},
        "long": {"task": "sleep", "with": {"seconds": 300}, "needs": ["a"]},
    }
    task_id = await mesh.submit("execute_dag", {"steps": steps})
    await seen.until_called("sleep")
    told = await mesh.run("mesh.cancel", {"task_id": str(task_id), "reason": "enough"})
    assert told["changed"] is True
    response = await mesh.wait(task_id, timeout_seconds=PATIENCE_SECONDS)
    assert (response.status, response.error and response.error.message) == ("cancelled", "enough")
    assert [payload for name, payload, _ in seen.calls if "undo" in payload] == [{"undo": 1}]
    again = await mesh.run("mesh.cancel", {"task_id": str(task_id)})
    assert again == {"task_id": str(task_id), "status": "cancelled", "changed": False}
    with pytest.raises(TaskFailed, match="there is no root task"):
        await mesh.run("mesh.cancel", {"task_id": "01960000-0000-7000-8000-000000000000"})


async def test_a_paused_task_begins_nothing_until_it_is_resumed(
    words: AgentProcess, mesh: Mesh, seen: Seen, settings: MeshSettings
) -> None:
    gate = seen.gates["uppercase"] = asyncio.Event()
    steps = {
        "one": {"task": "uppercase", "with": {"text": "a"}},
        "two": {"task": "echo", "with": {"text": "${one.text}"}},
    }
    task_id = await mesh.submit("execute_dag", {"steps": steps, "output": "${two.text}"})
    await seen.until_called("uppercase")
    assert (await mesh.run("mesh.pause", {"task_id": str(task_id)}))["status"] == "paused"
    gate.set()
    await until_row(settings, "select 1 from tasks where root_task_id = $1 and step = 'two'", task_id)
    await asyncio.sleep(1)
    assert seen.count("echo") == 0
    assert (await mesh.run("mesh.pause", {"task_id": str(task_id)}))["changed"] is False
    assert (await mesh.run("mesh.resume", {"task_id": str(task_id)}))["status"] == "running"
    assert (await mesh.wait(task_id, timeout_seconds=PATIENCE_SECONDS)).result == "A"


async def test_a_paused_agent_and_a_paused_workflow_get_nothing_new(
    words: AgentProcess, mesh: Mesh, seen: Seen, settings: MeshSettings
) -> None:
    assert await mesh.run("mesh.pause", {"agent": "words_agent"}) == {"agent": "words_agent", "paused": True}
    await until_row(settings, "select 1 from pauses")
    await asyncio.sleep(0.3)
    task_id = await mesh.submit("uppercase", {"text": "held"})
    await asyncio.sleep(1.2)
    assert seen.count("uppercase") == 0
    await mesh.run("mesh.resume", {"agent": "words_agent"})
    assert (await mesh.wait(task_id, timeout_seconds=PATIENCE_SECONDS)).result == {"text": "HELD"}


async def test_what_is_paused_is_listed_with_who_did_it_when_and_how_much_waits(
    words: AgentProcess, settings: MeshSettings
) -> None:
    steps = {"one": {"task": "sleep", "with": {"seconds": 0}}, "two": {"task": "echo", "agent": "words_agent"}}
    async with Mesh(settings.nats_url, requester="anna") as anna, Mesh(settings.nats_url) as other:
        assert await anna.pauses() == []
        before = now()
        await anna.pause(agent="words_agent")
        held = [await other.submit("execute_dag", {"steps": steps}) for _ in range(3)]
        for _ in range(2):
            # The first who paused it is the one who did.
            await anna.pause(held[0])
            await other.pause(held[0])
        await other.pause(workflow="execute_dag")
        workflow, task, agent = await other.pauses()
        assert all(before < datetime.fromisoformat(one["paused_at"]) <= now() for one in (agent, task, workflow))
        operations = await rows(settings, "select task_id, requester from tasks where task_type = 'mesh.pause'")
        known = {str(row["task_id"]): row["requester"] for row in operations}
        shown = [(one["kind"], one["name"], one["waiting"]) for one in (workflow, task, agent)]
        assert shown == [("workflow", "execute_dag", 6), ("task", str(held[0]), 2), ("agent", "words_agent", 6)]
        assert (task["task_type"], task["requester"], agent["requester"]) == ("execute_dag", "anna", "anna")
        assert "requester" not in workflow
        assert [known[one["paused_by"]] for one in (workflow, task, agent)] == [None, "anna", "anna"]
        assert await other.pauses(limit=1) == [workflow]
        # A task that ends while it is paused is not paused any more, nor is one that goes on.
        await other.cancel(held[0])
        assert [one["kind"] for one in await other.pauses()] == ["workflow", "agent"]
        await anna.pause(held[1])
        assert [row["name"] for row in await rows(settings, "select name from pauses where kind = 'task'")] == [
            str(held[1])
        ]
        await anna.resume(held[1])
        await anna.resume(workflow="execute_dag")
        await anna.resume(agent="words_agent")
        assert await anna.pauses() == []
        assert not await rows(settings, "select 1 from pauses")
        assert (await other.wait(held[1], timeout_seconds=PATIENCE_SECONDS)).status == "completed"


async def test_what_is_cancelled_is_undone_though_its_workflow_is_paused(
    words: AgentProcess, mesh: Mesh, seen: Seen, settings: MeshSettings
) -> None:
    """It waited for the end of the pause, as a paused task does not. The agent's own pause has it wait in line, too."""
    undo = {"compensate": {"task": "echo", "with": {"undone": 1}}}
    steps = {"a": {"task": "uppercase", "with": {"text": "a"}, **undo}, "w": {"wait_for": {"signal": "go"}}}
    for agent_too in (False, True):
        task_id = await mesh.submit("execute_dag", {"steps": steps})
        await until_row(
            settings, "select 1 from tasks where root_task_id = $1 and step = 'a' and status = 'completed'", task_id
        )
        await mesh.pause(workflow="execute_dag")
        if agent_too:
            await mesh.pause(agent="words_agent")
        assert (await mesh.cancel(task_id))["status"] == "compensating"
        if agent_too:
            await mesh.resume(agent="words_agent")
        assert (await mesh.wait(task_id, timeout_seconds=PATIENCE_SECONDS)).status == "cancelled"
        await mesh.resume(workflow="execute_dag")
    assert seen.count("echo") == 2


async def test_a_step_that_nobody_fits_says_why_while_it_waits_and_when_it_fails(
    words: AgentProcess, mesh: Mesh, settings: MeshSettings
) -> None:
    step = {"task": "uppercase", "with": {"text": "a"}, "requires": {"model": "large", "tags": ["eu"]}}
    await mesh.pause(workflow="execute_dag")
    task_id = await mesh.submit("execute_dag", {"steps": {"loud": step}})
    (waiting,) = (await mesh.query("task", {"task_id": str(task_id), "waiting": True}))["waiting"]
    why = "it names no model, 'large' is required"
    assert waiting.pop("reason") == (
        f"the workflow 'execute_dag' is paused; 1 instance of 1 agent serves 'uppercase'; words_agent: {why}"
    )
    (row,) = await until_row(settings, "select task_id from tasks where root_task_id = $1 and step = 'loud'", task_id)
    details = {"task_type": "uppercase", "instances": 1, "agents": {"words_agent": why}}
    assert waiting == {"task_ids": [str(row)], "task": "the workflow 'execute_dag' is paused", **details}
    await mesh.resume(workflow="execute_dag")
    with pytest.raises(TaskFailed) as failed:
        result_of(await mesh.wait(task_id, timeout_seconds=PATIENCE_SECONDS))
    assert failed.value.code == "no_agent_available"
    assert failed.value.message == (
        f"step 'loud': no agent took 'uppercase' within {settings.no_agent_wait_seconds:g} s: "
        f"1 instance of 1 agent serves 'uppercase'; words_agent: {why}"
    )
    assert failed.value.details == details


async def test_a_budget_is_hard_for_the_whole_tree(
    settings: MeshSettings, orchestrated: AgentProcess, mesh: Mesh
) -> None:
    agent = Agent("model_agent")
    calls = 0

    @agent.task("think")
    async def think(task: dict[str, Any], ctx: TaskContext) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        ctx.report_usage(input_tokens=60, output_tokens=10)
        return {}

    steps = {
        "one": {"task": "think"},
        "sub": {"needs": ["one"], "steps": {"two": {"task": "think"}}},
        "three": {"task": "think", "needs": ["sub"]},
    }
    async with AgentProcess(agent, settings):
        with pytest.raises(TaskFailed, match="budget of 100 tokens") as failed:
            await mesh.run("execute_dag", {"steps": steps, "budget": {"tokens": 100}})
        assert (failed.value.code, calls) == ("budget_exceeded", 2)
        assert failed.value.response.usage.input_tokens == 120
        with pytest.raises(TaskFailed, match="budget of 2 tasks"):
            await mesh.run("execute_dag", {"steps": steps, "budget": {"tasks": 2}})


async def test_a_failed_task_is_retried_from_what_failed(words: AgentProcess, mesh: Mesh, seen: Seen) -> None:
    steps = {
        "good": {"task": "echo", "with": {"x": 1}},
        "side": {"task": "echo", "with": {"y": 1}},
        "bad": {
            "task": "flaky",
            "with": {"failures": 1, "x": "${good.x}"},
            "retry": {"max_attempts": 1},
            # What is at work when another fails is cancelled, and would be done again.
            "needs": ["side"],
        },
    }
    old = await mesh.submit("execute_dag", {"steps": steps})
    assert (await mesh.wait(old)).status == "failed"
    seen.calls.clear()
    await mesh.wait(await mesh.submit("mesh.retry", {"task_id": str(old)}))
    assert [name for name, _, _ in seen.calls] == ["flaky"]
    with pytest.raises(TaskFailed, match="only a failed or cancelled one"):
        await mesh.run("mesh.retry", {"task_id": str(await _completed(mesh))})


async def _completed(mesh: Mesh) -> Any:
    task_id = await mesh.submit("echo", {})
    await mesh.wait(task_id)
    return task_id


async def test_a_workflow_put_into_the_database_is_a_task_type_and_running_tasks_stay_on_theirs(
    words: AgentProcess, mesh: Mesh, seen: Seen, settings: MeshSettings
) -> None:
    def version(word: str) -> dict[str, Any]:
        return {
            "name": "greet",
            "steps": {
                "hold": {"task": "uppercase", "with": {"text": "x"}},
                "say": {"task": "echo", "with": {"text": word}, "needs": ["hold"]},
            },
            "output": "${say.text}",
        }

    gate = seen.gates["uppercase"] = asyncio.Event()
    first = await mesh.run("mesh.put_workflow", {"definition": version("one")})
    task_id = await mesh.submit("greet")
    await seen.until_called("uppercase")
    second = await mesh.run("mesh.put_workflow", {"definition": json.dumps(version("two"))})
    assert first["version"] != second["version"]
    gate.set()
    assert (await mesh.wait(task_id)).result == "one"
    assert await mesh.run("greet") == "two"
    with pytest.raises(TaskFailed, match="definition:2:13:") as failed:
        await mesh.run("mesh.put_workflow", {"definition": "name: x\nsteps: {a: {tusk: y}}"})
    assert failed.value.code == "invalid_workflow"
    with pytest.raises(TaskFailed, match="comes from a file"):
        await mesh.run("mesh.put_workflow", {"definition": {**version("x"), "name": "research_brief"}})


async def test_the_orchestrator_tells_of_the_workflows_that_it_learns_as_of_its_task_types(
    words: AgentProcess, orchestrated: AgentProcess, mesh: Mesh, plain: PlainClient
) -> None:
    """A workflow that was put there later was in nobody's registry; and no workflow was in INFO."""
    schema = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    steps = {"say": {"task": "uppercase", "with": {"text": "${input.text}"}}}
    await mesh.run("mesh.put_workflow", {"definition": {"name": "say", "input": schema, "steps": steps}})
    await until(lambda: registry_of(orchestrated).serving("say"), "the workflow in the registry")
    assert await mesh.run("say", {"text": "a"}) == {"say": {"text": "A"}}

    async def asked(verb: str) -> dict[str, Any]:
        message = await plain.connection.request(f"$SRV.{verb}.orchestrator_agent", timeout=PATIENCE_SECONDS)
        return {one["name"]: one for one in json.loads(message.data)["endpoints"]}

    info = await asked("INFO")
    assert json.loads(info["say"]["metadata"]["input_schema"]) == schema
    assert "steps" in json.loads(info["execute_dag"]["metadata"]["input_schema"])["properties"]
    assert (await asked("STATS"))["say"]["num_requests"] == 1


async def test_a_workflow_that_cannot_be_read_keeps_no_other_from_being_learned_and_is_named_to_who_replays_it(
    words: AgentProcess, mesh: Mesh, plain: PlainClient, settings: MeshSettings
) -> None:
    """Another orchestrator, of a newer version, may have put it there."""
    put = "insert into workflows (version, name, definition, published_at) values ($1, $2, $3::json, now())"
    await rows(settings, put, "0123", "a_newer_one", json.dumps({"steps": {"a": {"teleport": "far"}}}))
    steps = {"a": {"task": "echo", "with": {"n": 1}}}
    await rows(settings, put, "4567", "b_known_one", json.dumps({"name": "b_known_one", "steps": steps}))
    names: set[str] = set()
    async with asyncio.timeout(PATIENCE_SECONDS):
        while "b_known_one" not in names:
            names = {one["name"] for one in (await mesh.query("workflows"))["workflows"]}
    assert await mesh.run("b_known_one") == {"a": {"n": 1}}
    held = await mesh.submit("execute_dag", {"steps": {"w": {"sleep": 60}}})
    await rows(settings, "update tasks set workflow_version = '0123' where task_id = $1", held)
    answer = await plain.ask("mesh.replay", {"task_id": str(held)})
    assert answer["error"]["code"] == "invalid_workflow"
    assert "version 0123" in answer["error"]["message"]


KEYED = """
name: keyed
concurrency: {group_by: input.user, max: 1%s}
steps:
  work: {task: uppercase, with: {text: "${input.n}"}}
output: ${work.text}
"""


@pytest.mark.parametrize("orchestrators", [1, 2])
async def test_a_concurrency_key_lets_so_many_in_and_queues_the_rest(
    settings: MeshSettings, seen: Seen, tmp_path: Path, orchestrators: int
) -> None:
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows" / "keyed.yaml").write_text(KEYED % "")
    library = load_library([tmp_path / "flows"])
    async with orchestrator(settings, library), AgentProcess(words_agent(seen), settings):
        second = orchestrator(settings, load_library([tmp_path / "flows"])) if orchestrators == 2 else None
        if second is not None:
            await second.__aenter__()
        try:
            async with Mesh(settings.nats_url) as mesh:
                gate = seen.gates["uppercase"] = asyncio.Event()
                ids = [await mesh.submit("keyed", {"user": "a", "n": str(n)}) for n in range(3)]
                other = await mesh.submit("keyed", {"user": "b", "n": "b"})
                await seen.until_called("uppercase", 2)
                await asyncio.sleep(0.5)
                assert seen.count("uppercase") == 2
                gate.set()
                assert [(await mesh.wait(one, timeout_seconds=PATIENCE_SECONDS)).result for one in ids] == [
                    "0",
                    "1",
                    "2",
                ]
                assert (await mesh.wait(other)).result == "B"
        finally:
            if second is not None:
                await second.__aexit__(None, None, None)
    assert [payload["text"] for _, payload, _ in seen.calls if payload["text"] != "b"] == ["0", "1", "2"]


async def test_a_newer_task_of_a_key_may_take_the_older_ones_place(
    settings: MeshSettings, seen: Seen, tmp_path: Path
) -> None:
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows" / "keyed.yaml").write_text(KEYED % ", when_full: cancel_older")
    async with (
        orchestrator(settings, load_library([tmp_path / "flows"])),
        AgentProcess(words_agent(seen), settings),
        Mesh(settings.nats_url) as mesh,
    ):
        gate = seen.gates["uppercase"] = asyncio.Event()
        old = await mesh.submit("keyed", {"user": "a", "n": "old"})
        await seen.until_called("uppercase")
        new = await mesh.submit("keyed", {"user": "a", "n": "new"})
        assert (await mesh.wait(old, timeout_seconds=PATIENCE_SECONDS)).status == "cancelled"
        gate.set()
        assert (await mesh.wait(new, timeout_seconds=PATIENCE_SECONDS)).result == "NEW"


async def test_a_schedule_starts_once_for_each_time_with_two_orchestrators(
    settings: MeshSettings, seen: Seen, tmp_path: Path, plain: PlainClient
) -> None:
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows" / "tick.yaml").write_text(
        f'name: tick\nschedule: {{cron: "0 {(now().hour + 12) % 24} * * *", input: {{n: 1}}, catch_up: all}}\n'
        "steps: {work: {task: echo, with: {n: '${input.n}'}}}\n"
    )
    folders = [tmp_path / "flows"]
    async with orchestrator(settings, load_library(folders)):
        await until_row(settings, "select 1 from schedules where workflow = 'tick'")
    # As if nobody had been there for two days; the next time is hours away, whenever this runs.
    await rows(settings, "update schedules set fired_at = fired_at - interval '2 days' returning 1")
    async with (
        AgentProcess(words_agent(seen), settings),
        orchestrator(settings, load_library(folders)),
        orchestrator(settings, load_library(folders)),
    ):
        await plain.until(lambda: len(plain.responses) >= 2)
        await asyncio.sleep(1)
    found = await rows(
        settings, "select task_id, requester, status from tasks where task_type = 'tick' and step is null"
    )
    assert len(found) == 2
    assert {row["requester"] for row in found} == {"schedule"}
    times = await rows(
        settings,
        "select distinct metadata->>'scheduled_for' as time from tasks where task_type = 'tick' and step is null",
    )
    assert len(times) == 2
    assert seen.count("echo") == 2


async def test_an_agents_delegated_task_is_a_child_in_the_same_tree(
    words: AgentProcess, settings: MeshSettings, mesh: Mesh, seen: Seen
) -> None:
    agent = Agent("boss_agent")

    @agent.task("lead")
    async def lead(task: dict[str, Any], ctx: TaskContext) -> dict[str, Any]:
        loud = await ctx.run("uppercase", {"text": task["text"]})
        return {"loud": loud["text"]}

    async with AgentProcess(agent, settings):
        task_id = await mesh.submit("execute_dag", {"steps": {"do": {"task": "lead", "with": {"text": "x"}}}})
        assert (await mesh.wait(task_id, timeout_seconds=PATIENCE_SECONDS)).result == {"do": {"loud": "X"}}
    found = await rows(settings, "select task_type, role, status from tasks where root_task_id = $1", task_id)
    assert sorted((row["task_type"], row["role"]) for row in found) == [
        ("execute_dag", ""),
        ("lead", ""),
        ("uppercase", ""),
        ("uppercase", "delegated"),
    ]
    assert {row["status"] for row in found} == {"completed"}
    roots = await rows(settings, "select count(*) from tasks where task_id = root_task_id")
    assert roots[0]["count"] == 1


async def test_a_fork_is_validated_and_an_operation_is_not_run_again(
    orchestrated: AgentProcess, mesh: Mesh, words: AgentProcess
) -> None:
    definition = {
        "name": "typed",
        "input": {"properties": {"n": {"type": "integer"}}},
        "steps": {"say": {"task": "echo", "with": {"n": "${input.n}"}}},
    }
    await mesh.run("mesh.put_workflow", {"definition": definition})
    task_id = await mesh.submit("typed", {"n": 1})
    await mesh.wait(task_id)
    forked = await mesh.run("mesh.replay", {"task_id": str(task_id), "input": {"n": 2}})
    assert forked == {"say": {"n": 2}}
    with pytest.raises(TaskFailed, match=r"payload\.n") as failed:
        await mesh.run("mesh.replay", {"task_id": str(task_id), "input": {"n": "text"}})
    assert failed.value.code == "invalid_request"
    paused = await mesh.submit("mesh.pause", {"workflow": "nothing"})
    await mesh.wait(paused)
    with pytest.raises(TaskFailed, match="is not run again"):
        await mesh.run("mesh.replay", {"task_id": str(paused)})


@pytest.mark.parametrize("target", [{"workflow": ""}, {"workflow": "Not one"}, {"agent": "agent.x"}, {"agent": "*"}])
async def test_what_cannot_be_a_name_cannot_be_paused(
    orchestrated: AgentProcess, mesh: Mesh, target: dict[str, str]
) -> None:
    for operation in ("mesh.pause", "mesh.resume"):
        with pytest.raises(TaskFailed, match="cannot be a name") as failed:
            await mesh.run(operation, target)
        assert failed.value.code == "invalid_request"


@pytest.mark.parametrize("name", ["", "go\0", "g" * 129])
async def test_a_signal_that_nobody_can_wait_for_is_refused_and_changes_nothing(
    orchestrated: AgentProcess, mesh: Mesh, name: str
) -> None:
    """The database refused the name, and with it the task that was given it: whoever knew a task's id could end it."""
    task_id = await mesh.submit("execute_dag", {"steps": {"a": {"wait_for": {"signal": "go"}}}})
    with pytest.raises(TaskFailed, match=r"payload\.signal: must be the name") as failed:
        await mesh.signal(task_id, name)
    assert failed.value.code == "invalid_request"
    assert (await mesh.signal(task_id, "go"))["taken"]
    assert (await mesh.wait(task_id)).status == "completed"


async def test_what_never_began_is_not_run_again_and_says_why(
    orchestrated: AgentProcess, mesh: Mesh, words: AgentProcess
) -> None:
    """It was said that the payload had no steps; a second task of an idempotency key ran with no payload at all."""
    refused = await mesh.submit("execute_dag", {"steps": {"a": {"task": "echo", "needs": ["a"]}}})
    assert (await mesh.wait(refused)).status == "failed"
    first = await mesh.submit("refuse", {"n": 1}, idempotency_key="k")
    await mesh.wait(first)
    second = await mesh.submit("refuse", {"n": 1}, idempotency_key="k")
    await mesh.wait(second)
    for task_id, words_said in ((refused, "was refused before it began"), (second, f"ends as {first} does")):
        for operation in ("mesh.retry", "mesh.replay"):
            with pytest.raises(TaskFailed, match=words_said) as failed:
                await mesh.run(operation, {"task_id": str(task_id)})
            assert failed.value.code == "invalid_request"
