"""Turns: roots that share a concurrency key, let in by the database's order, whichever orchestrator asks.

And the clock's own tasks: workflows with a schedule, started once for each time however many orchestrators look.
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import takewhile
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import structlog
from cronsim import CronSim

from orchestrator_agent.engine.events import Begin, CancelRequested, Happening
from orchestrator_agent.patience import patiently
from orchestrator_agent.store.reads import Reader
from orchestrator_agent.workflows.library import Library
from orchestrator_agent.workflows.plan import Plan
from pantheon.background import end
from pantheon.bus import Publisher
from protocol import subjects
from protocol.errors import BusError
from protocol.ids import step_task_id
from protocol.messages import TaskRequest, now, to_bytes
from protocol.names import ORCHESTRATOR

log = structlog.get_logger()

# Ids of scheduled tasks are derived from this, the workflow's name and the time: two starts of one are one.
SCHEDULES = UUID("7d1b6f0e-5c0b-8a55-9e53-6d1f6a7c2b10")
# However long nobody was there, `catch_up: all` starts at most as many tasks at once.
CATCH_UP_LIMIT = 1000


class Turns:
    """`ask` has whoever is next of a key let in."""

    def __init__(self, reader: Reader, library: Library, post: Callable[[Happening], None]) -> None:
        self._reader = reader
        self._library = library
        self._post = post
        self._asked: dict[str, asyncio.Task[None]] = {}
        self._again: set[str] = set()

    def ask(self, key: str) -> None:
        if key in self._asked:
            self._again.add(key)
            return
        task = asyncio.create_task(self._let_in(key), name="turn")
        self._asked[key] = task
        task.add_done_callback(lambda _: self._done(key))

    def _done(self, key: str) -> None:
        self._asked.pop(key, None)
        if key in self._again:
            self._again.discard(key)
            self.ask(key)

    async def _let_in(self, key: str) -> None:
        plan = self._library.newest(key.split(":", 1)[0])
        concurrency = plan.concurrency if plan is not None else None
        # A workflow that lost its bound lets everybody in.
        bound = concurrency.max if concurrency is not None else 1_000_000
        cancel_older = concurrency.cancel_older if concurrency is not None else False
        admitted, older = await patiently(self._reader.admit, key, bound, cancel_older)
        for task_id in older:
            self._post(CancelRequested(task_id, "a newer task of the same concurrency key took its place"))
        for task_id in admitted:
            self._post(Begin(task_id))

    async def close(self) -> None:
        self._again.clear()
        await end(self._asked.values())


class Schedules:
    """Starts what the clock says; `look` returns when it should be called next."""

    def __init__(self, reader: Reader, library: Library, publisher: Publisher) -> None:
        self._reader = reader
        self._library = library
        self._publisher = publisher

    async def look(self) -> datetime | None:
        """Start every scheduled workflow whose time has come. Raises StoreError, BusError."""
        plans = [plan for plan in self._library.plans if plan.schedule is not None]
        if not plans:
            return None
        moment = now()
        coming: list[datetime] = []
        fired = await self._reader.schedules()
        for plan in plans:
            assert plan.schedule is not None
            definition = f"{plan.schedule.cron} {plan.schedule.timezone}"
            known = fired.get(plan.name)
            if known is None or known[1] != definition:
                # Times before the schedule was there are nobody's to make up for.
                await self._reader.schedule_fired(plan.name, moment, definition)
                since = moment
            else:
                since = known[0]
            times, following = due_times(plan, since, moment)
            begun = await self._begun(plan, times)
            for time in times:
                if time not in begun:
                    await self._start(plan, time)
            # Noted when it is accepted (the next look sees that), not when it was sent: the broker may lose what it has
            # acknowledged.
            if noted := list(takewhile(begun.__contains__, times)):
                await self._reader.schedule_fired(plan.name, max(noted), definition)
            coming.append(following)
        return min(coming)

    async def _begun(self, plan: Plan, times: Sequence[datetime]) -> set[datetime]:
        """Of these times, those whose task has been accepted."""
        if not times:
            return set()
        known = await self._reader.known([_task_id(plan, time) for time in times])
        return {time for time in times if _task_id(plan, time) in known}

    async def _start(self, plan: Plan, time: datetime) -> None:
        assert plan.schedule is not None
        request = TaskRequest(
            task_id=_task_id(plan, time),
            task_type=plan.name,
            payload={**plan.schedule.input},
            requester="schedule",
            metadata={"scheduled_for": time.isoformat()},
        )
        try:
            await self._publisher.publish(subjects.task(ORCHESTRATOR), to_bytes(request), give_up_seconds=10)
        except BusError:
            log.warning("schedule.waiting", workflow=plan.name, time=time.isoformat())
            raise
        log.info("schedule.started", workflow=plan.name, time=time.isoformat(), task_id=str(request.task_id))


def _task_id(plan: Plan, time: datetime) -> UUID:
    return step_task_id(SCHEDULES, f"{plan.name}@{time.isoformat()}", 0, -1)


def due_times(plan: Plan, since: datetime, moment: datetime) -> tuple[list[datetime], datetime]:
    """The times of a schedule after `since`, up to `moment`, that its catch-up policy keeps; and the next one.

    Times that summer time skips are moved behind the gap, those that it repeats are one (as cron of Debian does).
    """
    assert plan.schedule is not None
    iterator: Any = CronSim(plan.schedule.cron, since.astimezone(ZoneInfo(plan.schedule.timezone)))
    times: list[datetime] = []
    while True:
        following: datetime = next(iterator)
        if following > moment or len(times) >= CATCH_UP_LIMIT:
            break
        times.append(following)
    if plan.schedule.catch_up == "last":
        times = times[-1:]
    elif plan.schedule.catch_up == "none":
        # The minute that the clock shows now is not the past.
        times = [time for time in times[-1:] if (moment - time).total_seconds() < 60]
    return times, following
