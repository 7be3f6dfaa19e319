"""Several orchestrators share the roots out between them: who is given what belongs to another one passes it on."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio

from orchestrator_agent.inbox import Inbox
from orchestrator_agent.parts import Tuning
from orchestrator_agent.runtime.peer_exchange import CROWDED, PeerExchange
from orchestrator_agent.runtime.response_loop import response_puller
from orchestrator_agent.runtime.responses import ResponseSettler
from orchestrator_agent.runtime.root_ownership import TASK, RootOwnership, root_of
from orchestrator_agent.service import OrchestratorWorker, load_library, orchestrator
from orchestrator_agent.store.task_reader import TaskReader
from pantheon.bus import Bus, Delivery, Puller, Stored, acknowledge, ensure_streams, times_delivered
from pantheon.process.agent_process import AgentProcess
from pantheon.runtime.settings import MeshSettings
from pantheon.stack.servers import NatsServer
from protocol import subjects
from protocol.ids import new_id
from protocol.messages import json_bytes
from protocol.names import ORCHESTRATOR
from protocol.streams import TASKS, task_consumer
from tests.mesh.agents import Seen, orchestrator_process, registry_of, rows, words_agent
from tests.mesh.conftest import PlainClient
from tests.mesh.cut_line import CutLine
from tests.waiting import PATIENCE_SECONDS, until

# Below the 30 s after which the broker gives a request out again by itself.
WITHIN_SECONDS = 20.0
CHAIN = {
    "steps": {
        "one": {"task": "echo", "with": {"n": 1}},
        "two": {"task": "echo", "with": {"n": "${one.n + 1}"}},
        "three": {"task": "echo", "with": {"n": "${two.n + 1}"}},
    },
    "output": "${three.n}",
}
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest_asyncio.fixture
async def bus(broker: NatsServer) -> AsyncIterator[Bus]:
    async with await Bus.connect(broker.url, name="test", wait_seconds=PATIENCE_SECONDS) as made:
        await ensure_streams(made)
        yield made


class Requests(Puller):
    """The puller of requests, which notes what another member has forwarded to this one."""

    forwarded: list[Delivery]

    def enqueue(self, delivery: Delivery) -> None:
        self.forwarded.append(delivery)
        super().enqueue(delivery)


class Member:
    """A peer with nothing but the puller of requests, and what it keeps of what that is given."""

    def __init__(self, bus: Bus) -> None:
        self.process_id = new_id()
        self.ownership = RootOwnership(bus, self.process_id)
        self.puller = Requests(bus, TASKS.name, task_consumer(ORCHESTRATOR), capacity=20, divert=self._divert)
        self.passed: list[Delivery] = []
        self.puller.forwarded = self.passed
        self.exchange = PeerExchange(
            bus, self.ownership, requests=self.puller, responses=response_puller(bus, self.ownership, Inbox())
        )
        self.diverted: list[Delivery] = []
        self.kept: list[Delivery] = []

    def _divert(self, delivery: Delivery) -> bool:
        passed = self.ownership.forward(delivery)
        (self.diverted if passed else self.kept).append(delivery)
        return passed

    async def settle(self, count: int) -> None:
        for _ in range(count):
            async with asyncio.timeout(WITHIN_SECONDS):
                (delivery,) = await self.puller.take(1)
            await acknowledge(delivery)
            self.puller.release()


@asynccontextmanager
async def members(bus: Bus, count: int) -> AsyncIterator[list[Member]]:
    async with AsyncExitStack() as stack:
        made = [Member(bus) for _ in range(count)]
        for each in made:
            await each.exchange.start()
            stack.push_async_callback(each.exchange.stop)
            stack.callback(each.exchange.leave)
        expected = sorted(str(each.process_id) for each in made)
        for each in made:
            await until(lambda it=each: it.ownership.members == expected, "all members")  # type: ignore[misc]
        yield made


def owned_by(member: Member) -> UUID:
    return next(each for _ in range(1000) if member.ownership.owns(each := new_id()))


async def request(bus: Bus, root: UUID, **fields: Any) -> None:
    await bus.js.publish(TASK, json_bytes({"task_id": str(root), "task_type": "x", **fields}), headers={"a": "b"})


async def unsettled(bus: Bus) -> int:
    info = await bus.js.consumer_info(TASKS.name, ORCHESTRATOR)
    return (info.num_ack_pending or 0) + (info.num_pending or 0)


async def until_settled(bus: Bus) -> None:
    async def settled() -> bool:
        return await unsettled(bus) == 0

    await until(settled, "everything acknowledged")


# -- by themselves ------------------------------------------------------------------------------------------------


async def test_of_each_root_there_is_one_owner_and_all_agree_on_it(bus: Bus) -> None:
    async with members(bus, 3) as all_three:
        roots = [new_id() for _ in range(300)]
        owners = [[each.process_id for each in all_three if each.ownership.owns(root)] for root in roots]
        assert all(len(found) == 1 for found in owners)
        assert len({found[0] for found in owners}) == 3
        all_three[0].exchange.leave()
        for each in all_three[1:]:
            await until(lambda it=each: len(it.ownership.members) == 2, "that one has left")  # type: ignore[misc]
        assert not any(all_three[0].ownership.owns(root) for root in roots)
        assert all(sum(each.ownership.owns(root) for each in all_three[1:]) == 1 for root in roots)


async def test_who_is_alone_owns_nothing_and_passes_nothing_on(bus: Bus) -> None:
    # Another one of which nothing is heard may be there all the same: what is asked of the database then is asked.
    async with members(bus, 2) as (each, other):
        other.exchange.leave()
        await until(lambda: not each.ownership.members, "that it is alone")
        async with each.puller:
            await request(bus, root := new_id())
            await each.settle(1)
        assert not each.ownership.owns(root)
        assert not each.diverted


async def test_a_request_is_settled_by_its_owner_and_comes_with_its_headers(bus: Bus) -> None:
    async with members(bus, 2) as (receiver, owner), receiver.puller:
        roots = [owned_by(owner) for _ in range(50)]
        # More than the one that is given them may hold.
        for root in roots:
            await request(bus, root)
        await owner.settle(50)
        await until_settled(bus)
        assert {root_of(each.data) for each in owner.passed} == {root.int for root in roots}
        assert all(each.subject == TASK and (each.headers or {})["a"] == "b" for each in owner.passed)
        assert receiver.puller.held == owner.puller.held == 0


async def test_a_child_goes_to_the_owner_of_its_root(bus: Bus) -> None:
    async with members(bus, 2) as (receiver, owner), receiver.puller:
        await request(bus, owned_by(receiver), root_task_id=str(owned_by(owner)))
        await owner.settle(1)


@pytest.mark.parametrize(
    "body",
    [b"", b"not JSON", b"[]", b'{"task_id": 7}', b'{"task_id": "%b"}' % (b"-" * 36), b'{"root_task_id": "\xff"}'],
)
async def test_what_names_no_root_is_kept(bus: Bus, body: bytes) -> None:
    async with members(bus, 2) as (receiver, other), receiver.puller:
        await bus.js.publish(TASK, body)
        await receiver.settle(1)
        assert not other.passed


async def test_what_is_given_out_again_is_kept_by_whoever_gets_it(bus: Bus) -> None:
    async with members(bus, 2) as (receiver, owner), receiver.puller:
        await request(bus, owned_by(owner))
        async with asyncio.timeout(WITHIN_SECONDS):
            (delivery,) = await owner.puller.take(1)
        await delivery.nak()
        owner.puller.release()
        await receiver.settle(1)
        assert [times_delivered(each) for each in receiver.kept] == [2]


async def test_a_quiet_one_hands_back_at_once_what_it_is_passed(bus: Bus) -> None:
    async with members(bus, 2) as (receiver, owner), receiver.puller:
        # As if the other one had not heard of it yet.
        owner.ownership.accepting = False
        for _ in range(10):
            await request(bus, owned_by_other(receiver))
        await receiver.settle(10)
        assert len(receiver.diverted) == 10
        assert not owner.passed
        owner.exchange.resume_accepting()
        await request(bus, owned_by(owner))
        await owner.settle(1)


def owned_by_other(member: Member) -> UUID:
    return next(each for _ in range(1000) if not member.ownership.owns(each := new_id()))


async def test_who_has_left_is_passed_nothing(bus: Bus) -> None:
    async with members(bus, 3) as (receiver, leaving, other), receiver.puller:
        root = owned_by(leaving)
        leaving.exchange.leave()
        await until(lambda: len(receiver.ownership.members) == 2, "that it has left")
        leaving.exchange.resume_accepting()
        await request(bus, root)
        await (receiver if receiver.ownership.owns(root) else other).settle(1)
        assert not leaving.passed


async def test_what_was_passed_to_one_that_is_silent_then_is_handed_back(bus: Bus) -> None:
    """It waited 30 s for its redelivery."""
    async with members(bus, 2) as (receiver, dead), receiver.puller:
        # As a killed one: nothing is heard, and nothing said.
        dead.exchange._beat = lambda **_: None  # type: ignore[method-assign]
        for subscription in dead.exchange._subscriptions:
            await subscription.unsubscribe()
        for _ in range(10):
            await request(bus, owned_by(dead))
        await receiver.settle(10)
        assert len(receiver.diverted) == 10
        assert not receiver.ownership.members


async def test_a_crowded_one_is_passed_nothing_more(bus: Bus) -> None:
    async with members(bus, 2) as (receiver, owner), receiver.puller:
        too_much = CROWDED * owner.puller.capacity + 1
        for _ in range(too_much):
            owner.puller.enqueue(Delivery(_client=bus.client, subject=TASK, data=b"{}"))
        await owner.puller.take(too_much)
        await until(lambda: receiver.ownership.crowded(str(owner.process_id)) == ["task"], "that it is crowded")
        await request(bus, owned_by(owner))
        await receiver.settle(1)
        assert not receiver.diverted
        owner.puller.release(too_much)
        await until(lambda: not receiver.ownership.crowded(str(owner.process_id)), "that it is not any more")
        await request(bus, owned_by(owner))
        await owner.settle(1)


async def test_nonsense_on_their_subjects_is_passed_by(bus: Bus) -> None:
    async with members(bus, 2) as (each, _):
        before = each.ownership.members
        for body in (b"", b"[]", b"{}", b'{"process_id": "x", "there": true, "crowded": []}', b'{"process_id": 1}'):
            await bus.publish(subjects.PEER_BEAT, body)
        await bus.flush()
        assert each.ownership.members == before
        await bus.publish(f"{subjects.peer(each.process_id)}.{TASK}", b"nobody acknowledges this")
        async with asyncio.timeout(WITHIN_SECONDS):
            (delivery,) = await each.puller.take(1)
        await acknowledge(delivery)


# -- in orchestrators ---------------------------------------------------------------------------------------------


def peers_of(process: AgentProcess) -> RootOwnership:
    assert isinstance(process.worker, OrchestratorWorker)
    return process.worker.parts.runtime.ownership


def shares(process: AgentProcess, count: int = 2) -> Callable[[], bool]:
    assert isinstance(process.worker, OrchestratorWorker)
    active = process.worker.parts.dispatch.active
    return lambda: active.count == count and len(peers_of(process).members) == count


@pytest_asyncio.fixture
async def second(settings: MeshSettings, tuning: Tuning, orchestrated: AgentProcess) -> AsyncIterator[AgentProcess]:
    async with orchestrator(settings, load_library([]), tuning=tuning) as process:
        await until(lambda: len(registry_of(orchestrated).instances(ORCHESTRATOR)) == 2, "the second one")
        for each in (orchestrated, process):
            await until(shares(each), "both share the work")
        yield process


# On a busy machine a process may send no beat for as long as it takes.
NEVER_SILENT = pytest.mark.parametrize("tuning", [Tuning(alive_seconds=10 * PATIENCE_SECONDS)], ids=[""])


@NEVER_SILENT
async def test_responses_are_settled_by_the_owner_which_reads_no_tree(
    tuning: Tuning,
    settings: MeshSettings,
    orchestrated: AgentProcess,
    second: AgentProcess,
    seen: Seen,
    plain: PlainClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Each that took a response read the whole tree before it decided: three orchestrators did less than one.
    settled: list[tuple[ResponseSettler, int]] = []
    read: list[UUID] = []
    settle, newer_trees = ResponseSettler.settle, TaskReader.newer_trees

    async def watched(self: ResponseSettler, deliveries: Sequence[Delivery], entries: Any) -> None:
        mine = [each for each in deliveries if each.subject != subjects.response(ORCHESTRATOR)]
        settled.extend((self, root) for each in mine if (root := root_of(each.data)) is not None)
        await settle(self, deliveries, entries)

    async def counted(self: TaskReader, known: Any) -> Any:
        found = await newer_trees(self, known)
        read.extend(found)
        return found

    monkeypatch.setattr(ResponseSettler, "settle", watched)
    monkeypatch.setattr(TaskReader, "newer_trees", counted)
    traced = new_id()
    other = second if peers_of(orchestrated).owns(traced) else orchestrated
    assert not peers_of(other).owns(traced)
    # With slots for all of them: what is in the ready queue is assigned by the one that finds room.
    async with AgentProcess(words_agent(seen, max_concurrency=500), settings):
        for process in (orchestrated, second):
            await until(lambda it=process: registry_of(it).serving("echo"), "the agent")  # type: ignore[misc]
        ids = [await plain.send("execute_dag", CHAIN) for _ in range(60)]
        await plain.connection.publish(
            TASK,
            json_bytes({"task_id": str(traced), "task_type": "execute_dag", "payload": CHAIN}),
            headers={"traceparent": TRACE},
        )
        ids.append(str(traced))
        await plain.until(lambda: set(ids) <= plain.responses.keys())
    assert all(len(plain.responses[each]) == 1 and b'"result":3' in plain.responses[each][0] for each in ids)
    assert len(settled) == 3 * len(ids)
    for process in (orchestrated, second):
        assert isinstance(process.worker, OrchestratorWorker)
        here = [root for who, root in settled if who is process.worker.parts.loops.settler]
        assert here
        assert all(peers_of(process).owns(UUID(int=root)) for root in here)
    # A sweep, or a row from the ready queue, may have one read.
    assert len(read) < len(ids) // 2, read
    found = await rows(settings, "select traceparent from tasks where task_id = $1", traced)
    assert found[0]["traceparent"] == TRACE


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM], ids=str)
async def test_what_belongs_to_an_orchestrator_that_ends_in_the_middle_is_done_by_another(
    settings: MeshSettings,
    words: AgentProcess,
    orchestrated: AgentProcess,
    plain: PlainClient,
    seen: Seen,
    how: signal.Signals,
) -> None:
    gate = seen.gates["echo"] = asyncio.Event()
    async with orchestrator_process(settings) as other:
        await until(shares(orchestrated), "both share the work", seconds=2 * PATIENCE_SECONDS)
        ids = [await plain.submit("execute_dag", CHAIN) for _ in range(12)]
        await seen.until_called("echo", 12)

        os.kill(other.pid, how)
        gate.set()
        await plain.collect("execute_dag", CHAIN, ids, within_seconds=4 * PATIENCE_SECONDS)
        assert all(len(set(plain.responses[each])) == 1 for each in ids)
        await until(lambda: not peers_of(orchestrated).members, "that it is alone")


async def test_one_that_is_cut_off_from_the_broker_is_no_owner_until_it_is_back(
    settings: MeshSettings,
    words: AgentProcess,
    orchestrated: AgentProcess,
    plain: PlainClient,
    seen: Seen,
) -> None:
    gate = seen.gates["echo"] = asyncio.Event()
    async with AsyncExitStack() as stack:
        line = await stack.enter_async_context(CutLine(settings.nats_url).listening())
        away = settings.model_copy(update={"nats_url": line.url})
        far = await stack.enter_async_context(orchestrator(away, load_library([])))
        for process in (orchestrated, far):
            await until(shares(process), "both share the work")
        ids = [await plain.submit("execute_dag", CHAIN) for _ in range(12)]
        await seen.until_called("echo", 12)
        line.refuse()
        gate.set()
        await until(lambda: not peers_of(orchestrated).members, "that it is silent")
        ids += [await plain.send("execute_dag", CHAIN) for _ in range(12)]
        await plain.collect("execute_dag", CHAIN, ids, within_seconds=4 * PATIENCE_SECONDS)
        await line.restore()
        for process in (orchestrated, far):
            await until(shares(process), "both share the work again")
        ids += [await plain.send("execute_dag", CHAIN) for _ in range(12)]
        await plain.collect("execute_dag", CHAIN, ids, within_seconds=4 * PATIENCE_SECONDS)
        assert all(len(set(plain.responses[each])) == 1 for each in ids)


@NEVER_SILENT
async def test_a_paused_orchestrator_is_no_owner_until_it_is_resumed(
    tuning: Tuning,
    words: AgentProcess,
    orchestrated: AgentProcess,
    second: AgentProcess,
    plain: PlainClient,
) -> None:
    assert isinstance(second.worker, OrchestratorWorker)
    second.worker.pause()
    await until(lambda: not peers_of(orchestrated).members, "that it is quiet")
    ids = [await plain.send("execute_dag", CHAIN) for _ in range(20)]
    await plain.until(lambda: set(ids) <= plain.responses.keys())
    second.worker.resume()
    await until(shares(orchestrated), "that it is there again")
    ids = [await plain.send("execute_dag", CHAIN) for _ in range(20)]
    await plain.until(lambda: set(ids) <= plain.responses.keys())


async def test_a_request_taken_twice_has_one_response_and_one_that_is_sent_again_another(
    settings: MeshSettings, orchestrated: AgentProcess, words: AgentProcess, plain: PlainClient
) -> None:
    """Two orchestrators may take one message: one reads ahead under a backlog, the broker delivers it to another."""
    assert isinstance(orchestrated.worker, OrchestratorWorker)
    acceptance = orchestrated.worker.parts.acceptance
    task_id = await plain.submit("uppercase", {"text": "once"})
    await plain.response(task_id)
    (row,) = await rows(settings, "select request_sequence from tasks where task_id = root_task_id")
    body = json.dumps({"task_id": task_id, "task_type": "uppercase", "payload": {"text": "once"}}).encode()

    async def take(sequence: int) -> None:
        message = Stored(sequence, "agent.orchestrator_agent.task", body, {})
        await acceptance.accept([message.as_delivery(orchestrated.bus)])
        await plain.connection.flush()

    await take(row["request_sequence"])
    await take(row["request_sequence"] + 1)
    await plain.until(lambda: len(plain.responses[task_id]) > 1)
    assert len(plain.responses[task_id]) == 2
    assert plain.accepted[task_id] == 2
