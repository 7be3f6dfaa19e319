"""Discovery: register an instance, follow the registry (docs/protocol.md, Discovery); the same for both sources."""

import asyncio
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

import structlog

from pantheon.discovery.follower import Follower
from pantheon.discovery.registration import Registration
from pantheon.discovery.registry import Registry
from protocol.discovery import InstanceRecord
from protocol.errors import DiscoveryError

log = structlog.get_logger(__name__)


class Discovery(ABC):
    """How instances are made known and found: Consul, or a NATS KV bucket. It closes what it made."""

    def __init__(self) -> None:
        self._registrations: list[Registration] = []
        self._followers: list[Follower] = []

    @abstractmethod
    def _registration_of(self, record: InstanceRecord) -> Registration:
        """A registration with this source, not started."""

    @abstractmethod
    def _new_follower(self) -> Follower:
        """A follower of this source, not started."""

    async def register(self, record: InstanceRecord) -> Registration:
        """Make an instance known and keep it so, re-registering whenever the source has lost it.

        Returns after the first try, whether it succeeded or not: without its source a mesh degrades, it does not die.
        """
        registration = self._registration_of(record)
        self._registrations.append(registration)
        await registration.start()
        return registration

    async def renew(self, record: InstanceRecord) -> None:
        """Renew an entry that another registration keeps alive, once. A source that is away is logged."""
        try:
            await self._registration_of(record).renew()
        except DiscoveryError as error:
            log.debug("registration.not_renewed", key=record.key, error=error.message)

    async def registry(self) -> Registry:
        """A live view of all instances; returned once loaded, or stale when the source does not respond in time."""
        follower = self._new_follower()
        self._followers.append(follower)
        await follower.start()
        return follower.registry

    async def close(self) -> None:
        """Close every registration and registry made here."""
        registrations, self._registrations = self._registrations, []
        followers, self._followers = self._followers, []
        await asyncio.gather(
            *(registration.close() for registration in registrations),
            *(follower.registry.close() for follower in followers),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
