"""Nothing is lost, nothing is done twice without need: processes and servers that die in the middle."""

import asyncio
import json
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig

from orchestrator_agent.maintenance.adoption import AdoptionTimes
from orchestrator_agent.maintenance.broker_watch import NEEDED, WATCHED
from orchestrator_agent.message_loops import HoldTimes
from orchestrator_agent.parts import Tuning
from orchestrator_agent.service import OrchestratorWorker, load_library, orchestrator
from pantheon import Mesh
from pantheon.bus import Bus, PublishRetries, ensure_streams, stream_mark
from pantheon.bus.streams import StreamMark
from pantheon.process.agent_process import AgentProcess
from pantheon.runtime.settings import MeshSettings
from pantheon.stack.servers import NatsServer
from protocol import subjects
from protocol.ids import new_id
from tests.mesh.agents import Seen, orchestrator_process, registry_of, rows, words_agent
from tests.mesh.conftest import PlainClient
from tests.servers import postgres_server
from tests.waiting import PATIENCE_SECONDS, until

STEPS = 4
CHAIN = {
    "input": {"text": "a"},
    "steps": {
        f"s{number}": {
            "task": "repeat" if number % 2 else "uppercase",
            "with": {
                "text": "${input.text}" if number == 0 else f"${{s{number - 1}.text}}",
                **({"times": 2} if number % 2 else {}),
            },
        }
        for number in range(STEPS)
    },
    "output": {"text": f"${{s{STEPS - 1}.text}}"},
}
CHAIN_RESULT = {"text": "AAAA"}


@pytest.mark.parametrize("killed_at", range(STEPS))
async def test_an_orchestrator_killed_between_two_steps_goes_on_when_it_is_started_again(
    settings: MeshSettings, seen: Seen, plain: PlainClient, killed_at: int
) -> None:
    """Killed while step N is with an agent; the agent responds while no orchestrator is there."""
    gates = [asyncio.Event() for _ in range(STEPS)]
    reached = [asyncio.Event() for _ in range(STEPS)]
    agent = words_agent(seen)

    @agent.before_task
    async def stop_at_gate(ctx: Any) -> None:
        number = int(ctx.metadata["step"].removeprefix("s"))
        reached[number].set()
        await gates[number].wait()

    async with orchestrator_process(settings) as process, AgentProcess(agent, settings):
        task_id = await plain.submit("execute_dag", CHAIN)
        for number in range(STEPS):
            async with asyncio.timeout(PATIENCE_SECONDS):
                await reached[number].wait()
            if number == killed_at:
                await process.end(signal.SIGKILL)
                gates[number].set()
                await process.start()
            else:
                gates[number].set()
        response = await plain.response(task_id)
    assert response["result"] == CHAIN_RESULT
    assert len(seen.calls) == STEPS
    # The new process may publish what the dead one published, or did not, as its own: the same bytes, kept once.
    assert len(set(plain.responses[task_id])) == 1


def _reached(plain: PlainClient, goal: int) -> bool:
    return len(plain.responses) >= goal


async def test_an_orchestrator_killed_under_load_loses_and_doubles_nothing(
    settings: MeshSettings, seen: Seen, plain: PlainClient
) -> None:
    count = 150
    async with orchestrator_process(settings) as process, AgentProcess(words_agent(seen), settings):
        ids = [str(new_id()) for _ in range(count)]

        sending = asyncio.gather(
            *(
                plain.submit("execute_dag", CHAIN, task_id=task_id, within_seconds=2 * PATIENCE_SECONDS)
                for task_id in ids
            )
        )
        for share in (0.2, 0.5, 0.8):
            goal = int(count * share)
            await plain.until(partial(_reached, plain, goal))
            await process.end(signal.SIGKILL)
            await process.start()
        await sending
        await plain.until(lambda: len(plain.responses) == count, within_seconds=2 * PATIENCE_SECONDS)
    for task_id in ids:
        assert len(set(plain.responses[task_id])) == 1
        assert json.loads(plain.responses[task_id][0])["result"] == CHAIN_RESULT
    found = await rows(settings, "select status, count(*) from tasks group by status")
    assert {row["status"]: row["count"] for row in found} == {"completed": count * (STEPS + 1)}


async def test_another_orchestrator_takes_over_what_a_killed_one_had_at_work(
    settings: MeshSettings, seen: Seen, plain: PlainClient
) -> None:
    gate = seen.gates["repeat"] = asyncio.Event()
    async with (
        orchestrator_process(settings) as first,
        orchestrator_process(settings),
        AgentProcess(words_agent(seen), settings),
    ):
        ids = [await plain.submit("execute_dag", CHAIN) for _ in range(20)]
        await seen.until_called("repeat", 10)
        await first.end(signal.SIGKILL)
        gate.set()
        await plain.until(lambda: len(plain.responses) == 20)
    assert all(json.loads(plain.responses[task_id][0])["result"] == CHAIN_RESULT for task_id in ids)
    assert len(seen.calls) == 20 * STEPS
    left = await rows(settings, "select count(*) from tasks where dispatched_by is null")
    assert left[0]["count"] == 0


async def test_two_orchestrators_respond_to_every_task_once(
    settings: MeshSettings, seen: Seen, plain: PlainClient
) -> None:
    library = load_library([])
    async with (
        orchestrator(settings, library),
        orchestrator(settings, library),
        AgentProcess(words_agent(seen), settings),
    ):
        dag = {
            "steps": {
                "each": {"for_each": [1, 2, 3, 4, 5, 6, 7, 8], "task": "echo", "with": {"n": "${item}"}},
                "sum": {"task": "echo", "with": {"all": "${each.map(e, e.n)}"}},
            },
            "output": "${sum.all}",
        }
        ids = [await plain.send("execute_dag", dag) for _ in range(40)]
        await plain.until(lambda: len(plain.responses) == 40)
    for task_id in ids:
        assert json.loads(plain.responses[task_id][0])["result"] == [1, 2, 3, 4, 5, 6, 7, 8]
        assert len(plain.responses[task_id]) == 1
    assert seen.count("echo") == 40 * 9


async def test_a_broker_that_loses_its_store_in_mid_run_loses_no_task(
    settings: MeshSettings, broker: NatsServer, seen: Seen, plain: PlainClient, tmp_path: Path
) -> None:
    """The store is wiped while tasks wait in the queue: every dispatched row is published again by itself."""
    gate = seen.gates["uppercase"] = asyncio.Event()
    agent = words_agent(seen, max_concurrency=3)
    async with orchestrator(settings, load_library([])), AgentProcess(agent, settings):
        ids = [await plain.send("execute_dag", CHAIN) for _ in range(12)]
        await plain.until(lambda: len(plain.accepted) == 12)
        await seen.until_called("uppercase", 3)
        await broker.stop()
        shutil.rmtree(tmp_path / "nats" / "jetstream", ignore_errors=True)
        for store in (tmp_path / "nats").rglob("jetstream"):
            shutil.rmtree(store)
        await broker.start()
        gate.set()
        await plain.collect("execute_dag", CHAIN, ids)
    assert all(json.loads(plain.responses[task_id][0])["result"] == CHAIN_RESULT for task_id in ids)
    assert all(len(set(plain.responses[task_id])) == 1 for task_id in ids)


async def test_an_outage_longer_than_an_attempts_timeout_is_no_failure_of_the_attempt(
    settings: MeshSettings, broker: NatsServer, seen: Seen, plain: PlainClient
) -> None:
    """One has its response while the broker is away, unpublished; the other never reaches its agent. Both counted
    as failed, and where there was no retry the task with them."""
    gate = seen.gates["echo"] = asyncio.Event()
    once = {"timeout": 3, "retry": {"max_attempts": 1}}
    steps = {
        "answered": {"task": "echo", "agent": "words_agent", "with": {"n": 1}, **once},
        "unheard": {"task": "uppercase", "agent": "deaf_agent", "with": {"text": "a"}, **once},
    }
    async with (
        orchestrator(settings, load_library([])) as process,
        AgentProcess(words_agent(seen), settings),
        AgentProcess(words_agent(seen, name="deaf_agent"), settings) as deaf,
    ):
        await until(lambda: len(registry_of(process).serving("echo")) == 2, "the agents")
        # Else its first seconds count as those after an outage.
        assert isinstance(process.worker, OrchestratorWorker)
        outages = process.worker.parts.maintenance.outages
        await until(lambda: outages.settled)
        deaf.worker.pause()
        task_id = await plain.submit("execute_dag", {"steps": steps})
        await seen.until_called("echo")
        await broker.stop()
        gate.set()

        async def over() -> bool:
            late = "select 1 from tasks where status = 'dispatched' and expires_at < now() - interval '3 s'"
            return len(await rows(settings, late)) == 2

        await until(over, "the end of both attempts' time")
        await broker.start()
        await until(lambda: rows(settings, "select 1 from tasks where step = 'unheard' and attempt = 2"), "another one")
        deaf.worker.resume()
        await plain.collect("execute_dag", {"steps": steps}, [task_id])
    response = json.loads(plain.responses[task_id][0])
    assert response["result"] == {"answered": {"n": 1}, "unheard": {"text": "A"}}
    found = await rows(settings, "select step, attempt, failures from tasks where step is not null order by step")
    assert [tuple(row) for row in found] == [("answered", 1, 0), ("unheard", 2, 0)]
    assert seen.count("echo") == 1


async def test_what_is_acknowledged_while_the_broker_is_asked_is_not_taken_for_a_loss(
    settings: MeshSettings, seen: Seen, plain: PlainClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = seen.gates["echo"] = asyncio.Event()
    async with orchestrator(settings, load_library([])) as process, AgentProcess(words_agent(seen), settings):
        marks_read = 0

        async def reply_late(bus: Bus, name: str) -> StreamMark | None:
            nonlocal marks_read
            mark = await stream_mark(bus, name)
            # What a loaded process does: acknowledgements are read before the reply is.
            await process.publisher.publish(subjects.task("nobody"), b"{}")
            marks_read += 1
            return mark

        task_id = await plain.submit("echo", {"n": 1})
        await seen.until_called("echo")
        attempts = await listening(plain, "agent.words_agent.task")
        monkeypatch.setattr("orchestrator_agent.maintenance.broker_watch.stream_mark", reply_late)
        # What the first whole check resulted in has been done when the third begins.
        await until(lambda: marks_read > 2 * (len(WATCHED) + len(NEEDED) + 1), "a third check")
        gate.set()
        assert (await plain.response(task_id))["status"] == "completed"
        assert attempts == []


async def listening(plain: PlainClient, subject: str) -> list[bytes]:
    received: list[bytes] = []

    async def receive(message: Msg) -> None:
        received.append(message.data)

    await plain.connection.subscribe(subject, cb=receive)
    await plain.connection.flush()
    return received


async def test_a_store_wiped_without_an_orchestrator_is_noticed_at_start(
    settings: MeshSettings, broker: NatsServer, seen: Seen, plain: PlainClient, tmp_path: Path
) -> None:
    async with orchestrator_process(settings) as process:
        async with AgentProcess(words_agent(seen, max_concurrency=1), settings):
            gate = seen.gates["uppercase"] = asyncio.Event()
            ids = [await plain.submit("execute_dag", CHAIN) for _ in range(4)]
            await seen.until_called("uppercase", 1)
            await plain.until(lambda: len(plain.accepted) == 4)
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not await rows(settings, "select 1 from broker_streams"):  # noqa: ASYNC110 - a row has no event
                    await asyncio.sleep(0.1)
            await process.end(signal.SIGTERM)
        await broker.stop()
        for store in (tmp_path / "nats").rglob("jetstream"):
            shutil.rmtree(store)
        gate.set()
        await broker.start()
        await process.start()
        async with AgentProcess(words_agent(seen), settings):
            await plain.collect("execute_dag", CHAIN, ids)
    assert all(json.loads(plain.responses[task_id][0])["result"] == CHAIN_RESULT for task_id in ids)


@pytest.mark.parametrize("subject", [None, "agent.words_agent.task"], ids=["all", "one agent's"])
async def test_purged_attempts_are_republished(
    settings: MeshSettings, seen: Seen, plain: PlainClient, subject: str | None
) -> None:
    """They waited for the end of their time: neither the age of a stream nor its last sequence shows a purge, and the
    broker goes on dropping what has the ids of the purged messages."""
    gate = seen.gates["uppercase"] = asyncio.Event()
    # Three slots: of six attempts three are in the broker, the others wait for these.
    agent = words_agent(seen, max_concurrency=3)
    async with orchestrator(settings, load_library([])) as process, AgentProcess(agent, settings):
        await until(lambda: registry_of(process).serving("uppercase"), "the agent in the registry")
        await plain.overhear("words_agent")
        ids = [await plain.submit("uppercase", {"text": str(number)}) for number in range(6)]
        await seen.until_called("uppercase", 3)
        await plain.until(lambda: len(plain.overheard) == 3)
        await plain.connection.jetstream().purge_stream("AGENT_TASKS", subject=subject)
        await plain.until(lambda: len(plain.overheard) == 6)
        gate.set()
        responses = [await plain.response(task_id) for task_id in ids]
    assert [response["result"]["text"] for response in responses] == [str(number) for number in range(6)]
    assert {request["attempt"] for request, _ in plain.overheard} == {1}


async def test_without_postgres_nothing_is_taken_and_nothing_is_lost(
    broker: NatsServer, seen: Seen, plain: PlainClient, tmp_path: Path
) -> None:
    import migrations

    async with postgres_server(tmp_path / "postgres") as database:
        await migrations.upgrade(database.url)
        settings = MeshSettings.load(
            nats_url=broker.url, database_url=database.url, no_agent_wait_seconds=5.0, drain_grace_seconds=1.0
        )
        async with orchestrator(settings, load_library([])), AgentProcess(words_agent(seen), settings):
            gate = seen.gates["uppercase"] = asyncio.Event()
            running = [await plain.send("execute_dag", CHAIN) for _ in range(5)]
            await seen.until_called("uppercase", 5)
            await database.stop()
            gate.set()
            during = [await plain.send("execute_dag", CHAIN) for _ in range(5)]
            await asyncio.sleep(1.5)
            assert not plain.responses
            assert not set(during) & set(plain.accepted)
            await database.start()
            await plain.until(lambda: len(plain.responses) == 10, within_seconds=2 * PATIENCE_SECONDS)
    for task_id in running + during:
        assert json.loads(plain.responses[task_id][0])["result"] == CHAIN_RESULT
    assert seen.count("uppercase") == 20


async def test_requests_that_wait_for_postgres_are_delivered_once(
    broker: NatsServer, seen: Seen, plain: PlainClient, tmp_path: Path
) -> None:
    """Those behind the batch that is being written as well: delivered five times they were dead letters, `poison`."""
    import migrations

    tuning = Tuning(holding=HoldTimes(hold_seconds=0.3))
    ack_wait_seconds = 4.0
    bus = await Bus.connect(broker.url, name="test")
    async with bus, postgres_server(tmp_path / "postgres") as database:
        await migrations.upgrade(database.url)
        await ensure_streams(bus)
        # As the contract's, which waits longer.
        await bus.js.add_consumer(
            "AGENT_TASKS",
            ConsumerConfig(
                durable_name="orchestrator_agent",
                filter_subject=subjects.task("orchestrator_agent"),
                ack_policy=AckPolicy.EXPLICIT,
                ack_wait=ack_wait_seconds,
                max_deliver=5,
            ),
        )
        settings = MeshSettings.load(nats_url=broker.url, database_url=database.url, drain_grace_seconds=1.0)
        async with (
            orchestrator(settings, load_library([]), tuning=tuning),
            AgentProcess(words_agent(seen), settings),
        ):
            await plain.ask("uppercase", {"text": "a"})
            await database.stop()
            ids = []
            for _ in range(3):
                ids.append(await plain.send("uppercase", {"text": "a"}))
                # One is a batch of its own, so that those after it wait behind it.
                await asyncio.sleep(0.2)
            await asyncio.sleep(2 * ack_wait_seconds)
            await database.start()
            for task_id in ids:
                assert (await plain.response(task_id))["result"] == {"text": "A"}
            info = await bus.js.consumer_info("AGENT_TASKS", "orchestrator_agent")
            assert info.delivered.consumer_seq == 4


async def test_a_broker_that_goes_and_comes_back_delays_and_loses_nothing(
    settings: MeshSettings, broker: NatsServer, seen: Seen
) -> None:
    async with (
        orchestrator(settings, load_library([])),
        AgentProcess(words_agent(seen), settings),
        Mesh(settings.nats_url) as mesh,
    ):
        running = [asyncio.create_task(mesh.run("execute_dag", CHAIN)) for _ in range(20)]
        await seen.until_called("uppercase", 5)
        await broker.stop()
        await asyncio.sleep(1)
        await broker.start()
        async with asyncio.timeout(2 * PATIENCE_SECONDS):
            results = await asyncio.gather(*running)
    assert results == [CHAIN_RESULT] * 20


@pytest.mark.parametrize("stream", ["OBJ_payloads", "KV_agents", "DEAD_LETTERS", "MESH_EVENTS"])
async def test_a_deleted_stream_is_made_again(
    settings: MeshSettings, seen: Seen, plain: PlainClient, monkeypatch: pytest.MonkeyPatch, stream: str
) -> None:
    """Who publishes into one that is gone waits for it: a dead letter would hold up every request behind it."""
    # The test hears dead letters too, so the broker does not say that nobody keeps them.
    monkeypatch.setattr("pantheon.bus.publisher.DEFAULT_RETRIES", PublishRetries(ack_timeout_seconds=1.0))
    large = {"text": "x" * 600_000}
    async with orchestrator(settings, load_library([])), AgentProcess(words_agent(seen), settings):
        await plain.ask("uppercase", {"text": "a"})
        await plain.connection.jetstream().delete_stream(stream)
        await plain.connection.publish(subjects.task("orchestrator_agent"), b"no request")
        dag = {"steps": {"one": {"task": "uppercase", "with": large}, "two": {"task": "echo", "with": "${one}"}}}
        response = await plain.ask("execute_dag", {**dag, "output": "${two.text.size()}"})
        assert response["result"] == 600_000
        # A repeated one is received each time.
        await plain.until(lambda: len(plain.dead) >= 1)

        async def there() -> bool:
            return stream in [info.config.name for info in await plain.connection.jetstream().streams_info()]

        await until(there, "the stream")


async def test_rows_of_a_process_that_is_in_no_list_are_republished(
    settings: MeshSettings, seen: Seen, plain: PlainClient
) -> None:
    """A process that was adopted while it was paused went on, dispatched, and died before it was in the list again."""
    tuning = Tuning(adoption=AdoptionTimes(strays_seconds=0.1))
    async with orchestrator(settings, load_library([]), tuning=tuning) as process:
        # One message that the broker never takes must not hold that up.
        await process.publisher.send("no.stream.keeps.this", b"")
        await until(lambda: process.publisher.repeating_since, "a repeat")
        async with AgentProcess(words_agent(seen), settings):
            await plain.ask("uppercase", {"text": "a"})
        task_id = await plain.submit("execute_dag", CHAIN)
        # Dispatched in the database, and nowhere else.
        await rows(
            settings,
            "update tasks set status = 'dispatched', agent = 'words_agent', dispatched_at = now(), dispatched_by = $1, "
            "expires_at = now() + interval '1 hour', position = null where step = 's0'",
            new_id(),
        )
        await rows(settings, "update tasks set version = version + 1 where step is null")
        async with AgentProcess(words_agent(seen), settings):
            assert (await plain.response(task_id))["result"] == CHAIN_RESULT


async def test_what_another_orchestrator_ended_is_forgotten(
    settings: MeshSettings, seen: Seen, plain: PlainClient
) -> None:
    """The process that gets a run's last response ends it; the one that began it kept it, and counted it as active."""
    library = load_library([])
    async with (
        orchestrator(settings, library) as first,
        orchestrator(settings, library) as second,
        AgentProcess(words_agent(seen), settings),
    ):
        waiting = await plain.submit("execute_dag", {"steps": {"go": {"wait_for": {"signal": "go"}}}})
        for _ in range(30):
            await plain.send("execute_dag", CHAIN)
        await plain.until(lambda: len(plain.responses) == 30)
        await until(lambda: first.worker.active + second.worker.active == 1, "only what waits is in the cache")
        response = await plain.ask("mesh.signal", {"task_id": waiting, "signal": "go"})
        assert response["status"] == "completed"
        assert (await plain.response(waiting))["status"] == "completed"
