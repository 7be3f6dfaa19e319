"""Pantheon's kit: what a process of the mesh is built with. Write an agent, or call the mesh."""

from typing import TYPE_CHECKING, Any

from pantheon.agent import Agent
from pantheon.context import TaskContext
from protocol.errors import PantheonError, TaskCancelled, TaskFailed, TaskFailure

if TYPE_CHECKING:
    from pantheon.client import Mesh

__version__ = "0.1.0"

__all__ = ["Agent", "Mesh", "PantheonError", "TaskCancelled", "TaskContext", "TaskFailed", "TaskFailure", "__version__"]


def __getattr__(name: str) -> Any:
    # The client brings the NATS library along; an agent's declaration alone should not.
    if name == "Mesh":
        from pantheon.client import Mesh

        return Mesh
    raise AttributeError(f"module 'pantheon' has no attribute '{name}'")
