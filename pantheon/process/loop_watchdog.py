"""LoopWatchdog: represents an instance whose event loop is blocked, for as long as its process lives.

A handler that computes, or sleeps, without awaiting stops everything of its process: heartbeats, the renewal of its
registration, the in-progress acks of its attempts. Seen from outside it is dead, and its attempts would be given to
others while it still works on them. So a thread checks the loop; while that stands still, the thread sends all three
over a connection of its own, with `blocked_seconds` in the heartbeats, so that nothing new is routed here. The log
names the line that blocks.

A thread needs Python to switch to it: C code that keeps the interpreter's lock silences it too, and the instance then
counts as lost.
"""

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import Callable

import structlog

from pantheon.bus import Bus, Delivery, hold_over
from pantheon.bus.credentials import nats_options
from pantheon.discovery import make_discovery
from pantheon.runtime.settings import MeshSettings
from protocol import subjects
from protocol.discovery import REFRESH_SECONDS, InstanceRecord
from protocol.errors import PantheonError
from protocol.messages import Heartbeat, to_bytes
from protocol.streams import IN_PROGRESS_SECONDS

log = structlog.get_logger()

TICK_SECONDS = 0.5
# Two heartbeats that do not come make an instance silent: the first one of the thread must be there before.
BLOCKED_SECONDS = 3.0
CONNECT_SECONDS = 5.0
# The innermost lines of the stack that are logged.
SHOWN_FRAMES = 4


class LoopWatchdog:
    """Made and started on the loop that it watches. `heartbeat`, `record` and `held` are called in the thread, while
    the loop stands still."""

    def __init__(
        self,
        settings: MeshSettings,
        *,
        heartbeat: Callable[[], Heartbeat],
        record: Callable[[], InstanceRecord],
        held: Callable[[], list[Delivery]],
        blocked_seconds: float = BLOCKED_SECONDS,
    ) -> None:
        self._settings = settings
        self._heartbeat = heartbeat
        self._record = record
        self._held = held
        self._blocked_seconds = blocked_seconds
        self._alive_at = 0.0
        self._loop_thread = 0
        self._stopped = threading.Event()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._loop_thread = threading.get_ident()
        self._mark_alive()
        threading.Thread(target=self._watch, name="loop-watchdog", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()
        if self._timer is not None:
            self._timer.cancel()

    def _mark_alive(self) -> None:
        self._alive_at = time.monotonic()
        self._timer = asyncio.get_running_loop().call_later(TICK_SECONDS, self._mark_alive)

    @property
    def _still_seconds(self) -> float:
        """For how long the loop has stood still."""
        return time.monotonic() - self._alive_at

    # -- in the thread -------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        ticked_at = time.monotonic()
        while not self._stopped.wait(TICK_SECONDS):
            now = time.monotonic()
            suspended, ticked_at = now - ticked_at > 4 * TICK_SECONDS, now
            # After the whole process was stopped for a while, the loop gets a moment to show that it goes on.
            if not suspended and self._still_seconds > self._blocked_seconds:
                self._represent_instance()
                ticked_at = time.monotonic()

    def _represent_instance(self) -> None:
        alive_at = self._alive_at
        record = self._record()
        bound = log.bind(agent=record.name, instance_id=record.instance_id)
        bound.warning("loop.blocked", seconds=round(self._still_seconds, 1), at=self._blocking_lines())
        try:
            asyncio.run(self._send_until_free())
        except (PantheonError, OSError, TimeoutError) as error:
            bound.warning("loop.not_represented", error=str(error) or type(error).__name__)
            # The connection failed: not again at once.
            self._stopped.wait(CONNECT_SECONDS)
        except Exception:
            # The thread goes on: the next block must be noticed too.
            bound.exception("loop.not_represented")
            self._stopped.wait(CONNECT_SECONDS)
        if self._alive_at != alive_at:
            bound.warning("loop.free", after_seconds=round(self._alive_at - alive_at, 1))

    def _blocking_lines(self) -> list[str]:
        frame = sys._current_frames().get(self._loop_thread)
        if frame is None:
            return []
        lines = traceback.extract_stack(frame)[-SHOWN_FRAMES:]
        return [f"{line.filename}:{line.lineno} {line.name}" for line in lines]

    async def _send_until_free(self) -> None:
        """Send what the loop cannot, until it can again."""
        settings, alive_at = self._settings, self._alive_at
        name = f"{self._record().name}/{self._record().instance_id}/watchdog"
        async with (
            await Bus.connect(
                settings.nats_url, name=name, options=nats_options(settings), wait_seconds=CONNECT_SECONDS
            ) as bus,
            make_discovery(settings, bus.client) as discovery,
        ):
            beat_at = held_at = 0.0
            while self._alive_at == alive_at and not self._stopped.is_set():
                now = time.monotonic()
                if now >= beat_at:
                    beat_at = now + REFRESH_SECONDS * 0.9
                    beat = self._heartbeat().model_copy(update={"blocked_seconds": round(self._still_seconds, 1)})
                    await bus.publish_quietly(subjects.heartbeat(beat.agent), to_bytes(beat))
                    await discovery.renew(self._record())
                if now >= held_at:
                    held_at = now + IN_PROGRESS_SECONDS
                    for delivery in self._held():
                        await hold_over(bus, delivery)
                await asyncio.sleep(TICK_SECONDS / 2)
