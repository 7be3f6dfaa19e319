"""BrokerWatch: whether the broker has lost messages, or a stream. What it lost is published again (`adoption`)."""

from collections.abc import Awaitable, Callable

import structlog

from orchestrator_agent.maintenance.broker_outages import BrokerOutages
from orchestrator_agent.maintenance.broker_streams import BrokerStreams
from orchestrator_agent.store.broker_marks import BrokerMarks
from pantheon.bus import OBJECTS_STREAM, Bus, Publisher, stream_mark
from pantheon.bus.streams import StreamMark
from pantheon.discovery import BUCKET_STREAM
from pantheon.runtime.periodic import PeriodicTask
from protocol.errors import BusError, StoreError
from protocol.streams import ALL_STREAMS, RESPONSES, TASKS

log = structlog.get_logger()

WATCH_SECONDS = 2.0
# What is in these must be published again when the broker has lost it: attempts, responses, large values.
WATCHED = (TASKS.name, RESPONSES.name, OBJECTS_STREAM)
# These must only be there: a publisher waits for one that is gone.
NEEDED = tuple(spec.name for spec in ALL_STREAMS if spec.name not in WATCHED)


class BrokerWatch:
    """Compares the streams' creation time and last sequence with what was seen before, and with what this process has
    had acknowledged. `on_lost` is called for a loss; it must not forget it."""

    def __init__(
        self,
        bus: Bus,
        publisher: Publisher,
        *,
        marks: BrokerMarks,
        streams: BrokerStreams,
        on_lost: Callable[[], Awaitable[None]],
        outages: BrokerOutages,
    ) -> None:
        self._bus = bus
        self._publisher = publisher
        self._noted = marks
        self._streams = streams
        self._on_lost = on_lost
        self._outages = outages
        self._marks: dict[str, StreamMark] = {}
        self._lost = False
        self._checking = PeriodicTask("watch-broker", self._check, seconds=WATCH_SECONDS)
        self._unhook: list[Callable[[], None]] = []

    async def start(self) -> None:
        self._unhook = [
            self._publisher.on_gone_back(self._gone_back),
            # What is published from now on covers up what a broker that was started again has lost.
            self._bus.on_reconnect(self._checking.wake),
        ]
        self._checking.start()

    async def stop(self) -> None:
        while self._unhook:
            self._unhook.pop()()
        await self._checking.stop()

    def _gone_back(self, stream: str) -> None:
        if stream in WATCHED:
            self._lost = True
            self._checking.wake()

    async def _check(self) -> None:
        try:
            await self.check()
        except (BusError, StoreError) as error:
            log.debug("watch.waiting", error=str(error))

    async def check(self) -> None:
        """Raises BusError, StoreError."""
        marks: dict[str, StreamMark] = {}
        for name in WATCHED:
            # Before the question: while the response is on the way, more is acknowledged than it includes.
            acknowledged = self._publisher.highest_sequence.get(name, 0)
            mark = await stream_mark(self._bus, name)
            self._outages.broker_responded()
            if mark is None:
                self._lost = True
                continue
            marks[name] = mark
            before = self._marks.get(name)
            self._lost = self._lost or (before is not None and mark.lost_since(before))
            # What this process has had acknowledged since the last check is newer.
            self._lost = self._lost or mark.last_sequence < acknowledged
        if self._lost or await self._some_missing():
            await self._streams.ensure()
        if self._lost:
            log.warning("broker.lost_messages", streams=list(WATCHED))
            self._publisher.highest_sequence.clear()
            # The marks before anything is published again: a second loss, while that goes on, is noticed as well.
            marks = {name: mark for name in WATCHED if (mark := await stream_mark(self._bus, name)) is not None}
            await self._on_lost()
            self._lost = len(marks) < len(WATCHED)
        if marks != self._marks:
            await self._noted.note({name: (mark.created, mark.last_sequence) for name, mark in marks.items()})
        self._marks = marks

    async def _some_missing(self) -> bool:
        needed = (*NEEDED, BUCKET_STREAM) if self._streams.uses_kv else NEEDED
        for name in needed:
            if await stream_mark(self._bus, name) is None:
                log.warning("broker.stream_missing", stream=name)
                return True
        return False

    async def check_store(self) -> None:
        """Before anything else at start: was the broker's store lost while no orchestrator was there to see it?"""
        noted = await self._noted.noted()
        for name in WATCHED:
            mark = await stream_mark(self._bus, name)
            if name in noted and (mark is None or mark.lost_since(StreamMark(*noted[name]))):
                log.warning("broker.lost_messages", stream=name)
                await self._on_lost()
                return
