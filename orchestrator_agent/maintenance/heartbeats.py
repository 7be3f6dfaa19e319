"""Heartbeats: what instances with work publish of themselves, and for how long they have been silent.

Only agents that have messages in the broker are listened to: of ten thousand instances, all heartbeats would keep an
idle orchestrator busy. An instance that sends none is known by its registration alone.
"""

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import structlog
from pydantic_core import from_json

from pantheon.bus import Bus, Delivery, Subscription
from protocol import subjects
from protocol.errors import BusError

log = structlog.get_logger()

# An agent that has no work is listened to for so long, as it may have some again soon.
FOLLOW_SECONDS = 60.0

Attempt = tuple[UUID, int]


@dataclass(slots=True)
class Sign:
    """The newest heartbeat of an instance. Times by `clock`, `interval` in seconds: the longest between two; 0 where
    there was but one."""

    received_at: float
    interval: float
    active: int
    max_concurrency: int
    running: frozenset[Attempt]
    # Its event loop stands still: it lives, and takes nothing.
    blocked: bool


class Heartbeats:
    """`clock` in seconds."""

    def __init__(self, bus: Bus, clock: Callable[[], float]) -> None:
        self._bus = bus
        self._clock = clock
        self._subscriptions: dict[str, Subscription] = {}
        self._needed_at: dict[str, float] = {}
        self._signs: dict[tuple[str, str], Sign] = {}

    async def follow(self, agents: Collection[str]) -> None:
        """Listen to these, and, for a while longer, to those of before. Raises BusError."""
        now = self._clock()
        self._needed_at.update(dict.fromkeys(agents, now))
        for agent in agents:
            if agent not in self._subscriptions:
                subject = subjects.heartbeat(agent)
                self._subscriptions[agent] = await self._bus.subscribe_direct(subject, self._on_message)
        old = {agent for agent, needed_at in self._needed_at.items() if now - needed_at > FOLLOW_SECONDS}
        for agent in old:
            del self._needed_at[agent]
            if (subscription := self._subscriptions.pop(agent, None)) is not None:
                await self._bus.unsubscribe(subscription)
        if old:
            self._signs = {key: sign for key, sign in self._signs.items() if key[0] not in old}

    def _on_message(self, message: Delivery) -> None:
        try:
            fields: Any = from_json(message.data)
            key = (subjects.agent_of(message.subject), str(fields["instance_id"]))
            running = frozenset((UUID(each["task_id"]), int(each["attempt"])) for each in fields.get("running") or ())
            active, most = int(fields["active"]), int(fields["max_concurrency"])
        except (ValueError, KeyError, TypeError) as error:
            log.debug("heartbeat.unread", subject=message.subject, error=str(error))
            return
        now, before = self._clock(), self._signs.get(key)
        interval = 0.0 if before is None else max(before.interval, now - before.received_at)
        self._signs[key] = Sign(now, interval, active, most, running, bool(fields.get("blocked_seconds")))

    def of(self, agent: str, instance_id: str) -> Sign | None:
        """The newest heartbeat of an instance; None where none was received."""
        return self._signs.get((agent, instance_id))

    def forget(self, agent: str, instance_id: str) -> None:
        """Of an instance that is gone."""
        self._signs.pop((agent, instance_id), None)

    def excuse_silence(self) -> None:
        """Nothing could be received for a while: the silence until now is no instance's own."""
        now = self._clock()
        for sign in self._signs.values():
            sign.received_at = max(now, sign.received_at)

    async def close(self) -> None:
        subscriptions, self._subscriptions = self._subscriptions, {}
        self._needed_at.clear()
        for subscription in subscriptions.values():
            try:
                async with asyncio.timeout(1):
                    await self._bus.unsubscribe(subscription)
            except (BusError, TimeoutError) as error:
                log.debug("heartbeats.unsubscribe", error=str(error))
