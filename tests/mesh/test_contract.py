"""docs/protocol.md from outside: a client that knows the page and nats-py, against a running mesh."""

import asyncio
import base64
import json
import uuid
from typing import Any

import pytest
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType

from orchestrator_agent.service import OrchestratorWorker
from pantheon.process.agent_process import AgentProcess
from pantheon.runtime.settings import MeshSettings
from protocol.ids import new_id
from tests.mesh.agents import Seen, rows
from tests.mesh.conftest import PlainClient
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = pytest.mark.usefixtures("words")

EXAMPLE = {
    "input": {"text": "hello"},
    "steps": {
        "shout": {"task": "uppercase", "with": {"text": "${input.text}"}},
        "twice": {"task": "repeat", "with": {"text": "${shout.text}", "times": 2}, "needs": ["shout"]},
    },
    "output": {"text": "${twice.text}"},
}


async def test_the_pages_own_example_gives_its_result(plain: PlainClient) -> None:
    task_id = await plain.send("execute_dag", EXAMPLE)
    response = await plain.response(task_id)
    assert response["status"] == "completed"
    assert response["result"] == {"text": "HELLOHELLO"}
    assert response["task_id"] == response["root_task_id"] == task_id
    assert response["agent"] == "orchestrator_agent"
    assert response["attempt"] == 1
    assert response["task_type"] == "execute_dag"
    assert "error" not in response or response["error"] is None


async def test_acceptance_is_announced_and_means_a_row(plain: PlainClient, settings: Any) -> None:
    task_id = await plain.send("execute_dag", EXAMPLE)
    await plain.until(lambda: task_id in plain.accepted)
    found = await rows(settings, "select status from tasks where task_id = $1", uuid.UUID(task_id))
    assert len(found) == 1
    event = next(e for e in plain.events if e["channel"] == "mesh.event.task.accepted")
    assert event["specversion"] == "1.0"
    assert {"id", "source", "type", "time"} <= event.keys()


async def test_a_copy_goes_to_reply_to(plain: PlainClient) -> None:
    inbox = plain.connection.new_inbox()
    subscription = await plain.connection.subscribe(inbox)
    task_id = await plain.send("uppercase", {"text": "x"}, reply_to=inbox)
    copy = await subscription.next_msg(timeout=PATIENCE_SECONDS)
    await plain.response(task_id)
    assert copy.data == plain.responses[task_id][0]
    assert json.loads(copy.data)["result"] == {"text": "X"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("reply_to", "agent.llm_agent.task"),
        ("reply_to", "_INBOX.*"),
        ("reply_to", "_INBOX.a b"),
        ("priority", 10),
        ("priority", "5"),
        ("payload", ["a list"]),
        ("timeout_seconds", 0),
        ("deadline", "tomorrow"),
        ("deadline", "2030-01-01T00:00:00"),
        ("metadata", {"a": 1}),
        ("attempt", 0),
        ("task_type", "Not A Type"),
    ],
)
async def test_a_wrong_field_is_named_in_the_response(plain: PlainClient, field: str, value: Any) -> None:
    task_id = str(new_id())
    body = {"task_id": task_id, "task_type": "uppercase", "payload": {"text": "x"}, field: value}
    await plain.connection.publish("agent.orchestrator_agent.task", json.dumps(body).encode())
    response = await plain.response(task_id)
    assert response["status"] == "failed"
    assert response["error"]["code"] == "invalid_request"
    assert field in response["error"]["message"]


async def test_what_has_no_id_becomes_a_dead_letter_and_the_queue_moves_on(plain: PlainClient) -> None:
    for body in (b"not json", b"[]", b'{"task_type": "uppercase"}', b'{"task_id": "nonsense", "task_type": "x"}', b""):
        await plain.connection.publish("agent.orchestrator_agent.task", body)
    assert (await plain.ask("uppercase", {"text": "on"}))["result"] == {"text": "ON"}
    await plain.until(lambda: len(plain.dead) == 5)
    letter = next(dead for dead in plain.dead if base64.b64decode(dead["body_base64"]) == b"not json")
    assert letter["subject"] == "agent.orchestrator_agent.task"
    assert letter["task_id"] is None


async def test_one_dead_letter_is_found_and_redriven_by_its_id_however_many_are_before_it(plain: PlainClient) -> None:
    """It was searched among as many as a list of them has."""
    for number in range(60):
        await plain.connection.publish("agent.orchestrator_agent.task", f"letter {number}".encode())
    await plain.until(lambda: len(plain.dead) == 60)
    last = plain.dead[-1]["id"]

    async def query(arguments: dict[str, Any]) -> list[dict[str, Any]]:
        message = await plain.connection.request(
            "mesh.query.dead_letters", json.dumps(arguments).encode(), timeout=PATIENCE_SECONDS
        )
        return list(json.loads(message.data)["dead_letters"])

    found: list[dict[str, Any]] = []
    async with asyncio.timeout(PATIENCE_SECONDS):
        # A subscriber receives it a moment before the stream has it.
        while not found:
            found = await query({"id": last})
    assert len(await query({})) == 50
    (letter,) = found
    assert base64.b64decode(letter["body_base64"]) == b"letter 59"
    assert await query({"id": str(new_id())}) == []
    assert (await plain.ask("mesh.redrive", {"id": last}))["result"] == {"redriven": [last]}
    await plain.until(lambda: len(plain.dead) == 61)
    assert await query({"id": last}) == []


async def test_a_bulk_of_dead_letters_is_redriven_whole_and_only_once_round(
    plain: PlainClient, orchestrated: AgentProcess
) -> None:
    """Of a bulk, 10,000 were sent again, without a note that there were more."""
    letters = [str(new_id()) for _ in range(10_050)]
    for letter_id in letters:
        letter = {"id": letter_id, "subject": "agent.nobody.task", "reason": "test", "body_base64": "e30="}
        letter["at"] = "2026-01-01T00:00:00Z"
        await plain.connection.publish("mesh.deadletter.nobody", json.dumps(letter).encode())

    async def kept() -> bool:
        stream = await plain.connection.jetstream().stream_info("DEAD_LETTERS")
        return stream.state.messages == len(letters)

    # Whoever listens hears of them a moment before the stream has them.
    await until(kept, "all letters in the stream")
    assert isinstance(orchestrated.worker, OrchestratorWorker)
    dead_letters = orchestrated.worker.parts.operations.dead_letters
    # A response holds only so many, and says so.
    assert await dead_letters.redrive(letter_id=None, name="nobody", reason=None, at_most=5) == (letters[:5], True)
    # The broker overwrites what it deletes: ten seconds for as many, on two cores that do nothing else.
    bulk = await plain.response(await plain.send("mesh.redrive", {"name": "nobody"}), 4 * PATIENCE_SECONDS)
    assert bulk["result"] == {"redriven": letters[5:]}
    assert (await plain.ask("mesh.redrive", {"name": "nobody"}))["result"] == {"redriven": []}
    tasks = await plain.connection.jetstream().stream_info("AGENT_TASKS", subjects_filter="agent.nobody.task")
    assert tasks.state.subjects == {"agent.nobody.task": len(letters)}
    # What comes back while it is sent again is not sent for ever.
    for number in range(300):
        await plain.connection.publish("agent.orchestrator_agent.task", f"letter {number}".encode())
    await plain.until(lambda: len(plain.dead) == len(letters) + 300)
    assert len((await plain.ask("mesh.redrive", {"all": True}))["result"]["redriven"]) == 300
    await plain.until(lambda: len(plain.dead) == len(letters) + 600)
    refused = await plain.ask("mesh.redrive", {"name": "no body"})
    assert refused["error"]["code"] == "invalid_request"
    assert "'no body' cannot be an agent's name" in refused["error"]["message"]


async def test_unknown_fields_and_nulls_are_ignored(plain: PlainClient) -> None:
    response = await plain.ask(
        "uppercase", {"text": "x"}, tenant=None, priority=None, reply_to=None, colour="blue", deadline=None
    )
    assert response["result"] == {"text": "X"}


async def test_the_same_id_again_runs_once_and_gets_the_same_bytes(plain: PlainClient, seen: Seen) -> None:
    task_id = await plain.send("uppercase", {"text": "once"})
    await plain.response(task_id)
    await plain.send("uppercase", {"text": "once"}, task_id=task_id)
    await plain.until(lambda: len(plain.responses[task_id]) == 2)
    assert plain.responses[task_id][0] == plain.responses[task_id][1]
    assert seen.count("uppercase") == 1


async def test_the_same_id_again_before_the_end_is_announced_again_and_gets_one_response(
    plain: PlainClient, seen: Seen
) -> None:
    gate = seen.gates["uppercase"] = asyncio.Event()
    task_id = await plain.send("uppercase", {"text": "slow"})
    await seen.until_called("uppercase")
    await plain.send("uppercase", {"text": "slow"}, task_id=task_id)
    await plain.until(lambda: plain.accepted.get(task_id) == 2)
    gate.set()
    await plain.response(task_id)
    assert (await plain.ask("echo", {"after": True}))["status"] == "completed"
    assert len(plain.responses[task_id]) == 1
    assert seen.count("uppercase") == 1


async def test_an_idempotency_key_gives_the_first_ones_outcome(plain: PlainClient, seen: Seen) -> None:
    gate = seen.gates["uppercase"] = asyncio.Event()
    first = await plain.send("uppercase", {"text": "a"}, idempotency_key="k", requester="me")
    await seen.until_called("uppercase")
    early = await plain.send("uppercase", {"text": "a"}, idempotency_key="k", requester="me")
    await plain.until(lambda: early in plain.accepted)
    gate.set()
    assert "duplicate_of" not in await plain.response(first)
    response = await plain.response(early)
    assert (response["status"], response["result"], response["duplicate_of"]) == ("completed", {"text": "A"}, first)
    late = await plain.ask("uppercase", {"text": "a"}, idempotency_key="k", requester="me")
    assert (late["result"], late["duplicate_of"]) == ({"text": "A"}, first)
    other = await plain.ask("uppercase", {"text": "b"}, idempotency_key="k", requester="you")
    assert other["result"] == {"text": "B"}
    tenant = await plain.ask("uppercase", {"text": "c"}, idempotency_key="k", requester="me", tenant="other")
    assert tenant["result"] == {"text": "C"}
    assert seen.count("uppercase") == 3


async def test_an_agents_error_is_in_the_details_of_step_failed(plain: PlainClient) -> None:
    steps = {"bad": {"task": "refuse"}, "after": {"task": "echo", "needs": ["bad"]}}
    response = await plain.ask("execute_dag", {"steps": steps})
    error = response["error"]
    assert (response["status"], error["code"], error["step"]) == ("failed", "step_failed", "bad")
    assert error["details"]["code"] == "no_way"
    assert error["details"]["details"] == {"why": "because"}


@pytest.mark.parametrize(
    ("steps", "word"),
    [
        ({}, "steps"),
        ({"a": {"task": "echo", "needs": ["b"]}, "b": {"task": "echo", "needs": ["a"]}}, "a"),
        ({"a": {"task": "echo", "needs": ["nowhere"]}}, "nowhere"),
        ({"a": {"task": "echo", "with": {"x": "${1 +}"}}}, "'a'"),
        ({"a": {"task": "echo", "with": {"x": "${nobody.text}"}}}, "'a'"),
        ({"return": {"task": "echo"}}, "return"),
        ({"input": {"task": "echo"}}, "input"),
        ({"Loud": {"task": "echo"}}, "Loud"),
        ({"a": {}}, "a"),
    ],
)
async def test_a_graph_that_cannot_run_is_invalid_workflow(plain: PlainClient, steps: Any, word: str) -> None:
    response = await plain.ask("execute_dag", {"steps": steps})
    assert response["error"]["code"] == "invalid_workflow"
    assert word in response["error"]["message"]


async def test_an_expression_that_fails_names_its_step(plain: PlainClient) -> None:
    response = await plain.ask(
        "execute_dag", {"input": {}, "steps": {"a": {"task": "echo", "with": {"x": "${input.y}"}}}}
    )
    assert response["error"]["code"] == "expression_error"
    assert "'a'" in response["error"]["message"]


async def test_a_task_type_without_an_agent_ends_after_the_wait(plain: PlainClient) -> None:
    inline, direct = await asyncio.gather(
        plain.ask("execute_dag", {"steps": {"lost": {"task": "nobody_does_this"}}}), plain.ask("nobody_does_this")
    )
    assert inline["error"]["code"] == "no_agent_available"
    assert "lost" in inline["error"]["message"]
    assert direct["error"]["code"] == "unknown_task_type"


async def test_without_output_the_result_is_all_steps_results(plain: PlainClient) -> None:
    steps = {"a": {"task": "echo", "with": {"n": 1}}, "b": {"task": "echo", "with": {"n": "${a.n}", "s": "n=${a.n}"}}}
    response = await plain.ask("execute_dag", {"steps": steps})
    assert response["result"] == {"a": {"n": 1}, "b": {"n": 1, "s": "n=1"}}


async def test_numbers_and_literals_keep_their_type(plain: PlainClient) -> None:
    values = {"i": 7, "d": 7.0, "big": 2**53, "t": True, "n": None, "l": [1, 2.5]}
    steps = {
        "a": {
            "task": "echo",
            "with": {"all": "${input}", "sum": "${input.i + 1}", "half": "${input.d / 2.0}", "raw": "$${input.i}"},
        }
    }
    response = await plain.ask("execute_dag", {"input": values, "steps": steps})
    result = response["result"]["a"]
    assert result["all"] == values
    assert isinstance(result["all"]["d"], float)
    assert (result["sum"], result["half"], result["raw"]) == (8, 3.5, "${input.i}")


async def test_a_workflow_is_a_task_type_and_a_step(plain: PlainClient) -> None:
    sources = [{"title": "A", "text": "x"}]
    response = await plain.ask("research_brief", {"topic": "t"})
    assert response["error"]["code"] == "invalid_request"
    assert "sources" in response["error"]["message"]
    response = await plain.ask(
        "execute_dag", {"steps": {"sub": {"task": "research_brief", "with": {"topic": "t", "sources": sources}}}}
    )
    assert response["error"]["code"] == "no_agent_available"
    assert "sub/notes[0]/summarize" in response["error"]["message"]


async def test_a_passed_deadline_ends_the_task(plain: PlainClient, seen: Seen) -> None:
    response = await plain.ask("uppercase", {"text": "x"}, deadline="2020-01-01T00:00:00Z")
    assert response["error"]["code"] == "deadline_exceeded"
    assert seen.calls == []


async def test_the_request_that_an_agent_gets_is_complete(plain: PlainClient) -> None:
    await plain.overhear("words_agent")
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    task_id = str(new_id())
    body = {
        "task_id": task_id,
        "task_type": "uppercase",
        "payload": {"text": "x"},
        "timeout_seconds": 40,
        "priority": 9,
    }
    await plain.connection.publish(
        "agent.orchestrator_agent.task", json.dumps(body).encode(), headers={"traceparent": trace, "tracestate": "a=b"}
    )
    await plain.response(task_id)
    request, headers = plain.overheard[0]
    assert request["root_task_id"] == request["parent_task_id"] == task_id
    assert request["attempt"] == 1
    assert request["timeout_seconds"] == 40
    assert request["priority"] == 9
    assert headers["Nats-Msg-Id"] == f"{request['task_id']}:1"
    assert 1 <= int(headers["Nats-TTL"].removesuffix("s")) <= 40
    assert headers["traceparent"].split("-")[1] == trace.split("-")[1]
    assert headers["tracestate"] == "a=b"


async def test_streams_and_consumers_are_exactly_the_contracts(plain: PlainClient, words: AgentProcess) -> None:
    await words.worker.wait_ready()
    js = plain.connection.jetstream()
    tasks = (await js.stream_info("AGENT_TASKS")).config
    assert tasks.subjects == ["agent.*.task"]
    assert tasks.retention == RetentionPolicy.WORK_QUEUE
    assert tasks.discard == DiscardPolicy.NEW
    assert tasks.discard_new_per_subject
    assert tasks.max_msgs_per_subject == 1_000_000
    assert tasks.allow_msg_ttl
    assert tasks.duplicate_window == 120
    assert tasks.storage == StorageType.FILE
    responses = (await js.stream_info("AGENT_RESPONSES")).config
    assert responses.subjects == ["agent.*.response"]
    assert (responses.retention, responses.max_age, responses.duplicate_window) == (
        RetentionPolicy.LIMITS,
        86_400,
        120,
    )
    events = (await js.stream_info("MESH_EVENTS")).config
    assert set(events.subjects or ()) == {
        f"mesh.event.{entity}.*" for entity in ("task", "agent", "session", "coordination")
    }
    dead = (await js.stream_info("DEAD_LETTERS")).config
    assert (dead.subjects, dead.max_age) == (["mesh.deadletter.*"], 0)
    assert (dead.max_bytes or 0) > 0
    for name in ("words_agent", "orchestrator_agent"):
        consumer = (await js.consumer_info("AGENT_TASKS", name)).config
        assert consumer.filter_subject == f"agent.{name}.task"
        assert (consumer.ack_wait, consumer.max_deliver, consumer.max_ack_pending) == (30, 5, 10_000)
        assert not consumer.backoff
        assert consumer.durable_name == name


async def test_the_response_can_be_read_from_the_stream_later(plain: PlainClient) -> None:
    task_id = await plain.send("uppercase", {"text": "later"})
    await plain.response(task_id)
    subscription = await plain.connection.jetstream().subscribe(
        "agent.orchestrator_agent.response", ordered_consumer=True
    )
    caught = [json.loads((await subscription.next_msg(timeout=PATIENCE_SECONDS)).data)["task_id"]]
    assert task_id in caught


async def test_a_poor_uuid_gets_its_response_under_the_canonical_form(plain: PlainClient) -> None:
    task_id = str(new_id())
    await plain.send("uppercase", {"text": "x"}, task_id=task_id.upper())
    response = await plain.response(task_id)
    assert response["error"]["code"] == "invalid_request"
    assert "task_id" in response["error"]["message"]


async def test_an_invalid_request_with_a_known_id_does_not_change_its_outcome(plain: PlainClient) -> None:
    task_id = await plain.send("uppercase", {"text": "good"})
    await plain.response(task_id)
    await plain.connection.publish("agent.orchestrator_agent.task", json.dumps({"task_id": task_id}).encode())
    await plain.until(lambda: len(plain.responses[task_id]) == 2)
    assert plain.responses[task_id][0] == plain.responses[task_id][1]


async def test_text_that_databases_dislike_passes(plain: PlainClient) -> None:
    text = "null \0 and 𝄞 and \u2028 and \ud7ff"
    response = await plain.ask("echo", {"text": text})
    assert response["result"] == {"text": text}


async def test_a_request_that_the_database_refuses_gets_a_response(
    words: AgentProcess, plain: PlainClient, settings: MeshSettings
) -> None:
    """It was kept as a dead letter, and a client that sent it until it had a response sent it for ever."""
    await rows(settings, "alter table tasks add constraint no_cats check (payload::text not like '%cat%')")
    refused = await plain.send("uppercase", {"text": "cat"})
    response = await plain.response(refused)
    assert (response["status"], response["error"]["code"]) == ("failed", "internal_error")
    assert "no_cats" in response["error"]["message"]
    assert (await plain.ask("uppercase", {"text": "dog"}))["result"] == {"text": "DOG"}
    assert plain.dead == []
