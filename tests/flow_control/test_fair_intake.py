"""Pending requests on a real broker: accepted in their order, or in fair rounds of their requesters."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio

import orchestrator_agent.intake.fair_intake
from orchestrator_agent.dispatch.active_processes import ActiveProcesses
from orchestrator_agent.intake.fair_intake import SUBJECT, FairIntake
from orchestrator_agent.parts import Tuning
from orchestrator_agent.service import load_library, orchestrator
from pantheon.bus import Bus, Delivery, NoBatches, Puller, acknowledge, ensure_streams
from pantheon.process.agent_process import AgentProcess
from pantheon.runtime.settings import MeshSettings
from pantheon.stack.servers import NatsServer
from protocol import TaskRequest, new_id
from protocol.messages import json_bytes
from protocol.names import ORCHESTRATOR
from protocol.streams import TASKS, task_consumer
from tests.flow_control.test_fair_mesh import Counter
from tests.mesh.agents import rows
from tests.mesh.conftest import PlainClient
from tests.waiting import PATIENCE_SECONDS, until

MANY = 100
LIMIT = 20


@pytest_asyncio.fixture
async def bus(broker: NatsServer) -> AsyncIterator[Bus]:
    async with await Bus.connect(broker.url, name="test", wait_seconds=PATIENCE_SECONDS) as made:
        await ensure_streams(made)
        yield made


class Taking:
    """Takes requests as the orchestrator does, and notes whose they are; `accepted` are ids of known tasks."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.active = ActiveProcesses(new_id())
        self.accepted: list[UUID] = []
        self.of: list[str] = []
        self.puller = Puller(bus, TASKS.name, task_consumer(ORCHESTRATOR), capacity=2 * LIMIT)
        self.fair_intake = FairIntake(bus, self.puller, known=self._known, active=self.active, many=MANY)

    async def _known(self, task_ids: Sequence[UUID]) -> dict[UUID, Any]:
        return {each: each for each in task_ids if each in self.accepted}

    async def send(self, requester: str, count: int, **fields: Any) -> list[UUID]:
        made = [
            TaskRequest(
                task_id=new_id(),
                task_type=fields.get("task_type", "work"),
                requester=requester,
                payload=fields.get("payload", {}),
                priority=fields.get("priority", 5),
            )
            for _ in range(count)
        ]
        bodies = [json_bytes(each.model_dump(mode="json")) for each in made]
        for body in bodies[:-1]:
            await self.bus.publish(SUBJECT, body)
        # When the last one is acknowledged, all of them are in the stream.
        await self.bus.js.publish(SUBJECT, bodies[-1])
        return [each.task_id for each in made]

    async def last(self) -> int:
        return int((await self.bus.js.stream_info(TASKS.name)).state.last_seq)

    async def left(self) -> int:
        return int((await self.bus.js.stream_info(TASKS.name)).state.messages)

    async def read_ahead(self) -> None:
        """Take until it is noticed that many are pending, and wait until all of them have been seen."""
        last = await self.last()
        while self.fair_intake.backlog is None:
            # What the broker delivered while the rest was being sent does not show how many there are.
            await self.batch()
        backlog = self.fair_intake.backlog
        await until(lambda: backlog.seen >= last, "all of it was seen")

    async def batch(self) -> list[TaskRequest]:
        deliveries = await self.fair_intake.take(LIMIT)
        await self.accept(deliveries)
        return [TaskRequest.model_validate_json(each.data) for each in deliveries]

    async def accept(self, deliveries: Sequence[Delivery]) -> None:
        requests = [TaskRequest.model_validate_json(each.data) for each in deliveries]
        self.accepted += [each.task_id for each in requests]
        self.of += [each.requester or "" for each in requests]
        for each in deliveries:
            await acknowledge(each)
        await self.fair_intake.accepted(deliveries)
        self.fair_intake.release(deliveries)

    async def all_of(self, count: int) -> None:
        while len(self.accepted) < count:
            await self.batch()


@pytest_asyncio.fixture
async def taking(bus: Bus) -> AsyncIterator[Taking]:
    made = Taking(bus)
    await made.puller.start()
    await made.puller.wait_ready()
    yield made
    await made.fair_intake.stop()


async def test_few_are_accepted_as_they_came(taking: Taking) -> None:
    sent = [*await taking.send("a", MANY - 2), *await taking.send("b", 1)]
    await taking.all_of(MANY - 1)
    assert taking.accepted == sent
    assert taking.fair_intake.backlog is None


async def test_one_is_not_behind_the_thousand_of_another_and_each_is_accepted_once(taking: Taking) -> None:
    many = await taking.send("a", 1000)
    each = await taking.send("b", 1)
    few = await taking.send("c", 30)
    await taking.read_ahead()
    requests = await taking.batch()
    assert each[0] in [request.task_id for request in requests], "its round is the first"
    while not set(few) <= set(taking.accepted):
        await taking.batch()
    assert taking.of.count("a") < 200, "they took rounds"
    await taking.all_of(1031)
    assert sorted(taking.accepted) == sorted([*many, *each, *few])
    for sent, requester in ((many, "a"), (few, "c")):
        of = [task_id for task_id, who in zip(taking.accepted, taking.of, strict=True) if who == requester]
        assert of == sent, "each in the order of its requester"
    await until(lambda: _empty(taking), "nothing is delivered again")


async def _empty(taking: Taking) -> bool:
    return await taking.left() == 0


async def test_a_priority_of_its_own_is_a_round_of_its_own(taking: Taking) -> None:
    await taking.send("a", 500)
    urgent = await taking.send("a", 1, priority=9)
    await taking.read_ahead()
    assert urgent[0] in [request.task_id for request in await taking.batch()]


async def test_an_operation_waits_for_the_task_that_it_is_about_but_not_for_others(taking: Taking) -> None:
    many = await taking.send("a", 500)
    late = await taking.send("operator", 1, task_type="mesh.cancel", payload={"task_id": str(many[300])})
    known = await taking.send("other", 1, task_type="mesh.cancel", payload={"task_id": str(many[0])})
    nothing = await taking.send("third", 1, task_type="mesh.pause", payload={"workflow": "w"})
    await taking.read_ahead()
    requests = [request.task_id for request in await taking.batch()]
    assert known[0] in requests
    assert nothing[0] in requests
    await taking.all_of(503)
    assert taking.accepted.index(late[0]) > taking.accepted.index(many[300])


async def test_an_operation_on_a_task_that_was_never_sent_keeps_the_order_of_arrival(taking: Taking) -> None:
    await taking.send("a", 300)
    wrong = await taking.send("operator", 1, task_type="mesh.cancel", payload={"task_id": str(new_id())})
    behind = await taking.send("operator", 1)
    await taking.send("a", 300)
    await taking.all_of(602)
    assert taking.accepted.index(wrong[0]) >= 300
    assert taking.accepted.index(behind[0]) > taking.accepted.index(wrong[0])


async def test_a_process_that_pauses_naks_what_it_has_and_takes_all_of_it_later(taking: Taking) -> None:
    sent = [*await taking.send("a", 400), *await taking.send("b", 5)]
    await taking.read_ahead()
    await taking.batch()
    taking.fair_intake.pause()
    await until(lambda: _nacked(taking), "what was delivered is back")
    taking.fair_intake.resume()
    await taking.all_of(405)
    assert sorted(taking.accepted) == sorted(sent)


async def _nacked(taking: Taking) -> bool:
    info = await taking.bus.js.consumer_info(TASKS.name, ORCHESTRATOR)
    return taking.puller.held == 0 and (info.num_pending or 0) + (info.num_ack_pending or 0) == await taking.left()


async def test_of_several_one_reads_ahead_and_each_request_is_accepted_once(taking: Taking, bus: Bus) -> None:
    other = Taking(bus)
    # Another one is the first of them.
    other.active.learn([new_id()])
    await other.puller.start()
    sent = [*await taking.send("a", 600), *await taking.send("b", 20)]
    await taking.read_ahead()
    while not len(taking.accepted) + len(other.accepted) >= 620:
        for each in (taking, other):
            if each.fair_intake.untaken or each.fair_intake.backlog is not None:
                await each.batch()
        await until(
            lambda: (
                bool(taking.fair_intake.untaken or other.fair_intake.untaken)
                or len(taking.accepted) + len(other.accepted) >= 620
            )
        )
    assert sorted([*taking.accepted, *other.accepted]) == sorted(sent)
    assert len(other.accepted) > 0
    await other.fair_intake.stop()


async def test_what_was_read_and_not_accepted_comes_from_the_broker_later(taking: Taking, bus: Bus) -> None:
    """The process dies with requests that it has read ahead: they are still in the stream."""
    await taking.send("a", 300)
    each = await taking.send("b", 1)
    await taking.read_ahead()
    lost = await taking.fair_intake.take(LIMIT)
    assert each[0] in [TaskRequest.model_validate_json(delivery.data).task_id for delivery in lost]
    for delivery in [*lost, *await taking.fair_intake.stop()]:
        if delivery.reply:
            await delivery.nak()
    other = Taking(bus)
    await other.puller.start()
    await other.all_of(301 - len(taking.accepted))
    assert each[0] in other.accepted
    await other.fair_intake.stop()


async def test_a_server_that_reads_no_batches_delivers_them_in_their_order(
    taking: Taking, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: Any, **__: Any) -> Any:
        raise NoBatches("older than 2.11")

    monkeypatch.setattr(orchestrator_agent.intake.fair_intake, "stored_batch", refuse)
    sent = [*await taking.send("a", 400), *await taking.send("b", 1)]
    await taking.all_of(401)
    assert taking.accepted == sent


@pytest.mark.parametrize("orchestrators", [1, 2])
async def test_a_mesh_accepts_and_responds_to_each_of_a_backlog_once(
    settings: MeshSettings, plain: PlainClient, orchestrators: int
) -> None:
    counter = Counter(concurrency=100)
    counter.gate.set()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(orchestrator(settings, load_library([]), tuning=Tuning(many_requests=MANY)))
        await stack.enter_async_context(AgentProcess(counter.agent, settings))
        for _ in range(orchestrators - 1):
            await stack.enter_async_context(orchestrator(settings, load_library([]), tuning=Tuning(many_requests=MANY)))
        sent = []
        for who, count in (("many", 1500), ("few", 20), ("one", 1)):
            sent += [await plain.send("work", {"who": who}, requester=who) for _ in range(count)]
        await plain.until(lambda: len(plain.responses) >= len(sent), 2 * PATIENCE_SECONDS)
        assert sorted(counter.values) == sorted(["many"] * 1500 + ["few"] * 20 + ["one"])
        assert {len(plain.responses[each]) for each in sent} == {1}, "once"
        assert {(await plain.response(each))["status"] for each in sent} == {"completed"}
        assert (await rows(settings, "select count(*) from tasks where task_id = root_task_id"))[0][0] == len(sent)
        info = await plain.connection.jetstream().stream_info(TASKS.name)
        assert info.state.messages == 0
