"""Settlement: a batch of answers, and of what else happened, is settled when it is committed, and then acknowledged.

A run is in one batch's hands at a time, and batches have it in the order in which they came.
"""

import asyncio
from collections.abc import Coroutine, Iterator, Mapping, Sequence
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

    async def settle(
        self, deliveries: Sequence[Delivery], posted: Sequence[Posted]
    ) -> Coroutine[Any, Any, None] | None:
        """Returns what is left to do where some roots take long to decide: it may go on beside other batches."""
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
        long: list[UUID] = []
        try:
            for group in self._groups(roots):
                await self._wait_for(mine, group)
                handed_back |= await self._settle_roots(group, arrived, asked, long)
                left.difference_update(set(group).difference(long))
                self._freed.set()
        except BaseException:
            self._end(mine)
            raise
        if not long:
            self._end(mine)
        later = {id(one.delivery) for root in long for one in arrived.get(root, ())}
        await self._finish([delivery for delivery in deliveries if id(delivery) not in later], unread, handed_back)
        if not long:
            return None
        return self._settle_long(
            mine, long, arrived, asked, [delivery for delivery in deliveries if id(delivery) in later], unread
        )

    async def _settle_long(
        self,
        mine: object,
        long: Sequence[UUID],
        arrived: Mapping[UUID, list[Arrived]],
        asked: Mapping[UUID, list[Posted]],
        deliveries: Sequence[Delivery],
        unread: Sequence[tuple[Delivery, InvalidRequest]],
    ) -> None:
        handed_back: set[int] = set()
        try:
            for root in long:
                await self._wait_for(mine, [root])
                handed_back |= await self._settle_roots([root], arrived, asked, None)
                self._begun[mine].discard(root)
                self._freed.set()
        finally:
            self._end(mine)
        await self._finish(deliveries, unread, handed_back)

    async def _wait_for(self, batch: object, roots: Sequence[UUID]) -> None:
        while not self._next(batch, roots):
            self._freed.clear()
            await self._freed.wait()

    def _end(self, batch: object) -> None:
        del self._begun[batch]
        self._freed.set()

    async def _finish(
        self,
        deliveries: Sequence[Delivery],
        unread: Sequence[tuple[Delivery, InvalidRequest]],
        handed_back: set[int],
    ) -> None:
        """Acknowledge what is committed, and keep what could not be read."""
        ended = {id(delivery) for delivery in deliveries} - handed_back
        for delivery, error in unread:
            if id(delivery) in ended:
                known = salvage_ids(delivery.data)
                await publish_dead_letter(
                    self._publisher, ORCHESTRATOR, delivery, "not a TaskResponse", str(error), known.get("task_id")
                )
        for delivery in deliveries:
            if id(delivery) in ended:
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
        self,
        roots: Sequence[UUID],
        arrived: Mapping[UUID, list[Arrived]],
        asked: Mapping[UUID, list[Posted]],
        long: list[UUID] | None,
    ) -> set[int]:
        """Decide and write what happened to some roots; returns the identities of deliveries that were handed back.

        Roots that are left undecided because they take long are added to `long`; without it, none is.
        """
        outcomes: dict[UUID, Any] = {}
        handed_back: set[int] = set()
        happened = {root: self._run_events(root, arrived, asked) for root in roots}
        # Those that take long have been judged with the batch that they were in first.
        first = long is not None
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
            happened = await self._transitions.apply(happened, outcomes, long=long)
        for root in roots:
            if long and root in long:
                continue
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
