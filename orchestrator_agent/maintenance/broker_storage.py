"""BrokerStorage: warns before the broker's storage is full.

Streams that give way (responses, events) are full in the end, and work on; what counts are those that refuse more, and
the account as a whole, which may hold other streams than the mesh's.
"""

import structlog

from pantheon.bus import OBJECTS_STREAM, Bus, account_limit, storage_used, stream_fill
from pantheon.runtime.periodic import PeriodicTask
from protocol.errors import BusError
from protocol.streams import TASKS

log = structlog.get_logger()

CHECK_SECONDS = 30.0
# From this share on.
LOW = 0.8
HINT = "what is full is refused: see docs/operations.md, Storage of the broker"


class BrokerStorage:
    def __init__(self, bus: Bus, *, replicas: int, check_seconds: float = CHECK_SECONDS) -> None:
        self._bus = bus
        self._replicas = replicas
        self._low: set[str] = set()
        self._checking = PeriodicTask("broker-storage", self._check, seconds=check_seconds)

    async def start(self) -> None:
        self._checking.start()

    async def stop(self) -> None:
        await self._checking.stop()

    async def _check(self) -> None:
        try:
            await self.check()
        except BusError as error:
            log.debug("broker.storage_unread", error=str(error))

    async def check(self) -> None:
        """Raises BusError."""
        for name in (TASKS.name, OBJECTS_STREAM):
            fill = await stream_fill(self._bus, name)
            if fill is not None and fill.max_bytes is not None:
                self._judge(name, fill.used_bytes, fill.max_bytes)
        limit = await account_limit(self._bus, replicas=self._replicas)
        if limit is not None:
            self._judge("account", await storage_used(self._bus) // self._replicas, limit)

    def _judge(self, what: str, used_bytes: int, max_bytes: int) -> None:
        """Once when it becomes low, and once when it is not any more."""
        share = round(used_bytes / max_bytes, 3)
        if share >= LOW and what not in self._low:
            self._low.add(what)
            log.warning(
                "broker.storage_low", of=what, used_bytes=used_bytes, max_bytes=max_bytes, share=share, hint=HINT
            )
        elif share < LOW and what in self._low:
            self._low.discard(what)
            log.info("broker.storage_enough", of=what, used_bytes=used_bytes, max_bytes=max_bytes, share=share)
