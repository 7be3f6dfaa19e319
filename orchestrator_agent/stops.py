"""Stops: orders to end attempts, said again until they have had their effect (PROTOCOL.md, Subjects and streams)."""

import asyncio
from dataclasses import dataclass
from itertools import takewhile
from uuid import UUID

import structlog
from pydantic import ValidationError

from pantheon.bus import Bus, Delivery, Subscription
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

_Key = tuple[UUID, int]


@dataclass
class _Order:
    agent: str
    reason: str
    # By the loop's clock: when it was last said.
    said: float


class Stops:
    """Listens to the heartbeats of those agents alone that it has orders for."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        # In the order in which they were last said.
        self._orders: dict[_Key, _Order] = {}
        self._listening: dict[str, Subscription] = {}
        self._changing = asyncio.Lock()

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

    async def _on_heartbeat(self, delivery: Delivery) -> None:
        try:
            heartbeat = Heartbeat.model_validate_json(delivery.data)
        except ValidationError as error:
            log.debug("heartbeat.invalid", subject=delivery.subject, error=str(error))
            return
        for running in heartbeat.running:
            key = (running.task_id, running.attempt)
            if (order := self._orders.get(key)) is not None and order.agent == heartbeat.agent:
                self._note(key, order)
                await self._publish(key, order.agent, order.reason, heartbeat.instance_id)
        await self._forget()

    async def close(self) -> None:
        self._orders.clear()
        async with self._changing:
            while self._listening:
                await self._bus.unsubscribe(self._listening.popitem()[1])
