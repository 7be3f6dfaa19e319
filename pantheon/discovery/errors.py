"""The two ways in which a source of discovery fails: it cannot be reached, or it refuses."""

from protocol.errors import DiscoveryError


class DiscoveryUnavailable(DiscoveryError):
    """Consul, or the KV bucket, does not respond: the call is made again later."""


class DiscoveryDenied(DiscoveryError):
    """Consul, or NATS, refuses: a token or a permission is missing."""
