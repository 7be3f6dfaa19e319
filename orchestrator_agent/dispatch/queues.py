"""Queue: rows that may go to the same agents, by name; and whose share of a queue a row takes."""

import hashlib
from dataclasses import dataclass

from orchestrator_agent.engine.decisions import RouteRequest
from protocol.messages import json_bytes


@dataclass(frozen=True, slots=True)
class Queue:
    """What a queue's rows have in common. `limited` is the requester, where a rate limit holds it back: others must
    not wait behind it."""

    task_type: str
    agent: str | None = None
    requires: str = ""
    limited: str = ""

    @property
    def name(self) -> str:
        pinned = f"@{self.agent}" if self.agent is not None else ""
        requires = f"#{self.requires}" if self.requires else ""
        limited = f"!{self.limited}" if self.limited else ""
        return f"{self.task_type}{pinned}{requires}{limited}"

    @classmethod
    def of(cls, name: str) -> "Queue":
        """The queue of that name: names of agents and task types hold none of the marks."""
        rest, _, limited = name.partition("!")
        rest, _, requires = rest.partition("#")
        task_type, _, agent = rest.partition("@")
        return cls(task_type, agent or None, requires, limited)


def queue_of(wanted: RouteRequest, limited: str = "") -> Queue:
    requires = ""
    if wanted.requires is not None:
        text = wanted.requires.model_dump_json(exclude_defaults=True)
        requires = hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
    return Queue(wanted.task_type, wanted.pinned_agent, requires, limited)


def requester_text(tenant: str, requester: str | None) -> str:
    """Who a requester is, for limits and lines: names repeat between tenants."""
    return json_bytes([tenant, requester or ""]).decode()


def flow_of(tenant: str, requester: str | None) -> int:
    text = requester_text(tenant, requester)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), signed=True)
