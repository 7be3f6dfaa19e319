"""Discovery by Consul: a service instance with a TTL check for each instance of an agent (docs/protocol.md, Discovery).

A draining instance is in Consul's maintenance mode, which every tool of Consul shows and every reader of healthy
services already leaves out.
"""

import hashlib
import re
from typing import Self

import structlog

from pantheon.discovery.consul_api import ConsulAddress, ConsulApi, ConsulLost
from pantheon.discovery.consul_watch import ConsulFollower
from pantheon.discovery.follower import LOAD_TIMEOUT_SECONDS
from pantheon.discovery.interface import Discovery
from pantheon.discovery.registration import Registration
from pantheon.runtime.settings import MeshSettings
from protocol.discovery import CONSUL_TAG, CONSUL_TASK_TAG_PREFIX, InstanceRecord

log = structlog.get_logger(__name__)

# Not longer than a refresh, so that an instance is registered within one after Consul's return.
RETRY_MAX_SECONDS = 5.0
# Consul's limits of a service's metadata.
META_KEY = re.compile(r"^[A-Za-z0-9_-]{1,128}\Z")
META_VALUE_MAX_BYTES = 512
META_MAX_PAIRS = 64


def service_tags(record: InstanceRecord) -> list[str]:
    """The tags by which Consul finds agents and their capabilities."""
    return [CONSUL_TAG, *(CONSUL_TASK_TAG_PREFIX + task_type for task_type in record.task_types)]


def service_meta(record: InstanceRecord) -> dict[str, str]:
    """The contract's three keys, and as much of the agent's own as Consul accepts (it refuses all for one that is
    wrong)."""
    own = {
        key: value.encode()[:META_VALUE_MAX_BYTES].decode(errors="ignore")
        for key, value in record.metadata.items()
        if META_KEY.match(key) and not key.startswith("consul-")
    }
    return {
        **dict(list(own.items())[: META_MAX_PAIRS - 3]),
        "protocol": str(record.protocol),
        "version": record.version,
        "max_concurrency": str(record.max_concurrency),
    }


def digest(record: InstanceRecord) -> str:
    """A digest of what a registration describes; in the check's notes it makes any change of it wake watchers."""
    described = record.model_copy(update={"status": "ready"}).model_dump_json()
    return hashlib.sha256(described.encode()).hexdigest()[:16]


class ConsulRegistration(Registration):
    """One instance's service, its check passed every 5 s until closed."""

    def __init__(self, api: ConsulApi, record: InstanceRecord) -> None:
        super().__init__(record, retry_max_seconds=RETRY_MAX_SECONDS)
        self._api = api
        self._registered: str | None = None
        self._in_maintenance: bool | None = None

    async def _keep(self, record: InstanceRecord) -> None:
        if self._registered == digest(record):
            try:
                await self._api.pass_check(record.consul_id)
            except ConsulLost:
                log.info("Consul has lost the instance, registering again", key=record.key)
                self._registered = None
        if self._registered != digest(record):
            self._registered = None
            await self._api.register(
                record.name, record.consul_id, service_tags(record), service_meta(record), digest(record)
            )
            # A check that was critical stays so when its service is registered anew.
            await self._api.pass_check(record.consul_id)
            self._in_maintenance = None
            self._registered = digest(record)
        draining = record.status == "draining"
        if self._in_maintenance is not draining:
            await self._api.set_maintenance(record.consul_id, draining)
            self._in_maintenance = draining

    async def _remove(self, record: InstanceRecord) -> None:
        await self._api.deregister(record.consul_id)


class ConsulDiscovery(Discovery):
    """Discovery by a Consul agent, over connections of its own."""

    def __init__(self, address: ConsulAddress, *, load_timeout_seconds: float = LOAD_TIMEOUT_SECONDS) -> None:
        super().__init__()
        self._api = ConsulApi(address)
        self._load_timeout_seconds = load_timeout_seconds

    @classmethod
    def from_settings(cls, settings: MeshSettings) -> Self:
        """By CONSUL_HTTP_ADDR and its kin."""
        return cls(ConsulAddress.from_settings(settings))

    def _registration_of(self, record: InstanceRecord) -> ConsulRegistration:
        return ConsulRegistration(self._api, record)

    def _new_follower(self) -> ConsulFollower:
        return ConsulFollower(self._api, load_timeout_seconds=self._load_timeout_seconds)

    async def close(self) -> None:
        """See Discovery.close; closes the connections too."""
        await super().close()
        await self._api.close()
