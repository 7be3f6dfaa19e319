"""Stops: orders to end attempts, said again until they have had their effect (PROTOCOL.md, Subjects and streams).

Orders are in memory. Whoever takes over from a process that died looks out instead for what agents have at work, and
asks the database once of each attempt whether it is still wanted.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import takewhile
from uuid import UUID

import structlog
from pydantic import ValidationError

from orchestrator_agent.store.availability import retry_until_available
from pantheon.bus import Bus, Delivery, Subscription
from pantheon.runtime.background import end
from protocol import subjects
from protocol.errors import BusError
from protocol.messages import Control, Heartbeat, to_bytes

log = structlog.get_logger()

# An order may reach an agent before the task does, or be lost: it is said again, and is idempotent.
AGAIN_SECONDS = (1.0, 5.0)
# After that, whenever a heartbeat shows the attempt at work: who was cut off is heard when it is back. Not for ever: an
# attempt has an end of its own, and its answer counts for nothing.
REMEMBERED_SECONDS = 300.0
MAX_REMEMBERED = 10_000
# What is asked about in one go, and how much of a reason is told on.
ASK_ATTEMPTS = 1000
REASON_CHARS = 500

_Key = tuple[UUID, int]


@dataclass
class _Order:
    agent: str
    reason: str
    # By the loop's clock: when it was last said.
    said: float


class AttemptCanceller:
    """Listens to the heartbeats of those agents alone that it has orders for; for a while to all after `look_out`.

    `stale` says which attempts (root, task, number) are not wanted any more, and why.
    """

    def __init__(
        self,
        bus: Bus,
        stale: Callable[[Collection[tuple[UUID, UUID, int]]], Awaitable[Mapping[_Key, str | None]]],
    ) -> None:
        self._bus = bus
        self._stale = stale
        # In the order in which they were last said.
        self._orders: dict[_Key, _Order] = {}
        self._listening: dict[str, Subscription] = {}
        self._changing = asyncio.Lock()
        # While it looks out: the attempts that were seen, those of them to be asked about, with their roots and agents.
        self._seen: set[_Key] = set()
        self._asked: dict[_Key, tuple[UUID, str]] = {}
        self._ask = asyncio.Event()
        self._look_out_until = 0.0
        self._looking: asyncio.Task[None] | None = None

    async def say(self, agent: str, task_id: UUID, attempt: int, reason: str) -> None:
        """Have an attempt ended; returns when what comes of it is seen from heartbeats."""
        key = (task_id, attempt)
        self._note(key, _Order(agent, reason, 0.0))
        await self._publish(key, agent, reason)
        await self._follow(agent)
        for wait in AGAIN_SECONDS:
            await asyncio.sleep(wait)
            await self._publish(key, agent, reason)

    def _note(self, key: _Key, order: _Order) -> None:
        order.said = asyncio.get_running_loop().time()
        self._orders.pop(key, None)
        self._orders[key] = order
        while len(self._orders) > MAX_REMEMBERED:
            del self._orders[next(iter(self._orders))]

    async def _publish(self, key: _Key, agent: str, reason: str, instance_id: str | None = None) -> None:
        task_id, attempt = key
        order = Control(command="cancel", task_id=task_id, attempt=attempt, instance_id=instance_id, reason=reason)
        await self._bus.publish_quietly(subjects.control(agent), to_bytes(order))

    async def _follow(self, agent: str) -> None:
        async with self._changing:
            if agent not in self._listening:
                try:
                    self._listening[agent] = await self._bus.subscribe(subjects.heartbeat(agent), self._on_heartbeat)
                except BusError as error:
                    log.debug("heartbeats.unheard", agent=agent, error=str(error))

    async def _forget(self) -> None:
        """Drop orders of which there was no sign for long, and leave the agents that there are none for any more."""
        horizon = asyncio.get_running_loop().time() - REMEMBERED_SECONDS
        old = list(takewhile(lambda key: self._orders[key].said < horizon, self._orders))
        if not old:
            return
        for key in old:
            del self._orders[key]
        async with self._changing:
            wanted = {order.agent for order in self._orders.values()}
            for agent in self._listening.keys() - wanted:
                await self._bus.unsubscribe(self._listening.pop(agent))

    # -- what a process that died had ordered -------------------------------------------------------------------------

    def look_out(self) -> None:
        """Find the attempts that were given up by a process which is not there any more to say so, as long as that one
        would have remembered them."""
        self._look_out_until = asyncio.get_running_loop().time() + REMEMBERED_SECONDS
        # What was wanted when it was seen last may have been given up since.
        self._seen.clear()
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look_for_stale(), name="look-for-stale")

    async def _look_for_stale(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            listening = await self._bus.subscribe(subjects.ALL_HEARTBEATS, self._on_any_heartbeat)
        except BusError as error:
            log.debug("heartbeats.unheard", error=str(error))
            return
        try:
            while (left := self._look_out_until - loop.time()) > 0:
                self._ask.clear()
                try:
                    async with asyncio.timeout(left):
                        await self._ask.wait()
                except TimeoutError:
                    continue
                while self._asked:
                    await self._ask_about([self._asked.popitem() for _ in range(min(ASK_ATTEMPTS, len(self._asked)))])
        finally:
            await self._bus.unsubscribe(listening)
            self._seen.clear()

    async def _on_any_heartbeat(self, delivery: Delivery) -> None:
        if (heartbeat := _read(delivery)) is None:
            return
        for running in heartbeat.running:
            key = (running.task_id, running.attempt)
            if running.root_task_id is not None and key not in self._seen and key not in self._orders:
                self._seen.add(key)
                self._asked[key] = (running.root_task_id, heartbeat.agent)
                self._ask.set()

    async def _ask_about(self, attempts: Collection[tuple[_Key, tuple[UUID, str]]]) -> None:
        agents = {key: agent for key, (_, agent) in attempts}
        stale = await retry_until_available(self._stale, [(root, *key) for key, (root, _) in attempts])
        for key, reason in stale.items():
            log.info("attempt.stale", agent=agents[key], task_id=str(key[0]), attempt=key[1])
            reason = (reason or "it is not wanted any more")[:REASON_CHARS]
            self._note(key, _Order(agents[key], reason, 0.0))
            await self._publish(key, agents[key], reason)
            await self._follow(agents[key])

    # -- what comes of the orders -------------------------------------------------------------------------------------

    async def _on_heartbeat(self, delivery: Delivery) -> None:
        if (heartbeat := _read(delivery)) is None:
            return
        for running in heartbeat.running:
            key = (running.task_id, running.attempt)
            if (order := self._orders.get(key)) is not None and order.agent == heartbeat.agent:
                self._note(key, order)
                await self._publish(key, order.agent, order.reason, heartbeat.instance_id)
        await self._forget()

    async def close(self) -> None:
        if self._looking is not None:
            await end([self._looking])
        self._orders.clear()
        async with self._changing:
            while self._listening:
                await self._bus.unsubscribe(self._listening.popitem()[1])


def _read(delivery: Delivery) -> Heartbeat | None:
    try:
        return Heartbeat.model_validate_json(delivery.data)
    except ValidationError as error:
        log.debug("heartbeat.invalid", subject=delivery.subject, error=str(error))
        return None
