"""FailingInstance: an instance whose attempts all fail takes few, so that the others of its agent get them.

All instances of an agent share its queue, and the one that asks gets the next task: one that fails at once (a full
disk, an expired key) asks more often than those that work, and would drain the queue. Which instance is sick no other
can know in time; it knows itself. An instance that is alone goes on as fast as before: the orchestrator's circuit is
for that.
"""

import asyncio
import json
from collections.abc import Callable

import structlog

from pantheon.bus import Bus, Delivery
from protocol.errors import BusError

log = structlog.get_logger()

# So many failures in a row make an instance suspect itself, as many as open a circuit.
FAILURES = 5
FIRST_SECONDS = 0.1
MAX_SECONDS = 2.0
# How long others have to respond to a ping (the micro-service protocol of NATS), and for how long that is known.
PING_SECONDS = 0.3
PEERS_KNOWN_SECONDS = 30.0


class FailingInstance:
    """`on_change` is called when it begins to take few, and when it takes as many as before."""

    def __init__(self, bus: Bus, agent: str, instance_id: str, on_change: Callable[[], None]) -> None:
        self._bus = bus
        self._agent = agent
        self._instance_id = instance_id
        self._on_change = on_change
        self._in_a_row = 0
        self._has_peers = False
        self._known_until = 0.0
        self._asking: asyncio.Task[None] | None = None

    @property
    def slow(self) -> bool:
        """Whether it takes one task at a time."""
        return self._has_peers and self._in_a_row >= FAILURES

    @property
    def wait_seconds(self) -> float:
        """How long it waits before it takes the next one."""
        if not self.slow:
            return 0.0
        return min(MAX_SECONDS, float(FIRST_SECONDS * 2 ** min(self._in_a_row - FAILURES, 10)))

    def succeeded(self) -> None:
        if not self._in_a_row:
            return
        was_slow, self._in_a_row = self.slow, 0
        if was_slow:
            log.info("instance.works_again", agent=self._agent, instance_id=self._instance_id)
            self._on_change()

    def failed(self) -> None:
        """An attempt failed in a way that speaks against the instance: another one may do better."""
        self._in_a_row += 1
        if self._in_a_row < FAILURES or self._asking is not None:
            return
        if asyncio.get_running_loop().time() >= self._known_until:
            self._asking = asyncio.create_task(self._ask(), name="ask-for-peers")

    async def _ask(self) -> None:
        try:
            has_peers = await self._others_respond()
        except BusError as error:
            log.debug("peers.not_asked", agent=self._agent, error=str(error))
            return
        finally:
            self._asking = None
        self._known_until = asyncio.get_running_loop().time() + PEERS_KNOWN_SECONDS
        was_slow, self._has_peers = self.slow, has_peers
        if self.slow != was_slow:
            if self.slow:
                log.warning(
                    "instance.failing", agent=self._agent, instance_id=self._instance_id, in_a_row=self._in_a_row
                )
            self._on_change()

    async def _others_respond(self) -> bool:
        """Whether the agent has other instances. Raises BusError."""
        found = asyncio.Event()

        def on_pong(delivery: Delivery) -> None:
            try:
                if json.loads(delivery.data).get("id") != self._instance_id:
                    found.set()
            except (ValueError, AttributeError) as error:
                log.debug("pong.unread", error=str(error))

        inbox = self._bus.new_inbox()
        subscription = await self._bus.subscribe_direct(inbox, on_pong)
        try:
            await self._bus.publish(f"$SRV.PING.{self._agent}", b"", reply=inbox)
            async with asyncio.timeout(PING_SECONDS):
                await found.wait()
        except TimeoutError:
            return False
        finally:
            await self._bus.unsubscribe(subscription)
        return True

    async def stop(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
