"""SharedCircuits: what one orchestrator found out about a broken agent, the others know at their next sweep.

In Redis an open circuit is kept as long as it is open, and that it has closed again for as long. Nothing there means
nothing known: what a process has seen itself then holds. The process that has the claim of a half-open circuit lets one
task through, for all; without Redis each process does so for itself.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import uuid4

import structlog

from orchestrator_agent.dispatch.agent_health import OPEN_SECONDS, AgentHealth
from orchestrator_agent.dispatch.redis_state import RedisState
from orchestrator_agent.dispatch.signal import DispatchSignal
from pantheon.runtime.background import end
from protocol.discovery import InstanceRecord

log = structlog.get_logger()

OPEN, CLOSED = "open", "closed"


@dataclass(frozen=True, slots=True)
class ProbeTimes:
    """How long the claim to probe an agent is kept. Routing cannot wait for Redis in the middle of a transition: the
    claim is asked for when a circuit is found half open, and is in hand when it is asked about again."""

    # So long it stays in hand, then it goes back.
    in_hand_seconds: float = 2.0
    # Once it is used, others wait as long as this process does if no response to the probe comes.
    used_seconds: float = OPEN_SECONDS
    # How long a claim that another process has is not asked for again.
    again_seconds: float = 1.0


class Instances(Protocol):
    def instances(self, agent: str | None = None) -> Sequence[InstanceRecord]: ...


class ProbeClaims:
    """The Probes of AgentHealth. `signal` is set when a task may be let through to an agent that was asked about."""

    def __init__(
        self, shared: RedisState, signal: DispatchSignal | None = None, times: ProbeTimes | None = None
    ) -> None:
        self._shared = shared
        self._signal = signal or DispatchSignal()
        self._times = times or ProbeTimes()
        self._owner = uuid4().hex
        self._claiming: dict[str, asyncio.Task[None]] = {}
        # Claims by agent, and whether they have been used.
        self._in_hand: dict[str, asyncio.Event] = {}

    def may_probe(self, agent: str) -> bool:
        if not self._shared.there:
            return True
        if agent not in self._claiming:
            task = asyncio.create_task(self._claim(agent), name="claim-probe")
            self._claiming[agent] = task
            task.add_done_callback(lambda _: self._claiming.pop(agent, None))
        return agent in self._in_hand and not self._in_hand[agent].is_set()

    def probed(self, agent: str) -> None:
        if agent in self._in_hand:
            self._in_hand[agent].set()

    async def _claim(self, agent: str) -> None:
        name = f"probe:{agent}"
        claimed = await self._shared.claim(name, self._owner, self._times.in_hand_seconds + self._times.used_seconds)
        if claimed is None:
            return
        log.debug("circuit.probe", agent=agent, claimed=claimed)
        if not claimed:
            await asyncio.sleep(self._times.again_seconds)
            return
        used = self._in_hand[agent] = asyncio.Event()
        self._signal.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._times.in_hand_seconds):
                await used.wait()
        del self._in_hand[agent]
        await self._shared.keep(name, self._owner, self._times.used_seconds if used.is_set() else 0)

    async def start(self) -> None:
        """Nothing to start: a claim is asked for when a circuit is found half open."""

    async def stop(self) -> None:
        await end(self._claiming.values())


class SharedCircuits:
    """Publishes the news of this process's circuits, and learns, at each `sync`, those of the live agents."""

    def __init__(self, shared: RedisState, agent_health: AgentHealth, live: Instances) -> None:
        self._shared = shared
        self._agent_health = agent_health
        self._live = live
        self._sharing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._sharing = asyncio.create_task(self._share_for_ever(), name="share-circuits")

    async def stop(self) -> None:
        if self._sharing is not None:
            await end([self._sharing])

    async def _share_for_ever(self) -> None:
        changed = self._agent_health.news.changed
        while True:
            await changed.wait()
            changed.clear()
            await self._share()

    async def _share(self) -> None:
        news = self._agent_health.news
        while news.states:
            states, news.states = news.states, {}
            notes = {_name(agent): (state, self._agent_health.open_for(agent)) for agent, state in states.items()}
            if not await self._shared.note(notes):
                # The next sweep shares it, unless it has become old.
                news.states = {**states, **news.states}
                return

    async def sync(self) -> bool:
        """Share what could not be shared yet, and learn what others found out; whether an agent can be used again."""
        await self._share()
        agents = sorted({record.name for record in self._live.instances()})
        noted = await self._shared.noted([_name(agent) for agent in agents]) if agents else None
        closed = False
        for agent in agents:
            state, seconds = (noted or {}).get(_name(agent), ("", 0.0))
            if agent in self._agent_health.news.states:
                continue
            if state == OPEN:
                self._agent_health.learn_open(agent, seconds)
            elif state == CLOSED:
                closed = self._agent_health.learn_closed(agent) or closed
        return closed


def _name(agent: str) -> str:
    return f"circuit:{agent}"
