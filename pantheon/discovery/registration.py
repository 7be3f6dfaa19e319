"""KeptRegistration: one instance's entry, tried at once and then kept alive by a task, wherever it is written."""

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


class KeptRegistration(ABC):
    """A Registration; what keeping and removing an entry is, the source's own class says.

    After a failure it is tried again after a second, then twice as long each time, up to `retry_max_seconds`.
    """

    def __init__(
        self, record: InstanceRecord, *, refresh_seconds: float = REFRESH_SECONDS, retry_max_seconds: float
    ) -> None:
        self._record = record
        self._refresh_seconds = refresh_seconds
        self._retry_max_seconds = retry_max_seconds
        # What the source has confirmed last; None while it is in trouble.
        self._kept: InstanceRecord | None = None
        self._failure: type[DiscoveryError] | None = None
        self._delay = RETRY_FIRST_SECONDS
        self._closed = False
        self._busy = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    @abstractmethod
    async def _keep(self, record: InstanceRecord) -> None:
        """Make the entry, or what it has become, known, and alive for another while. Raises DiscoveryError."""

    @abstractmethod
    async def _remove(self, record: InstanceRecord) -> None:
        """Take the entry away. Raises DiscoveryError."""

    @property
    def record(self) -> InstanceRecord:
        return self._record

    @property
    def active(self) -> bool:
        return self._kept is self._record

    async def start(self) -> None:
        """The first try, then the task that goes on trying."""
        await self._try()
        self._task = asyncio.create_task(self._keep_for_ever(), name=f"discovery-{self._record.key}")

    async def update(self, record: InstanceRecord) -> None:
        """See Registration.update."""
        if record.key != self._record.key:
            raise ValueError(f"{self._record.key} cannot become {record.key}: register the other one by itself")
        self._record = record
        await self._try()

    async def close(self) -> None:
        """Take the entry away, after whatever is under way."""
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
                # Never later than the contract's 5 s; spread, so that a thousand instances do not call in one beat.
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
        # Said once for each kind of trouble, not once for each try.
        if self._failure is not type(error):
            log.warning("the instance cannot be registered, trying on", key=self._record.key, reason=error.message)
        self._failure = type(error)
