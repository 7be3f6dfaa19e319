"""Settlement: a batch of answers, and of what else happened, is settled when it is committed, and then acknowledged.

A run is in one batch's hands at a time, and batches have it in the order in which they came.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any
from uuid import UUID

from orchestrator_agent.dispatch.agent_health import AgentHealth
from orchestrator_agent.engine.events import Delegated, RunEvent
from orchestrator_agent.runtime.response_reader import Arrived, read_response, unread_response
from orchestrator_agent.runtime.run_cache import RunCache
from orchestrator_agent.runtime.transitions import Transitions
from orchestrator_agent.store.availability import retry_until_available
from pantheon.bus import Delivery, Objects, Publisher, acknowledge, nak, times_delivered
from pantheon.bus.dead_letter import publish_dead_letter
from protocol import subjects
from protocol.errors import InvalidRequest
from protocol.messages import salvage_ids
from protocol.names import ORCHESTRATOR

# An answer of a large tree that another process has in mind is handed back, for the first time after this time, then so
# much later each time; whoever has had it so often works on it all the same: the other one may be frozen.
NAK_SECONDS = 0.005
NAK_LIMIT = 60

# A happening, and who waits for it to be committed.
Posted = tuple[RunEvent, "asyncio.Future[Any] | None"]


class Settlement:
    """`settle` may be called for several batches at once."""

    def __init__(
        self,
        publisher: Publisher,
        objects: Objects,
        *,
        runs: RunCache,
        agent_health: AgentHealth,
        transitions: Transitions,
    ) -> None:
        self._publisher = publisher
        self._objects = objects
        self._runs = runs
        self._agent_health = agent_health
        self._transitions = transitions
        # What each batch at work has left, in the order in which they came.
        self._begun: dict[object, set[UUID]] = {}
        self._freed = asyncio.Event()

    async def settle(self, deliveries: Sequence[Delivery], posted: Sequence[Posted]) -> None:
        arrived: dict[UUID, list[Arrived]] = {}
        unread: list[tuple[Delivery, InvalidRequest]] = []
        for delivery in deliveries:
            if delivery.subject == subjects.response(ORCHESTRATOR):
                continue
            try:
                one = await read_response(self._objects, delivery)
            except InvalidRequest as wrong:
                unread.append((delivery, wrong))
                answer = unread_response(delivery, wrong)
                if answer is None:
                    continue
                one = Arrived(delivery, answer, None)
            arrived.setdefault(one.answer.root_task_id, []).append(one)
        asked: dict[UUID, list[Posted]] = {}
        for one_posted in posted:
            asked.setdefault(one_posted[0].root_task_id, []).append(one_posted)
        roots = list(dict.fromkeys([*arrived, *asked]))
        # A run is in one batch's hands at a time; what comes for it meanwhile waits, with its batch, in the order in
        # which it came: of two answers to one attempt the first one counts.
        mine = object()
        self._begun[mine] = left = set(roots)
        handed_back: set[int] = set()
        try:
            for group in self._groups(roots):
                while not self._next(mine, group):
                    self._freed.clear()
                    await self._freed.wait()
                handed_back |= await self._settle_roots(group, arrived, asked)
                left.difference_update(group)
                self._freed.set()
        finally:
            del self._begun[mine]
            self._freed.set()
        for delivery, error in unread:
            if id(delivery) not in handed_back:
                known = salvage_ids(delivery.data)
                await publish_dead_letter(
                    self._publisher, ORCHESTRATOR, delivery, "not a TaskResponse", str(error), known.get("task_id")
                )
        for delivery in deliveries:
            if id(delivery) not in handed_back:
                await acknowledge(delivery)

    def _groups(self, roots: Sequence[UUID]) -> Iterator[Sequence[UUID]]:
        """What is decided and written together. A large tree comes last and by itself: what is decided on it takes its
        time, and nobody else should wait for that."""
        large = [root for root in roots if self._runs.has_many_rows(root)]
        small = [root for root in roots if root not in large] if large else roots
        if small:
            yield small
        for root in large:
            yield [root]

    def _next(self, batch: object, roots: Sequence[UUID]) -> bool:
        """Whether nobody who began before has one of these of a batch's runs."""
        earlier = takewhile(lambda one: one is not batch, self._begun)
        return all(self._begun[one].isdisjoint(roots) for one in earlier)

    async def _settle_roots(
        self, roots: Sequence[UUID], arrived: Mapping[UUID, list[Arrived]], asked: Mapping[UUID, list[Posted]]
    ) -> set[int]:
        """Decide and write what happened to some roots; returns the identities of deliveries that were handed back."""
        outcomes: dict[UUID, Any] = {}
        handed_back: set[int] = set()
        happened = {root: self._run_events(root, arrived, asked) for root in roots}
        first = True
        while happened:
            for root in await self._held_by_other([one for one in happened if one not in asked], arrived):
                del happened[root]
                for one in arrived[root]:
                    await nak(one.delivery, after_seconds=NAK_SECONDS * times_delivered(one.delivery))
                    handed_back.add(id(one.delivery))
            if first:
                first = False
                for root in happened:
                    for one in arrived.get(root, ()):
                        if one.response is not None:
                            self._agent_health.judge(one.response)
            happened = await self._transitions.apply(happened, outcomes)
        for root in roots:
            for run_event, done in asked.get(root, ()):
                if done is not None and not done.done():
                    key = _asked_for(run_event)
                    done.set_result(outcomes.get(key) if key is not None else None)
        return handed_back

    @staticmethod
    def _run_events(
        root: UUID, arrived: Mapping[UUID, list[Arrived]], asked: Mapping[UUID, list[Posted]]
    ) -> list[RunEvent]:
        return [*(one.answer for one in arrived.get(root, ())), *(run_event for run_event, _ in asked.get(root, ()))]

    async def _held_by_other(self, roots: Sequence[UUID], arrived: Mapping[UUID, list[Arrived]]) -> list[UUID]:
        """Of roots to which nothing happened but answers: those of large trees that another process has in mind as they
        are now. It has their answers when they are handed back; here each would cost a reading of the whole tree."""
        many = [
            root
            for root in roots
            if self._runs.has_many_rows(root)
            and all(times_delivered(one.delivery) <= NAK_LIMIT for one in arrived[root])
        ]
        return await retry_until_available(self._runs.held_by_other, many) if many else []


def _asked_for(run_event: RunEvent) -> UUID | None:
    """What the outcome of a happening that somebody waits for is found by."""
    if isinstance(run_event, Delegated):
        return run_event.task_id
    return getattr(run_event, "operation", None)
