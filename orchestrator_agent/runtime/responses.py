"""Responses: a batch of them, and of other run events, is settled when it is committed, and then acknowledged.

A run is in one batch's hands at a time, and batches have it in the order in which they came.
"""

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import takewhile
from typing import NamedTuple
from uuid import UUID

from orchestrator_agent.dispatch.agent_health import AgentHealth
from orchestrator_agent.dispatch.window import Window
from orchestrator_agent.engine.events import Delegated, RunEvent
from orchestrator_agent.inbox import Entry, TakesLong
from orchestrator_agent.runtime.broker import Broker
from orchestrator_agent.runtime.large_messages import Work
from orchestrator_agent.runtime.response_reader import Arrived, read_response, unread_response
from orchestrator_agent.runtime.run_cache import RunCache
from orchestrator_agent.runtime.transitions import Outcomes, Transitions
from orchestrator_agent.runtime.trials import Trials
from orchestrator_agent.store.availability import retry_until_available
from pantheon.bus import Delivery, acknowledge, nak, times_delivered
from pantheon.bus.dead_letter import publish_dead_letter
from protocol import subjects
from protocol.errors import InvalidRequest
from protocol.messages import salvage_ids
from protocol.names import ORCHESTRATOR

# A response for a large tree that another process has in memory is nacked, to be delivered again after this time, then
# so much later each time; a process that has had it so often works on it all the same: the other one may be frozen.
NAK_SECONDS = 0.005
NAK_LIMIT = 60


class _Batch(NamedTuple):
    """What a batch holds, by root: responses off the wire, entries of the inbox."""

    responses: Mapping[UUID, list[Arrived]]
    entries: Mapping[UUID, list[Entry]]

    def run_events(self, root: UUID) -> list[RunEvent]:
        return [
            *(arrived.received for arrived in self.responses.get(root, ())),
            *(entry.run_event for entry in self.entries.get(root, ())),
        ]


class _Later(NamedTuple):
    """Roots of a batch that others are not to wait for: they are left to its remainder."""

    # Their transitions take long to decide.
    long: list[UUID]
    # An earlier batch takes long to decide on them.
    waiting: list[UUID]


class Remainder(NamedTuple):
    """What is left of a batch: `deliveries`, not yet acknowledged, for roots that take long to decide, or that wait for
    an earlier batch which does. `work` settles them; it may go on beside other batches."""

    deliveries: Sequence[Delivery]
    work: Work


class ResponseSettler:
    """`settle` may be called for several batches at once."""

    def __init__(
        self,
        broker: Broker,
        *,
        runs: RunCache,
        agent_health: AgentHealth,
        window: Window,
        transitions: Transitions,
        trials: Trials,
    ) -> None:
        self._publisher = broker.publisher
        self._objects = broker.objects
        self._trials = trials
        self._runs = runs
        self._agent_health = agent_health
        self._window = window
        self._transitions = transitions
        # What each batch at work has left, in the order in which they came.
        self._begun: dict[object, set[UUID]] = {}
        # Those of them whose remainders are being settled, and the roots of these.
        self._remainders: set[object] = set()
        self._long: frozenset[UUID] = frozenset()
        self._freed = asyncio.Event()

    async def settle(self, deliveries: Sequence[Delivery], entries: Sequence[Entry]) -> Remainder | None:
        """Returns what is left to do where some roots take long to decide."""
        responses: dict[UUID, list[Arrived]] = {}
        unread: list[tuple[Delivery, InvalidRequest]] = []
        for delivery in deliveries:
            if delivery.subject == subjects.response(ORCHESTRATOR):
                continue
            try:
                arrived = await read_response(self._objects, delivery)
            except InvalidRequest as wrong:
                unread.append((delivery, wrong))
                received = unread_response(delivery, wrong)
                if received is None:
                    continue
                arrived = Arrived(delivery, received, None)
            responses.setdefault(arrived.received.root_task_id, []).append(arrived)
        asked: dict[UUID, list[Entry]] = {}
        for entry in entries:
            asked.setdefault(entry.run_event.root_task_id, []).append(entry)
        batch = _Batch(responses, asked)
        roots = list(dict.fromkeys([*responses, *asked]))
        mine = object()
        self._begun[mine] = set(roots)
        nacked: set[int] = set()
        later = _Later([], [])
        try:
            for group in self._groups(roots):
                nacked |= await self._settle_in_order(mine, group, batch, later)
        except BaseException:
            self._end(mine)
            raise
        if not later.long and not later.waiting:
            self._end(mine)
            await self._acknowledge(deliveries, unread, nacked)
            return None
        self._remainders.add(mine)
        self._note_long()
        self._freed.set()
        remaining = {
            id(arrived.delivery) for root in (*later.long, *later.waiting) for arrived in responses.get(root, ())
        }
        await self._acknowledge([delivery for delivery in deliveries if id(delivery) not in remaining], unread, nacked)
        left = [delivery for delivery in deliveries if id(delivery) in remaining]
        for root in (*later.long, *later.waiting):
            for entry in asked.get(root, ()):
                if entry.at_once and entry.outcome is not None and not entry.outcome.done():
                    entry.outcome.set_exception(TakesLong)
        return Remainder(left, partial(self._settle_remainder, mine, later, batch, left, unread))

    async def _settle_remainder(
        self,
        mine: object,
        later: _Later,
        batch: _Batch,
        deliveries: Sequence[Delivery],
        unread: Sequence[tuple[Delivery, InvalidRequest]],
    ) -> None:
        nacked: set[int] = set()
        try:
            for root in (*later.long, *later.waiting):
                nacked |= await self._settle_in_order(mine, [root], batch, None)
        finally:
            self._end(mine)
        await self._acknowledge(deliveries, unread, nacked)

    async def _acknowledge(
        self,
        deliveries: Sequence[Delivery],
        unread: Sequence[tuple[Delivery, InvalidRequest]],
        nacked: set[int],
    ) -> None:
        """Acknowledge what is committed, and keep what could not be read."""
        ended = {id(delivery) for delivery in deliveries} - nacked
        for delivery, error in unread:
            if id(delivery) in ended:
                known = salvage_ids(delivery.data)
                await publish_dead_letter(
                    self._publisher, ORCHESTRATOR, delivery, "not a TaskResponse", str(error), known.get("task_id")
                )
        for delivery in deliveries:
            if id(delivery) in ended:
                await acknowledge(delivery)

    async def _settle_in_order(
        self, mine: object, roots: Sequence[UUID], batch: _Batch, later: _Later | None
    ) -> set[int]:
        """Settle some roots of a batch when those before it have left them; returns the identities of nacked
        deliveries.

        What comes for a run meanwhile waits, with its batch, in the order in which it came: of two responses to one
        attempt the first one counts. Roots that are added to `later` stay with the batch.
        """
        while not self._next(mine, roots):
            if later is not None and (long := self._long.intersection(roots)):
                self._judge(long, batch.responses)
                later.waiting.extend(long)
                roots = [root for root in roots if root not in long]
                continue
            self._freed.clear()
            await self._freed.wait()
        left = later.long if later is not None else None
        nacked = await self._settle_roots(roots, batch, left)
        self._begun[mine].difference_update(root for root in roots if not left or root not in left)
        if mine in self._remainders:
            self._note_long()
        self._freed.set()
        return nacked

    def _end(self, batch: object) -> None:
        del self._begun[batch]
        if batch in self._remainders:
            self._remainders.discard(batch)
            self._note_long()
        self._freed.set()

    def _note_long(self) -> None:
        self._long = frozenset(root for batch in self._remainders for root in self._begun[batch])

    def _groups(self, roots: Sequence[UUID]) -> Iterator[Sequence[UUID]]:
        """What is decided and written together. A large tree comes last and by itself: what is decided on it takes its
        time, and nothing else should wait for that; and so does a root that a process died on."""
        large = [root for root in roots if self._runs.has_many_rows(root) or self._trials.is_suspect(root)]
        small = [root for root in roots if root not in large] if large else roots
        if small:
            yield small
        for root in large:
            yield [root]

    def _next(self, batch: object, roots: Sequence[UUID]) -> bool:
        """Whether no batch that began before has one of these of a batch's runs."""
        earlier = takewhile(lambda begun: begun is not batch, self._begun)
        return all(self._begun[begun].isdisjoint(roots) for begun in earlier)

    async def _settle_roots(self, roots: Sequence[UUID], batch: _Batch, long: list[UUID] | None) -> set[int]:
        """Decide and write what happened to some roots; returns the identities of nacked deliveries.

        Roots that are left undecided because they take long are added to `long`; without it, none is.
        """
        outcomes: Outcomes = {}
        nacked: set[int] = set()
        happened = {root: batch.run_events(root) for root in roots if not self._trials.in_quarantine(root)}
        async with self._trials.one_group(happened):
            await self._decide(happened, batch, long, outcomes, nacked)
        for root in roots:
            if long and root in long:
                continue
            for entry in batch.entries.get(root, ()):
                if entry.outcome is not None and not entry.outcome.done():
                    key = _outcome_key(entry.run_event)
                    entry.outcome.set_result(outcomes.get(key) if key is not None else None)
        return nacked

    async def _decide(
        self,
        happened: dict[UUID, list[RunEvent]],
        batch: _Batch,
        long: list[UUID] | None,
        outcomes: Outcomes,
        nacked: set[int],
    ) -> None:
        # Those of a remainder were judged before they were left to it.
        judged = long is None
        while happened:
            only_responses = [root for root in happened if root not in batch.entries]
            for root in await self._held_by_other(only_responses, batch.responses):
                del happened[root]
                for arrived in batch.responses[root]:
                    await nak(arrived.delivery, after_seconds=NAK_SECONDS * times_delivered(arrived.delivery))
                    nacked.add(id(arrived.delivery))
            if not judged:
                judged = True
                self._judge(happened, batch.responses)
            happened = await self._transitions.apply(happened, outcomes, long=long)

    def _judge(self, roots: Iterable[UUID], responses: Mapping[UUID, list[Arrived]]) -> None:
        for root in roots:
            for arrived in responses.get(root, ()):
                if arrived.response is not None:
                    self._window.responded(arrived.response.agent)
                    self._agent_health.judge(arrived.response)

    async def _held_by_other(self, roots: Sequence[UUID], responses: Mapping[UUID, list[Arrived]]) -> list[UUID]:
        """Of roots to which nothing happened but responses: those of large trees that another process has in memory as
        they are now. It receives the responses when they are nacked; here each would cost a reading of the whole tree.
        """
        many = [
            root
            for root in roots
            if self._runs.has_many_rows(root)
            and all(times_delivered(arrived.delivery) <= NAK_LIMIT for arrived in responses[root])
        ]
        return await retry_until_available(self._runs.held_by_other, many) if many else []


def _outcome_key(run_event: RunEvent) -> UUID | None:
    """By what the outcome of a run event is found."""
    if isinstance(run_event, Delegated):
        return run_event.task_id
    return getattr(run_event, "operation", None)
