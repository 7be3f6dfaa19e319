"""Routing: which agent gets a task, from the live registry."""

import random
from collections.abc import Sequence
from typing import Protocol

from orchestrator_agent.workflows.library import Library
from orchestrator_agent.workflows.plan import Plan
from protocol.discovery import InstanceRecord
from protocol.names import ORCHESTRATOR


class LiveInstances(Protocol):
    """What routing reads of discovery's registry."""

    def serving(self, task_type: str) -> Sequence[str]: ...
    def instances(self, agent: str | None = None) -> Sequence[InstanceRecord]: ...


def choose(candidates: Sequence[tuple[str, int]], draw: float) -> str | None:
    """One of the agents that serve a task type, by chance in proportion to capacity; `draw` is in 0..1."""
    total = sum(capacity for _, capacity in candidates)
    mark = draw * total
    for agent, capacity in candidates:
        mark -= capacity
        if mark < 0:
            return agent
    return candidates[-1][0] if candidates else None


class Router:
    """The engine's Directory over the registry and the library."""

    def __init__(self, registry: LiveInstances, library: Library) -> None:
        self._registry = registry
        self._library = library

    def place(self, task_type: str, pinned_agent: str | None) -> str | None:
        agents = [agent for agent in self._registry.serving(task_type) if agent != ORCHESTRATOR]
        if pinned_agent is not None:
            return pinned_agent if pinned_agent in agents else None
        if len(agents) <= 1:
            return agents[0] if agents else None
        capacities = [
            (agent, sum(one.max_concurrency for one in self._registry.instances(agent) if task_type in one.task_types))
            for agent in agents
        ]
        return choose(capacities, random.random())

    def workflow(self, name: str) -> Plan | None:
        return self._library.newest(name)
