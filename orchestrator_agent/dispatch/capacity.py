"""Capacity: how many tasks an agent's live instances work on at once, and how many wait there for tasks that they
delegated, summed up at each change of the registry."""

from collections.abc import Sequence
from typing import Protocol

from protocol.discovery import InstanceRecord


class Instances(Protocol):
    @property
    def version(self) -> int: ...

    def instances(self, agent: str | None = None) -> Sequence[InstanceRecord]: ...


class Capacity:
    def __init__(self, registry: Instances) -> None:
        self._registry = registry
        self._version = -1
        self._known: dict[str, tuple[int, int]] = {}

    def __call__(self, agent: str) -> int:
        return self._of(agent)[0]

    def waiting(self, agent: str) -> int:
        return self._of(agent)[1]

    def _of(self, agent: str) -> tuple[int, int]:
        if self._version != self._registry.version:
            self._version = self._registry.version
            self._known.clear()
        capacity = self._known.get(agent)
        if capacity is None:
            records = self._registry.instances(agent)
            ready = [record for record in records if record.status == "ready"] or records
            # A draining instance takes nothing new, but tasks that wait there are in the broker all the same.
            capacity = sum(record.max_concurrency for record in ready), sum(record.waiting for record in records)
            self._known[agent] = capacity
        return capacity
