"""Everything that a mesh says on the wire fits the published schemas."""

import asyncio
import json
from collections import Counter
from typing import Any

import jsonschema_rs
import nats
import pytest
from nats.aio.msg import Msg

from pantheon import Agent, TaskContext, TaskFailure
from pantheon.process.agent_process import AgentProcess
from pantheon.runtime.settings import MeshSettings
from protocol import documents
from tests.docs.conftest import DocumentedMesh

pytestmark = pytest.mark.asyncio(loop_scope="session")

ASYNCAPI = documents.documents()["asyncapi.json"]
WAIT_SECONDS = 60.0

GRAPH: dict[str, Any] = {
    "steps": {
        "many": {"task": "wire_echo", "for_each": [1, 2, 3], "concurrency": 2, "with": {"n": "${item}"}},
        "sometimes": {"task": "wire_unlucky", "retry": {"initial_seconds": 0.01}},
        "never": {"task": "wire_echo", "when": "false"},
        "inner": {"steps": {"one": {"task": "wire_echo"}}, "needs": ["never"]},
    },
}


def make_agent() -> Agent:
    agent = Agent("wire_agent")

    @agent.task("wire_echo")
    async def echo(task: dict[str, Any], ctx: TaskContext) -> dict[str, Any]:
        await ctx.progress(50, "half")
        await ctx.stream("text")
        ctx.report_usage(1, 2, 0.5)
        return task

    @agent.task("wire_unlucky")
    async def unlucky(task: dict[str, Any], ctx: TaskContext) -> dict[str, Any]:
        if ctx.attempt == 1:
            raise TaskFailure("no_luck", "again", retryable=True)
        return {}

    @agent.task("wire_broken")
    async def broken(task: dict[str, Any]) -> dict[str, Any]:
        raise TaskFailure("broken", "for good", details={"why": "because"})

    return agent


def schema_of(message: str) -> dict[str, Any]:
    """A message of the AsyncAPI document as a schema that stands alone."""
    payload = ASYNCAPI["components"]["messages"][message]["payload"]
    while "$ref" in payload:
        payload = ASYNCAPI["components"]["schemas"][payload["$ref"].rsplit("/", 1)[1]]
    return {"components": ASYNCAPI["components"], **payload["schema"]}


def message_of(subject: str) -> str | None:
    """The AsyncAPI document's message for a subject, None for a subject that it does not have."""
    parts = subject.split(".")
    for channel in ASYNCAPI["channels"].values():
        wanted = str(channel["address"]).split(".")
        if len(wanted) == len(parts) and all(
            one == other or one.startswith("{") for one, other in zip(wanted, parts, strict=True)
        ):
            return str(next(iter(channel["messages"])))
    return None


async def test_every_message_of_a_run_fits_the_asyncapi_document(mesh: DocumentedMesh) -> None:
    heard: list[Msg] = []

    async def hear(message: Msg) -> None:
        heard.append(message)

    broker = await nats.connect(mesh.nats_url)
    try:
        for subject in ("agent.>", "mesh.>"):
            await broker.subscribe(subject, cb=hear)
        await broker.flush()
        settings = MeshSettings.load(nats_url=mesh.nats_url)
        async with AgentProcess(make_agent(), settings):
            await mesh.client.run("execute_dag", GRAPH, wait_seconds=WAIT_SECONDS)
            failed = await mesh.client.submit("wire_broken", {})
            assert (await mesh.client.wait(failed, timeout_seconds=WAIT_SECONDS)).status == "failed"
            refused = await mesh.client.submit("execute_dag", {"steps": {}})
            assert (await mesh.client.wait(refused, timeout_seconds=WAIT_SECONDS)).status == "failed"
            await broker.jetstream().publish("agent.wire_agent.task", b"[]")
            async with asyncio.timeout(WAIT_SECONDS):
                while True:
                    if any(message.subject == "mesh.deadletter.wire_agent" for message in heard):
                        break
                    await asyncio.sleep(0.05)
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                if any(message.subject == "mesh.event.agent.deregistered" for message in heard):
                    break
                await asyncio.sleep(0.05)
    finally:
        await broker.close()
    counted: Counter[str] = Counter()
    validators = {name: jsonschema_rs.validator_for(schema_of(name)) for name in ASYNCAPI["components"]["messages"]}
    for message in heard:
        name = message_of(message.subject)
        assert name is not None, f"the AsyncAPI document has no {message.subject}"
        counted[name] += 1
        if message.data == b"[]":
            continue  # the test's own
        problems = [error.message for error in validators[name].iter_errors(json.loads(message.data))]
        assert problems == [], f"{message.subject}: {message.data.decode()}"
    steps = {"stepDispatched", "stepCompleted", "stepRetrying", "stepFailed", "stepSkipped"}
    tasks = {"taskAccepted", "taskStarted", "taskCompleted", "taskFailed", "agentRegistered", "agentDeregistered"}
    sent = {"TaskRequest", "TaskResponse", "TaskProgress", "Heartbeat", "DeadLetter"}
    assert steps | tasks | sent <= set(counted), counted


async def test_queries_are_answered_as_the_asyncapi_document_says(mesh: DocumentedMesh) -> None:
    task_id = await mesh.client.submit("execute_dag", {"steps": {}})
    await mesh.client.wait(task_id, timeout_seconds=WAIT_SECONDS)
    waits = await mesh.client.submit("execute_dag", {"steps": {"lost": {"task": "nobody_does_this"}}})
    asked: dict[str, dict[str, Any]] = {
        "tasks": {"status": "failed", "limit": 5},
        "task": {"task_id": str(waits), "brief": True, "waiting": True},
        "response": {"task_id": str(task_id)},
        "workflows": {},
        "pauses": {},
    }
    await mesh.client.pause(waits)
    await mesh.client.pause(workflow="never_heard_of")
    broker = await nats.connect(mesh.nats_url)

    async def ask(subject: str, body: bytes) -> Any:
        return json.loads((await broker.request(subject, body, timeout=WAIT_SECONDS)).data)

    try:
        for name, arguments in asked.items():
            assert jsonschema_rs.is_valid(schema_of(f"{name}Query"), arguments)
            answer = await ask(f"mesh.query.{name}", json.dumps(arguments).encode())
            assert "error" not in answer
            assert jsonschema_rs.is_valid(schema_of(f"{name}Answer"), answer)
            if name == "task":
                assert [one["reason"] for one in answer["waiting"]] == [
                    "the task is paused; nobody serves 'nobody_does_this'"
                ]
            if name == "pauses":
                assert len(answer["pauses"]) == 2
        await mesh.client.cancel(waits)
        await mesh.client.resume(workflow="never_heard_of")
        refusal = await ask("mesh.query.task", b'{"task_id": "x"}')
        assert refusal["error"]["code"] == "invalid_request"
        assert jsonschema_rs.is_valid(schema_of("taskAnswer"), refusal)
    finally:
        await broker.close()
