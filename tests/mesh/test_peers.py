"""Several orchestrators share the roots out between them: who is given what belongs to another one passes it on."""

import asyncio
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
from pantheon.bus import Bus, Delivery, Puller, acknowledge, ensure_streams, times_delivered
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
        for one in made:
            await one.exchange.start()
            stack.push_async_callback(one.exchange.stop)
            stack.callback(one.exchange.leave)
        expected = sorted(str(one.process_id) for one in made)
        for one in made:
            await until(lambda it=one: it.ownership.members == expected, "all members")  # type: ignore[misc]
        yield made


def owned_by(member: Member) -> UUID:
    return next(one for _ in range(1000) if member.ownership.owns(one := new_id()))


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
        owners = [[one.process_id for one in all_three if one.ownership.owns(root)] for root in roots]
        assert all(len(found) == 1 for found in owners)
        assert len({found[0] for found in owners}) == 3
        all_three[0].exchange.leave()
        for one in all_three[1:]:
            await until(lambda it=one: len(it.ownership.members) == 2, "that one has left")  # type: ignore[misc]
        assert not any(all_three[0].ownership.owns(root) for root in roots)
        assert all(sum(one.ownership.owns(root) for one in all_three[1:]) == 1 for root in roots)


async def test_who_is_alone_owns_nothing_and_passes_nothing_on(bus: Bus) -> None:
    # Another one of which nothing is heard may be there all the same: what is asked of the database then is asked.
    async with members(bus, 2) as (one, other):
        other.exchange.leave()
        await until(lambda: not one.ownership.members, "that it is alone")
        async with one.puller:
            await request(bus, root := new_id())
            await one.settle(1)
        assert not one.ownership.owns(root)
        assert not one.diverted


async def test_a_request_is_settled_by_its_owner_and_comes_with_its_headers(bus: Bus) -> None:
    async with members(bus, 2) as (given, owner), given.puller:
        roots = [owned_by(owner) for _ in range(50)]
        # More than the one that is given them may hold.
        for root in roots:
            await request(bus, root)
        await owner.settle(50)
        await until_settled(bus)
        assert {root_of(one.data) for one in owner.passed} == {root.int for root in roots}
        assert all(one.subject == TASK and (one.headers or {})["a"] == "b" for one in owner.passed)
        assert given.puller.held == owner.puller.held == 0


async def test_a_child_goes_to_the_owner_of_its_root(bus: Bus) -> None:
    async with members(bus, 2) as (given, owner), given.puller:
        await request(bus, owned_by(given), root_task_id=str(owned_by(owner)))
        await owner.settle(1)


@pytest.mark.parametrize(
    "body",
    [b"", b"not JSON", b"[]", b'{"task_id": 7}', b'{"task_id": "%b"}' % (b"-" * 36), b'{"root_task_id": "\xff"}'],
)
async def test_what_names_no_root_is_kept(bus: Bus, body: bytes) -> None:
    async with members(bus, 2) as (given, other), given.puller:
        await bus.js.publish(TASK, body)
        await given.settle(1)
        assert not other.passed


async def test_what_is_given_out_again_is_kept_by_whoever_gets_it(bus: Bus) -> None:
    async with members(bus, 2) as (given, owner), given.puller:
        await request(bus, owned_by(owner))
        async with asyncio.timeout(WITHIN_SECONDS):
            (delivery,) = await owner.puller.take(1)
        await delivery.nak()
        owner.puller.release()
        await given.settle(1)
        assert [times_delivered(one) for one in given.kept] == [2]


async def test_a_quiet_one_hands_back_at_once_what_it_is_passed(bus: Bus) -> None:
    async with members(bus, 2) as (given, owner), given.puller:
        # As if the other one had not heard of it yet.
        owner.ownership.accepting = False
        for _ in range(10):
            await request(bus, owned_by_other(given))
        await given.settle(10)
        assert len(given.diverted) == 10
        assert not owner.passed
        owner.exchange.resume_accepting()
        await request(bus, owned_by(owner))
        await owner.settle(1)


def owned_by_other(member: Member) -> UUID:
    return next(one for _ in range(1000) if not member.ownership.owns(one := new_id()))


async def test_who_has_left_is_passed_nothing(bus: Bus) -> None:
    async with members(bus, 3) as (given, leaving, other), given.puller:
        root = owned_by(leaving)
        leaving.exchange.leave()
        await until(lambda: len(given.ownership.members) == 2, "that it has left")
        leaving.exchange.resume_accepting()
        await request(bus, root)
        await (given if given.ownership.owns(root) else other).settle(1)
        assert not leaving.passed


async def test_what_was_passed_to_one_that_is_silent_then_is_handed_back(bus: Bus) -> None:
    """It waited 30 s for its redelivery."""
    async with members(bus, 2) as (given, dead), given.puller:
        # As a killed one: nothing is heard, and nothing said.
        dead.exchange._beat = lambda **_: None  # type: ignore[method-assign]
        for subscription in dead.exchange._subscriptions:
            await subscription.unsubscribe()
        for _ in range(10):
            await request(bus, owned_by(dead))
        await given.settle(10)
        assert len(given.diverted) == 10
        assert not given.ownership.members


async def test_a_crowded_one_is_passed_nothing_more(bus: Bus) -> None:
    async with members(bus, 2) as (given, owner), given.puller:
        too_much = CROWDED * owner.puller.capacity + 1
        for _ in range(too_much):
            owner.puller.enqueue(Delivery(_client=bus.client, subject=TASK, data=b"{}"))
        await owner.puller.take(too_much)
        await until(lambda: given.ownership.crowded(str(owner.process_id)) == ["task"], "that it is crowded")
        await request(bus, owned_by(owner))
        await given.settle(1)
        assert not given.diverted
        owner.puller.release(too_much)
        await until(lambda: not given.ownership.crowded(str(owner.process_id)), "that it is not any more")
        await request(bus, owned_by(owner))
        await owner.settle(1)


async def test_nonsense_on_their_subjects_is_passed_by(bus: Bus) -> None:
    async with members(bus, 2) as (one, _):
        before = one.ownership.members
        for body in (b"", b"[]", b"{}", b'{"process_id": "x", "there": true, "crowded": []}', b'{"process_id": 1}'):
            await bus.publish(subjects.PEER_BEAT, body)
        await bus.flush()
        assert one.ownership.members == before
        await bus.publish(f"{subjects.peer(one.process_id)}.{TASK}", b"nobody acknowledges this")
        async with asyncio.timeout(WITHIN_SECONDS):
            (delivery,) = await one.puller.take(1)
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
        for one in (orchestrated, process):
            await until(shares(one), "both share the work")
        yield process


# On a busy machine a process may send no beat for as long as it takes.
NEVER_SILENT = pytest.mark.parametrize("tuning", [Tuning(alive_seconds=10 * PATIENCE_SECONDS)], ids=[""])


@NEVER_SILENT
async def test_answers_are_settled_by_the_owner_which_reads_no_tree(
    tuning: Tuning,
    settings: MeshSettings,
    orchestrated: AgentProcess,
    second: AgentProcess,
    seen: Seen,
    plain: PlainClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Whoever took an answer read the whole tree before it decided: three orchestrators did less than one.
    settled: list[tuple[ResponseSettler, int]] = []
    read: list[UUID] = []
    settle, newer_trees = ResponseSettler.settle, TaskReader.newer_trees

    async def watched(self: ResponseSettler, deliveries: Sequence[Delivery], entries: Any) -> None:
        mine = [one for one in deliveries if one.subject != subjects.response(ORCHESTRATOR)]
        settled.extend((self, root) for one in mine if (root := root_of(one.data)) is not None)
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
    # With places for all of them: who waits in line is placed by whoever finds room.
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
    assert all(len(plain.responses[one]) == 1 and b'"result":3' in plain.responses[one][0] for one in ids)
    assert len(settled) == 3 * len(ids)
    for process in (orchestrated, second):
        assert isinstance(process.worker, OrchestratorWorker)
        here = [root for who, root in settled if who is process.worker.parts.loops.settler]
        assert here
        assert all(peers_of(process).owns(UUID(int=root)) for root in here)
    # A sweep, or a row that had to wait in line, may have one read.
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
        assert all(len(set(plain.responses[one])) == 1 for one in ids)
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
        assert all(len(set(plain.responses[one])) == 1 for one in ids)


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
