"""Puller, Publisher, Bus and streams against a real broker that loses things, goes away and comes back."""

import asyncio
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
import structlog
from nats.js.api import AckPolicy, ConsumerConfig, RetentionPolicy, StreamConfig

from pantheon import Agent, TaskContext
from pantheon.bus import Bus, Delivery, Publisher, Puller, PullTimes, ensure_streams, is_first_delivery, stream_mark
from pantheon.bus.puller import REFUSED_SECONDS
from pantheon.bus.stored import stored_batch
from pantheon.bus.streams import consumer_config
from pantheon.stack.servers import NatsServer
from protocol import new_id, subjects
from protocol.errors import BusError, TooLarge
from protocol.streams import ALL_STREAMS, TASKS, task_consumer
from tests.kit.conftest import QUICK, Rig, quick_retries
from tests.waiting import PATIENCE_SECONDS, until

# For what must come by itself: below the consumer's AckWait of 30 s, which would bring it all the same.
WITHIN_SECONDS = 20.0


# A puller that was not woken when it should have been stays asleep for as long as any test waits.
NO_SECOND_CHECK = PullTimes(expires_seconds=10 * PATIENCE_SECONDS, heartbeat_seconds=2 * PATIENCE_SECONDS)
QUICK_HEARTBEATS = PullTimes(heartbeat_seconds=0.2)


class Watched(Puller):
    """Checks its own accounts whenever they change."""

    most = 0
    asked: list[int]

    def _check(self) -> None:
        self.most = max(self.most, self._held + self._credit)
        assert self._held >= 0
        assert self._credit >= 0

    def _on_message(self, message: Delivery) -> None:
        super()._on_message(message)
        self._check()

    async def _request(self, count: int) -> None:
        if "asked" not in self.__dict__:
            self.asked = []
        self.asked.append(count)
        await super()._request(count)
        self._check()


@pytest.fixture
def times() -> PullTimes:
    """Of the fixture's puller."""
    return PullTimes()


@pytest_asyncio.fixture
async def puller(bus: Bus, times: PullTimes) -> AsyncIterator[Watched]:
    async with Watched(bus, TASKS.name, task_consumer("a"), capacity=10, times=times) as made:
        await made.wait_ready()
        yield made


async def put(bus: Bus, count: int, agent: str = "a") -> None:
    for number in range(count):
        await bus.js.publish(subjects.task(agent), str(number).encode())


async def asked(bus: Bus, agent: str = "a") -> None:
    """Until a request is open at the broker: only an open request is notified that its consumer is gone."""

    async def open_request() -> bool:
        return ((await bus.js.consumer_info("AGENT_TASKS", agent)).num_waiting or 0) > 0

    await until(open_request, "an open request")


async def taken(puller: Puller, limit: int = 100, seconds: float = WITHIN_SECONDS) -> list[Delivery]:
    async with asyncio.timeout(seconds):
        return await puller.take(limit)


# -- pulling --------------------------------------------------------------------------------------------------------


async def test_the_consumer_is_made_by_the_contract(bus: Bus, puller: Puller) -> None:
    config = (await bus.js.consumer_info("AGENT_TASKS", "a")).config
    assert (config.durable_name, config.filter_subject, config.ack_policy) == ("a", "agent.a.task", "explicit")
    assert (config.ack_wait, config.max_deliver, config.max_ack_pending) == (30, 5, 10_000)
    assert not config.backoff


async def test_a_consumer_that_differs_is_used_with_a_warning(bus: Bus) -> None:
    await bus.js.add_consumer(
        "AGENT_TASKS",
        ConsumerConfig(durable_name="a", filter_subject="agent.a.task", ack_policy=AckPolicy.EXPLICIT, ack_wait=7),
    )
    with structlog.testing.capture_logs() as logs:
        async with Puller(bus, TASKS.name, task_consumer("a"), capacity=1) as puller:
            await puller.wait_ready()
            await put(bus, 1)
            assert len(await taken(puller)) == 1
    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == ["consumer.differs"]


@pytest.mark.parametrize("times", [NO_SECOND_CHECK], ids=["no-second-check"])
async def test_a_message_arrives_when_it_is_published(bus: Bus, puller: Puller) -> None:
    for _ in range(20):
        await put(bus, 1)
        (message,) = await taken(puller)
        await message.ack()
        puller.release()


async def test_what_arrived_together_is_taken_together_up_to_the_limit(bus: Bus, puller: Puller) -> None:
    await put(bus, 8)
    await until(lambda: len(puller.buffered) == 8, "8 messages")
    assert [message.data for message in await taken(puller, 3)] == [b"0", b"1", b"2"]
    assert [message.data for message in puller.take_now(3)] == [b"3", b"4", b"5"]
    assert len(await taken(puller)) == 2
    assert puller.take_now(3) == []
    assert puller.held == 8


async def test_no_more_than_the_capacity_is_held_or_asked_for(bus: Bus, puller: Watched) -> None:
    await put(bus, 200)
    done = 0
    while done < 200:
        messages = await taken(puller, 7)
        assert puller.held <= 10
        for message in messages:
            await message.ack()
            puller.release()
            done += 1
    assert puller.most <= 10
    # Not a request a message: half of the room at once.
    assert len(puller.asked) <= 60


@pytest.mark.parametrize("capacity", [1, 2, 3, 5, 10, 64])
async def test_room_is_filled_at_once(bus: Bus, capacity: int) -> None:
    """All other slots are taken by long tasks; the last must not wait until half of them are free."""
    async with Watched(bus, TASKS.name, task_consumer("a"), capacity=capacity, times=NO_SECOND_CHECK) as puller:
        await puller.wait_ready()
        await put(bus, capacity + 20)
        await until(lambda: puller.held == capacity, "the whole capacity")
        for _ in range(20):
            puller.release()
            await until(lambda: puller.held == capacity, "the room filled")
        assert puller.most <= capacity


async def test_room_is_filled_when_a_request_is_used_up(bus: Bus) -> None:
    """Ten requested, six arrive, four of these end: less than half is free. Then the last four arrive."""
    async with Watched(bus, TASKS.name, task_consumer("a"), capacity=10, times=NO_SECOND_CHECK) as puller:
        await puller.wait_ready()
        await put(bus, 6)
        await until(lambda: puller.held == 6, "six")
        puller.release(4)
        await put(bus, 4)
        await until(lambda: puller.held == 6, "two and four")
        await put(bus, 4)
        await until(lambda: puller.held == 10, "the whole capacity")


async def test_more_capacity_is_used_at_once(bus: Bus) -> None:
    async with Watched(bus, TASKS.name, task_consumer("a"), capacity=2, times=NO_SECOND_CHECK) as puller:
        await puller.wait_ready()
        await put(bus, 20)
        await until(lambda: puller.held == 2, "two")
        puller.set_capacity(12)
        await until(lambda: puller.held == 12, "twelve")


async def test_requests_that_expire_are_made_again(bus: Bus) -> None:
    times = PullTimes(expires_seconds=0.3, heartbeat_seconds=0.1)
    async with Watched(bus, TASKS.name, task_consumer("a"), capacity=4, times=times) as puller:
        await puller.wait_ready()
        await put(bus, 1)
        await until(lambda: puller.held == 1, "one")
        await until(lambda: len(puller.asked) > 4, "some requests that expired")
        await put(bus, 3)
        await until(lambda: puller.held == 4, "the other three")
        assert puller.most <= 4


async def test_a_request_that_the_broker_forgot_is_noticed_by_its_silence(bus: Bus) -> None:
    class Forgotten(Watched):
        forget = True

        async def _request(self, count: int) -> None:
            if self.forget:
                # As a broker that failed over: it has taken the request, and says nothing ever.
                self.forget = False
                self._credit += count
                return
            await super()._request(count)

    async with Forgotten(bus, TASKS.name, task_consumer("a"), capacity=4, times=QUICK_HEARTBEATS) as puller:
        await puller.wait_ready()
        await put(bus, 1)
        assert len(await taken(puller)) == 1


async def test_a_broker_that_refuses_requests_is_not_asked_without_pause(bus: Bus) -> None:
    """The consumer was made with a bound that no request of ours keeps to."""
    spec = task_consumer("a")
    config = ConsumerConfig(durable_name="a", filter_subject=spec.filter_subject, ack_policy=AckPolicy.EXPLICIT)
    config = config.evolve(ack_wait=30, max_deliver=5, max_ack_pending=10_000)
    request = {"stream_name": "AGENT_TASKS", "config": {**config.as_dict(), "max_batch": 1}}
    reply = await bus.request(
        "$JS.API.CONSUMER.DURABLE.CREATE.AGENT_TASKS.a", json.dumps(request).encode(), timeout_seconds=WITHIN_SECONDS
    )
    assert "error" not in json.loads(reply.data)
    async with Watched(bus, TASKS.name, spec, capacity=4) as puller:
        loop = asyncio.get_running_loop()
        start = loop.time()
        await puller.wait_ready()
        await until(lambda: len(puller.asked) >= 4, "that it asks again")
        pauses = (loop.time() - start) / REFUSED_SECONDS
        assert len(puller.asked) <= pauses + 2


async def test_an_instance_beyond_those_that_may_wait_is_served_too(bus: Bus) -> None:
    """The consumer takes one waiting request; the broker silently drops another instance's."""
    await bus.js.add_consumer(
        "AGENT_TASKS",
        ConsumerConfig(
            durable_name="a",
            filter_subject="agent.a.task",
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=30,
            max_ack_pending=10_000,
            max_deliver=5,
            max_waiting=1,
        ),
    )
    async with Watched(bus, TASKS.name, task_consumer("a"), capacity=4, times=QUICK_HEARTBEATS) as first:
        await first.wait_ready()
        await asked(bus)
        async with Watched(bus, TASKS.name, task_consumer("a"), capacity=4, times=QUICK_HEARTBEATS) as second:
            await second.wait_ready()
            await put(bus, 8)
            await until(lambda: first.held + second.held == 8, "all taken between the two")
            assert first.most <= 4
            assert second.most <= 4


async def test_pausing_asks_for_no_more(bus: Bus, puller: Watched) -> None:
    await put(bus, 10)
    await until(lambda: puller.held == 10, "ten")
    for delivery in await puller.take(10):
        await delivery.ack()
    puller.pause()
    puller.release(10)
    await put(bus, 5)
    await asyncio.sleep(0.2)
    assert puller.held == 0
    puller.resume()
    await until(lambda: puller.held == 5, "five")


async def test_a_stopped_puller_hands_back_what_was_not_taken(bus: Bus) -> None:
    puller = Puller(bus, TASKS.name, task_consumer("a"), capacity=10)
    await puller.start()
    await puller.wait_ready()
    await put(bus, 5)
    await until(lambda: puller.held == 5, "five")
    mine = await taken(puller, 2)
    left = await puller.stop()
    assert [message.data for message in [*mine, *left]] == [b"0", b"1", b"2", b"3", b"4"]
    assert await puller.take(1) == []
    for message in left:
        await message.nak()
    async with Puller(bus, TASKS.name, task_consumer("a"), capacity=10) as following:
        await following.wait_ready()
        await until(lambda: following.held == 3, "the three that were handed back", seconds=WITHIN_SECONDS)
    assert (await bus.js.consumer_info("AGENT_TASKS", "a")).num_waiting == 0


async def test_stopping_in_between_loses_no_message_to_a_request_left_open(bus: Bus) -> None:
    sender = asyncio.create_task(put(bus, 300))
    got: list[bytes] = []
    for _ in range(30):
        async with Watched(bus, TASKS.name, task_consumer("a"), capacity=5) as puller:
            await puller.wait_ready()
            try:
                messages = await taken(puller, seconds=0.2)
            except TimeoutError:
                messages = []
            for message in messages:
                await message.ack()
                got.append(message.data)
            for message in await puller.stop():
                await message.nak()
    await sender
    async with Watched(bus, TASKS.name, task_consumer("a"), capacity=50) as puller:
        while len(got) < 300:
            for message in await taken(puller):
                await message.ack()
                got.append(message.data)
                puller.release()
    assert sorted(got, key=int) == [str(number).encode() for number in range(300)]


async def test_one_event_serves_several_pullers(bus: Bus) -> None:
    wake = asyncio.Event()
    async with (
        Puller(bus, TASKS.name, task_consumer("a"), capacity=1, arrivals=wake) as first,
        Puller(bus, TASKS.name, task_consumer("b"), capacity=1, arrivals=wake) as second,
    ):
        for agent, puller in (("a", first), ("b", second)):
            await puller.wait_ready()
            wake.clear()
            await put(bus, 1, agent)
            await asyncio.wait_for(wake.wait(), WITHIN_SECONDS)
            assert len(puller.take_now(5)) == 1


# -- what is gone ---------------------------------------------------------------------------------------------------


async def test_a_consumer_that_is_gone_is_made_again(bus: Bus, puller: Watched) -> None:
    for _ in range(3):
        await asked(bus)
        await bus.js.delete_consumer("AGENT_TASKS", "a")
        await put(bus, 1)
        (message,) = await taken(puller)
        await message.ack()
        puller.release()
    assert puller.most <= 10


async def test_a_consumer_that_went_while_all_slots_were_taken_is_made_again(bus: Bus) -> None:
    """No request is open then, so none is notified."""
    async with Watched(bus, TASKS.name, task_consumer("a"), capacity=1) as puller:
        await puller.wait_ready()
        await put(bus, 1)
        (message,) = await taken(puller)
        await message.ack()
        await bus.js.delete_consumer("AGENT_TASKS", "a")
        await put(bus, 1)
        puller.release()
        assert len(await taken(puller)) == 1


async def test_an_agent_that_is_there_before_the_streams_waits_for_them(broker: NatsServer) -> None:
    async with (
        await Bus.connect(broker.url, name="test", wait_seconds=PATIENCE_SECONDS) as bus,
        Watched(bus, TASKS.name, task_consumer("a"), capacity=2) as puller,
    ):
        await asyncio.sleep(0.3)
        await ensure_streams(bus)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await puller.wait_ready()
        await put(bus, 1)
        assert len(await taken(puller)) == 1


async def test_a_stream_that_is_gone_is_waited_for(bus: Bus, puller: Watched) -> None:
    await asked(bus)
    await bus.js.delete_stream("AGENT_TASKS")
    await asyncio.sleep(0.5)
    await ensure_streams(bus)
    await put(bus, 3)
    got: list[Delivery] = []
    while len(got) < 3:
        got += await taken(puller)
    assert puller.most <= 10


@pytest.mark.parametrize("how", ["killed", "wiped"])
async def test_a_broker_that_goes_and_comes_back_is_pulled_from_again(bus: Bus, broker: NatsServer, how: str) -> None:
    async with Watched(bus, TASKS.name, task_consumer("a"), capacity=4) as puller:
        await puller.wait_ready()
        for _ in range(2):
            await _restart(broker, wipe=how == "wiped")
            await until(lambda: bus.connected, "the connection")
            await _streams(bus)
            await put(bus, 6)
            got = 0
            while got < 6:
                for message in await taken(puller):
                    await message.ack()
                    puller.release()
                    got += 1
        assert bus.generation == 3


async def _restart(broker: NatsServer, *, wipe: bool = False) -> None:
    assert broker.process is not None
    broker.process.send(signal.SIGKILL)
    await broker.wait()
    if wipe:
        shutil.rmtree(broker.folder / "jetstream")
    await broker.start()


async def _streams(bus: Bus) -> None:
    async def made() -> bool:
        try:
            await ensure_streams(bus)
        except BusError:
            return False
        return True

    await until(made, "the streams")


async def test_nothing_is_lost_when_the_broker_dies_in_mid_load(rig: Rig, broker: NatsServer) -> None:
    """Tasks published until acknowledged, worked on, responded to, with the broker killed twice in between."""
    agent = Agent("test_agent", max_concurrency=8)
    runs: dict[str, int] = {}

    @agent.task("count")
    async def count(task: dict[str, Any], ctx: TaskContext) -> dict[str, Any]:
        runs[str(ctx.task_id)] = runs.get(str(ctx.task_id), 0) + 1
        await asyncio.sleep(0.01)
        return {}

    await rig.worker(agent, max_concurrency=8)
    ids = [new_id() for _ in range(400)]

    async def send() -> None:
        for task_id in ids:
            body = json.dumps({"task_id": str(task_id), "task_type": "count"}).encode()
            await rig.publisher.publish(subjects.task("test_agent"), body, message_id=f"{task_id}:1")

    sending = asyncio.create_task(send())
    for goal in (60, 200):
        await until(lambda goal=goal: len(runs) > goal, "some progress")  # type: ignore[misc]
        await _restart(broker)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await sending
    # A task whose ack was lost waits for the consumer's 30 s; all were run before, and it is not run again.
    await until(lambda: len(runs) == len(ids), "every task run", seconds=30 + PATIENCE_SECONDS)

    async def all_kept() -> bool:
        kept = set()
        info = await rig.js.stream_info("AGENT_RESPONSES")
        for sequence in range(info.state.first_seq, info.state.last_seq + 1):
            message = await rig.js.get_msg("AGENT_RESPONSES", sequence, direct=True)
            kept.add(json.loads(message.data or b"{}")["task_id"])
        return kept == {str(task_id) for task_id in ids}

    await until(all_kept, "every reply in the stream")


@pytest.mark.parametrize("what", ["consumer", "tasks", "responses"])
@quick_retries
async def test_a_worker_goes_on_when_its_ground_is_pulled_away(rig: Rig, what: str) -> None:
    agent = Agent("test_agent", max_concurrency=4)

    @agent.task("count")
    async def count(task: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(0.02)
        return {}

    worker = await rig.worker(agent, max_concurrency=4)
    ids = [await rig.send("test_agent", "count") for _ in range(40)]
    await until(lambda: len(rig.responses) > 10, "some progress")
    if what == "consumer":
        await rig.js.delete_consumer("AGENT_TASKS", "test_agent")
    else:
        await rig.js.delete_stream("AGENT_TASKS" if what == "tasks" else "AGENT_RESPONSES")
        await asyncio.sleep(0.3)
        await ensure_streams(rig.bus)
    if what == "tasks":
        # What was in it is gone; the owner of the tasks sends them again.
        await until(lambda: worker.active == 0, "what ran to end")
        for task_id in ids:
            if not rig.responses_to(task_id):
                await rig.send("test_agent", "count", task_id=task_id)
    await until(
        lambda: {response.task_id for response in rig.responses} == set(ids),
        "every response",
        seconds=30 + PATIENCE_SECONDS,
    )
    await rig.until_empty()


# -- publishing -----------------------------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def publisher(bus: Bus) -> AsyncIterator[Publisher]:
    made = Publisher(bus, QUICK)
    yield made
    await made.close()


async def _count(bus: Bus, stream: str = "AGENT_TASKS") -> int:
    return int((await bus.js.stream_info(stream)).state.messages)


async def test_a_publish_has_been_acknowledged_when_it_returns(bus: Bus, publisher: Publisher) -> None:
    for number in range(5):
        await publisher.publish("agent.a.task", b"{}", message_id=str(number), headers={"X-Mine": "1"})
    assert await _count(bus) == 5
    assert publisher.highest_sequence == {"AGENT_TASKS": 5}
    headers = (await bus.js.get_msg("AGENT_TASKS", 1)).headers
    assert headers == {"X-Mine": "1", "Nats-Msg-Id": "0"}


async def test_the_same_message_id_is_one_message(bus: Bus, publisher: Publisher) -> None:
    acked = 0

    def on_ack() -> None:
        nonlocal acked
        acked += 1

    for _ in range(3):
        await publisher.publish("agent.a.task", b"{}", message_id="same")
        await publisher.send("agent.a.task", b"{}", message_id="same", on_ack=on_ack)
    await until(lambda: acked == 3, "the acks")
    assert await _count(bus) == 1


async def test_a_publish_is_repeated_until_a_stream_keeps_it(bus: Bus, publisher: Publisher) -> None:
    await bus.js.delete_stream("AGENT_TASKS")
    acked = asyncio.Event()
    waiting = asyncio.create_task(publisher.publish("agent.a.task", b"1", message_id="1"))
    await publisher.send("agent.a.task", b"2", message_id="2", on_ack=acked.set)
    await until(lambda: publisher.repeating_since is not None, "a repeat")
    await asyncio.sleep(0.5)
    assert not waiting.done()
    assert not acked.is_set()
    await ensure_streams(bus)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await waiting
        await acked.wait()
    await until(lambda: publisher.repeating_since is None, "no repeat any more")
    assert await _count(bus) == 2


async def test_a_store_that_went_back_is_noticed_however_far_it_has_come_since(bus: Bus, publisher: Publisher) -> None:
    """Others have published meanwhile: where the stream stands shows nothing, the sequence of the next message does."""
    gone_back: list[str] = []
    publisher.on_gone_back(gone_back.append)
    for number in range(3):
        await publisher.publish("agent.a.task", b"{}", message_id=str(number))
    await publisher.publish("agent.a.task", b"{}", message_id="0")
    assert gone_back == []
    await bus.js.delete_stream("AGENT_TASKS")
    await ensure_streams(bus)
    await bus.js.publish("agent.b.task", b"{}")
    await publisher.publish("agent.a.task", b"{}", message_id="3")
    assert gone_back == ["AGENT_TASKS"]
    await publisher.publish("agent.a.task", b"{}", message_id="4")
    assert gone_back == ["AGENT_TASKS"]


async def test_what_was_published_has_settled_when_it_is_acknowledged(bus: Bus, publisher: Publisher) -> None:
    await bus.js.delete_stream("AGENT_TASKS")
    await publisher.send("agent.a.task", b"0", message_id="0")
    since = publisher.published
    async with asyncio.timeout(PATIENCE_SECONDS):
        # What was published before does not count.
        await publisher.settled(since)
    await publisher.send("agent.a.task", b"1", message_id="1")
    settling = asyncio.create_task(publisher.settled(since))
    await until(lambda: publisher.repeating_since is not None, "a repeat")
    assert not settling.done()
    await ensure_streams(bus)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await settling
        await publisher.settled(0)
    assert await _count(bus) == 2


async def test_a_publish_that_may_give_up_does(bus: Bus, publisher: Publisher) -> None:
    await bus.js.delete_stream("AGENT_TASKS")
    with pytest.raises(BusError, match=r"agent\.a\.task within 0\.5 s"):
        async with asyncio.timeout(PATIENCE_SECONDS):
            await publisher.publish("agent.a.task", b"{}", give_up_seconds=0.5)


async def test_a_stream_that_is_full_is_published_to_when_it_has_room(bus: Bus, publisher: Publisher) -> None:
    await bus.js.add_stream(
        StreamConfig(name="SMALL", subjects=["small"], max_msgs=1, discard="new")  # type: ignore[arg-type]
    )
    await publisher.publish("small", b"1")
    waiting = asyncio.create_task(publisher.publish("small", b"2"))
    await asyncio.sleep(0.4)
    assert not waiting.done()
    await bus.js.purge_stream("SMALL")
    async with asyncio.timeout(PATIENCE_SECONDS):
        await waiting


async def test_publishes_outlive_the_broker_once_each(bus: Bus, broker: NatsServer, publisher: Publisher) -> None:
    acked: set[int] = set()

    async def publish() -> None:
        for number in range(200):
            await publisher.send(
                "agent.a.task",
                str(number).encode(),
                message_id=str(number),
                on_ack=lambda number=number: acked.add(number),  # type: ignore[misc]
            )
            await asyncio.sleep(0.002)

    publishing = asyncio.create_task(publish())
    await until(lambda: len(acked) > 30, "some acks")
    await _restart(broker)
    await publishing
    await until(lambda: len(acked) == 200, "every ack")
    assert await _count(bus) == 200


@pytest.mark.parametrize("over", [-30, -100, 0, 1, 1000])
async def test_what_is_too_large_is_an_error_and_the_connection_lives(
    bus: Bus, publisher: Publisher, over: int
) -> None:
    body = b"x" * (bus.max_payload + over)
    for publish in (publisher.publish, publisher.send):
        if over == -100:
            await publish("agent.a.task", body, message_id="a-message-id")
            continue
        with pytest.raises(TooLarge, match=str(bus.max_payload)) as raised:
            await publish("agent.a.task", body, message_id="a-message-id")
        assert str(len(body)) in raised.value.message
    await publisher.publish("agent.a.task", b"small")
    assert bus.generation == 1


async def test_thousands_of_refused_messages_leave_room_for_the_next(bus: Bus, publisher: Publisher) -> None:
    """An account of publishes under way must take off the ones that raised."""
    body = b"x" * (bus.max_payload + 1)
    for _ in range(50):
        with pytest.raises(TooLarge):
            await publisher.publish("agent.a.task", body)
    assert publisher.pending == 0


async def test_closing_gives_up_what_is_repeated(bus: Bus) -> None:
    publisher = Publisher(bus, QUICK)
    await bus.js.delete_stream("AGENT_TASKS")
    await publisher.send("agent.a.task", b"{}")
    await until(lambda: publisher.repeating_since is not None, "a repeat")
    async with asyncio.timeout(PATIENCE_SECONDS):
        await publisher.close()


# -- the connection -------------------------------------------------------------------------------------------------


async def test_where_no_broker_is_the_error_names_what_to_do() -> None:
    with pytest.raises(BusError, match=r"no NATS server answers at nats://127\.0\.0\.1:1 .*pantheon up") as raised:
        await Bus.connect("nats://me:secret@127.0.0.1:1", name="test", wait_seconds=0.5)
    assert "secret" not in str(raised.value)


async def test_without_a_bound_connecting_waits_for_the_broker(broker: NatsServer) -> None:
    url = broker.url
    await broker.stop()
    connecting = asyncio.create_task(Bus.connect(url, name="test"))
    await asyncio.sleep(0.5)
    assert not connecting.done()
    await broker.start()
    async with asyncio.timeout(PATIENCE_SECONDS):
        bus = await connecting
    await bus.close()


async def test_requests_without_a_reply_are_bus_errors(bus: Bus) -> None:
    with pytest.raises(BusError, match="nobody answers"):
        await bus.request("mesh.query.task", b"{}", timeout_seconds=PATIENCE_SECONDS)

    async def never(message: Delivery) -> None: ...

    await bus.subscribe("mesh.query.task", never)
    await bus.flush()
    with pytest.raises(BusError, match=r"within 0\.1 s"):
        await bus.request("mesh.query.task", b"{}", timeout_seconds=0.1)


async def test_a_request_has_a_reply(bus: Bus) -> None:
    async def echo(message: Delivery) -> None:
        await message.respond(message.data.upper())

    await bus.subscribe("echo", echo, queue="q")
    await bus.flush()
    assert (await bus.request("echo", b"hello", timeout_seconds=PATIENCE_SECONDS)).data == b"HELLO"


async def test_an_abandoned_flush_leaves_a_connection_that_receives(bus: Bus, broker: NatsServer) -> None:
    """Its reply comes late, after its caller: the client library stopped reading, silently."""

    async def echo(message: Delivery) -> None:
        await message.respond(message.data)

    await bus.subscribe("echo", echo)
    await bus.flush()
    assert broker.pid is not None
    os.kill(broker.pid, signal.SIGSTOP)
    try:
        with pytest.raises(BusError, match="did not confirm"):
            await bus.flush(0.1)
        cancelled = asyncio.create_task(bus.flush())
        await asyncio.sleep(0.1)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
    finally:
        os.kill(broker.pid, signal.SIGCONT)
    assert (await bus.request("echo", b"heard", timeout_seconds=PATIENCE_SECONDS)).data == b"heard"
    await bus.flush(PATIENCE_SECONDS)
    assert bus.generation == 1


async def test_a_closed_bus_raises_and_what_may_be_lost_is_lost(bus: Bus) -> None:
    await bus.close()
    await bus.close()
    await bus.publish_quietly("agent.a.heartbeat", b"{}")
    with pytest.raises(BusError):
        await bus.publish("agent.a.heartbeat", b"{}")
    with pytest.raises(BusError):
        await bus.subscribe("x", lambda message: asyncio.sleep(0))
    with pytest.raises(BusError):
        await bus.flush()
    assert not bus.connected


async def test_a_bus_is_closed_while_something_waits_for_a_broker_that_is_away(bus: Bus, broker: NatsServer) -> None:
    await broker.stop()
    await until(lambda: not bus.connected, "the loss")
    await bus.publish("agent.a.heartbeat", b"{}")
    await bus.close()
    assert bus.client.is_closed


async def test_too_large_on_core_nats(bus: Bus) -> None:
    with pytest.raises(TooLarge):
        await bus.publish("x", b"x" * (bus.max_payload + 1))
    await bus.publish_quietly("x", b"x" * (bus.max_payload + 1))
    await bus.flush()
    assert bus.connected


async def test_reconnects_call_their_callbacks(bus: Bus, broker: NatsServer) -> None:
    called: list[str] = []
    forget = bus.on_reconnect(lambda: called.append("one"))
    bus.on_reconnect(lambda: called.append("two"))
    forget()
    await _restart(broker)
    await until(lambda: bool(called), "the reconnect")
    assert called == ["two"]


# -- streams --------------------------------------------------------------------------------------------------------


async def test_the_streams_are_the_contracts(bus: Bus) -> None:
    for spec in ALL_STREAMS:
        config = (await bus.js.stream_info(spec.name)).config
        assert config.storage == "file"
        assert config.retention == spec.retention
        assert config.discard == spec.discard
        assert config.duplicate_window == 120
        assert set(config.subjects or ()) == set(spec.subjects)
    tasks = (await bus.js.stream_info("AGENT_TASKS")).config
    assert (tasks.max_msgs_per_subject, tasks.discard_new_per_subject, tasks.allow_msg_ttl) == (1_000_000, True, True)
    assert (await bus.js.stream_info("AGENT_RESPONSES")).config.max_age == 24 * 3600


async def test_making_the_streams_again_changes_nothing(bus: Bus) -> None:
    await put(bus, 2)
    before = await stream_mark(bus, "AGENT_TASKS")
    with structlog.testing.capture_logs() as logs:
        await asyncio.gather(*(ensure_streams(bus) for _ in range(5)))
    assert logs == []
    assert await stream_mark(bus, "AGENT_TASKS") == before


async def test_a_stream_that_differs_is_brought_to_the_contract(bus: Bus) -> None:
    await bus.js.delete_stream("AGENT_RESPONSES")
    await bus.js.add_stream(StreamConfig(name="AGENT_RESPONSES", subjects=["agent.*.response"], max_age=60))
    await ensure_streams(bus)
    assert (await bus.js.stream_info("AGENT_RESPONSES")).config.max_age == 24 * 3600


async def test_more_than_a_thousand_agents_have_a_consumer(bus: Bus) -> None:
    """The broker refused the thousand and first: since nats-server 2.15 that is the most, unless a stream says more. A
    mesh that was made without is brought to it."""
    await bus.js.delete_stream("AGENT_TASKS")
    await bus.js.add_stream(
        StreamConfig(name="AGENT_TASKS", subjects=["agent.*.task"], retention=RetentionPolicy.WORK_QUEUE)
    )
    await ensure_streams(bus)
    for number in range(1001):
        await bus.js.add_consumer("AGENT_TASKS", consumer_config(task_consumer(f"agent_{number}")))
    assert (await bus.js.stream_info("AGENT_TASKS")).state.consumer_count == 1001


async def test_more_replicas_than_servers_is_an_error_that_names_them(broker: NatsServer) -> None:
    async with await Bus.connect(broker.url, name="test", wait_seconds=PATIENCE_SECONDS) as bus:
        with pytest.raises(BusError, match="3 servers for its 3 replicas"):
            await ensure_streams(bus, replicas=3)


async def test_marks_show_a_lost_store(bus: Bus, broker: NatsServer) -> None:
    await put(bus, 3)
    before = await stream_mark(bus, "AGENT_TASKS")
    assert before is not None
    await put(bus, 1)
    later = await stream_mark(bus, "AGENT_TASKS")
    assert later is not None
    assert not later.lost_since(before)
    assert before.lost_since(later)
    await bus.js.delete_stream("AGENT_TASKS")
    assert await stream_mark(bus, "AGENT_TASKS") is None
    await ensure_streams(bus)
    await put(bus, 9)
    again = await stream_mark(bus, "AGENT_TASKS")
    assert again is not None
    assert again.lost_since(later)
    await broker.stop()
    with pytest.raises(BusError):
        await stream_mark(bus, "AGENT_TASKS")


async def test_a_paused_puller_withdraws_its_requests_and_returns_what_it_holds(bus: Bus) -> None:
    """What a paused instance had asked for goes to another one, at once and not after its AckWait."""
    spec = task_consumer("a")
    async with Puller(bus, TASKS.name, spec, capacity=4) as first, Puller(bus, TASKS.name, spec, capacity=4) as second:
        await first.wait_ready()
        await second.wait_ready()
        first.pause()
        await until(lambda: not first.receiving, "the withdrawal")
        await put(bus, 4)
        got: list[bytes] = []
        while len(got) < 4:
            got += [delivery.data for delivery in await taken(second)]
        assert sorted(got) == [b"0", b"1", b"2", b"3"]
        assert first.held == 0
        second.pause()
        first.resume()
        await bus.js.publish(subjects.task("a"), b"again")
        assert [delivery.data for delivery in await taken(first, 1)] == [b"again"]


async def test_what_was_forwarded_is_not_held_and_makes_room(bus: Bus) -> None:
    diverted: list[Delivery] = []

    def divert(delivery: Delivery) -> bool:
        if delivery.data == b"mine":
            return False
        diverted.append(delivery)
        return True

    async with Watched(bus, TASKS.name, task_consumer("a"), capacity=4, divert=divert, times=NO_SECOND_CHECK) as puller:
        await put(bus, 30)
        await bus.js.publish(subjects.task("a"), b"mine")
        assert [delivery.data for delivery in await taken(puller)] == [b"mine"]
        assert [delivery.data for delivery in diverted] == [str(number).encode() for number in range(30)]
        assert puller.held == 1
        assert puller.most <= 4
        # Forwarding each by itself requests more not more often than taking does.
        assert len(puller.asked) <= 31


async def test_what_another_puller_forwarded_is_held_and_returned_as_its_own(bus: Bus) -> None:
    spec = task_consumer("a")
    async with Puller(bus, TASKS.name, spec, capacity=20) as receiving:
        puller = Puller(bus, TASKS.name, spec, capacity=4)
        await put(bus, 10)
        deliveries: list[Delivery] = []
        while len(deliveries) < 10:
            deliveries += await taken(receiving)
        for delivery in deliveries:
            puller.enqueue(delivery)
        # More than it would have asked for: it asks for nothing until it has room.
        async with puller:
            assert puller.held == len(puller.buffered) == 10
            assert [message.data for message in await taken(puller, 6)] == [str(number).encode() for number in range(6)]
            puller.release(6)
            puller.pause()
            await until(lambda: puller.held == 0, "that it returns what was forwarded to it")
        for delivery in deliveries[:6]:
            await delivery.ack()
        receiving.release(10)
        again: list[bytes] = []
        while len(again) < 4:
            again += [message.data for message in await taken(receiving)]
        assert sorted(again) == [b"6", b"7", b"8", b"9"]


@pytest.mark.parametrize(
    ("reply", "first"),
    [
        ("$JS.ACK.TASKS.a.1.7.7.1795691823968944951.0", True),
        ("$JS.ACK.TASKS.a.2.7.7.1795691823968944951.0", False),
        ("$JS.ACK.TASKS.a.11.7.7.1795691823968944951.1", False),
        # With the domain (_: none) and the account's hash, and in the newer form with something random.
        ("$JS.ACK._.ACCOUNT.TASKS.a.1.7.7.1795691823968944951.0", True),
        ("$JS.ACK.hub.ACCOUNT.TASKS.a.1.7.7.1795691823968944951.0.random", True),
        ("$JS.ACK.hub.ACCOUNT.TASKS.a.3.1.1.1795691823968944951.1.random", False),
        ("_INBOX.1.1.1.1.1.1.1.1", False),
        ("", False),
    ],
)
def test_the_first_delivery_shows_in_the_ack_subject(reply: str, first: bool) -> None:
    assert is_first_delivery(Delivery(_client=None, reply=reply)) is first  # type: ignore[arg-type]


async def test_a_close_that_is_cancelled_ends_cancelled(broker: NatsServer) -> None:
    # nats-py takes it for its own, and the task that was cancelled goes on: a signal in this moment was lost.
    bus = await Bus.connect(broker.url, name="test")
    await broker.stop()
    await until(lambda: bus.client.is_reconnecting, "it reconnects")
    closing = asyncio.create_task(bus.close())
    while not bus.client.is_closed:  # noqa: ASYNC110 - the library's state, which has no event
        await asyncio.sleep(0)
    assert not closing.done()
    closing.cancel()
    await asyncio.wait((closing,), timeout=WITHIN_SECONDS)
    assert closing.cancelled()


@pytest.mark.parametrize("header", ["Status", "Description", "Nats-Num-Pending", "Nats-Sequence", "Nats-Subject"])
async def test_a_senders_header_named_like_one_of_the_brokers_ends_no_batch(bus: Bus, header: str) -> None:
    """A stored message with a header `Status` was read as the end of the batch: what came behind it was not there."""
    for number in range(3):
        headers = {header: "204"} if number == 1 else None
        await bus.js.publish("agent.test_agent.task", str(number).encode(), headers=headers)
    found, left = await stored_batch(bus, "AGENT_TASKS", "agent.test_agent.task", start=1, count=10, max_bytes=10_000)
    assert [(each.sequence, each.subject, each.data) for each in found] == [
        (number + 1, "agent.test_agent.task", str(number).encode()) for number in range(3)
    ]
    assert left == 0
