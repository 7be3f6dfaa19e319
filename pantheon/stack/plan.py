"""StackPlan: what a stack is to run, as values; nothing here starts anything."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pantheon.stack.agents import AgentSpec, built_in_agents

# Longer than an agent's own drain, so that the agent decides; shorter than what an init system waits.
_DRAIN_SECONDS = 25.0
_MESH_VARIABLES = ("NATS_URL", "DATABASE_URL", "REDIS_URL", "CONSUL_HTTP_ADDR")


@dataclass(frozen=True, slots=True)
class StackPlan:
    """The processes of a stack beside its NATS, Postgres and Valkey, and how they are started."""

    orchestrators: int = 1
    agents: Sequence[AgentSpec] = field(default_factory=built_in_agents)
    agent_targets: Sequence[str] = ()
    """Modules or files of further agents, which are named by themselves."""
    consul: Path | None = None
    """The program to run, from `find_consul`; without one the mesh does without Consul."""
    ports: Mapping[str, int] = field(default_factory=dict)
    """Fixed ports by server name; a server that is not here gets a free one."""
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    """For all processes of the mesh; addresses of another mesh in it are replaced by this one's."""
    drain_seconds: float = _DRAIN_SECONDS
    """What a process gets between SIGTERM and SIGKILL."""

    def own_environment(self) -> dict[str, str]:
        """Return the environment without the addresses of another mesh."""
        return {name: value for name, value in self.environment.items() if name not in _MESH_VARIABLES}
