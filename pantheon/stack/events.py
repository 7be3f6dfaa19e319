"""StackEvent: what happened to a part of the stack, printed by the command that runs it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class EventKind(StrEnum):
    """The kinds of events. NOTE is about the stack itself, all others about the part that they name."""

    STARTED = "started"
    DIED = "died"
    RESTARTED = "restarted"
    RESTART_FAILED = "restart_failed"
    STOPPING = "stopping"
    STOPPED = "stopped"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class StackEvent:
    """Something that happened to a part, `str()` of it a line for a person."""

    kind: EventKind
    name: str
    message: str
    pid: int | None = None

    def __str__(self) -> str:
        return f"{self.name}: {self.message}"
