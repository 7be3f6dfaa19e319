"""Concurrency: which roots of one concurrency key may run, and which are ended for them. A pure decision."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID


@dataclass(frozen=True, slots=True)
class OpenRoot:
    """A root of the key that has not ended. `waiting`: not admitted yet; any other is at work, also while it
    compensates."""

    task_id: UUID
    waiting: bool
    priority: int


def decide_concurrency(roots: Sequence[OpenRoot], *, bound: int, cancel_older: bool) -> tuple[list[UUID], list[UUID]]:
    """Of a key's open roots, the oldest first: those to admit, and those to cancel. Never more than `bound` run.

    With `cancel_older` the newest stay. What is cancelled for them is at work until it has ended, which may be after it
    has compensated what it did: the root that replaces it waits for that, and is admitted by the decision after that.
    """
    waiting = [root for root in roots if root.waiting]
    room = max(0, bound - (len(roots) - len(waiting)))
    older: list[UUID] = []
    if cancel_older:
        older = [root.task_id for root in roots[:-bound]]
        gone = set(older)
        waiting = [root for root in waiting if root.task_id not in gone]
    else:
        waiting.sort(key=lambda root: -root.priority)
    return [root.task_id for root in waiting[:room]], older
