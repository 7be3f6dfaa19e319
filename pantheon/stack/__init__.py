"""The embedded stack: NATS, Postgres, Valkey and Consul without set-up, the mesh's processes, and their supervisor."""

from pantheon.stack.agents import AgentSpec, built_in_agents, find_agent, orchestrator
from pantheon.stack.endpoints import DEFAULT_DATA_FOLDER, Endpoints, find_newest, read_endpoints
from pantheon.stack.errors import (
    AgentLoadError,
    DataFolderBusyError,
    DataFolderError,
    NoMeshError,
    PortTakenError,
    ProgramMissingError,
    ServerStartError,
    StackError,
)
from pantheon.stack.processes.supervisor import EventKind, StackEvent
from pantheon.stack.servers.programs import find_consul
from pantheon.stack.up import Stack, serve

__all__ = [
    "DEFAULT_DATA_FOLDER",
    "AgentLoadError",
    "AgentSpec",
    "DataFolderBusyError",
    "DataFolderError",
    "Endpoints",
    "EventKind",
    "NoMeshError",
    "PortTakenError",
    "ProgramMissingError",
    "ServerStartError",
    "Stack",
    "StackError",
    "StackEvent",
    "built_in_agents",
    "find_agent",
    "find_consul",
    "find_newest",
    "orchestrator",
    "read_endpoints",
    "serve",
]
