"""Payloads and results that no message carries: by reference, with the kit and without, and when objects are lost."""

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.errors import APIError
from nats.js.object_store import ObjectStore

from orchestrator_agent.maintenance.history_archiver import HistoryArchiver
from orchestrator_agent.maintenance.object_cleaner import ObjectCleaner
from orchestrator_agent.service import load_library, orchestrator
from orchestrator_agent.store.history import HistoryStore
from orchestrator_agent.store.pool import Database
from orchestrator_agent.store.sweeps import TaskSweeps
from pantheon import Agent, Mesh, TaskContext, TaskFailed
from pantheon.bus import Bus, Objects
from pantheon.process.agent_process import AgentProcess
from pantheon.runtime.settings import MeshSettings
from protocol import new_id
from protocol.errors import TooLarge
from tests.mesh.agents import Seen, rows, words_agent
from tests.mesh.conftest import PlainClient
from tests.waiting import PATIENCE_SECONDS, until

MIB = 1024 * 1024


async def bucket(connection: Client) -> ObjectStore:
    return await connection.jetstream().object_store("payloads")


async def put(connection: Client, value: Any, name: str | None = None) -> dict[str, Any]:
    """As docs/protocol.md requires of a client without the kit: an object first, then the message that names it."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    name = name or f"anything-{new_id()}"
    await (await bucket(connection)).put(name, body)
    return {"name": name, "size_bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}


async def get(connection: Client, ref: dict[str, Any]) -> Any:
    data = (await (await bucket(connection)).get(ref["name"])).data
    assert data is not None
    assert len(data) == ref["size_bytes"]
    assert hashlib.sha256(data).hexdigest() == ref["sha256"]
    return json.loads(data)


async def lose_all(connection: Client) -> None:
    """One by one: a purge would be noticed, and made up for."""
    jetstream = connection.jetstream()
    state = (await jetstream.stream_info("OBJ_payloads")).state
    for sequence in range(state.first_seq, state.last_seq + 1):
        with contextlib.suppress(APIError):
            await jetstream.delete_msg("OBJ_payloads", sequence)


async def listen(connection: Client, subject: str) -> list[dict[str, Any]]:
    received: list[dict[str, Any]] = []

    async def receive(message: Msg) -> None:
        received.append(json.loads(message.data))

    await connection.subscribe(subject, cb=receive)
    await connection.flush()
    return received


async def test_with_the_kit_a_handler_does_not_notice(words: AgentProcess, mesh: Mesh, plain: PlainClient) -> None:
    requests = await listen(plain.connection, "agent.*.task")
    responses = await listen(plain.connection, "agent.*.response")
    payload = {"text": "ß" * (3 * MIB), "list": list(range(1000))}
    assert await mesh.run("echo", payload) == payload
    # The task's and its step's; on a slow machine the client may send its request again before it is accepted.
    for received in (requests, responses):
        await until(lambda received=received: len({message["task_id"] for message in received}) == 2, "both")  # type: ignore[misc]
    assert {message["task_type"] for message in requests} == {"echo"}
    for request in requests:
        assert "payload" not in request or request["payload"] == {}
        assert request["payload_ref"]["size_bytes"] > 6 * MIB
    for response in responses:
        assert "result" not in response
        assert await get(plain.connection, response["result_ref"]) == payload


async def test_what_fits_travels_in_the_message(words: AgentProcess, mesh: Mesh, plain: PlainClient) -> None:
    requests = await listen(plain.connection, "agent.words_agent.task")
    assert (await mesh.run("echo", {"text": "x" * (500 * 1024)}))["text"].startswith("xxx")
    await until(lambda: len(requests) == 1, "the first request")
    assert "payload_ref" not in requests[0]
    await mesh.run("echo", {"text": "x" * (512 * 1024)})
    await until(lambda: len(requests) == 2, "the second request")
    assert requests[1]["payload_ref"]["size_bytes"] == 512 * 1024 + len('{"text":""}')


async def test_steps_hand_large_results_on(words: AgentProcess, mesh: Mesh) -> None:
    dag = {
        "steps": {
            "grow": {"task": "repeat", "with": {"text": "abc", "times": 700_000}},
            "shout": {"task": "uppercase", "with": {"text": "${grow.text}"}},
            "small": {"task": "echo", "with": {"size": "${size(shout.text)}"}},
        },
        "output": {"text": "${shout.text}", "size": "${small.size}"},
    }
    result = await mesh.run("execute_dag", dag)
    assert result == {"text": "ABC" * 700_000, "size": 2_100_000}


async def test_an_agent_gives_out_a_large_task_and_gets_a_large_result(
    settings: MeshSettings, orchestrated: AgentProcess, words: AgentProcess, mesh: Mesh
) -> None:
    agent = Agent("middle_agent")

    @agent.task("middle")
    async def middle(task: dict[str, Any], ctx: TaskContext) -> dict[str, int]:
        result = await ctx.run("uppercase", {"text": "x" * 2 * MIB})
        return {"upper": result["text"].count("X"), "given": len(ctx.request.payload["text"])}

    async with AgentProcess(agent, settings):
        assert await mesh.run("middle", {"text": "y" * MIB}) == {"upper": 2 * MIB, "given": MIB}


async def test_an_agent_and_a_client_without_the_kit(settings: MeshSettings, plain: PlainClient) -> None:
    """Nothing but nats-py: the client puts an object, the agent reads one, puts one, and names it in its response."""
    connection = plain.connection

    async def serve(stopped: asyncio.Event) -> None:
        js = connection.jetstream()
        registry = await js.key_value("agents")
        record = {"protocol": 1, "name": "plain_agent", "instance_id": "p1", "task_types": ["count_letters"]}
        record |= {"max_concurrency": 1, "version": "1.0.0", "status": "ready", "metadata": {}}
        await registry.put("plain_agent.p1", json.dumps(record).encode())
        pulling = await js.pull_subscribe("agent.plain_agent.task", durable="plain_agent", stream="AGENT_TASKS")
        while not stopped.is_set():
            try:
                (message,) = await pulling.fetch(1, timeout=1)
            except TimeoutError:
                continue
            request = json.loads(message.data)
            payload = request.get("payload", {})
            if "payload_ref" in request:
                payload = await get(connection, request["payload_ref"])
            response = {name: request[name] for name in ("task_id", "root_task_id", "task_type", "attempt")}
            response |= {"agent": "plain_agent", "status": "completed"}
            response["result_ref"] = await put(connection, {"letters": len(payload["text"]), "text": payload["text"]})
            await js.publish("agent.plain_agent.response", json.dumps(response).encode())
            await message.ack()

    async with orchestrator(settings, load_library([])):
        stopped = asyncio.Event()
        serving = asyncio.create_task(serve(stopped))
        text = "z" * (2 * MIB)
        ref = await put(connection, {"text": text})
        task_id = await plain.submit("count_letters", payload_ref=ref)
        response = await plain.response(task_id, within_seconds=PATIENCE_SECONDS)
        assert response["status"] == "completed", response
        assert await get(connection, response["result_ref"]) == {"letters": 2 * MIB, "text": text}
        # The copy is the mesh's own, named by what it is.
        assert response["result_ref"]["name"] == f"{task_id}.{response['result_ref']['sha256']}"
        stopped.set()
        await serving


async def test_an_attempt_whose_object_is_lost_is_made_again_with_a_new_one(
    settings: MeshSettings, orchestrated: AgentProcess, mesh: Mesh, seen: Seen, plain: PlainClient
) -> None:
    requests = await listen(plain.connection, "agent.words_agent.task")
    async with AgentProcess(words_agent(seen), settings) as agent:
        agent.worker.pause()
        task_id = await mesh.submit("echo", {"text": "x" * MIB})
        await until(lambda: bool(requests), "the first attempt")
        await lose_all(plain.connection)
        agent.worker.resume()
        assert (await mesh.wait(task_id)).result == {"text": "x" * MIB}
    assert [attempt for _, _, attempt in seen.calls] == [2]


async def test_a_lost_result_is_there_again_when_a_client_asks(
    words: AgentProcess, mesh: Mesh, plain: PlainClient
) -> None:
    ref = await put(plain.connection, {"text": "x" * MIB})
    task_id = await plain.submit("uppercase", payload_ref=ref)
    response = await plain.response(task_id)
    await lose_all(plain.connection)
    # A client that asks the orchestrator for its row, and one that sends the task again.
    assert (await mesh.wait(UUID(task_id))).result == {"text": "X" * MIB}
    await lose_all(plain.connection)
    await plain.send("uppercase", payload_ref=ref, task_id=task_id)
    await plain.until(lambda: len(plain.responses[task_id]) == 2)
    assert plain.responses[task_id][0] == plain.responses[task_id][1]
    assert await get(plain.connection, response["result_ref"]) == {"text": "X" * MIB}


async def test_a_task_with_large_values_goes_on_after_a_restart_without_the_objects(
    settings: MeshSettings, seen: Seen, plain: PlainClient
) -> None:
    gate = seen.gates["uppercase"] = asyncio.Event()
    dag = {
        "steps": {
            "grow": {"task": "repeat", "with": {"text": "abc", "times": 400_000}},
            "shout": {"task": "uppercase", "with": {"text": "${grow.text}"}},
        },
        "output": "${shout.text + grow.text}",
    }
    async with AgentProcess(words_agent(seen), settings), Mesh(settings.nats_url) as mesh:
        async with orchestrator(settings, load_library([])):
            task_id = await mesh.submit("execute_dag", dag)
            await seen.until_called("uppercase")
        await lose_all(plain.connection)
        async with orchestrator(settings, load_library([])):
            gate.set()
            response = await mesh.wait(task_id)
    assert response.result == "ABC" * 400_000 + "abc" * 400_000
    assert seen.count("repeat") == 1


@pytest.mark.parametrize(
    ("wrong", "code", "message"),
    [
        ({"name": "nobody-put-this"}, "payload_unavailable", "nobody-put-this"),
        ({"sha256": "0" * 64}, "invalid_request", "SHA-256"),
        ({"size_bytes": 7}, "invalid_request", "not 7"),
        ({"size_bytes": 100 * MIB}, "too_large", "67108864"),
        ({"sha256": "nonsense"}, "invalid_request", "payload_ref.sha256"),
    ],
)
async def test_a_wrong_reference_is_refused_by_name(
    words: AgentProcess, plain: PlainClient, wrong: dict[str, Any], code: str, message: str
) -> None:
    ref = await put(plain.connection, {"text": "x"}) | wrong
    response = await plain.response(await plain.send("uppercase", payload_ref=ref))
    assert (response["status"], response["error"]["code"]) == ("failed", code)
    assert message in response["error"]["message"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"[1, 2]", "must be an object"),
        (b'{"a": ', "not JSON"),
        (b'{"a": NaN}', "not JSON"),
        (b'{"a": 1e999}', "no double"),
        (b"\xff\xfe", "not JSON"),
    ],
)
async def test_an_object_that_is_no_payload_is_refused_by_name(
    words: AgentProcess, plain: PlainClient, body: bytes, message: str
) -> None:
    response = await plain.response(await plain.send("uppercase", payload_ref=await put(plain.connection, body)))
    assert (response["status"], response["error"]["code"]) == ("failed", "invalid_request")
    assert message in response["error"]["message"]


async def test_a_payload_beside_its_reference_is_refused(words: AgentProcess, plain: PlainClient) -> None:
    ref = await put(plain.connection, {"text": "x"})
    response = await plain.response(await plain.send("uppercase", {"text": "y"}, payload_ref=ref))
    assert response["error"]["code"] == "invalid_request"
    assert "payload_ref" in response["error"]["message"]


async def test_beyond_the_limit_each_side_reports_it(
    settings: MeshSettings, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = settings.model_copy(update={"max_payload_bytes": MIB})
    async with (
        orchestrator(small, load_library([])),
        AgentProcess(words_agent(seen), settings) as roomy,
        Mesh(settings.nats_url) as mesh,
    ):
        monkeypatch.setenv("MAX_PAYLOAD_BYTES", str(MIB))
        async with Mesh(settings.nats_url) as limited:
            with pytest.raises(TooLarge, match=str(MIB)):
                await limited.submit("echo", {"text": "x" * MIB})
        with pytest.raises(TaskFailed, match=str(MIB)) as refused:
            await mesh.run("echo", {"text": "x" * MIB})
        assert refused.value.code == "too_large"
        # An agent that gives more than the orchestrator takes.
        with pytest.raises(TaskFailed, match=str(MIB)) as responded:
            await mesh.run("repeat", {"text": "x", "times": 2 * MIB})
        assert responded.value.response.error.details["code"] == "too_large"
        # An agent that keeps to its limit.
        roomy.objects.max_bytes = MIB
        with pytest.raises(TaskFailed, match=str(MIB)):
            await mesh.run("repeat", {"text": "x", "times": 2 * MIB})
        assert await mesh.run("uppercase", {"text": "a"}) == {"text": "A"}


async def test_buckets_and_streams_that_are_deleted_by_themselves_are_made_again(
    settings: MeshSettings, orchestrated: AgentProcess, words: AgentProcess, mesh: Mesh, plain: PlainClient
) -> None:
    # Only the streams of tasks and responses were watched: a bucket that was gone stayed gone, and with it every
    # large value.
    streams = plain.connection.jetstream()
    for name in ("OBJ_payloads", "KV_agents", "MESH_EVENTS", "DEAD_LETTERS"):
        assert await streams.delete_stream(name)
    assert len((await mesh.run("uppercase", {"text": "x" * MIB}))["text"]) == MIB
    for name in ("KV_agents", "MESH_EVENTS", "DEAD_LETTERS"):
        assert (await streams.stream_info(name)).config.name == name


async def test_objects_go_when_their_task_has_gone_from_the_table(
    settings: MeshSettings, orchestrated: AgentProcess, words: AgentProcess, mesh: Mesh, plain: PlainClient, seen: Seen
) -> None:
    await mesh.run("echo", {"text": "x" * MIB})
    gate = seen.gates["uppercase"] = asyncio.Event()
    at_work = await mesh.submit("uppercase", {"text": "y" * MIB})
    await seen.until_called("uppercase")
    foreign = (await put(plain.connection, {"text": "z"}))["name"]

    async def responded() -> bool:
        return bool((await rows(settings, "select count(*) from tasks where answered_at is not null"))[0][0])

    await until(responded, "a note of the answer's acknowledgement")
    async with cleaning(settings) as (cleaner, history, objects):
        assert await cleaner.clean() == []
        assert await cleaner.clean() == [foreign]
        assert len(await objects.names()) == 2
        while await history.step():
            pass
        assert await cleaner.clean() == []
        (gone,) = await cleaner.clean()
        assert not gone.startswith(str(at_work))
        (kept,) = await objects.names()
        assert kept.startswith(str(at_work))
    gate.set()
    assert (await mesh.wait(at_work)).result == {"text": "Y" * MIB}


@contextlib.asynccontextmanager
async def cleaning(settings: MeshSettings) -> AsyncIterator[tuple[ObjectCleaner, HistoryArchiver, Objects]]:
    assert settings.database_url is not None
    async with (
        await Bus.connect(settings.nats_url, name="test", wait_seconds=PATIENCE_SECONDS) as bus,
        Database(settings.database_url.get_secret_value()) as database,
    ):
        objects = Objects(bus)
        yield (
            ObjectCleaner(objects, TaskSweeps(database)),
            HistoryArchiver(HistoryStore(database), after_seconds=0, retention_days=30),
            objects,
        )
