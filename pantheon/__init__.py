"""Pantheon's kit: what a process of the mesh is built with. Write an agent, or call the mesh.

Its packages, each importing only those before it, and `protocol`:

    runtime      settings, logs, tasks: what every process stands on
    bus          NATS: connection, pulling, publishing, streams, objects
    discovery    instances made known and found: Consul, or a NATS KV bucket
    config       an agent's configuration, in layers that are followed live
    client       Mesh: send tasks, wait, watch, operate
    worker       declarations, handlers, and the loop that runs them
    process      one running instance: its parts made, started and stopped
    cli, stack   the command line, and the servers that `pantheon up` starts

Beside them: `agent` (Agent, what an author declares; its `run` imports `process` when it is called), `language_model`
(the seam to models, for agents that ask one) and `testing` (the face of the test kit, `testkit`, which imports the
orchestrator and is imported when its names are used).

Invariants:

- The kit never imports the orchestrator or an agent; `protocol` never imports the kit.
- A client library is used in its seam and its errors are mapped there once: nats-py in `bus` and `discovery`, Consul's
  in `discovery.consul_api`, models' in `language_model`.
- What is exported here is the public API, and a test pins it. A name is imported when it is first used: declaring an
  agent imports no NATS.

Who may call it: authors of agents and callers of the mesh by the names below; the orchestrator and the agents that come
with it by its packages too.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pantheon.agent import Agent
    from pantheon.client.mesh import Mesh
    from pantheon.worker.context import TaskContext
    from protocol.errors import PantheonError, TaskCancelled, TaskFailed, TaskFailure

__version__ = "0.1.0"

__all__ = ["Agent", "Mesh", "PantheonError", "TaskCancelled", "TaskContext", "TaskFailed", "TaskFailure", "__version__"]

_MODULES = {
    "Agent": "pantheon.agent",
    "Mesh": "pantheon.client.mesh",
    "TaskContext": "pantheon.worker.context",
    "PantheonError": "protocol.errors",
    "TaskCancelled": "protocol.errors",
    "TaskFailed": "protocol.errors",
    "TaskFailure": "protocol.errors",
}


def __getattr__(name: str) -> Any:
    # At the first use: a declaration of an agent does not import the NATS library, and the command line handles Ctrl-C
    # before the half second of imports begins.
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'pantheon' has no attribute '{name}'")
