"""Several orchestrators share the roots between them: a message about another's root is forwarded to its owner."""

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

import orchestrator_agent.runtime.root_ownership
from orchestrator_agent.runtime.root_ownership import BEAT_SECONDS, TASK, RootOwnership, root_of
from orchestrator_agent.runtime.settlement import Settlement
from orchestrator_agent.service import OrchestratorWorker, load_library, orchestrator
from orchestrator_agent.store.tasks import TaskStore
from pantheon.bus import Bus, Delivery, Puller, acknowledge, ensure_streams, times_delivered
from pantheon.runtime.background import end
from pantheon.runtime.process import AgentProcess
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


class Member:
    """A peer with nothing but the puller of requests, and what it forwarded, got forwarded, and kept."""

    def __init__(self, bus: Bus) -> None:
        self.process_id = new_id()
        self.peers = RootOwnership(bus, self.process_id)
        self.puller = Puller(bus, TASKS.name, task_consumer(ORCHESTRATOR), capacity=20, divert=self._divert)
        self.peers.on_forwarded = self._on_forwarded
        self.diverted: list[Delivery] = []
        self.received: list[Delivery] = []
        self.kept: list[Delivery] = []

    def _divert(self, delivery: Delivery) -> bool:
        forwarded = self.peers.forward(delivery)
        (self.diverted if forwarded else self.kept).append(delivery)
        return forwarded

    def _on_forwarded(self, delivery: Delivery) -> None:
        self.received.append(delivery)
        self.puller.put(delivery)

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
        for member in made:
            await member.peers.start()
            stack.push_async_callback(member.peers.close)
            stack.callback(member.peers.leave)
        # One that is alone knows of no members.
        expected = sorted(str(member.process_id) for member in made) if count > 1 else []
        for member in made:
            await until(lambda it=member: it.peers.members == expected, "all members")  # type: ignore[misc]
        yield made


def owned_by(member: Member) -> UUID:
    return next(one for _ in range(1000) if member.peers.owns(one := new_id()))


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
        owners = [[member.process_id for member in all_three if member.peers.owns(root)] for root in roots]
        assert all(len(found) == 1 for found in owners)
        assert len({found[0] for found in owners}) == 3
        all_three[0].peers.leave()
        for member in all_three[1:]:
            await until(lambda it=member: len(it.peers.members) == 2, "that one has left")  # type: ignore[misc]
        assert not any(all_three[0].peers.owns(root) for root in roots)
        assert all(sum(member.peers.owns(root) for member in all_three[1:]) == 1 for root in roots)


async def test_a_peer_alone_owns_nothing_and_forwards_nothing(bus: Bus) -> None:
    # Another one may be there without a sign: the database is asked all the same.
    async with members(bus, 2) as (one, other):
        other.peers.leave()
        await until(lambda: not one.peers.members, "that it is alone")
        async with one.puller:
            await request(bus, root := new_id())
            await one.settle(1)
        assert not one.peers.owns(root)
        assert not one.diverted


async def test_a_request_is_settled_by_its_owner_and_comes_with_its_headers(bus: Bus) -> None:
    async with members(bus, 2) as (first, owner), first.puller:
        roots = [owned_by(owner) for _ in range(50)]
        # More than the first may hold.
        for root in roots:
            await request(bus, root)
        await owner.settle(50)
        await until_settled(bus)
        assert {root_of(delivery.data) for delivery in owner.received} == {root.int for root in roots}
        assert all(delivery.subject == TASK and (delivery.headers or {})["a"] == "b" for delivery in owner.received)
        assert first.puller.held == owner.puller.held == 0


async def test_a_child_goes_to_the_owner_of_its_root(bus: Bus) -> None:
    async with members(bus, 2) as (first, owner), first.puller:
        await request(bus, owned_by(first), root_task_id=str(owned_by(owner)))
        await owner.settle(1)


@pytest.mark.parametrize(
    "body",
    [b"", b"not JSON", b"[]", b'{"task_id": 7}', b'{"task_id": "%b"}' % (b"-" * 36), b'{"root_task_id": "\xff"}'],
)
async def test_what_names_no_root_is_kept(bus: Bus, body: bytes) -> None:
    async with members(bus, 2) as (first, other), first.puller:
        await bus.js.publish(TASK, body)
        await first.settle(1)
        assert not other.received


async def test_a_message_in_its_second_delivery_stays_with_the_process_that_gets_it(bus: Bus) -> None:
    async with members(bus, 2) as (first, owner), first.puller:
        await request(bus, owned_by(owner))
        async with asyncio.timeout(WITHIN_SECONDS):
            (delivery,) = await owner.puller.take(1)
        await delivery.nak()
        owner.puller.release()
        await first.settle(1)
        assert [times_delivered(delivery) for delivery in first.kept] == [2]


async def test_a_peer_that_stopped_accepting_returns_at_once_what_is_forwarded_to_it(bus: Bus) -> None:
    async with members(bus, 2) as (first, owner), first.puller:
        owner.peers.stop_accepting()
        await until(lambda: not first.peers.members, "that it is alone")
        # As if the first had not received that yet.
        async with beating(bus, owner.process_id):
            await until(lambda: len(first.peers.members) == 2, "that it counts on the other")
            for _ in range(10):
                await request(bus, owned_by_other(first))
            await first.settle(10)
        assert len(first.diverted) == 10
        assert not owner.received
        owner.peers.resume_accepting()
        await until(lambda: owner.peers.members == first.peers.members, "that it accepts again")
        await request(bus, owned_by(owner))
        await owner.settle(1)


@asynccontextmanager
async def beating(bus: Bus, process_id: UUID) -> AsyncIterator[None]:
    """Beats in the name of a process, as often as a living one sends them."""
    beat = json_bytes({"process_id": str(process_id), "there": True, "crowded": []})

    async def beats() -> None:
        while True:
            await bus.publish(subjects.PEER_BEAT, beat)
            await asyncio.sleep(BEAT_SECONDS)

    task = asyncio.create_task(beats())
    try:
        yield
    finally:
        await end([task])


async def beats_of(bus: Bus, member: Member) -> list[list[str]]:
    """What a member publishes from now on that it has too much of, beat by beat."""
    found: list[list[str]] = []

    async def receive(delivery: Delivery) -> None:
        beat = json.loads(delivery.data)
        if beat["process_id"] == str(member.process_id):
            found.append(beat["crowded"])

    await bus.subscribe(subjects.PEER_BEAT, receive)
    await bus.flush()
    return found


async def until_known(beats: list[list[str]], crowded: list[str]) -> None:
    """Until the others, on the same connection, have received it: the beat before the last one had it as well."""
    await until(lambda: beats[-2:] == [crowded, crowded], f"two beats with {crowded}")


def owned_by_other(member: Member) -> UUID:
    return next(one for _ in range(1000) if not member.peers.owns(one := new_id()))


async def test_a_peer_that_has_left_is_forwarded_nothing(bus: Bus) -> None:
    async with members(bus, 3) as (first, leaving, other), first.puller:
        root = owned_by(leaving)
        leaving.peers.leave()
        await until(lambda: len(first.peers.members) == 2, "that it has left")
        leaving.peers.resume_accepting()
        await request(bus, root)
        await (first if first.peers.owns(root) else other).settle(1)
        assert not leaving.received


async def test_messages_forwarded_to_a_peer_that_is_silent_then_are_returned(bus: Bus) -> None:
    """It waited 30 s for its redelivery."""
    async with members(bus, 1) as (first,), first.puller:
        # As a killed one, of which the last beats are still on the way: what is forwarded to it reaches no process.
        async with beating(bus, new_id()):
            await until(lambda: len(first.peers.members) == 2, "that it counts on the other")
            for _ in range(10):
                await request(bus, owned_by_other(first))
            await until(lambda: len(first.diverted) == 10, "that all are forwarded")
        await first.settle(10)
        assert len(first.diverted) == 10
        assert not first.peers.members


async def test_a_crowded_peer_is_forwarded_nothing_more(bus: Bus) -> None:
    async with members(bus, 2) as (first, owner), first.puller:
        beats = await beats_of(bus, owner)
        owner.peers.crowded = lambda subject: subject == TASK
        await until_known(beats, ["task"])
        await request(bus, owned_by(owner))
        await first.settle(1)
        assert not first.diverted
        owner.peers.crowded = lambda subject: False
        await until_known(beats, [])
        await request(bus, owned_by(owner))
        await owner.settle(1)


async def test_nonsense_on_the_peers_subjects_is_ignored(bus: Bus) -> None:
    async with members(bus, 2) as (one, _):
        before = one.peers.members
        for body in (b"", b"[]", b"{}", b'{"process_id": "x", "there": true, "crowded": []}', b'{"process_id": 1}'):
            await bus.publish(subjects.PEER_BEAT, body)
        await bus.flush()
        assert one.peers.members == before
        await bus.publish(f"{subjects.peer(one.process_id)}.{TASK}", b"nothing acknowledges this")
        async with asyncio.timeout(WITHIN_SECONDS):
            (delivery,) = await one.puller.take(1)
        await acknowledge(delivery)


# -- in orchestrators ---------------------------------------------------------------------------------------------


def peers_of(process: AgentProcess) -> RootOwnership:
    assert isinstance(process.worker, OrchestratorWorker)
    return process.worker.parts.peers


def shares(process: AgentProcess, count: int = 2) -> Callable[[], bool]:
    assert isinstance(process.worker, OrchestratorWorker)
    window = process.worker.parts.queue_dispatcher._gate.window
    return lambda: window.processes == count and len(peers_of(process).members) == count


@pytest_asyncio.fixture
async def second(settings: MeshSettings, orchestrated: AgentProcess) -> AsyncIterator[AgentProcess]:
    async with orchestrator(settings, load_library([])) as added:
        await until(lambda: len(registry_of(orchestrated).instances(ORCHESTRATOR)) == 2, "the second one")
        for process in (orchestrated, added):
            await until(shares(process), "both share the work")
        yield added


@pytest.fixture
def no_peer_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a process may be silent for as long as it takes."""
    monkeypatch.setattr(orchestrator_agent.runtime.root_ownership, "ALIVE_SECONDS", 10 * PATIENCE_SECONDS)


async def test_responses_are_settled_by_the_owner_which_reads_no_tree(
    no_peer_is_silent: None,
    settings: MeshSettings,
    orchestrated: AgentProcess,
    second: AgentProcess,
    seen: Seen,
    plain: PlainClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The process that got a response read the whole tree before it decided: three orchestrators did less than one.
    settled: list[tuple[Settlement, int]] = []
    read: list[UUID] = []
    settle, newer_trees = Settlement.settle, TaskStore.newer_trees

    async def watched(self: Settlement, deliveries: Sequence[Delivery], posted: Any) -> None:
        mine = [delivery for delivery in deliveries if delivery.subject != subjects.response(ORCHESTRATOR)]
        settled.extend((self, root) for delivery in mine if (root := root_of(delivery.data)) is not None)
        await settle(self, deliveries, posted)

    async def counted(self: TaskStore, known: Any) -> Any:
        found = await newer_trees(self, known)
        read.extend(found)
        return found

    monkeypatch.setattr(Settlement, "settle", watched)
    monkeypatch.setattr(TaskStore, "newer_trees", counted)
    traced = new_id()
    other = second if peers_of(orchestrated).owns(traced) else orchestrated
    assert not peers_of(other).owns(traced)
    # With slots for all of them: a queued row is dispatched by any process that finds room.
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
    assert all(len(plain.responses[task_id]) == 1 and b'"result":3' in plain.responses[task_id][0] for task_id in ids)
    assert len(settled) == 3 * len(ids)
    for process in (orchestrated, second):
        assert isinstance(process.worker, OrchestratorWorker)
        here = [root for who, root in settled if who is process.worker.parts.message_loops._settlement]
        assert here
        assert all(peers_of(process).owns(UUID(int=root)) for root in here)
    # A sweep, or a queued row, may have one read.
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
        assert all(len(set(plain.responses[task_id])) == 1 for task_id in ids)
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
        assert all(len(set(plain.responses[task_id])) == 1 for task_id in ids)


async def test_a_paused_orchestrator_is_no_owner_until_it_is_resumed(
    no_peer_is_silent: None,
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
