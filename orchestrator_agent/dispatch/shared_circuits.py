"""Circuits: what one orchestrator found out about a broken agent, the others know at their next sweep.

In Redis an open circuit lives as long as it is open; one that closed again is told of for as long. Nothing there means
nothing known: what a process has seen itself then holds. Of a half-open one, whoever has the claim lets one task
through, for all; without Redis each process does so for itself.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from uuid import uuid4

import structlog

from orchestrator_agent.dispatch.agent_health import OPEN_SECONDS, AgentHealth, CircuitState
from orchestrator_agent.dispatch.redis_state import RedisState
from pantheon.runtime.background import end

log = structlog.get_logger()

OPEN, CLOSED = "open", "closed"
# Routing cannot wait for Redis in the middle of a transition: the claim is asked for when it finds a circuit half open,
# and is in hand when it looks again; for so long, then it goes back. Once it is used, others wait as long as this
# process does if nothing is heard of the probe.
IN_HAND_SECONDS = 2.0
USED_SECONDS = OPEN_SECONDS
# So long one that another has is not asked for again.
AGAIN_SECONDS = 1.0


class SharedCircuits:
    """`agents` names those that live."""

    def __init__(self, shared: RedisState, agent_health: AgentHealth, agents: Callable[[], Iterable[str]]) -> None:
        self._shared = shared
        self._agent_health = agent_health
        self._agents = agents
        self._news: dict[str, CircuitState] = {}
        self._telling: asyncio.Task[None] | None = None
        self._owner = uuid4().hex
        self._claiming: dict[str, asyncio.Task[None]] = {}
        # Claims by agent, and whether they have been used.
        self._in_hand: dict[str, asyncio.Event] = {}
        # Told when a task may be let through to an agent that somebody wanted.
        self.on_claim: Callable[[], None] = lambda: None
        agent_health.on_circuit = self._changed
        agent_health.may_probe = self._may_probe
        agent_health.on_probe = self._probed

    def _changed(self, agent: str, state: CircuitState) -> None:
        self._news[agent] = state
        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._tell(), name="tell-circuits")

    async def _tell(self) -> None:
        while self._news:
            news, self._news = self._news, {}
            notes = {_name(agent): (state, self._agent_health.open_for(agent)) for agent, state in news.items()}
            if not await self._shared.note(notes):
                # The next sweep tells it, unless it has become old.
                self._news = {**news, **self._news}
                return

    def _may_probe(self, agent: str) -> bool:
        if not self._shared.there:
            return True
        if agent not in self._claiming:
            task = asyncio.create_task(self._claim(agent), name="claim-probe")
            self._claiming[agent] = task
            task.add_done_callback(lambda _: self._claiming.pop(agent, None))
        return agent in self._in_hand and not self._in_hand[agent].is_set()

    def _probed(self, agent: str) -> None:
        if agent in self._in_hand:
            self._in_hand[agent].set()

    async def _claim(self, agent: str) -> None:
        name = f"probe:{agent}"
        claimed = await self._shared.claim(name, self._owner, IN_HAND_SECONDS + USED_SECONDS)
        if claimed is None:
            return
        log.debug("circuit.probe", agent=agent, claimed=claimed)
        if not claimed:
            await asyncio.sleep(AGAIN_SECONDS)
            return
        used = self._in_hand[agent] = asyncio.Event()
        self.on_claim()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(IN_HAND_SECONDS):
                await used.wait()
        del self._in_hand[agent]
        await self._shared.keep(name, self._owner, USED_SECONDS if used.is_set() else 0)

    async def look(self) -> bool:
        """Tell what could not be told yet, and learn what others found out; whether an agent can be used again."""
        await self._tell()
        agents = sorted(self._agents())
        noted = await self._shared.noted([_name(agent) for agent in agents]) if agents else None
        closed = False
        for agent in agents:
            state, seconds = (noted or {}).get(_name(agent), ("", 0.0))
            if agent in self._news:
                continue
            if state == OPEN:
                self._agent_health.learn_open(agent, seconds)
            elif state == CLOSED:
                closed = self._agent_health.learn_closed(agent) or closed
        return closed

    async def close(self) -> None:
        await end([*([self._telling] if self._telling is not None else []), *self._claiming.values()])


def _name(agent: str) -> str:
    return f"circuit:{agent}"
