"""Trials: after an orchestrator died, what the others decide on is noted before they do (ADR 0027).

A root whose workflow or values end the process that decides on it would end every orchestrator, one after the other:
each adopts it, and dies of it. Nothing of a decision is known after such a death. So for a while after one, roots are
noted in Postgres before a batch of them is decided, and the note is removed after it. The next death has names. Those
are tried alone from then on, and one that a process died on again, alone, is in quarantine: it is ended without being
decided on.

While no process has died, nothing is noted.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Collection
from contextvars import ContextVar
from uuid import UUID

import structlog

from orchestrator_agent.store.availability import retry_until_available
from orchestrator_agent.store.trials import GUILTY_DEATHS, TrialStore
from protocol.errors import ErrorCode, StoreError
from protocol.messages import ErrorInfo

log = structlog.get_logger()

# Requests that a dead process had in hand are delivered again after 30 s, responses after 10.
CAREFUL_SECONDS = 90.0

_inside: ContextVar[bool] = ContextVar("inside a trial", default=False)

WHY = ErrorInfo(
    code=ErrorCode.INTERNAL_ERROR,
    message=(
        f"{GUILTY_DEATHS} orchestrator processes died while they decided on this task: it is not decided on again, and "
        "none of its steps is compensated (docs/operations.md, When a process dies)"
    ),
)


class Trials:
    """`careful_seconds` is for tests."""

    def __init__(self, store: TrialStore, *, careful_seconds: float = CAREFUL_SECONDS) -> None:
        self._store = store
        self._careful_seconds = careful_seconds
        self._careful_until = 0.0
        self._deaths: dict[UUID, int] = {}
        # Decisions on responses are made one group after the other, so that a death has few names.
        self._one_group = asyncio.Lock()

    @property
    def careful(self) -> bool:
        """Whether a process died not long ago."""
        return self._careful_until > 0.0 and time.monotonic() < self._careful_until

    @property
    def has_suspects(self) -> bool:
        """Whether a process died not long ago, or on a root that is known."""
        return bool(self._deaths) or self.careful

    def is_suspect(self, root_task_id: UUID) -> bool:
        """Whether a process died while it decided on this root: it is tried alone, for a while."""
        return root_task_id in self._deaths and self.careful

    def in_quarantine(self, root_task_id: UUID) -> bool:
        return self._deaths.get(root_task_id, 0) >= GUILTY_DEATHS

    async def be_careful(self) -> None:
        """A process has died. Raises StoreError."""
        if not self.careful:
            log.info("trials.began", seconds=self._careful_seconds)
        self._careful_until = time.monotonic() + self._careful_seconds
        await self.learn()

    async def learn(self) -> None:
        """Which roots processes died on, by what the others know too; after a death not long ago, be careful. Raises
        StoreError."""
        self._deaths, seconds_ago = await self._store.deaths()
        if seconds_ago is not None and (left := self._careful_seconds - seconds_ago) > 0:
            self._careful_until = max(self._careful_until, time.monotonic() + left)

    async def convict(self, dead_process_id: UUID) -> list[UUID]:
        """Count the death of a process for what it was deciding on; the roots that are in quarantine for it. Raises
        StoreError."""
        counted = await self._store.convict(dead_process_id)
        if counted:
            log.warning("trials.died_on", process_id=str(dead_process_id), roots=len(counted))
        self._deaths |= counted
        return [root_task_id for root_task_id, deaths in counted.items() if deaths >= GUILTY_DEATHS]

    @contextlib.asynccontextmanager
    async def one_group(self, root_task_ids: Collection[UUID]) -> AsyncIterator[None]:
        """As `on`, for what may be decided on beside other groups: not while processes have died."""
        if not self.careful:
            yield
            return
        async with self._one_group, self.on(root_task_ids):
            yield

    @contextlib.asynccontextmanager
    async def on(self, root_task_ids: Collection[UUID]) -> AsyncIterator[None]:
        """Decide on these inside: noted, while processes have died. Within another `on` nothing is noted."""
        if not self.careful or not root_task_ids or _inside.get():
            yield
            return
        roots = list(root_task_ids)
        await retry_until_available(self._store.begin, roots)
        token = _inside.set(True)
        try:
            yield
        finally:
            _inside.reset(token)
            try:
                await self._store.end(roots)
            except StoreError as error:
                # If this process dies before it is careful about these roots again, they are suspected once.
                log.debug("trials.not_ended", error=str(error))
