"""ConcurrencyKeys: roots that share a key, admitted in the database's order, whichever orchestrator asks.

And Schedules: workflows that the clock starts, once for each time, however many orchestrators check.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol
from uuid import UUID
from zoneinfo import ZoneInfo

import structlog
from cronsim import CronSim

from orchestrator_agent.engine.events import Begin, CancelRequested
from orchestrator_agent.inbox import Inbox
from orchestrator_agent.runtime.run_cache import RunCache
from orchestrator_agent.store.availability import retry_until_available
from orchestrator_agent.store.concurrency import ConcurrencyStore
from orchestrator_agent.workflows.library import Library
from orchestrator_agent.workflows.plan import Plan
from pantheon.runtime.background import end
from protocol.ids import step_task_id
from protocol.messages import TaskRequest, now
from protocol.workflow import Schedule

log = structlog.get_logger()

# Ids of scheduled tasks are derived from this, the workflow's name and the time: two starts of one are one.
SCHEDULES = UUID("7d1b6f0e-5c0b-8a55-9e53-6d1f6a7c2b10")
# Why a task is cancelled that a newer one replaces.
REPLACED = "a newer task of the same concurrency key took its place"
UNBOUND = 1_000_000
# However long no orchestrator was there, `catch_up: all` starts at most as many tasks at once.
CATCH_UP_LIMIT = 1000
# In which spans the last time of a schedule is searched: an hour holds at most 60, a month of every minute 45,000.
SEARCHED_SPANS = (timedelta(hours=1), timedelta(days=1), timedelta(days=31))


class ConcurrencyKeys:
    """`ask` has the next roots of a key admitted."""

    def __init__(self, store: ConcurrencyStore, library: Library, runs: RunCache, inbox: Inbox) -> None:
        self._store = store
        self._library = library
        self._runs = runs
        self._inbox = inbox
        self._asked: dict[str, asyncio.Task[None]] = {}
        self._again: set[str] = set()

    async def start(self) -> None:
        """Nothing to start: keys are asked for when a root ends or is accepted, and at each sweep."""

    async def stop(self) -> None:
        self._again.clear()
        await end(self._asked.values())

    async def ask_all(self) -> None:
        """Ask for every key that roots wait for. Raises StoreError."""
        for key in await self._store.contended_keys():
            self.ask(key)

    def ask(self, key: str) -> None:
        if key in self._asked:
            self._again.add(key)
            return
        task = asyncio.create_task(self._admit(key), name="admit")
        self._asked[key] = task
        task.add_done_callback(lambda _: self._done(key))

    def _done(self, key: str) -> None:
        self._asked.pop(key, None)
        if key in self._again:
            self._again.discard(key)
            self.ask(key)

    async def _admit(self, key: str) -> None:
        if self._runs.shared:
            # Of a workflow that another orchestrator published, this one may know neither the name nor the bound.
            await retry_until_available(self._runs.catalog.learn_newest)
        bound, cancel_older = bound_of(self._library.newest(workflow_of(key)))
        admitted, older = await retry_until_available(self._store.admit, key, bound, cancel_older)
        for task_id in older:
            self._inbox.post(CancelRequested(task_id, REPLACED))
        for task_id in admitted:
            self._inbox.post(Begin(task_id))


def bound_of(plan: Plan | None) -> tuple[int, bool]:
    """How many of a key run at once, and whether newer ones end older ones."""
    concurrency = plan.concurrency if plan is not None else None
    # A workflow that has no bound any more admits all.
    return (concurrency.max, concurrency.cancel_older) if concurrency is not None else (UNBOUND, False)


def workflow_of(key: str) -> str:
    """The workflow's name in a concurrency key."""
    return key.split(":", 1)[0]


class FiredTimes(Protocol):
    """How far each schedule has come; see the store."""

    async def last_fired(self) -> dict[str, tuple[datetime, str]]: ...
    async def note_fired(self, workflow: str, at: datetime, definition: str) -> None: ...


class Schedules:
    """Starts workflows by the clock; `start_due` returns when it should be called next. `accept` commits a request, and
    returns whether it was new."""

    def __init__(
        self,
        store: FiredTimes,
        library: Library,
        accept: Callable[[TaskRequest], Awaitable[bool]],
        clock: Callable[[], datetime] = now,
    ) -> None:
        self._clock = clock
        self._store = store
        self._library = library
        self._accept = accept
        # Until when this process has checked, by workflow, and for which definition of its schedule.
        self._checked: dict[str, tuple[str, datetime]] = {}

    async def start_due(self) -> datetime | None:
        """Start every scheduled workflow whose time has come. Raises StoreError."""
        plans = [plan for plan in self._library.plans if plan.schedule is not None]
        if not plans:
            return None
        moment = self._clock()
        coming: list[datetime] = []
        fired = await self._store.last_fired()
        for plan in plans:
            assert plan.schedule is not None
            definition = f"{plan.schedule.cron} {plan.schedule.timezone}"
            known = fired.get(plan.name)
            if known is not None and known[1] == definition:
                since = known[0]
            else:
                # Times before the schedule was there are not made up for. It was there, where another process only
                # knows a definition that is older or newer, as while orchestrators are replaced one after the other.
                before, until = self._checked.get(plan.name, ("", moment))
                since = until if before == definition else moment
                await self._store.note_fired(plan.name, since, definition)
            times, following = due_times(plan, since, moment)
            for time in times:
                await self._start(plan, time)
            if times:
                # In order, and not by local time, which goes back once a year.
                await self._store.note_fired(plan.name, times[-1], definition)
            self._checked[plan.name] = (definition, moment)
            coming.append(following)
        return min(coming)

    async def _start(self, plan: Plan, time: datetime) -> None:
        request = scheduled_request(plan, time)
        if await self._accept(request):
            log.info("schedule.started", workflow=plan.name, time=time.isoformat(), task_id=str(request.task_id))


def scheduled_request(plan: Plan, time: datetime) -> TaskRequest:
    """The request of a schedule for a time: whichever process makes it, it is the same task."""
    assert plan.schedule is not None
    return TaskRequest(
        task_id=step_task_id(SCHEDULES, f"{plan.name}@{time.isoformat()}", 0, -1),
        task_type=plan.name,
        payload={**plan.schedule.input},
        requester="schedule",
        metadata={"scheduled_for": time.isoformat()},
    )


def due_times(plan: Plan, since: datetime, moment: datetime) -> tuple[list[datetime], datetime]:
    """The times of a schedule after `since`, up to `moment`, that its catch-up policy keeps; and the next one.

    Times that summer time skips are moved behind the gap, those that it repeats are one, unless minutes or hours begin
    with a star (as cron of Debian does).
    """
    assert plan.schedule is not None
    schedule = plan.schedule
    if schedule.catch_up == "all":
        return _between(schedule, since, moment, limit=CATCH_UP_LIMIT)
    # Only the last one counts: it is searched from the end, so that a schedule of every minute that was not checked for
    # a year does not take half a million steps.
    for begin in (*(max(since, moment - span) for span in SEARCHED_SPANS), since):
        times, following = _between(schedule, begin, moment)
        if times or begin == since:
            break
    if schedule.catch_up == "none":
        # The current minute is not the past.
        times = [time for time in times[-1:] if (moment - time).total_seconds() < 60]
    return times[-1:], following


def _between(
    schedule: Schedule, since: datetime, moment: datetime, *, limit: int | None = None
) -> tuple[list[datetime], datetime]:
    """The first `limit` times of a schedule after `since`, up to `moment`, and the one that follows them."""
    iterator: Any = CronSim(schedule.cron, since.astimezone(ZoneInfo(schedule.timezone)))
    times: list[datetime] = []
    while True:
        following: datetime = next(iterator)
        if following > moment or (limit is not None and len(times) >= limit):
            return times, following
        # In an hour that is there twice, local time means the first.
        if following.astimezone(UTC) > since:
            times.append(following)
