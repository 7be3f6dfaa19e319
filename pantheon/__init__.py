"""Pantheon's kit: what a process of the mesh is built with. Write an agent, or call the mesh."""

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
    # When asked for: a declaration of an agent does not bring the NATS library along, and the command line takes care
    # of Ctrl-C before the half second of imports begins.
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'pantheon' has no attribute '{name}'")
