"""SharedCircuits: what one orchestrator found out about an agent that fails, the others know at their next sweep.

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

from orchestrator_agent.dispatch.agent_health import OPEN_SECONDS, AgentHealth, HealthKey
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
        self._claiming: dict[HealthKey, asyncio.Task[None]] = {}
        # Claims, and whether they have been used.
        self._in_hand: dict[HealthKey, asyncio.Event] = {}

    def may_probe(self, key: HealthKey) -> bool:
        if not self._shared.there:
            return True
        if key not in self._claiming:
            task = asyncio.create_task(self._claim(key), name="claim-probe")
            self._claiming[key] = task
            task.add_done_callback(lambda _: self._claiming.pop(key, None))
        return key in self._in_hand and not self._in_hand[key].is_set()

    def probed(self, key: HealthKey) -> None:
        if key in self._in_hand:
            self._in_hand[key].set()

    async def _claim(self, key: HealthKey) -> None:
        name = f"probe:{_name(key)}"
        claimed = await self._shared.claim(name, self._owner, self._times.in_hand_seconds + self._times.used_seconds)
        if claimed is None:
            return
        log.debug("circuit.probe", agent=key[0], task_type=key[1], claimed=claimed)
        if not claimed:
            await asyncio.sleep(self._times.again_seconds)
            return
        used = self._in_hand[key] = asyncio.Event()
        self._signal.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._times.in_hand_seconds):
                await used.wait()
        del self._in_hand[key]
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
            notes = {
                f"circuit:{_name(key)}": (state, self._agent_health.open_for(*key)) for key, state in states.items()
            }
            if not await self._shared.note(notes):
                # The next sweep shares it, unless it has become old.
                news.states = {**states, **news.states}
                return

    async def sync(self) -> bool:
        """Share what could not be shared yet, and learn what others found out; whether an agent can be used again."""
        await self._share()
        keys = sorted({(record.name, each) for record in self._live.instances() for each in record.task_types})
        noted = await self._shared.noted([f"circuit:{_name(key)}" for key in keys]) if keys else None
        closed = False
        for key in keys:
            state, seconds = (noted or {}).get(f"circuit:{_name(key)}", ("", 0.0))
            if key in self._agent_health.news.states:
                continue
            if state == OPEN:
                self._agent_health.learn_open(*key, seconds)
            elif state == CLOSED:
                closed = self._agent_health.learn_closed(*key) or closed
        return closed


def _name(key: HealthKey) -> str:
    return f"{key[0]}:{key[1]}"
