"""The worker's loop against a real broker: pull, work, response, acknowledge, in this order, whatever happens."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from uuid import UUID

import pytest
from nats.js.api import AckPolicy, ConsumerConfig
from pydantic import BaseModel, Field

from pantheon import Agent, TaskContext, TaskFailure
from pantheon.bus import Bus, Delivery, Objects, Publisher, Transport, ensure_streams
from pantheon.worker.responses import ResponseMemory
from pantheon.worker.worker import WorkerLimits
from protocol import TaskProgress, TaskResponse, new_id, subjects
from tests.kit.conftest import Rig, quick_retries
from tests.waiting import PATIENCE_SECONDS, until

# In-progress acks far more often than a consumer with a short AckWait needs them.
OFTEN_HELD = WorkerLimits(hold_seconds=0.2)


class Text(BaseModel):
    text: str


@pytest.fixture
def agent() -> Agent:
    made = Agent("test_agent")

    @made.task("uppercase")
    async def uppercase(task: Text) -> Text:
        return Text(text=task.text.upper())

    return made


async def ack_wait(rig: Rig, seconds: float) -> None:
    """The agent's consumer, there before the agent, with another AckWait than the contract's."""
    await rig.js.add_consumer(
        "AGENT_TASKS",
        ConsumerConfig(
            durable_name="test_agent",
            filter_subject=subjects.task("test_agent"),
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=seconds,
            max_deliver=5,
        ),
    )


# -- the plain way --------------------------------------------------------------------------------------------------


async def test_a_task_has_a_response_and_leaves_the_queue(rig: Rig, agent: Agent) -> None:
    await rig.worker(agent)
    root = new_id()
    before = datetime.now(UTC)
    response = await rig.run("test_agent", "uppercase", {"text": "é"}, root_task_id=str(root), attempt=3)
    assert response.status == "completed"
    assert response.result == {"text": "É"}
    assert (response.root_task_id, response.attempt, response.task_type) == (root, 3, "uppercase")
    assert (response.agent, response.instance_id) == ("test_agent", "instance-0")
    assert response.started_at is not None
    assert response.completed_at is not None
    assert before <= response.started_at <= response.completed_at
    assert (response.error, response.usage) == (None, None)
    await rig.until_empty()


async def test_without_a_root_of_its_own_a_task_is_its_own_root(rig: Rig, agent: Agent) -> None:
    await rig.worker(agent)
    response = await rig.run("test_agent", "uppercase", {"text": "a"})
    assert response.root_task_id == response.task_id


async def test_a_reply_to_gets_a_copy_of_the_same_bytes(rig: Rig, agent: Agent) -> None:
    await rig.worker(agent)
    inbox = rig.bus.new_inbox()
    copies: list[bytes] = []

    async def on_copy(message: Any) -> None:
        copies.append(message.data)

    await rig.bus.subscribe(inbox, on_copy)
    await rig.run("test_agent", "uppercase", {"text": "a"}, reply_to=inbox)
    await until(lambda: len(copies) == 1, "the copy")
    assert copies == rig.bodies


async def test_no_more_than_max_concurrency_run_at_once(rig: Rig, agent: Agent) -> None:
    now_running, peak = 0, 0
    three = asyncio.Barrier(3)

    @agent.task("slow")
    async def slow(task: dict[str, Any]) -> None:
        nonlocal now_running, peak
        now_running += 1
        peak = max(peak, now_running)
        await three.wait()
        # Time for a fourth that should not be there.
        await asyncio.sleep(0.02)
        now_running -= 1

    worker = await rig.worker(agent, max_concurrency=3)
    for _ in range(30):
        await rig.send("test_agent", "slow")
    await until(lambda: len(rig.responses) == 30, "30 responses")
    assert peak == 3
    # A response is received before the worker knows that the broker has kept it.
    await until(lambda: worker.active == 0, "nothing at work")
    assert {response.result is not None for response in rig.responses} == {True}


async def test_many_plain_functions_run_at_once_each_in_a_thread(rig: Rig, agent: Agent) -> None:
    """The loop's own thread pool has six threads on two cores: the other tasks' time would run out in its queue."""
    together = threading.Barrier(24)

    @agent.task("blocking")
    def blocking(task: dict[str, Any]) -> dict[str, bool]:
        together.wait(timeout=PATIENCE_SECONDS)
        return {"main": threading.current_thread() is threading.main_thread()}

    await rig.worker(agent, max_concurrency=24)
    for _ in range(24):
        await rig.send("test_agent", "blocking")
    await until(lambda: len(rig.responses) == 24, "24 responses")
    assert {json.dumps(response.result) for response in rig.responses} == {'{"main": false}'}


async def test_what_runs_is_listed_in_heartbeats(rig: Rig, agent: Agent) -> None:
    go_on = asyncio.Event()

    @agent.task("wait")
    async def wait(task: dict[str, Any]) -> None:
        await go_on.wait()

    worker = await rig.worker(agent)
    task_id = await rig.send("test_agent", "wait", attempt=2)
    await until(lambda: worker.active == 1, "the task at work")
    assert [(running.task_id, running.attempt) for running in worker.running] == [(task_id, 2)]
    go_on.set()
    await rig.response(task_id)
    await until(lambda: worker.running == (), "nothing at work")


async def test_an_observer_records_every_attempt(rig: Rig, agent: Agent) -> None:
    seen: list[tuple[str, float, str | None]] = []

    class Observer:
        def record(self, task_type: str, seconds: float, error: str | None = None) -> None:
            seen.append((task_type, seconds, error))

    await rig.worker(agent, observer=Observer())
    await rig.run("test_agent", "uppercase", {"text": "a"})
    await rig.run("test_agent", "uppercase", {"txt": "a"})
    assert [(task_type, error is None) for task_type, _, error in seen] == [("uppercase", True), ("uppercase", False)]
    assert all(0 <= seconds < PATIENCE_SECONDS for _, seconds, _ in seen)


# -- the order: response, then acknowledge ----------------------------------------------------------------------------


@quick_retries
async def test_a_task_is_acknowledged_after_its_response_is(rig: Rig, agent: Agent) -> None:
    """Without the stream of responses no response is acknowledged: the task must stay in the queue until one is."""
    await rig.worker(agent)
    await rig.js.delete_stream("AGENT_RESPONSES")
    task_id = await rig.send("test_agent", "uppercase", {"text": "a"})
    await rig.response(task_id)  # received on core NATS, kept in no stream
    await asyncio.sleep(0.3)
    assert await rig.queued() == 1
    # The response is repeated until a stream keeps it.
    await ensure_streams(rig.bus)
    await rig.until_empty()
    assert (await rig.js.stream_info("AGENT_RESPONSES")).state.messages == 1


async def test_a_process_that_dies_at_work_leaves_the_task_to_another(rig: Rig, agent: Agent) -> None:
    await ack_wait(rig, 1)
    started = asyncio.Event()

    dying = Agent("test_agent")

    @dying.task("uppercase")
    async def never(task: Text) -> Text:
        started.set()
        await asyncio.Event().wait()
        return task

    connection = await Bus.connect(rig.bus.url, name="dying", wait_seconds=PATIENCE_SECONDS)
    await rig.worker(dying, transport=Transport(connection, Publisher(connection), Objects(connection)))
    task_id = await rig.send("test_agent", "uppercase", {"text": "a"})
    await started.wait()
    # As SIGKILL: no drain, no nak, no in-progress ack.
    await connection.close()
    await rig.worker(agent)
    assert (await rig.response(task_id)).result == {"text": "A"}
    await rig.until_empty()


async def test_a_long_task_stays_with_its_instance(rig: Rig, agent: Agent) -> None:
    # Long beside the time between two acks, so that a machine that stands still for a moment is no silent worker.
    await ack_wait(rig, 4)
    runs = 0

    @agent.task("long")
    async def long(task: dict[str, Any]) -> None:
        nonlocal runs
        runs += 1
        await asyncio.sleep(5)

    await rig.worker(agent, limits=OFTEN_HELD)
    await rig.worker(agent, limits=OFTEN_HELD)
    await rig.run("test_agent", "long")
    await rig.until_empty()
    assert runs == 1
    assert (await rig.js.consumer_info("AGENT_TASKS", "test_agent")).delivered.consumer_seq == 1


# -- delivered more than once ---------------------------------------------------------------------------------------


async def test_a_task_delivered_again_while_it_runs_runs_once(rig: Rig, agent: Agent) -> None:
    await ack_wait(rig, 3)
    runs = 0
    go_on = asyncio.Event()

    @agent.task("long")
    async def long(task: dict[str, Any]) -> dict[str, int]:
        nonlocal runs
        runs += 1
        await go_on.wait()
        return {"run": runs}

    worker = await rig.worker(agent)
    task_id = await rig.send("test_agent", "long")
    await until(lambda: worker.deliveries == 2, "the second delivery")
    # Long before a third: one that crosses the end gets a second response, as it should.
    go_on.set()
    response = await rig.response(task_id)
    assert response.result == {"run": 1}
    await rig.until_empty()
    assert runs == 1
    assert len(rig.responses) == 1
    assert (await rig.js.consumer_info("AGENT_TASKS", "test_agent")).delivered.consumer_seq > 1


async def test_a_task_sent_again_while_it_runs_waits_with_it(rig: Rig, agent: Agent) -> None:
    """Sent again after a loss of the broker's store, it is a message of its own; delivered five times it was poison."""
    await ack_wait(rig, 4)
    runs = 0

    @agent.task("long")
    async def long(task: dict[str, Any]) -> dict[str, str]:
        nonlocal runs
        runs += 1
        await asyncio.sleep(6)
        # More than is remembered for a delivery that comes later.
        return {"much": "x" * 100_000}

    worker = await rig.worker(agent, limits=OFTEN_HELD)
    task_id = await rig.send("test_agent", "long")
    await until(lambda: worker.active, "the first delivery")
    await rig.send("test_agent", "long", task_id=task_id)
    await rig.response(task_id)
    await rig.until_empty()
    assert (runs, len(rig.responses)) == (1, 1)
    assert (await rig.js.consumer_info("AGENT_TASKS", "test_agent")).delivered.consumer_seq == 2


async def test_a_task_delivered_again_after_its_end_has_the_same_response(rig: Rig, agent: Agent) -> None:
    runs = 0

    @agent.task("count")
    async def count(task: dict[str, Any]) -> dict[str, int]:
        nonlocal runs
        runs += 1
        return {"run": runs}

    await rig.worker(agent)
    task_id = await rig.send("test_agent", "count")
    await rig.response(task_id)
    # One that comes while the first is still being acknowledged is served by the first's end.
    await rig.until_empty()
    await rig.send("test_agent", "count", task_id=task_id)
    await until(lambda: len(rig.responses) == 2, "a second response")
    assert rig.bodies[0] == rig.bodies[1]
    # In the stream too: who asks again has lost the first, maybe with the broker's store.
    assert (await rig.js.stream_info("AGENT_RESPONSES")).state.messages == 2
    assert runs == 1
    await rig.until_empty()


async def test_responses_are_remembered_up_to_a_number_of_bytes(rig: Rig, agent: Agent) -> None:
    runs: list[UUID] = []

    @agent.task("thousand")
    async def thousand(task: dict[str, Any], ctx: TaskContext) -> str:
        runs.append(ctx.task_id)
        return "x" * 1000

    await rig.worker(agent, limits=WorkerLimits(remembered=ResponseMemory(total_bytes=3000)))
    ids = []
    for _ in range(4):
        ids.append(await rig.send("test_agent", "thousand"))
        await rig.response(ids[-1])
        await rig.until_empty()
    for task_id in (ids[3], ids[0]):
        count = len(rig.responses)
        await rig.send("test_agent", "thousand", task_id=task_id)
        await until(lambda count=count: len(rig.responses) > count, "its response")  # type: ignore[misc]
        await rig.until_empty()
    assert [str(task_id) for task_id in runs] == [str(task_id) for task_id in [*ids, ids[0]]]


async def test_another_attempt_is_another_run(rig: Rig, agent: Agent) -> None:
    seen: list[tuple[int, str]] = []

    @agent.task("note")
    async def note(task: dict[str, Any], ctx: TaskContext) -> None:
        seen.append((ctx.attempt, ctx.idempotency_key))

    await rig.worker(agent)
    root, task_id = str(new_id()), new_id()
    for attempt in (1, 2):
        await rig.send("test_agent", "note", task_id=task_id, root_task_id=root, attempt=attempt)
    await until(lambda: len(rig.responses) == 2, "two responses")
    assert sorted(seen) == [(1, f"{root}:{task_id}"), (2, f"{root}:{task_id}")]


async def test_a_requests_own_idempotency_key_is_the_handlers(rig: Rig, agent: Agent) -> None:
    @agent.task("key")
    async def key(task: dict[str, Any], ctx: TaskContext) -> dict[str, str]:
        return {"key": ctx.idempotency_key}

    await rig.worker(agent)
    assert (await rig.run("test_agent", "key", idempotency_key="mine")).result == {"key": "mine"}


# -- what cannot be worked on ---------------------------------------------------------------------------------------


async def test_an_invalid_request_with_an_id_gets_a_response_that_names_the_field(rig: Rig, agent: Agent) -> None:
    await rig.worker(agent, max_concurrency=1)
    inbox = rig.bus.new_inbox()
    copies: list[bytes] = []

    async def on_copy(message: Any) -> None:
        copies.append(message.data)

    await rig.bus.subscribe(inbox, on_copy)
    root = new_id()
    task_id = await rig.send(
        "test_agent", "uppercase", {"text": "a"}, priority=11, attempt=2, root_task_id=str(root), reply_to=inbox
    )
    response = await rig.response(task_id)
    assert (response.status, response.attempt, response.root_task_id) == ("failed", 2, root)
    assert response.error is not None
    assert (response.error.code, response.error.retryable) == ("invalid_request", False)
    assert response.error.details is not None
    assert response.error.details["field"] == "priority"
    await until(lambda: copies == rig.bodies, "the copy")
    # The queue behind it moves on.
    assert (await rig.run("test_agent", "uppercase", {"text": "a"})).status == "completed"
    await rig.until_empty()


async def test_what_has_no_id_becomes_a_dead_letter_whole(rig: Rig, agent: Agent) -> None:
    await rig.worker(agent, max_concurrency=1)
    bodies = [b"\xff\x00 not json", b"", b'{"task_type": "uppercase"}', b"[]"]
    for body in bodies:
        await rig.send_raw("test_agent", body, {"X-Mine": "1"})
    assert (await rig.run("test_agent", "uppercase", {"text": "a"})).status == "completed"
    letters = await rig.dead_letters(len(bodies))
    assert [letter["body"] for letter in letters] == bodies
    for letter in letters:
        assert letter["on"] == "mesh.deadletter.test_agent"
        assert letter["subject"] == "agent.test_agent.task"
        assert letter["headers"]["X-Mine"] == "1"
        assert letter["deliveries"] == 1
        assert letter["reason"]
        assert letter["error"]
        assert UUID(letter["id"])
    await rig.until_empty()


async def test_a_message_dressed_up_as_one_of_the_brokers_own_is_a_dead_letter(rig: Rig, agent: Agent) -> None:
    """A header `Status: 100` without a body resembles a heartbeat of the broker; it must not stall the agent."""
    await rig.worker(agent, max_concurrency=1)
    for status in ("100", "404", "408", "409", "503"):
        await rig.send_raw("test_agent", b"", {"Status": status})
    assert (await rig.run("test_agent", "uppercase", {"text": "a"})).status == "completed"
    assert len(await rig.dead_letters(5)) == 5
    await rig.until_empty()


async def test_a_dead_letter_as_large_as_the_broker_carries_is_kept_in_part(rig: Rig, agent: Agent) -> None:
    await rig.worker(agent, max_concurrency=1)
    body = b"x" * (rig.bus.max_payload - 1000)
    await rig.send_raw("test_agent", body)
    (letter,) = await rig.dead_letters(1)
    assert body.startswith(letter["body"])
    assert len(letter["body"]) == len(body) // 2
    assert "cut" in letter["error"]
    await rig.until_empty()


async def test_a_payload_that_does_not_validate_is_an_invalid_request(rig: Rig, agent: Agent) -> None:
    await rig.worker(agent)
    response = await rig.run("test_agent", "uppercase", {"text": 7})
    assert response.error is not None
    assert (response.status, response.error.code, response.error.retryable) == ("failed", "invalid_request", False)
    assert response.error.message.startswith("payload.text: ")


async def test_a_task_type_that_is_not_served_may_be_by_another_instance(rig: Rig, agent: Agent) -> None:
    await rig.worker(agent)
    response = await rig.run("test_agent", "lowercase")
    assert response.error is not None
    assert (response.error.code, response.error.retryable) == ("unknown_task_type", True)
    assert "uppercase" in response.error.message


# -- how handlers end -----------------------------------------------------------------------------------------------


async def test_a_task_failure_is_the_error_of_the_response(rig: Rig, agent: Agent) -> None:
    @agent.task("fail")
    async def fail(task: dict[str, Any], ctx: TaskContext) -> None:
        ctx.report_usage(input_tokens=5, cost_usd=0.25)
        ctx.report_usage(output_tokens=7)
        raise TaskFailure("no_paper", "the tray is empty: fill it", retryable=True, details={"tray": 2, "none": None})

    await rig.worker(agent)
    response = await rig.run("test_agent", "fail")
    assert response.error is not None
    assert response.error.model_dump() == {
        "code": "no_paper",
        "message": "the tray is empty: fill it",
        "retryable": True,
        "step": None,
        "details": {"tray": 2, "none": None},
    }
    assert response.result is None
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.cost_usd) == (5, 7, 0.25)


async def test_any_other_exception_is_an_internal_error_worth_another_attempt(rig: Rig, agent: Agent) -> None:
    @agent.task("crash")
    async def crash(task: dict[str, Any]) -> None:
        raise KeyError("gone")

    @agent.task("exit")
    def leave(task: dict[str, Any]) -> None:
        raise StopIteration("over")

    await rig.worker(agent)
    for task_type, words in (("crash", "KeyError: 'gone'"), ("exit", "StopIteration: over")):
        response = await rig.run("test_agent", task_type)
        assert response.error is not None
        assert (response.error.code, response.error.retryable) == ("internal_error", True)
        assert words in response.error.message


UNSAYABLE = {
    "a surrogate in the result": lambda: "\ud800",
    "a surrogate deep in the result": lambda: {"a": ["\udfff"]},
    "an object in the result": lambda: {"a": object()},
}


@pytest.mark.parametrize("make", UNSAYABLE.values(), ids=UNSAYABLE.keys())
async def test_a_result_that_json_cannot_carry_has_a_response_all_the_same(rig: Rig, agent: Agent, make: Any) -> None:
    """A task without a response is delivered again and again until its time is over."""

    @agent.task("odd")
    async def odd(task: dict[str, Any]) -> Any:
        return make()

    await rig.worker(agent)
    response = await rig.run("test_agent", "odd")
    assert response.error is not None
    assert response.status == "failed"
    assert response.error.code in ("internal_error", "invalid_result")
    await rig.until_empty()


UNSAYABLE_ERRORS: dict[str, Exception] = {
    "a surrogate": OSError("cannot open 'caf\udce9.txt'"),
    "a surrogate in a failure": TaskFailure("no_file", "cannot open 'caf\udce9.txt'"),
    "no code": TaskFailure("", "which error is this?"),
    "a long code": TaskFailure("c" * 200, "too much"),
    "an object in details": TaskFailure("no", "see details", details={"path": object()}),
    "a surrogate in details": TaskFailure("no", "see details", details={"path": "caf\udce9.txt"}),
    "bytes in details": TaskFailure("no", "see details", details={"body": b"\xff\xfe"}),
}


@pytest.mark.parametrize("error", UNSAYABLE_ERRORS.values(), ids=UNSAYABLE_ERRORS.keys())
async def test_an_error_that_json_cannot_carry_has_a_response_all_the_same(
    rig: Rig, agent: Agent, error: Exception
) -> None:
    @agent.task("odd")
    async def odd(task: dict[str, Any]) -> None:
        raise error

    await rig.worker(agent)
    response = await rig.run("test_agent", "odd")
    assert response.status == "failed"
    assert response.error is not None
    assert response.error.message
    await rig.until_empty()


async def test_a_result_that_does_not_fit_names_where(rig: Rig, agent: Agent) -> None:
    @agent.task("ratio")
    async def ratio(task: dict[str, Any]) -> dict[str, list[float]]:
        return {"a": [0.5, float("inf")]}

    @agent.task("count")
    async def count(task: dict[str, Any]) -> Annotated[int, Field(ge=10)]:
        return 1

    await rig.worker(agent)
    ratio_error = (await rig.run("test_agent", "ratio")).error
    count_error = (await rig.run("test_agent", "count")).error
    assert ratio_error is not None
    assert count_error is not None
    assert (ratio_error.code, ratio_error.retryable) == ("invalid_result", False)
    assert ratio_error.message == "result.a.1: inf is no number of JSON: return null, or leave it out"
    assert count_error.message == "result: Input should be greater than or equal to 10"


async def test_a_generator_streams_its_text(rig: Rig, agent: Agent) -> None:
    """An async generator's result was the text of the generator object."""

    @agent.task("write")
    async def write(task: dict[str, Any]) -> AsyncIterator[str]:
        for word in ("one ", "two ", "three"):
            yield word

    @agent.task("spell")
    def spell(task: dict[str, Any]) -> Iterator[str]:
        yield from "abc"

    await rig.worker(agent)
    texts: list[str] = []

    async def on_progress(delivery: Delivery) -> None:
        texts.append(json.loads(delivery.data)["text"])

    await rig.bus.subscribe("agent.test_agent.progress.*", on_progress)
    assert (await rig.run("test_agent", "write")).result == "one two three"
    assert (await rig.run("test_agent", "spell")).result == "abc"
    await until(lambda: "".join(texts) == "one two threeabc", "the streamed text")


async def test_an_error_larger_than_the_broker_carries_is_too_large(rig: Rig, agent: Agent) -> None:
    """Also by a few bytes: the server counts headers in, and cuts the connection of a client that sends more."""
    disconnects = rig.bus.generation

    @agent.task("fill")
    async def fill(task: dict[str, int]) -> None:
        raise TaskFailure("filled", "x" * task["size"])

    await rig.worker(agent)
    limit = rig.bus.max_payload
    ends = []
    for size in (limit + 10, limit - 10, limit - 400, limit - 450, limit - 500, limit - 550, limit - 600, limit - 2000):
        response = await rig.run("test_agent", "fill", {"size": size})
        assert response.error is not None
        ends.append(response.error.code)
        if response.error.code == "too_large":
            assert str(limit) in response.error.message
    assert ends[:2] == ["too_large", "too_large"]
    assert ends[-1] == "filled"
    assert ends == sorted(ends, reverse=True)
    assert rig.bus.generation == disconnects
    await rig.until_empty()


# -- time -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def sleepy(agent: Agent) -> Agent:
    @agent.task("sleep")
    async def sleep(task: dict[str, float], ctx: TaskContext) -> None:
        await asyncio.sleep(task["seconds"])

    @agent.task("short_sleep", timeout_seconds=0.2)
    async def short_sleep(task: dict[str, float]) -> None:
        await asyncio.sleep(task["seconds"])

    @agent.task("deep_sleep", timeout_seconds=0.2)
    def deep_sleep(task: dict[str, float], ctx: TaskContext) -> None:
        while not ctx.cancelled:
            time.sleep(0.01)

    @agent.task("own_timeout")
    async def own_timeout(task: dict[str, Any]) -> None:
        raise TimeoutError("the printer did not response")

    return agent


async def test_an_attempt_that_takes_too_long_ends_with_timeout(rig: Rig, sleepy: Agent) -> None:
    await rig.worker(sleepy)
    for task_type, limit in (("sleep", "timeout"), ("short_sleep", ""), ("deep_sleep", ""), ("sleep", "deadline")):
        fields: dict[str, Any] = {}
        if limit == "timeout":
            fields["timeout_seconds"] = 0.2
        elif limit == "deadline":
            # Far enough off for the task to have begun before it.
            fields["deadline"] = (datetime.now(UTC) + timedelta(seconds=3)).isoformat()
        response = await rig.run("test_agent", task_type, {"seconds": 60}, **fields)
        assert response.error is not None
        assert (response.status, response.error.code, response.error.retryable) == ("failed", "timeout", True)


async def test_a_handlers_own_timeout_error_is_its_own(rig: Rig, sleepy: Agent) -> None:
    await rig.worker(sleepy)
    response = await rig.run("test_agent", "own_timeout")
    assert response.error is not None
    assert response.error.code == "internal_error"
    assert "printer" in response.error.message


async def test_after_its_deadline_a_task_is_not_begun(rig: Rig, sleepy: Agent) -> None:
    await rig.worker(sleepy)
    deadline = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    response = await rig.run("test_agent", "sleep", {"seconds": 0}, deadline=deadline)
    assert response.error is not None
    assert (response.error.code, response.error.retryable) == ("deadline_exceeded", False)


async def test_a_hook_that_hangs_runs_out_of_the_attempts_time(rig: Rig, sleepy: Agent) -> None:
    @sleepy.before_task
    async def hang(ctx: TaskContext) -> None:
        await asyncio.Event().wait()

    await rig.worker(sleepy)
    response = await rig.run("test_agent", "sleep", {"seconds": 0}, timeout_seconds=0.2)
    assert response.error is not None
    assert response.error.code == "timeout"


# -- cancelling -----------------------------------------------------------------------------------------------------


class Cancellable:
    """An agent whose task says when it has begun, and cleans up slowly when it is cancelled."""

    def __init__(self, agent: Agent) -> None:
        self.begun = asyncio.Event()
        self.cleaned = 0
        self.contexts: list[TaskContext] = []

        @agent.task("wait")
        async def wait(task: dict[str, Any], ctx: TaskContext) -> None:
            self.contexts.append(ctx)
            self.begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.3)
                self.cleaned += 1


async def test_a_cancelled_task_ends_cancelled_with_the_reason(rig: Rig, agent: Agent) -> None:
    there = Cancellable(agent)
    worker = await rig.worker(agent)
    task_id = await rig.send("test_agent", "wait")
    await there.begun.wait()
    worker.cancel(task_id, 1, "nobody wants it")
    response = await rig.response(task_id)
    assert response.status == "cancelled"
    assert response.error is not None
    assert (response.error.code, response.error.message) == ("cancelled", "nobody wants it")
    assert there.contexts[0].cancelled
    await rig.until_empty()


async def test_an_order_to_cancel_that_comes_again_lets_the_handler_clean_up(rig: Rig, agent: Agent) -> None:
    """The orchestrator says it three times, in case one is lost."""
    there = Cancellable(agent)
    worker = await rig.worker(agent)
    task_id = await rig.send("test_agent", "wait")
    await there.begun.wait()
    for _ in range(3):
        worker.cancel(task_id, None, "")
        await asyncio.sleep(0.05)
    response = await rig.response(task_id)
    assert there.cleaned == 1
    assert response.error is not None
    assert response.error.message == "cancelled"
    assert (await rig.run("test_agent", "uppercase", {"text": "a"})).status == "completed"


async def test_cancelling_another_attempt_or_task_leaves_this_one(rig: Rig, agent: Agent) -> None:
    there = Cancellable(agent)
    worker = await rig.worker(agent)
    task_id = await rig.send("test_agent", "wait", attempt=2)
    await there.begun.wait()
    worker.cancel(task_id, 1, "an old attempt")
    worker.cancel(new_id(), None, "another task")
    await asyncio.sleep(0.2)
    assert rig.responses == []
    assert worker.active == 1
    worker.cancel(task_id, 2, "this one")
    assert (await rig.response(task_id)).status == "cancelled"


async def test_a_cancel_that_overtakes_its_task_is_remembered(rig: Rig, agent: Agent) -> None:
    there = Cancellable(agent)
    worker = await rig.worker(agent)
    early, whole = new_id(), new_id()
    worker.cancel(early, 1, "too early")
    worker.cancel(whole, None, "all attempts")
    for task_id, attempt, status in ((early, 1, "cancelled"), (whole, 7, "cancelled")):
        await rig.send("test_agent", "wait", task_id=task_id, attempt=attempt)
        assert (await rig.response(task_id)).status == status
    assert not there.begun.is_set()
    await rig.send("test_agent", "uppercase", {"text": "a"}, task_id=early, attempt=2)
    await until(
        lambda: [response.status for response in rig.responses_to(early)] == ["cancelled", "completed"], "attempt 2"
    )


async def test_a_task_that_is_responding_already_is_not_cancelled(rig: Rig, agent: Agent) -> None:
    responding, go_on = asyncio.Event(), asyncio.Event()

    @agent.after_task
    async def hold(ctx: TaskContext, response: TaskResponse) -> None:
        responding.set()
        await go_on.wait()

    worker = await rig.worker(agent)
    task_id = await rig.send("test_agent", "uppercase", {"text": "a"})
    await responding.wait()
    worker.cancel(task_id, 1, "too late")
    go_on.set()
    assert (await rig.response(task_id)).status == "completed"
    await rig.until_empty()


async def test_a_cancel_while_an_error_is_looked_at_changes_nothing(rig: Rig, agent: Agent) -> None:
    observing, go_on = asyncio.Event(), asyncio.Event()

    @agent.on_error
    async def observe(ctx: TaskContext, error: Exception) -> None:
        observing.set()
        await go_on.wait()

    @agent.task("fail")
    async def fail(task: dict[str, Any]) -> None:
        raise TaskFailure("no", "no")

    worker = await rig.worker(agent)
    task_id = await rig.send("test_agent", "fail")
    await observing.wait()
    worker.cancel(task_id, 1, "too late")
    go_on.set()
    assert (await rig.response(task_id)).status == "failed"
    await rig.until_empty()


async def test_a_plain_function_sees_that_it_was_cancelled(rig: Rig, agent: Agent) -> None:
    begun, ended = threading.Event(), threading.Event()

    @agent.task("spin")
    def spin(task: dict[str, Any], ctx: TaskContext) -> None:
        begun.set()
        try:
            while True:
                ctx.raise_if_cancelled()
                time.sleep(0.01)
        finally:
            ended.set()

    worker = await rig.worker(agent)
    task_id = await rig.send("test_agent", "spin")
    await until(begun.is_set, "the thread")
    worker.cancel(task_id, 1, "enough")
    assert (await rig.response(task_id)).status == "cancelled"
    await until(ended.is_set, "the thread's end")


async def test_a_handler_that_ends_well_in_spite_of_its_cancel_has_ended_well(rig: Rig, agent: Agent) -> None:
    begun = asyncio.Event()

    @agent.task("stubborn")
    async def stubborn(task: dict[str, Any]) -> dict[str, bool]:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0.05)
        return {"done": True}

    worker = await rig.worker(agent)
    task_id = await rig.send("test_agent", "stubborn")
    await begun.wait()
    worker.cancel(task_id, 1, "stop")
    assert (await rig.response(task_id)).result == {"done": True}
    await rig.until_empty()


# -- draining -------------------------------------------------------------------------------------------------------


async def test_a_drain_lets_what_runs_finish_and_takes_no_more(rig: Rig, agent: Agent) -> None:
    # What is not returned does not come at all.
    await ack_wait(rig, 10 * PATIENCE_SECONDS)
    begun, go_on = asyncio.Event(), asyncio.Event()

    @agent.task("wait")
    async def wait(task: dict[str, Any]) -> None:
        begun.set()
        await go_on.wait()

    worker = await rig.worker(agent, max_concurrency=2)
    task_id = await rig.send("test_agent", "wait")
    await begun.wait()
    draining = asyncio.create_task(worker.drain(10))
    await until(lambda: not worker.receiving, "the drain")
    await asyncio.sleep(0.1)
    later = await rig.send("test_agent", "uppercase", {"text": "a"})
    go_on.set()
    await draining
    assert (await rig.response(task_id)).status == "completed"
    assert rig.responses_to(later) == []

    async def one_left() -> bool:
        return await rig.queued() == 1

    await until(one_left, "the first task's ack")
    # What was left is there for the next instance at once.
    await rig.worker(agent)
    assert (await rig.response(later)).status == "completed"
    await rig.until_empty()


async def test_a_drain_hands_back_what_does_not_finish_in_time(rig: Rig, agent: Agent) -> None:
    # What is not returned does not come at all.
    await ack_wait(rig, 10 * PATIENCE_SECONDS)
    there = Cancellable(agent)
    threads = threading.Event()

    @agent.task("spin")
    def spin(task: dict[str, Any], ctx: TaskContext) -> None:
        threads.set()
        while not ctx.cancelled:
            time.sleep(0.01)

    worker = await rig.worker(agent)
    task_id = await rig.send("test_agent", "wait")
    in_thread = await rig.send("test_agent", "spin")
    await there.begun.wait()
    await until(threads.is_set, "the thread")
    await worker.drain(0.1)
    assert rig.responses == []
    assert there.cleaned == 1
    assert worker.active == 0

    other = Agent("test_agent")

    @other.task("wait")
    async def wait(task: dict[str, Any]) -> dict[str, str]:
        return {"by": "another"}

    @other.task("spin")
    async def spin_again(task: dict[str, Any]) -> dict[str, str]:
        return {"by": "another"}

    await rig.worker(other)
    for cancelled in (task_id, in_thread):
        assert (await rig.response(cancelled)).result == {"by": "another"}
    await rig.until_empty()


async def test_a_rolling_restart_in_mid_load_loses_nothing_and_runs_nothing_twice(rig: Rig, agent: Agent) -> None:
    runs: dict[str, int] = {}

    @agent.task("count")
    async def count(task: dict[str, Any], ctx: TaskContext) -> None:
        runs[str(ctx.task_id)] = runs.get(str(ctx.task_id), 0) + 1
        await asyncio.sleep(0.005)

    worker = await rig.worker(agent, max_concurrency=5)
    sent = [await rig.send("test_agent", "count") for _ in range(200)]
    for goal in (20, 60, 100, 140):
        await until(lambda goal=goal: len(rig.responses) >= goal, "some progress")  # type: ignore[misc]
        following = await rig.worker(agent, max_concurrency=5)
        await worker.drain(20)
        worker = following
    await until(lambda: {response.task_id for response in rig.responses} == set(sent), "all responses")
    await rig.until_empty()
    assert set(runs.values()) == {1}


async def test_clean_stops_are_no_deaths(rig: Rig, agent: Agent) -> None:
    """The broker counts a return like a death: a task that five instances had returned at their end got no sixth."""
    begun: list[int] = []
    last = asyncio.Event()

    @agent.task("wait")
    async def wait(task: dict[str, Any], ctx: TaskContext) -> int:
        begun.append(ctx.attempt)
        await last.wait()
        return len(begun)

    task_id = await rig.send("test_agent", "wait")
    for number in range(7):
        worker = await rig.worker(agent)
        await until(lambda number=number: len(begun) > number, "the handler")  # type: ignore[misc]
        await worker.drain(0)
    last.set()
    await rig.worker(agent)
    response = await rig.response(task_id)
    assert (response.status, response.result, response.attempt) == ("completed", 8, 1)
    await rig.until_empty()


async def test_a_paused_agent_takes_no_more_until_it_resumes(rig: Rig, agent: Agent) -> None:
    worker = await rig.worker(agent, max_concurrency=2)
    await rig.run("test_agent", "uppercase", {"text": "a"})
    worker.pause()
    for _ in range(8):
        await rig.send("test_agent", "uppercase", {"text": "a"})
    # What was requested before may still come: no more than a worker's slots.
    await asyncio.sleep(0.5)
    assert len(rig.responses) <= 1 + 2
    worker.resume()
    await until(lambda: len(rig.responses) == 9, "the rest")


# -- hooks ----------------------------------------------------------------------------------------------------------


async def test_hooks_are_called_in_order_around_every_attempt(rig: Rig, agent: Agent) -> None:
    calls: list[str] = []

    @agent.before_task
    async def before(ctx: TaskContext) -> None:
        calls.append(f"before {ctx.task_type}")

    @agent.before_task
    def before_too(ctx: TaskContext) -> None:
        calls.append("before too")

    @agent.after_task
    async def after(ctx: TaskContext, response: TaskResponse) -> None:
        calls.append(f"after {response.status}")

    @agent.on_error
    async def on_error(ctx: TaskContext, error: Exception) -> None:
        calls.append(f"error {type(error).__name__}")

    @agent.task("crash")
    async def crash(task: dict[str, Any]) -> None:
        calls.append("work")
        raise KeyError("x")

    await rig.worker(agent)
    await rig.run("test_agent", "uppercase", {"text": "a"})
    assert calls == ["before uppercase", "before too", "after completed"]
    calls.clear()
    await rig.run("test_agent", "crash")
    assert calls == ["before crash", "before too", "work", "error KeyError", "after failed"]


async def test_a_hook_before_a_task_can_end_it(rig: Rig, agent: Agent) -> None:
    @agent.before_task
    async def refuse(ctx: TaskContext) -> None:
        raise TaskFailure("closed", "come back tomorrow")

    await rig.worker(agent)
    response = await rig.run("test_agent", "uppercase", {"text": "a"})
    assert response.error is not None
    assert response.error.code == "closed"


async def test_hooks_that_observe_change_nothing_when_they_raise(rig: Rig, agent: Agent) -> None:
    @agent.after_task
    async def after(ctx: TaskContext, response: TaskResponse) -> None:
        raise RuntimeError("after")

    @agent.on_error
    async def on_error(ctx: TaskContext, error: Exception) -> None:
        raise RuntimeError("error")

    await rig.worker(agent)
    assert (await rig.run("test_agent", "uppercase", {"text": "a"})).status == "completed"
    response = await rig.run("test_agent", "uppercase", {})
    assert response.error is not None
    assert response.error.code == "invalid_request"


# -- progress -------------------------------------------------------------------------------------------------------


async def test_progress_and_streamed_text_reach_who_watches(rig: Rig, agent: Agent) -> None:
    long_text = "wörter\n" * 200_000  # more than a message may hold

    @agent.task("tell")
    async def report(task: dict[str, Any], ctx: TaskContext) -> None:
        await ctx.progress(10, "begun")
        await ctx.progress(250, "beyond")
        await ctx.progress(float("nan"), "unsure")
        await ctx.progress(message="caf\udce9")
        await ctx.stream("")
        await ctx.stream("Hello ")
        await ctx.stream("half \ud800")
        await ctx.stream(long_text)
        await ctx.progress(100)

    seen: list[TaskProgress] = []

    async def on_progress(message: Any) -> None:
        seen.append(TaskProgress.model_validate_json(message.data))

    root = new_id()
    await rig.bus.subscribe(subjects.progress("test_agent", root), on_progress)
    await rig.worker(agent)
    response = await rig.run("test_agent", "tell", root_task_id=str(root), metadata={"step": "draft"})
    assert response.status == "completed"
    await until(lambda: bool(seen) and seen[-1].percent == 100 and seen[-1].message == "", "the last of it")
    assert [(progress.percent, progress.message) for progress in seen if not progress.text] == [
        (10, "begun"),
        (100, "beyond"),
        (None, "unsure"),
        (None, "caf?"),
        (100, ""),
    ]
    assert "".join(progress.text for progress in seen) == "Hello half ?" + long_text
    assert {(progress.task_id, progress.root_task_id, progress.agent, progress.step) for progress in seen} == {
        (response.task_id, root, "test_agent", "draft")
    }


async def test_frequent_progress_is_thinned_out_but_the_end_is_reported(rig: Rig, agent: Agent) -> None:
    @agent.task("tell")
    async def report(task: dict[str, Any], ctx: TaskContext) -> None:
        for percent in range(101):
            await ctx.progress(percent)

    seen: list[float | None] = []

    async def on_progress(message: Any) -> None:
        seen.append(TaskProgress.model_validate_json(message.data).percent)

    await rig.bus.subscribe(subjects.all_progress(), on_progress)
    await rig.worker(agent)
    await rig.run("test_agent", "tell")
    await until(lambda: bool(seen) and seen[-1] == 100, "the end")
    assert len(seen) < 20


async def test_a_handler_that_swallows_its_cancellation_is_left_behind(rig: Rig, agent: Agent) -> None:
    """It kept its slot for ever, and its message with in-progress acks; a second delivery waited with it."""
    late = asyncio.Event()

    @agent.task("stubborn", timeout_seconds=0.2)
    async def stubborn(task: dict[str, Any]) -> dict[str, str]:
        while not late.is_set():
            try:
                await late.wait()
            except asyncio.CancelledError:
                continue
        return {"much": "too late"}

    @agent.task("quick")
    async def quick(task: dict[str, Any]) -> dict[str, str]:
        return {}

    worker = await rig.worker(agent, max_concurrency=2, limits=WorkerLimits(hold_seconds=0.1, stuck_seconds=0.5))
    task_id = await rig.send("test_agent", "stubborn")
    await until(lambda: worker.active, "the first delivery")
    await rig.send("test_agent", "stubborn", task_id=task_id)
    following = await rig.send("test_agent", "quick")
    response = await rig.response(task_id)
    assert response.error is not None
    assert (response.error.code, response.error.retryable) == ("timeout", True)
    assert (await rig.response(following)).status == "completed"
    await rig.until_empty()
    await until(lambda: (worker.active, worker.deliveries) == (0, 0), "both slots free")
    late.set()
    await rig.response(await rig.send("test_agent", "quick"))
    assert [each.task_id for each in rig.responses].count(task_id) == 1
