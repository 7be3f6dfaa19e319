"""Capacity: how many tasks an agent's live instances work on at once, summed up at each change of the registry."""

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
        self._known: dict[str, int] = {}

    def __call__(self, agent: str) -> int:
        if self._version != self._registry.version:
            self._version = self._registry.version
            self._known.clear()
        capacity = self._known.get(agent)
        if capacity is None:
            records = self._registry.instances(agent)
            ready = [one for one in records if one.status == "ready"] or records
            capacity = self._known[agent] = sum(one.max_concurrency for one in ready)
        return capacity
