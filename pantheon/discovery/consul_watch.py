"""ConsulFollower: feeds a Registry from Consul with one blocking query for the whole mesh.

Health lives in checks, descriptions (tags, metadata) in the catalog, and Consul has no query that wakes on both for
many services. So one blocking query follows all checks, and a service is read only when its check shows a change of
something other than the status: a new check, new tags, or new notes (in which the kit's registrations keep a digest of
what they describe). A foreign agent that changes nothing but its metadata is seen by the slow refresh. A passed TTL
changes nothing in Consul's catalog, so heartbeats wake no watcher.
"""

import random
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import structlog

from pantheon.discovery.consul_api import ConsulApi
from pantheon.discovery.follower import Follower
from pantheon.discovery.refusals import Refusals
from pantheon.discovery.registry import Key, key_of
from pantheon.runtime.periodic import PeriodicTask
from protocol.discovery import CONSUL_TASK_TAG_PREFIX, InstanceRecord
from protocol.errors import DiscoveryError

log = structlog.get_logger(__name__)

WAIT_SECONDS = 30.0
# Between two responses: changes that come in bursts are read together, and no core is busy with reading alone.
MIN_INTERVAL_SECONDS = 0.25
RETRY_FIRST_SECONDS = 0.5
RETRY_MAX_SECONDS = 5.0
REFRESH_SECONDS = 60.0
# After Consul comes back empty or with every TTL run out, instances need a refresh (5 s) or a retry (5 s) to be there.
GRACE_SECONDS = 12.0
UNRESOLVED_RETRIES = 5
UNRESOLVED_SECONDS = 0.5

MAINTENANCE_PREFIX = "_service_maintenance:"
NODE_MAINTENANCE = "_node_maintenance"
CRITICAL = "critical"
# What the mesh itself writes into Meta; the rest is the agent's metadata.
META_FIELDS = ("protocol", "version", "max_concurrency")

ServiceKey = tuple[str, str]


@dataclass
class ServiceState:
    """What the checks show of one service instance."""

    name: str
    dead: bool = False
    draining: bool = False
    tags: tuple[str, ...] = ()
    described: list[tuple[str, int, str]] = field(default_factory=list)

    @property
    def fingerprint(self) -> object:
        """Changes when the instance was registered anew or differently, not when its health does."""
        return self.tags, tuple(sorted(self.described))


def read_checks(checks: Iterable[dict[str, Any]]) -> dict[ServiceKey, ServiceState]:
    """The states of all service instances, by node and service id; a failing node takes its instances along."""
    states: dict[ServiceKey, ServiceState] = {}
    dead_nodes: set[str] = set()
    draining_nodes: set[str] = set()
    for check in checks:
        node, service_id, check_id = check["Node"], check["ServiceID"], check["CheckID"]
        critical = check["Status"] == CRITICAL
        if not service_id:
            if critical:
                (draining_nodes if check_id == NODE_MAINTENANCE else dead_nodes).add(node)
            continue
        state = states.setdefault((node, service_id), ServiceState(check["ServiceName"]))
        if check_id.startswith(MAINTENANCE_PREFIX):
            state.draining = state.draining or critical
        else:
            state.dead = state.dead or critical
            state.tags = tuple(check.get("ServiceTags") or ())
            state.described.append((check_id, int(check.get("CreateIndex", 0)), check.get("Notes", "")))
    for (node, _), state in states.items():
        state.dead = state.dead or node in dead_nodes or not state.described
        state.draining = state.draining or node in draining_nodes
    return states


def read_service(name: str, service_id: str, tags: Iterable[str], meta: dict[str, str]) -> InstanceRecord:
    """One instance as docs/protocol.md (Discovery) maps it to Consul. Raises ValueError when it is none."""
    prefix = f"{name}-"
    if not service_id.startswith(prefix):
        raise ValueError(f"its ID must be {prefix}<instance_id>")
    return InstanceRecord.model_validate(
        {
            "name": name,
            "instance_id": service_id.removeprefix(prefix),
            "task_types": [
                tag.removeprefix(CONSUL_TASK_TAG_PREFIX) for tag in tags if tag.startswith(CONSUL_TASK_TAG_PREFIX)
            ],
            "protocol": int(meta.get("protocol", "1")),
            "version": meta.get("version", "0.0.0"),
            "max_concurrency": int(meta.get("max_concurrency", "1")),
            "metadata": {key: value for key, value in meta.items() if key not in META_FIELDS},
        }
    )


class ConsulFollower(Follower):
    """Follows Consul for ever."""

    def __init__(self, api: ConsulApi, *, load_timeout_seconds: float) -> None:
        super().__init__(load_timeout_seconds=load_timeout_seconds)
        self._api = api
        self._index = 0
        self._fingerprints: dict[ServiceKey, object] = {}
        self._described: dict[ServiceKey, tuple[object, object]] = {}
        self._ready: dict[ServiceKey, InstanceRecord] = {}
        self._draining: dict[ServiceKey, InstanceRecord] = {}
        self._shown: dict[Key, InstanceRecord] = {}
        self._refusals = Refusals()
        self._warned_of_filter = False
        self._unresolved_tries = 0
        self._was_lost = False
        self._grace_until = 0.0
        self._next_refresh = 0.0
        self._delay = RETRY_FIRST_SECONDS
        self._polling = PeriodicTask("discovery-consul-watch", self._follow, seconds=MIN_INTERVAL_SECONDS, jitter=0)

    def _start(self) -> None:
        self._polling.start()

    async def _stop(self) -> None:
        await self._polling.stop()

    async def _follow(self) -> float:
        """One query, or its failure; returns the seconds until the next one."""
        try:
            pause = await self._poll()
        except DiscoveryError as error:
            self._lost(error.message)
        except Exception as error:
            # A watch that dies would leave a registry that seems alive.
            log.exception("the watch of Consul failed, watching again")
            self._lost(f"{type(error).__name__}: {error}")
        else:
            self._delay = RETRY_FIRST_SECONDS
            return pause
        delay, self._delay = self._delay, min(self._delay * 2, RETRY_MAX_SECONDS)
        return delay * random.uniform(0.75, 1.25)

    async def _poll(self) -> float:
        """One query, its result applied; returns how long to wait before the next one."""
        now = time.monotonic()
        due = [moment - now for moment in (self._grace_until, self._next_refresh) if moment]
        wait = max(1.0, min([WAIT_SECONDS, *due]) * random.uniform(0.9, 1.0))
        index, checks = await self._api.mesh_checks(self._index, wait)
        if index < self._index:
            # Consul was restored or made anew, its index with it: what the old index stood for is void.
            self._index = 0
            self._fingerprints.clear()
            self._grace_until = time.monotonic() + GRACE_SECONDS
            return 0.0
        if self._was_lost:
            self._was_lost = False
            self._grace_until = time.monotonic() + GRACE_SECONDS
        unchanged = index == self._index and time.monotonic() < self._next_refresh
        self._index = max(index, 1)
        if unchanged and not self.registry.stale and not self._grace_until:
            return 0.0
        states = read_checks(checks)
        resolved = await self._describe(states)
        self._show(states)
        self._found()
        if resolved or self._unresolved_tries >= UNRESOLVED_RETRIES:
            self._unresolved_tries = 0
            return MIN_INTERVAL_SECONDS
        self._unresolved_tries += 1
        self._index = 0
        return UNRESOLVED_SECONDS

    async def _describe(self, states: dict[ServiceKey, ServiceState]) -> bool:
        """Read the services that have changed; false when some instance has checks but no description yet."""
        refresh = time.monotonic() >= self._next_refresh
        names = {
            state.name
            for key, state in states.items()
            if not state.dead and (refresh or self._fingerprints.get(key) != state.fingerprint)
        }
        for name in sorted(names):
            for service in await self._api.services(name):
                self._apply_service(name, service)
        for key in [key for key in self._described if key not in states]:
            self._forget(key)
        if refresh:
            self._next_refresh = time.monotonic() + REFRESH_SECONDS * random.uniform(0.9, 1.1)
        resolved = True
        self._fingerprints = {}
        for key, state in states.items():
            if key in self._described:
                self._fingerprints[key] = state.fingerprint
            elif not state.dead:
                resolved = False
        return resolved

    def _apply_service(self, name: str, service: dict[str, Any]) -> None:
        key = (service["Node"], service["ServiceID"])
        tags, meta = service["ServiceTags"] or [], service["ServiceMeta"] or {}
        if self._described.get(key) == (tags, meta):
            return
        self._described[key] = (tags, meta)
        self._ready.pop(key, None)
        self._draining.pop(key, None)
        try:
            record = read_service(name, service["ServiceID"], tags, meta)
        except ValueError as error:
            self._refusals.warn(key, error, key=key[1], node=key[0])
            return
        self._refusals.forget(key)
        self._ready[key] = record
        self._draining[key] = record.model_copy(update={"status": "draining"})

    def _forget(self, key: ServiceKey) -> None:
        self._described.pop(key, None)
        self._ready.pop(key, None)
        self._draining.pop(key, None)

    def _show(self, states: dict[ServiceKey, ServiceState]) -> None:
        shown: dict[Key, InstanceRecord] = {}
        for key, state in states.items():
            record = (self._draining if state.draining else self._ready).get(key)
            if record is not None and not state.dead:
                shown.setdefault(key_of(record), record)
        in_grace = time.monotonic() < self._grace_until
        if in_grace:
            shown = {**self._shown, **shown}
        else:
            self._grace_until = 0.0
        dead = {key_of(record) for key, state in states.items() if state.dead and (record := self._ready.get(key))}
        lost = [key for key in self._shown if key not in shown and key in dead]
        removals = [key for key in self._shown if key not in shown and key not in dead]
        upserts = [record for key, record in shown.items() if self._shown.get(key) is not record]
        self._shown = shown
        self.registry.apply(upserts=upserts, removals=removals, lost=lost)

    def _found(self) -> None:
        self._mark_found()
        if self._api.results_filtered and not self._warned_of_filter:
            self._warned_of_filter = True
            log.warning(
                "Consul hides a part of the registry: CONSUL_HTTP_TOKEN lacks service:read or node:read",
                consul=str(self._api.address),
            )

    def _lost(self, reason: str) -> None:
        self._index = 0
        self._was_lost = True
        self._mark_lost(reason)
