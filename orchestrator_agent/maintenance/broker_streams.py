"""BrokerStreams: the streams and buckets of the mesh, as the settings have them; the orchestrator alone makes them."""

from dataclasses import dataclass

from pantheon.bus import Bus, ensure_streams
from pantheon.discovery import ensure_bucket
from pantheon.runtime.settings import MeshSettings


@dataclass(frozen=True)
class BrokerStreams:
    """`storage_bytes` None: what the account has. With `uses_kv` instances are registered in a bucket."""

    bus: Bus
    replicas: int
    storage_bytes: int | None
    uses_kv: bool

    @classmethod
    def of(cls, bus: Bus, settings: MeshSettings) -> "BrokerStreams":
        return cls(bus, settings.stream_replicas, settings.broker_storage_bytes, not settings.uses_consul)

    async def ensure(self) -> None:
        """Make what is not there, and bring the rest to its settings. Raises BusError, DiscoveryError."""
        await ensure_streams(self.bus, replicas=self.replicas, storage_bytes=self.storage_bytes)
        if self.uses_kv:
            await ensure_bucket(self.bus.js, self.replicas)
