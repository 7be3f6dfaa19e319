"""docs/protocol.md against the code: its examples fit the schemas, and nothing of the wire is missing."""

import asyncio
import json
import re
from typing import Any
from uuid import UUID

import jsonschema_rs
import nats
import pytest

from orchestrator_agent.intake.planner import OPERATIONS
from pantheon import Agent, TaskFailed
from pantheon.process.agent_process import AgentProcess
from pantheon.runtime.settings import MeshSettings
from protocol import documents, schema
from protocol.discovery import DEREGISTER_AFTER_SECONDS, KV_BUCKET
from protocol.errors import ErrorCode
from protocol.events import EVENTS
from protocol.messages import Control, to_bytes
from protocol.streams import ALL_STREAMS, task_consumer
from tests.docs.conftest import REPOSITORY, DocumentedMesh

PAGE = (REPOSITORY / "docs" / "protocol.md").read_text(encoding="utf-8")
EXAMPLES: list[tuple[str, str]] = re.findall(r"^```json (\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
DOCUMENTS = documents.documents()
WAIT_SECONDS = 60.0


@pytest.mark.parametrize(("message", "text"), EXAMPLES)
def test_an_example_of_the_page_fits_its_schema(message: str, text: str) -> None:
    example: dict[str, Any] = json.loads(text)
    jsonschema_rs.validate(DOCUMENTS[f"{message}.schema.json"], example)
    schema.MODELS[message].model_validate_json(text)
    assert set(example) <= set(DOCUMENTS[f"{message}.schema.json"]["properties"])


def test_the_page_shows_every_message() -> None:
    assert {message for message, _ in EXAMPLES} == set(schema.MODELS) - {"workflow"}
    assert "```json\n" not in PAGE


@pytest.mark.parametrize("code", list(ErrorCode))
def test_the_page_explains_every_error_code(code: ErrorCode) -> None:
    assert f"| `{code.value}` |" in PAGE


@pytest.mark.parametrize(("entity", "name"), list(EVENTS))
def test_the_page_names_every_event_and_its_data(entity: str, name: str) -> None:
    row = next(line for line in PAGE.splitlines() if line.startswith("| ") and f"`{entity}.{name}`" in line)
    for field in schema.event_data(entity, name)["properties"]:
        assert f"`{field}`" in (row if entity != "step" else row + _line_with("The step's fields:"))


def _line_with(text: str) -> str:
    return next(line for line in PAGE.splitlines() if text in line)


def test_the_page_gives_the_streams_and_the_consumer() -> None:
    for spec in ALL_STREAMS:
        assert f"`{spec.name}`" in PAGE
    consumer = task_consumer("x")
    assert f"AckWait {consumer.ack_wait_seconds:g} s, MaxDeliver {consumer.max_deliver}" in PAGE
    assert f"MaxAckPending {consumer.max_ack_pending:,}" in PAGE
    assert f"bucket `{KV_BUCKET}`" in PAGE
    assert DEREGISTER_AFTER_SECONDS == 60


ROWS = dict(re.findall(r"^\| `(mesh\.[a-z_]+)` \| (.*) \|$", PAGE, re.MULTILINE))


def test_the_page_has_every_operation_and_no_other() -> None:
    assert set(ROWS) == set(OPERATIONS)


def _keys(text: str) -> list[set[str]]:
    """The keys of each JSON object that a row of the table shows, on its right-hand side."""
    return [set(re.findall(r'"(\w+)":', one)) for one in re.findall(r"`(\{.*?\})`", text.rpartition(" | ")[2])]


@pytest.mark.asyncio(loop_scope="session")
async def test_operations_answer_in_the_shapes_of_the_page(mesh: DocumentedMesh) -> None:
    client = mesh.client
    waiting = {"steps": {"w": {"wait_for": {"signal": "go"}}, "ok": {"wait_for": {"approval": "yes"}}}}
    task_id = await client.submit("execute_dag", waiting)
    answers: dict[str, list[Any]] = {
        "mesh.pause": [await client.pause(task_id), await client.pause(workflow="x"), await client.pause(agent="x")],
        "mesh.resume": [
            await client.resume(task_id),
            await client.resume(workflow="x"),
            await client.resume(agent="x"),
        ],
        "mesh.signal": [await client.signal(task_id, "go")],
        "mesh.redrive": [await client.run("mesh.redrive", {"all": True})],
        "mesh.put_workflow": [await client.put_workflow({"name": "documented", "steps": {"a": {"sleep": 0}}})],
        "mesh.cancel": [await client.cancel(task_id, reason="enough")],
    }
    for operation, results in answers.items():
        assert [set(result) for result in results] == _keys(ROWS[operation]), operation
    assert set(await client.run("documented")) == {"a"}
    for refused, code in (
        (client.cancel(UUID(int=7)), "unknown_task"),
        (client.approve(task_id, "yes"), "invalid_request"),
        (client.put_workflow("name: x"), "invalid_workflow"),
        (client.run("mesh.redrive", {}), "invalid_request"),
    ):
        with pytest.raises(TaskFailed) as failed:
            await refused
        assert failed.value.code == code
    # What was cancelled is retried as a new task, which waits for nothing but the approval.
    again = await client.retry(task_id)
    assert (await client.approve(again, "yes"))["taken"]
    assert (await client.wait(again, timeout_seconds=WAIT_SECONDS)).status == "completed"


@pytest.mark.asyncio(loop_scope="session")
async def test_a_root_task_is_cancelled_by_a_control_to_the_orchestrator(mesh: DocumentedMesh) -> None:
    agent = Agent("slow_agent")
    started = asyncio.Event()

    @agent.task("sleep_for_ever")
    async def sleep(task: dict[str, Any]) -> dict[str, Any]:
        started.set()
        await asyncio.Event().wait()
        return task

    broker = await nats.connect(mesh.nats_url)
    try:
        async with AgentProcess(agent, MeshSettings.load(nats_url=mesh.nats_url)):
            task_id = await mesh.client.submit("sleep_for_ever", {})
            async with asyncio.timeout(WAIT_SECONDS):
                await started.wait()
            order = Control(command="cancel", task_id=task_id, reason="no longer wanted")
            await broker.publish("agent.orchestrator_agent.control", to_bytes(order))
            response = await mesh.client.wait(task_id, timeout_seconds=WAIT_SECONDS)
    finally:
        await broker.close()
    assert response.status == "cancelled"
    assert response.error is not None
    assert (response.error.code, response.error.message) == ("cancelled", "no longer wanted")


@pytest.mark.asyncio(loop_scope="session")
async def test_a_replay_reuses_what_does_not_depend_on_the_step_it_begins_from(mesh: DocumentedMesh) -> None:
    agent = Agent("counting_agent")
    ran: list[str] = []

    @agent.task("note_down")
    async def note(task: dict[str, Any]) -> dict[str, Any]:
        ran.append(task["name"])
        return task

    def step(name: str, *needs: str) -> dict[str, Any]:
        return {"task": "note_down", "with": {"name": name}, "needs": list(needs)}

    graph = {"steps": {"a": step("a"), "b": step("b", "a"), "c": step("c", "b"), "d": step("d", "a")}}
    async with AgentProcess(agent, MeshSettings.load(nats_url=mesh.nats_url)):
        first = await mesh.client.submit("execute_dag", graph)
        assert (await mesh.client.wait(first, timeout_seconds=WAIT_SECONDS)).status == "completed"
        assert sorted(ran) == ["a", "b", "c", "d"]
        ran.clear()
        again = await mesh.client.submit("mesh.replay", {"task_id": str(first), "from": "b"})
        response = await mesh.client.wait(again, timeout_seconds=WAIT_SECONDS)
        assert (response.status, response.task_type, sorted(ran)) == ("completed", "execute_dag", ["b", "c"])
        rows = (await mesh.client.query("task", {"task_id": str(again)}))["tasks"]
        assert next(row for row in rows if row["task_id"] == str(again))["replay_of"] == str(first)
        wrong = await mesh.client.submit("mesh.replay", {"task_id": str(first), "from": "z"})
        refused = await mesh.client.wait(wrong, timeout_seconds=WAIT_SECONDS)
    assert refused.error is not None
    assert refused.error.code == "invalid_request"
