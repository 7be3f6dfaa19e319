"""The interface that both discoveries keep to: register an instance, follow the registry (PROTOCOL.md, Discovery)."""

from types import TracebackType
from typing import Protocol, Self

from pantheon.discovery.registry import Registry
from protocol.discovery import InstanceRecord
from protocol.errors import DiscoveryError


class DiscoveryUnavailable(DiscoveryError):
    """Consul, or the KV bucket, does not answer; what is done about it is to try again."""


class DiscoveryDenied(DiscoveryError):
    """Consul, or NATS, answers and refuses: a token or a permission is missing."""


class Registration(Protocol):
    """One instance's entry, kept alive by a task of its own until `close`."""

    @property
    def record(self) -> InstanceRecord:
        """What the entry says, or will say as soon as the source can be reached."""

    @property
    def active(self) -> bool:
        """Whether the source has confirmed the entry as it is now."""

    async def update(self, record: InstanceRecord) -> None:
        """Change the entry (status `draining`, other metadata); name and instance_id stay the same.

        Tried at once, then by the keeping task until it is done; never raises because the source is away.
        """

    async def close(self) -> None:
        """Take the entry away and stop keeping it alive; bounded, and silent when the source is away."""


class Discovery(Protocol):
    """How instances are made known and found: Consul, or a NATS KV bucket."""

    async def register(self, record: InstanceRecord) -> Registration:
        """Make an instance known and keep it so, re-registering whenever the source has lost it.

        Returns after the first try, whether it succeeded or not: without its source a mesh degrades, it does not die.
        """

    async def registry(self) -> Registry:
        """A live view of all instances; returned once loaded, or stale when the source does not answer in time."""

    async def close(self) -> None:
        """Close every registration and registry made here."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
