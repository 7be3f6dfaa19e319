"""The clock's times: what is due, what is made up for, and what is no time at all."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from orchestrator_agent.maintenance.concurrency_keys import Schedules, due_times
from orchestrator_agent.workflows.files import read_workflow
from orchestrator_agent.workflows.library import Library
from orchestrator_agent.workflows.plan import Plan
from protocol import TaskRequest
from protocol.errors import InvalidWorkflow


def plan(cron: str, *, catch_up: str = "last", timezone: str = "UTC") -> Plan:
    schedule = f'{{cron: "{cron}", timezone: {timezone}, catch_up: {catch_up}}}'
    return read_workflow(f"name: tick\nschedule: {schedule}\nsteps: {{a: {{task: x}}}}\n", source="tick")


NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)


def test_after_a_long_outage_the_last_time_is_the_last_and_the_next_is_to_come() -> None:
    # Of a schedule of every minute, the thousandth missed time was taken for the last, and one more task started with
    # each look.
    now = NEW_YEAR + timedelta(days=40, seconds=30)
    times, following = due_times(plan("* * * * *"), NEW_YEAR, now)
    assert times == [now.replace(second=0)]
    assert following == now.replace(second=0) + timedelta(minutes=1)


def test_after_a_long_outage_a_schedule_that_makes_up_for_nothing_goes_on() -> None:
    # It never started again: the thousandth missed time was too old, and the next look began with the first.
    now = NEW_YEAR + timedelta(days=40, seconds=90)
    times, following = due_times(plan("* * * * *", catch_up="none"), NEW_YEAR, now)
    assert times == [now.replace(second=0)]
    assert following > now


@pytest.mark.parametrize(
    ("cron", "missed"),
    [
        # A time just before, one of the same day, one of the month, one of the year, none.
        ("59 * * * *", datetime(2026, 6, 15, 11, 59, tzinfo=UTC)),
        ("0 3 * * *", datetime(2026, 6, 15, 3, tzinfo=UTC)),
        ("0 0 1 * *", datetime(2026, 6, 1, tzinfo=UTC)),
        ("0 0 2 2 *", datetime(2026, 2, 2, tzinfo=UTC)),
        ("0 0 31 12 *", None),
    ],
)
def test_the_last_missed_time_is_found_however_far_it_is(cron: str, missed: datetime | None) -> None:
    times, _ = due_times(plan(cron), NEW_YEAR, datetime(2026, 6, 15, 12, 0, 30, tzinfo=UTC))
    assert times == ([missed] if missed else [])


@pytest.mark.parametrize("catch_up", ["last", "none", "all"])
@pytest.mark.parametrize("cron", ["30 2 * * *", "*/30 * * * *", "0 1-3 * * *"])
@pytest.mark.parametrize("day", [datetime(2026, 3, 28, 22, tzinfo=UTC), datetime(2026, 10, 24, 22, tzinfo=UTC)])
def test_looked_at_every_minute_no_time_of_a_night_with_a_change_of_the_clock_is_there_twice(
    cron: str, catch_up: str, day: datetime
) -> None:
    tick = plan(cron, catch_up=catch_up, timezone="Europe/Berlin")
    since, started = day, []
    for minute in range(8 * 60):
        times, _ = due_times(tick, since, day + timedelta(minutes=minute, seconds=30))
        started += times
        since = times[-1].astimezone(UTC) if times else since
    at_once, _ = due_times(plan(cron, catch_up="all", timezone="Europe/Berlin"), day, day + timedelta(minutes=479))
    # In UTC: of one zone, times are compared by the clock's hands.
    moments = [time.astimezone(UTC) for time in started]
    assert moments == [time.astimezone(UTC) for time in at_once]
    assert len(set(moments)) == len(moments)
    if cron == "30 2 * * *":
        assert len(started) == 1


def test_a_schedule_that_begins_in_an_hour_that_is_there_twice_does_not_start_for_the_first() -> None:
    second = datetime(2026, 10, 25, 2, 10, fold=1, tzinfo=ZoneInfo("Europe/Berlin")).astimezone(UTC)
    times, _ = due_times(plan("30 2 * * *", timezone="Europe/Berlin"), second, second + timedelta(minutes=1))
    assert times == []


@pytest.mark.parametrize("cron", ["* * * * * *", "* * * *", "61 * * * *", "0 0 31 4 *"])
def test_what_is_no_time_is_a_mistake_of_the_workflow(cron: str) -> None:
    with pytest.raises(InvalidWorkflow, match=r"schedule\.cron"):
        plan(cron)


class Kept:
    """The table `schedules`, as `ScheduleStore` keeps it."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[datetime, str]] = {}

    async def last_fired(self) -> dict[str, tuple[datetime, str]]:
        return dict(self.rows)

    async def note_fired(self, workflow: str, at: datetime, definition: str) -> None:
        before = self.rows.get(workflow, (at, ""))[0]
        self.rows[workflow] = (max(at, before), definition)


async def test_no_time_is_lost_while_orchestrators_with_another_definition_are_there() -> None:
    """One that was replaced, and one that replaced it, took each other's checks for changes of the schedule."""
    kept, started = Kept(), set()

    async def accept(request: TaskRequest) -> bool:
        started.add(request.metadata["scheduled_for"])
        return True

    moment = begin = NEW_YEAR + timedelta(hours=5)
    schedules = []
    for cron in ("0 6 * * *", "0 7 * * *"):
        library = Library()
        library.add(plan(cron))
        schedules.append(Schedules(kept, library, accept, clock=lambda: moment))
    for seconds in range(0, 3 * 3600, 30):
        moment = begin + timedelta(seconds=seconds)
        for process in schedules:
            await process.start_due()
    assert started == {"2026-01-01T06:00:00+00:00", "2026-01-01T07:00:00+00:00"}
