"""Registration: one instance's entry, tried at once and then kept alive by a task, whatever the source."""

import asyncio
import random
from abc import ABC, abstractmethod

import structlog

from pantheon.runtime.background import end
from protocol.discovery import REFRESH_SECONDS, InstanceRecord
from protocol.errors import DiscoveryError

log = structlog.get_logger(__name__)

RETRY_FIRST_SECONDS = 1.0
CLOSE_TIMEOUT_SECONDS = 2.0


class Registration(ABC):
    """One instance's entry, kept alive by a task of its own from `start` until `close`.

    A source's own class defines how an entry is written (`_keep`) and removed (`_remove`). A failed try is repeated
    after a second, then after twice as long each time, up to `retry_max_seconds`.
    """

    def __init__(
        self, record: InstanceRecord, *, refresh_seconds: float = REFRESH_SECONDS, retry_max_seconds: float
    ) -> None:
        self._record = record
        self._refresh_seconds = refresh_seconds
        self._retry_max_seconds = retry_max_seconds
        # What the source has confirmed last; None while it fails.
        self._kept: InstanceRecord | None = None
        self._failure: type[DiscoveryError] | None = None
        self._delay = RETRY_FIRST_SECONDS
        self._closed = False
        self._busy = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    @abstractmethod
    async def _keep(self, record: InstanceRecord) -> None:
        """Write the entry, or its change, and keep it alive for another while. Raises DiscoveryError."""

    @abstractmethod
    async def _remove(self, record: InstanceRecord) -> None:
        """Remove the entry. Raises DiscoveryError."""

    @property
    def record(self) -> InstanceRecord:
        """What the entry holds, or will hold as soon as the source can be reached."""
        return self._record

    @property
    def active(self) -> bool:
        """Whether the source has confirmed the entry as it is now."""
        return self._kept is self._record

    async def start(self) -> None:
        """Try once, then start the task that repeats it."""
        await self._try()
        self._task = asyncio.create_task(self._keep_for_ever(), name=f"discovery-{self._record.key}")

    async def renew(self) -> None:
        """Write the entry once, for one that another registration keeps alive. Raises DiscoveryError."""
        await self._keep(self._record)

    async def update(self, record: InstanceRecord) -> None:
        """Change the entry (status `draining`, other metadata); name and instance_id stay the same.

        Tried at once, then by the task until it succeeds; never raises because the source is away.
        """
        if record.key != self._record.key:
            raise ValueError(f"{self._record.key} cannot become {record.key}: register the other one by itself")
        self._record = record
        await self._try()

    async def close(self) -> None:
        """Remove the entry, after a try under way, and stop keeping it alive; bounded, and silent when the source is
        away."""
        if self._closed:
            return
        self._closed = True
        self._kept = None
        if self._task is not None:
            await end([self._task])
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_SECONDS), self._busy:
                await self._remove(self._record)
        except (DiscoveryError, TimeoutError) as error:
            log.debug("the instance's entry could not be removed, it will age away", key=self._record.key, error=error)

    async def _keep_for_ever(self) -> None:
        while True:
            if self._failure is None:
                # Never later than the contract's 5 s; spread, so that a thousand instances do not call at once.
                await asyncio.sleep(self._refresh_seconds * random.uniform(0.8, 0.95))
            else:
                await asyncio.sleep(self._delay * random.uniform(0.75, 1.0))
                self._delay = min(self._delay * 2, self._retry_max_seconds)
            await self._try()

    async def _try(self) -> None:
        try:
            async with self._busy:
                if self._closed:
                    return
                record = self._record
                await self._keep(record)
                self._kept = record
        except DiscoveryError as error:
            self._fail(error)
        except Exception as error:
            log.exception("keeping the instance registered failed, trying on", key=self._record.key)
            self._fail(DiscoveryError(f"{type(error).__name__}: {error}"))
        else:
            self._delay = RETRY_FIRST_SECONDS
            if self._failure is not None:
                self._failure = None
                log.info("the instance is registered again", key=self._record.key)

    def _fail(self, error: DiscoveryError) -> None:
        self._kept = None
        # Logged once for each kind of failure, not for each try.
        if self._failure is not type(error):
            log.warning("the instance cannot be registered, trying on", key=self._record.key, reason=error.message)
        self._failure = type(error)
