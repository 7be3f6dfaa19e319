"""Circuits: what one orchestrator found out about a broken agent, the others know at their next sweep.

In Redis an open circuit lives as long as it is open; one that closed again is told of for as long. Nothing there means
nothing known: what a process has seen itself then holds.
"""

import asyncio
from collections.abc import Callable, Iterable

from orchestrator_agent.flow.background import end
from orchestrator_agent.flow.shared import Shared
from orchestrator_agent.standing import CircuitState, Standings

OPEN, CLOSED = "open", "closed"


class Circuits:
    """`agents` names those that live."""

    def __init__(self, shared: Shared, standings: Standings, agents: Callable[[], Iterable[str]]) -> None:
        self._shared = shared
        self._standings = standings
        self._agents = agents
        self._news: dict[str, CircuitState] = {}
        self._telling: asyncio.Task[None] | None = None
        standings.on_circuit = self._changed

    def _changed(self, agent: str, state: CircuitState) -> None:
        self._news[agent] = state
        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._tell(), name="tell-circuits")

    async def _tell(self) -> None:
        while self._news:
            news, self._news = self._news, {}
            notes = {_name(agent): (state, self._standings.open_for(agent)) for agent, state in news.items()}
            if not await self._shared.note(notes):
                # The next sweep tells it, unless it has become old.
                self._news = {**news, **self._news}
                return

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
                self._standings.learn_open(agent, seconds)
            elif state == CLOSED:
                closed = self._standings.learn_closed(agent) or closed
        return closed

    async def close(self) -> None:
        if self._telling is not None:
            await end([self._telling])


def _name(agent: str) -> str:
    return f"circuit:{agent}"
