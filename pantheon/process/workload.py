"""Workload: what an AgentProcess does with tasks: a Worker's, or the orchestrator's message loops instead."""

from typing import Protocol
from uuid import UUID

from protocol.messages import RunningTask


class Workload(Protocol):
    """Started once, and drained once; in between it takes orders. Every method may be called from `start` on."""

    @property
    def max_concurrency(self) -> int: ...
    @property
    def active(self) -> int:
        """Attempts at work, for heartbeats."""

    @property
    def running(self) -> tuple[RunningTask, ...]:
        """Which attempts, for heartbeats: the orchestrator sends a cancel again until they no longer list it."""

    async def start(self) -> None: ...
    async def wait_ready(self) -> None:
        """Until no task can be missed."""

    async def missing(self) -> list[str]:
        """What it lacks to take tasks, for a probe."""

    async def drain(self, grace_seconds: float) -> None:
        """Take no more; finish within the grace, return the rest to the queue."""

    def cancel(self, task_id: UUID, attempt: int | None, reason: str) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def resize(self, max_concurrency: int) -> None: ...
