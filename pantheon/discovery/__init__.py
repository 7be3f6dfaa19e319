"""Discovery: instances made known and found, by Consul or by a NATS KV bucket, one interface, chosen by settings."""

from nats.aio.client import Client

from pantheon.discovery.interface import Discovery, DiscoveryDenied, DiscoveryUnavailable, Registration
from pantheon.discovery.nats_kv import BUCKET_STREAM, NatsKvDiscovery, ensure_bucket
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


def make_discovery(settings: MeshSettings, client: Client) -> Discovery:
    """The discovery that the settings name: Consul where CONSUL_HTTP_ADDR is set, else the KV bucket over `client`."""
    if settings.uses_consul:
        # Only a mesh with Consul pays for importing its client.
        from pantheon.discovery.consul_discovery import ConsulDiscovery

        return ConsulDiscovery.from_settings(settings)
    return NatsKvDiscovery(client)
