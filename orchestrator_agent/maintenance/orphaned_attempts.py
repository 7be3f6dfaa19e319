"""OrphanedAttempts: attempts that will get no response become new ones, and their messages leave the queue."""

import asyncio
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from uuid import UUID

import structlog

from orchestrator_agent.engine.events import AttemptAbandoned
from orchestrator_agent.inbox import Inbox
from orchestrator_agent.store.sweeps import TaskSweeps
from pantheon.bus import Bus, Stored, queued_messages, remove_messages
from protocol.messages import salvage_ids

log = structlog.get_logger()

# Of one agent's queue so many messages are read at a time, the oldest ones.
READ_LIMIT = 2000
# So many attempts are abandoned in one batch of run events.
AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Outstanding:
    """A message in an agent's queue, delivered or not, and the attempt that it is of."""

    sequence: int
    root_task_id: UUID
    task_id: UUID
    attempt: int
    task_type: str

    @property
    def key(self) -> tuple[UUID, int]:
        return self.task_id, self.attempt


def _outstanding(message: Stored) -> Outstanding | None:
    known = salvage_ids(message.data)
    task_id = known.get("task_id")
    if task_id is None:
        return None
    task_type = known.get("task_type")
    return Outstanding(
        message.sequence,
        known.get("root_task_id", task_id),
        task_id,
        known.get("attempt", 1),
        task_type if isinstance(task_type, str) else "",
    )


class OrphanedAttempts:
    def __init__(self, bus: Bus, inbox: Inbox, sweeps: TaskSweeps) -> None:
        self._bus = bus
        self._inbox = inbox
        self._sweeps = sweeps

    async def outstanding(self, agent: str, *, up_to: int | None = None) -> list[Outstanding]:
        """What an agent has not responded to, oldest first; `up_to`: no newer sequence. Raises BusError."""
        messages = await queued_messages(self._bus, agent, up_to=up_to, limit=READ_LIMIT)
        return [found for message in messages if (found := _outstanding(message)) is not None]

    async def ended(self, attempts: Mapping[str, tuple[UUID | None, UUID | None, int]]) -> list[str]:
        """Of attempts at work at agents (root, task, number; None where it is not written yet): agents whose attempt is
        not the current one any more. Raises StoreError."""
        asked = {agent: (root, task, number) for agent, (root, task, number) in attempts.items() if root and task}
        stale = await self._sweeps.stale(list(asked.values()))
        return [agent for agent, (_, task_id, number) in asked.items() if (task_id, number) in stale]

    async def abandon(
        self, agent: str, attempts: Collection[Outstanding], reason: str, *, died: Iterable[Outstanding] = ()
    ) -> set[tuple[UUID, int]]:
        """Have other attempts made of these, where other agents are there for them. Of those that are not current any
        more the messages are removed; returns the others, which stay. `died`: those that a process died with.

        Of several that a process died with, those are held to be the cause that processes died with before: one that
        kills must not take down with it what happens to lie beside it. Raises BusError, StoreError.
        """
        blamed = {each.key for each in died}
        if blamed:
            deaths = await self._sweeps.deaths([(each.root_task_id, each.task_id) for each in attempts])
            suspects = {key for key in blamed if deaths.get(key[0])}
            blamed = suspects or blamed
        ordered = list(attempts)
        left: set[tuple[UUID, int]] = set()
        for first in range(0, len(ordered), AT_ONCE):
            some = ordered[first : first + AT_ONCE]
            await asyncio.gather(
                *(
                    self._inbox.perform(
                        AttemptAbandoned(
                            each.root_task_id, each.task_id, each.attempt, agent, reason, each.key in blamed
                        )
                    )
                    for each in some
                )
            )
            stale = await self._sweeps.stale([(each.root_task_id, each.task_id, each.attempt) for each in some])
            await remove_messages(self._bus, [each.sequence for each in some if each.key in stale])
            left |= {each.key for each in some if each.key not in stale}
        if gone := len(ordered) - len(left):
            log.info("attempts.abandoned", agent=agent, count=gone, reason=reason)
        return left
