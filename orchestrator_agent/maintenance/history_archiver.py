"""HistoryArchiver: tasks that ended and were responded to leave the table of those at work, and are dropped by age.

Whole trees move, in small batches, into a table partitioned by the month of their response; a month is dropped when all
of it is older than tasks are kept. The history's own indexes remember their ids and idempotency keys.
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import structlog

from orchestrator_agent.store.history import HistoryMove, HistoryStore, month_of
from pantheon.runtime.periodic import PeriodicTask
from protocol.errors import StoreError
from protocol.messages import now

log = structlog.get_logger()

# Roots that are read in one step, and rows that are moved in one transaction: some milliseconds of Postgres's time.
READ_ROOTS = 500
MOVE_ROWS = 1000
# After each batch, Postgres has this many times as long for everything else.
REST_BUSY, REST_IDLE = 40.0, 4.0
# When everything that may go has gone.
PAUSE_SECONDS = 30.0

_FIRST = (datetime(1970, 1, 1, tzinfo=UTC), UUID(int=0))


def is_over(name: str, today: date, retention_days: float) -> bool:
    """Whether everything in a partition is older than tasks are kept."""
    try:
        first = datetime.strptime(name, "tasks_history_%Y_%m").replace(tzinfo=UTC).date()
    except ValueError:
        return False
    return month_of(first)[2] <= today - timedelta(days=retention_days)


class HistoryArchiver:
    """Moves and drops in the background; `busy` is whether there is work that must not be slowed."""

    def __init__(
        self,
        store: HistoryStore,
        *,
        after_seconds: float,
        retention_days: float,
        busy: Callable[[], bool] = lambda: False,
    ) -> None:
        self._store = store
        self._after = after_seconds
        self._retention = retention_days
        self._busy = busy
        self._from = _FIRST
        self._copied: list[UUID] = []
        self._months: set[str] = set()
        self._moving = PeriodicTask("history", self._move, seconds=min(PAUSE_SECONDS, after_seconds))

    async def start(self) -> None:
        self._moving.start()

    async def stop(self) -> None:
        await self._moving.stop()

    async def _move(self) -> float | None:
        """Move a batch; returns how long to rest before the next one, None where there is none yet."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            if not await self.step():
                return None
        except StoreError as error:
            log.warning("history.waiting", error=str(error))
            return None
        return (loop.time() - began) * (REST_BUSY if self._busy() else REST_IDLE)

    async def step(self) -> bool:
        """Move a batch, if no other process does; whether there is more. Raises StoreError."""
        async with self._store.moving() as move:
            return move is not None and await self._step(move)

    async def _step(self, move: HistoryMove) -> bool:
        if self._copied:
            await move.delete(self._copied)
            self._copied = []
        roots = await move.ended(self._from, self._after, READ_ROOTS)
        going = {root["task_id"]: root["answered_at"].date() for root in roots if root["may_go"]}
        if not going:
            return await self._go_on(move, roots)
        batch: dict[UUID, date] = {}
        rows = 0
        for root_task_id, size in (await move.sizes(list(going))).items():
            if batch and rows + size > MOVE_ROWS:
                break
            batch[root_task_id] = going[root_task_id]
            rows += size
        for day in set(batch.values()):
            await self._make_month(move, day)
        await move.copy(batch)
        self._copied = list(batch)
        log.debug("history.moved", tasks=len(batch), rows=rows)
        return True

    async def _go_on(self, move: HistoryMove, roots: Sequence[Any]) -> bool:
        """None of these roots may go yet: go on behind them."""
        if len(roots) == READ_ROOTS:
            self._from = (roots[-1]["created_at"], roots[-1]["task_id"])
            return True
        # All roots have been read: from the beginning again, and time to drop what is too old.
        self._from = _FIRST
        await self._drop_months(move)
        return False

    async def _make_month(self, move: HistoryMove, day: date) -> None:
        name = month_of(day)[0]
        if name not in self._months:
            await move.make_month(day)
            self._months.add(name)

    async def _drop_months(self, move: HistoryMove) -> None:
        today = now().date()
        for name in await move.months():
            if is_over(name, today, self._retention):
                await move.drop_month(name)
                self._months.discard(name)
                log.info("history.dropped", month=name)
