"""MessageLoops: the two loops of the orchestrator, and the messages that they hold.

New tasks become runs (`intake.request_loop`); what happens to runs becomes decisions (`runtime.response_loop`). Each
loop takes what has arrived, writes it in one statement, publishes, acknowledges.
"""

import asyncio
from dataclasses import dataclass

import structlog

from orchestrator_agent.intake.fair_intake import FairIntake
from orchestrator_agent.intake.request_loop import RequestLoop
from orchestrator_agent.runtime.held_deliveries import HeldDeliveries
from orchestrator_agent.runtime.large_messages import LargeMessages
from orchestrator_agent.runtime.peer_exchange import PeerExchange
from orchestrator_agent.runtime.response_loop import ResponseLoop
from pantheon.bus import Puller, hold, nak
from pantheon.runtime.background import end
from pantheon.runtime.periodic import PeriodicTask

log = structlog.get_logger()

# A drain may have longer for an agent's work; a batch is written within milliseconds, if it is written at all.
DRAIN_SECONDS = 10.0


@dataclass(frozen=True)
class HoldTimes:
    """How often the broker gets an in-progress ack for what is held, and when that ends: what is not written after
    `stuck_seconds` is left to the broker, because another orchestrator may reach the database that this one does not.
    Reading a large value may take ten seconds and more."""

    hold_seconds: float = 3.0
    stuck_seconds: float = 20.0


class MessageLoops:
    """Started, paused and stopped together, so that nothing is taken that would not be worked on."""

    def __init__(
        self,
        request_loop: RequestLoop,
        response_loop: ResponseLoop,
        *,
        fair_intake: FairIntake,
        responses: Puller,
        peers: PeerExchange,
        held: HeldDeliveries,
        large: LargeMessages,
        times: HoldTimes,
    ) -> None:
        self._request_loop = request_loop
        self._response_loop = response_loop
        self._fair_intake = fair_intake
        self._responses = responses
        self._peers = peers
        self._held = held
        self._large = large
        self._times = times
        self._grace_seconds = DRAIN_SECONDS
        self._paused = False
        self._stuck = False
        # Delivered, not taken, and here already at the check before.
        self._untaken: set[int] = set()
        self._holding = PeriodicTask("hold", self._hold, seconds=times.hold_seconds, jitter=0, at_start=False)

    async def start(self) -> None:
        await self._response_loop.start()
        await self._request_loop.start()
        self._holding.start()

    async def wait_ready(self) -> None:
        """Until both consumers exist."""
        await self._fair_intake.wait_ready()
        await self._responses.wait_ready()

    def begin_drain(self, grace_seconds: float) -> None:
        """Accept nothing more from other orchestrators; `stop` then waits at most so long for what was taken."""
        self._peers.leave()
        self._grace_seconds = max(0.1, min(grace_seconds, DRAIN_SECONDS))

    async def stop(self) -> None:
        """Take no more, write what was taken; what was not is nacked."""
        left = [*await self._request_loop.stop_taking(), *await self._response_loop.stop_taking()]
        if running := [*self._request_loop.tasks, *self._response_loop.tasks, *self._large.tasks]:
            await asyncio.wait(running, timeout=self._grace_seconds)
        for delivery in left:
            await nak(delivery)
        await self._holding.stop()
        await self._request_loop.stop()
        await self._response_loop.stop()
        await end(self._large.tasks)

    # -- pauses --------------------------------------------------------------------------------------------------------

    def pause(self) -> None:
        """Take no new tasks; what happens to those that are accepted goes on."""
        self._paused = True
        self._peers.stop_accepting()
        self._fair_intake.pause()

    def resume(self) -> None:
        self._paused = False
        if not self._stuck:
            self._fair_intake.resume()
            self._peers.resume_accepting()

    # -- what is held --------------------------------------------------------------------------------------------------

    async def _hold(self) -> None:
        """In-progress acks for what waits for Postgres, so that the broker does not deliver it again, and in the end
        takes it for poison; for a while."""
        if self._held.longest_seconds(asyncio.get_running_loop().time()) > self._times.stuck_seconds:
            await self._leave_to_others()
        untaken = [*self._fair_intake.untaken, *self._responses.buffered]
        # Under load there is always something that has just arrived.
        still = [delivery for delivery in untaken if id(delivery) in self._untaken]
        self._untaken = {id(delivery) for delivery in untaken}
        for delivery in [*self._held, *still]:
            await hold(delivery)

    async def _leave_to_others(self) -> None:
        """Nak everything and take nothing, until what is at work here is written after all: then it changes nothing
        that another process has written meanwhile."""
        log.warning("message_loops.stuck", held=len(self._held))
        self._stuck = True
        self._peers.stop_accepting()
        self._fair_intake.pause()
        self._responses.pause()
        for delivery in self._held:
            await nak(delivery)
        await self._held.until_empty()
        self._stuck = False
        self._responses.resume()
        if not self._paused:
            self.resume()
