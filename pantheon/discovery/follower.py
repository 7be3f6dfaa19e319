"""Follower: keeps a Registry as its source shows it, and marks it stale when the source is lost."""

import asyncio
import contextlib
from abc import ABC, abstractmethod

import structlog

from pantheon.discovery.registry import NOT_LOADED, Registry

log = structlog.get_logger(__name__)

LOAD_TIMEOUT_SECONDS = 5.0


class Follower(ABC):
    """Feeds `registry` from `start` until `close`, which closing the registry calls too.

    A source's own class follows the source (`_start`, `_stop`) and reports each success and each failure to
    `_mark_found` and `_mark_lost`.
    """

    def __init__(self, *, load_timeout_seconds: float = LOAD_TIMEOUT_SECONDS) -> None:
        self.registry = Registry(on_close=self.close)
        self._load_timeout_seconds = load_timeout_seconds
        self._loaded = asyncio.Event()

    @abstractmethod
    def _start(self) -> None:
        """Start the tasks that follow the source."""

    @abstractmethod
    async def _stop(self) -> None:
        """End them."""

    async def start(self) -> None:
        """Follow; returns when the registry is loaded, or after `load_timeout_seconds` without the source."""
        self._start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._load_timeout_seconds):
                await self._loaded.wait()

    async def close(self) -> None:
        """Stop following; the registry stays readable."""
        await self._stop()

    def _mark_found(self) -> None:
        """The registry shows what the source holds."""
        if self.registry.stale and self._loaded.is_set():
            log.info("the registry is current again", instances=len(self.registry))
        self._loaded.set()
        self.registry.mark_fresh()

    def _mark_lost(self, reason: str) -> None:
        """The source cannot be followed; the last known registry is kept."""
        first_failure = not self.registry.stale or self.registry.degraded_reason == NOT_LOADED
        self.registry.mark_stale(reason)
        if first_failure:
            log.warning("the registry cannot be followed, the last known one is kept", reason=reason)
