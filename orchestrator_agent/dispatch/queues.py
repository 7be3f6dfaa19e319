"""Queue: rows that may go to the same agents, by name; and whose share of a queue a row takes."""

import hashlib
from dataclasses import dataclass

from orchestrator_agent.engine.decisions import RouteRequest
from protocol.messages import json_bytes


@dataclass(frozen=True, slots=True)
class Queue:
    """What a queue's rows have in common. `limited` is the requester, where a rate limit holds for it: rows of others
    must not wait behind it."""

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


def queue_of(request: RouteRequest, limited: str = "") -> Queue:
    requires = ""
    if request.requires is not None:
        text = request.requires.model_dump_json(exclude_defaults=True)
        requires = hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
    return Queue(request.task_type, request.pinned_agent, requires, limited)


def requester_text(tenant: str, requester: str | None) -> str:
    """What identifies a requester, for limits and queues: names repeat between tenants."""
    return json_bytes([tenant, requester or ""]).decode()


def fairness_key(tenant: str, requester: str | None) -> int:
    """A requester as the column `flow` of the ready queue holds it: a hash."""
    text = requester_text(tenant, requester)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), signed=True)
