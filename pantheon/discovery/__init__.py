"""Discovery: how instances are made known and found, by Consul or by a NATS KV bucket, chosen by the settings.

What it is responsible for:

- `Discovery`: `register` an instance, follow the `registry`. `ConsulDiscovery` and `NatsKvDiscovery` share it, with
  `Registration` (an entry kept alive by a task) and `Follower` (a task that feeds a Registry).
- `Registry`: the instances in memory, with reads that do no I/O; the orchestrator routes by it.
- `ConsulApi` and `BucketWatch`: the sources themselves, which `pantheon.config` follows too.
- `MicroService`: the instance's side of NATS's micro-service protocol.

States of a registration: tried and confirmed (`active`), or failed and tried again with a growing pause; an entry that
is not refreshed ages away at the source (TTL 15 s). States of a registry: not loaded, current, or `stale` with a
reason.

Invariants:

- Nothing here raises because a source is away: an instance works without its entry, and the last known registry is
  kept.
- An instance leaves a registry only when the source shows it: deregistered, or silent for a TTL while the source was
  seen to work. An outage of the source removes no instance.
- An entry that cannot be read is ignored, with one warning, and never hides the others.
- Errors of nats-py and of Consul's library become DiscoveryUnavailable or DiscoveryDenied here, once.

Who may call it: `config`, `process` and `cli` of the kit, and the orchestrator. It imports `pantheon.bus`,
`pantheon.runtime` and `protocol`.
"""

from pantheon.bus import NatsClient
from pantheon.discovery.errors import DiscoveryDenied, DiscoveryUnavailable
from pantheon.discovery.interface import Discovery
from pantheon.discovery.nats_kv import BUCKET_STREAM, NatsKvDiscovery, ensure_bucket
from pantheon.discovery.registration import Registration
from pantheon.discovery.registry import Registry
from pantheon.runtime.settings import MeshSettings

__all__ = [
    "BUCKET_STREAM",
    "Discovery",
    "DiscoveryDenied",
    "DiscoveryUnavailable",
    "NatsKvDiscovery",
    "Registration",
    "Registry",
    "ensure_bucket",
    "make_discovery",
]


def make_discovery(settings: MeshSettings, client: NatsClient) -> Discovery:
    """The discovery that the settings name: Consul where CONSUL_HTTP_ADDR is set, else the KV bucket over `client`."""
    if settings.uses_consul:
        # Only a mesh with Consul pays for importing its client.
        from pantheon.discovery.consul_discovery import ConsulDiscovery

        return ConsulDiscovery.from_settings(settings)
    return NatsKvDiscovery(client)
