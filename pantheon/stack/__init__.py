"""The embedded stack: a whole mesh on this machine without set-up, from its servers to its agents.

`Stack(data, plan)` is a mesh in a data folder; `serve` runs it until a signal. It stops in the opposite order of its
start, and a start that fails or is cancelled ends what it had begun:

    1. hold the folder (an flock that dies with its process), end what a killed supervisor left running
    2. start NATS, Postgres, Valkey and, where there is one, Consul, side by side, each on a port of its own
    3. bring the schema to the newest version (`migrate`, passed in: the stack does not import migrations)
    4. start the orchestrators, then the agents, with the servers' addresses in their environment
    5. wait until all have made themselves known (`settled`, passed in), then write endpoints.json

What holds at all times:

- One supervisor a folder. Its children die with it, also by SIGKILL (`processes/launch.py` ties them to it).
- A part that dies is restarted with backoff, a server on the port that every process of the mesh already has.
- endpoints.json exists exactly while the mesh is up; only its owner may read it, for it holds a password.
- Agents end before orchestrators, and these before servers, so that no response is lost at the end.
- Every error that a user can cause is a StackError of one line (`errors`).

    plan, up, serving     what is to run; the stack with start and stop; running it until a signal
    folder, record        the data folder and its lock; processes.json and endpoints.json, kept true
    endpoints             reading endpoints.json, and finding the mesh that was started from a folder
    agents                what to start for the orchestrator, the built-in agents and third parties' agents
    processes/            a child process, the parts that can be supervised, the supervisor
    servers/              one module for each server; ports, programs, and Postgres under root

The command line and the tests use it; nothing that runs in production does. It imports `protocol` and nothing else of
`pantheon`.
"""

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
from pantheon.stack.events import EventKind, StackEvent
from pantheon.stack.plan import StackPlan
from pantheon.stack.servers.programs import find_consul
from pantheon.stack.serving import serve
from pantheon.stack.up import Stack

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
    "StackPlan",
    "built_in_agents",
    "find_agent",
    "find_consul",
    "find_newest",
    "orchestrator",
    "read_endpoints",
    "serve",
]
