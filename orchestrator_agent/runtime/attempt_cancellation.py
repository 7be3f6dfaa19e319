"""Attempt cancellation: resends a cancel until heartbeats stop listing the attempt.

The message is a Control (docs/protocol.md, The small messages).

Cancels are in memory. A process that takes over from a dead one watches what agents have at work instead, and asks the
database once of each attempt whether it is still the current one.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
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

# A cancel may reach an agent before the attempt does, or be lost: it is sent again, and is idempotent.
AGAIN_SECONDS = (1.0, 5.0)
# After that, whenever a heartbeat lists the attempt: so an agent that was cut off is reached when it is back. Not for
# ever: an attempt has an end of its own, and its response counts for nothing.
REMEMBERED_SECONDS = 300.0
MAX_REMEMBERED = 10_000
# How many attempts one statement asks about, and how much of a reason is sent.
ASK_ATTEMPTS = 1000
REASON_CHARS = 500

_Key = tuple[UUID, int]


@dataclass
class _Cancel:
    agent: str
    reason: str
    # By the loop's clock.
    last_sent: float


class AttemptCanceller:
    """Subscribes to the heartbeats of those agents alone that it has cancels for; for a while to all of them after
    `watch_for_stale`.

    `stale` says which attempts (root, task, number) are not current any more, and why.
    """

    def __init__(
        self,
        bus: Bus,
        stale: Callable[[Collection[tuple[UUID, UUID, int]]], Awaitable[Mapping[_Key, str | None]]],
        *,
        again_seconds: Sequence[float] = AGAIN_SECONDS,
    ) -> None:
        self._bus = bus
        self._stale = stale
        self._again_seconds = again_seconds
        # The one that was sent last is at the end.
        self._cancels: dict[_Key, _Cancel] = {}
        self._subscriptions: dict[str, Subscription] = {}
        self._changing = asyncio.Lock()
        # While it watches for stale attempts: those that heartbeats listed, and those of them to be asked about, with
        # their roots and agents.
        self._seen: set[_Key] = set()
        self._unasked: dict[_Key, tuple[UUID, str]] = {}
        self._ask = asyncio.Event()
        self._watch_until = 0.0
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Nothing to start: it subscribes when there is a cancel to send."""

    async def stop(self) -> None:
        if self._watching is not None:
            await end([self._watching])
        self._cancels.clear()
        async with self._changing:
            while self._subscriptions:
                await self._bus.unsubscribe(self._subscriptions.popitem()[1])

    async def cancel(self, agent: str, task_id: UUID, attempt: int, reason: str) -> None:
        """Have an attempt ended; returns when heartbeats are all that it still goes by."""
        key = (task_id, attempt)
        self._note(key, _Cancel(agent, reason, 0.0))
        await self._publish(key, agent, reason)
        await self._follow(agent)
        for wait in self._again_seconds:
            await asyncio.sleep(wait)
            await self._publish(key, agent, reason)

    def _note(self, key: _Key, cancel: _Cancel) -> None:
        cancel.last_sent = asyncio.get_running_loop().time()
        self._cancels.pop(key, None)
        self._cancels[key] = cancel
        while len(self._cancels) > MAX_REMEMBERED:
            del self._cancels[next(iter(self._cancels))]

    async def _publish(self, key: _Key, agent: str, reason: str, instance_id: str | None = None) -> None:
        task_id, attempt = key
        control = Control(command="cancel", task_id=task_id, attempt=attempt, instance_id=instance_id, reason=reason)
        await self._bus.publish_quietly(subjects.control(agent), to_bytes(control))

    async def _follow(self, agent: str) -> None:
        async with self._changing:
            if agent not in self._subscriptions:
                try:
                    subscription = await self._bus.subscribe(subjects.heartbeat(agent), self._on_heartbeat)
                except BusError as error:
                    log.debug("heartbeats.unheard", agent=agent, error=str(error))
                    return
                self._subscriptions[agent] = subscription

    async def _on_heartbeat(self, delivery: Delivery) -> None:
        if (heartbeat := _read(delivery)) is None:
            return
        for running in heartbeat.running:
            key = (running.task_id, running.attempt)
            if (cancel := self._cancels.get(key)) is not None and cancel.agent == heartbeat.agent:
                self._note(key, cancel)
                await self._publish(key, cancel.agent, cancel.reason, heartbeat.instance_id)
        await self._forget()

    async def _forget(self) -> None:
        """Drop cancels whose attempts no heartbeat has listed for long, and leave the agents that none is left for."""
        horizon = asyncio.get_running_loop().time() - REMEMBERED_SECONDS
        old = list(takewhile(lambda key: self._cancels[key].last_sent < horizon, self._cancels))
        if not old:
            return
        for key in old:
            del self._cancels[key]
        async with self._changing:
            needed = {cancel.agent for cancel in self._cancels.values()}
            for agent in self._subscriptions.keys() - needed:
                await self._bus.unsubscribe(self._subscriptions.pop(agent))

    # -- what a process that died had cancelled ------------------------------------------------------------------------

    def watch_for_stale(self) -> None:
        """Find the attempts that a dead process gave up and can cancel no more, for as long as that one would have
        remembered its cancels."""
        self._watch_until = asyncio.get_running_loop().time() + REMEMBERED_SECONDS
        # What was current when it was seen last may have been given up since.
        self._seen.clear()
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch(), name="watch-for-stale")

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            subscription = await self._bus.subscribe(subjects.ALL_HEARTBEATS, self._on_any_heartbeat)
        except BusError as error:
            log.debug("heartbeats.unheard", error=str(error))
            return
        try:
            while (left := self._watch_until - loop.time()) > 0:
                self._ask.clear()
                try:
                    async with asyncio.timeout(left):
                        await self._ask.wait()
                except TimeoutError:
                    continue
                while self._unasked:
                    count = min(ASK_ATTEMPTS, len(self._unasked))
                    await self._ask_about([self._unasked.popitem() for _ in range(count)])
        finally:
            await self._bus.unsubscribe(subscription)
            self._seen.clear()

    async def _on_any_heartbeat(self, delivery: Delivery) -> None:
        if (heartbeat := _read(delivery)) is None:
            return
        for running in heartbeat.running:
            key = (running.task_id, running.attempt)
            if running.root_task_id is not None and key not in self._seen and key not in self._cancels:
                self._seen.add(key)
                self._unasked[key] = (running.root_task_id, heartbeat.agent)
                self._ask.set()

    async def _ask_about(self, attempts: Collection[tuple[_Key, tuple[UUID, str]]]) -> None:
        agents = {key: agent for key, (_, agent) in attempts}
        stale = await retry_until_available(self._stale, [(root, *key) for key, (root, _) in attempts])
        for key, reason in stale.items():
            log.info("attempt.stale", agent=agents[key], task_id=str(key[0]), attempt=key[1])
            reason = (reason or "it is not wanted any more")[:REASON_CHARS]
            self._note(key, _Cancel(agents[key], reason, 0.0))
            await self._publish(key, agents[key], reason)
            await self._follow(agents[key])


def _read(delivery: Delivery) -> Heartbeat | None:
    try:
        return Heartbeat.model_validate_json(delivery.data)
    except ValidationError as error:
        log.debug("heartbeat.invalid", subject=delivery.subject, error=str(error))
        return None
