"""Discovery by a NATS JetStream KV bucket: `agents`, TTL 15 s, key `<name>.<instance_id>` (docs/protocol.md,
Discovery).

The bucket's TTL makes silent instances vanish for readers that come anew; a follower keeps an expiry of its own,
because a broker need not announce what aged away. An instance is dropped only after a response of the broker that
confirms what was followed, so an outage of the broker is never taken for the death of every instance.
"""

import asyncio
import time

import nats.errors
import nats.js.errors
import structlog
from nats.aio.client import Client
from nats.js.api import StorageType, StreamInfo
from nats.js.client import JetStreamContext

from pantheon.discovery.errors import DiscoveryUnavailable
from pantheon.discovery.follower import LOAD_TIMEOUT_SECONDS, Follower
from pantheon.discovery.interface import Discovery
from pantheon.discovery.kv_watch import REQUEST_TIMEOUT_SECONDS, BucketWatch, explain
from pantheon.discovery.refusals import Refusals
from pantheon.discovery.registration import Registration
from pantheon.runtime.background import end
from pantheon.runtime.periodic import PeriodicTask
from protocol.discovery import KV_BUCKET, REFRESH_SECONDS, TTL_SECONDS, InstanceRecord

log = structlog.get_logger(__name__)

# A put may be on its way for a moment when the TTL is over; an instance that is silent for longer than both is gone.
EXPIRY_MARGIN_SECONDS = 1.5
EXPIRY_TICK_SECONDS = 0.5
# An instance is registered within this time after an orchestrator made the bucket, or the connection came back.
RETRY_SECONDS = 1.0
STREAM_NAME_IN_USE = 10058
BUCKET_STREAM = f"KV_{KV_BUCKET}"


async def ensure_bucket(
    js: JetStreamContext, replicas: int = 1, *, bucket: str = KV_BUCKET, ttl_seconds: float = TTL_SECONDS
) -> None:
    """Make the bucket, or bring an existing one to the contract's TTL and to these replicas; the orchestrator's task.

    On file, although its values live for seconds: a bucket in memory would be gone after a broker's restart, and all
    instances would wait for an orchestrator to make it again.
    """
    try:
        await js.create_key_value(
            bucket=bucket,
            ttl=ttl_seconds,
            history=1,
            storage=StorageType.FILE,
            replicas=replicas,
            direct=True,
            description="Instances of agents, alive",
        )
    except nats.js.errors.APIError as error:
        if error.err_code != STREAM_NAME_IN_USE:
            raise explain(error, bucket) from error
        await _adjust_bucket(js, bucket, replicas, ttl_seconds)
    except (nats.errors.Error, TimeoutError) as error:
        raise explain(error, bucket) from error


async def _adjust_bucket(js: JetStreamContext, bucket: str, replicas: int, ttl_seconds: float) -> None:
    try:
        info: StreamInfo = await js.stream_info(f"KV_{bucket}")
        config = info.config.evolve(
            max_age=ttl_seconds, duplicate_window=ttl_seconds, max_msgs_per_subject=1, num_replicas=replicas
        )
        await js.update_stream(config)
    except (nats.errors.Error, TimeoutError) as error:
        raise explain(error, bucket) from error


class KvRegistration(Registration):
    """One instance's key, put again every 5 s until closed."""

    def __init__(self, client: Client, record: InstanceRecord, bucket: str, refresh_seconds: float) -> None:
        super().__init__(record, refresh_seconds=refresh_seconds, retry_max_seconds=RETRY_SECONDS)
        self._client = client
        self._js = client.jetstream(timeout=REQUEST_TIMEOUT_SECONDS)
        self._bucket = bucket

    async def _keep(self, record: InstanceRecord) -> None:
        await self._publish(record, record.model_dump_json().encode())

    async def _remove(self, record: InstanceRecord) -> None:
        await self._publish(record, b"", {"KV-Operation": "DEL"})

    async def _publish(self, record: InstanceRecord, value: bytes, headers: dict[str, str] | None = None) -> None:
        if not self._client.is_connected:
            # Publishing now would only fill the client's buffer with puts that are old when they arrive.
            raise DiscoveryUnavailable("NATS is not connected")
        try:
            await self._js.publish(f"$KV.{self._bucket}.{record.key}", value, headers=headers)
        except (nats.errors.Error, TimeoutError) as error:
            raise explain(error, self._bucket) from error


class KvFollower(Follower):
    """Follows the bucket: parses what is new, expires silent instances."""

    def __init__(self, client: Client, bucket: str, ttl_seconds: float, *, load_timeout_seconds: float) -> None:
        super().__init__(load_timeout_seconds=load_timeout_seconds)
        self._ttl_seconds = ttl_seconds
        self._watch = BucketWatch(client, bucket, self)
        self._values: dict[str, bytes] = {}
        self._records: dict[str, InstanceRecord] = {}
        # In the order in which instances were last seen: the silent ones are at the front.
        self._seen: dict[str, float] = {}
        self._refusals = Refusals()
        self._loading: list[tuple[str, bytes, int]] | None = []
        self._watching: asyncio.Task[None] | None = None
        self._expiry = PeriodicTask(
            "discovery-kv-expiry", self._expire, seconds=EXPIRY_TICK_SECONDS, jitter=0, at_start=False
        )

    def _start(self) -> None:
        self.registry.show_renewals(lambda key: self._seen.get(f"{key[0]}.{key[1]}"))
        self._watching = asyncio.create_task(self._watch.run(), name="discovery-kv-watch")
        self._expiry.start()

    async def _stop(self) -> None:
        if self._watching is not None:
            await end([self._watching])
        await self._expiry.stop()

    # BucketListener

    def value_put(self, key: str, value: bytes, sent_at_ns: int) -> None:
        if self._loading is not None:
            self._loading.append((key, value, sent_at_ns))
            return
        if self._seen.pop(key, None) is not None and self._values.get(key) == value:
            self._seen[key] = time.monotonic()
            return
        record = self._accept(key, value, time.monotonic())
        if record is not None:
            self.registry.apply(upserts=(record,))

    def value_deleted(self, key: str) -> None:
        if self._loading is not None:
            self._loading = [entry for entry in self._loading if entry[0] != key]
        self._remove([key])

    def watch_loaded(self) -> None:
        loading, self._loading = self._loading or [], None
        now = time.monotonic()
        if not self._loaded.is_set():
            # By the broker's own clock, compared with the newest entry: clocks of two machines need not agree.
            newest = max((sent for _, _, sent in loading), default=0)
            ages = {key: (newest - sent) / 1e9 for key, _, sent in loading}
        else:
            # The source was away, and so were the puts: every known instance gets a whole TTL to be seen again.
            ages = {}
            self._seen = dict.fromkeys(self._seen, now)
        accepted = (self._accept(key, value, now - ages.get(key, 0.0)) for key, value, _ in loading)
        self.registry.apply(upserts=[record for record in accepted if record is not None])
        self._mark_found()

    def watch_lost(self, reason: str) -> None:
        self._loading = []
        self._mark_lost(reason)

    def _accept(self, key: str, value: bytes, seen_at: float) -> InstanceRecord | None:
        """The record of a value; None, with one warning for each key, for a value that is not valid."""
        self._seen.pop(key, None)
        if self._values.get(key) == value:
            self._seen[key] = seen_at
            return self._records[key]
        try:
            record = InstanceRecord.model_validate_json(value)
            if record.key != key:
                raise ValueError(f"it names itself {record.key}")
        except ValueError as error:
            self._remove([key])
            self._refusals.warn(key, error, key=key)
            return None
        self._refusals.forget(key)
        self._values[key] = value
        self._records[key] = record
        self._seen[key] = seen_at
        return record

    def _remove(self, keys: list[str], *, lost: bool = False) -> None:
        removals = []
        for key in keys:
            self._seen.pop(key, None)
            self._values.pop(key, None)
            record = self._records.pop(key, None)
            if record is not None:
                removals.append((record.name, record.instance_id))
        if lost:
            self.registry.apply(lost=removals)
        else:
            self.registry.apply(removals=removals)

    async def _expire(self) -> None:
        if self._silent() and self._watch.attached and await self._watch.confirm():
            # Computed again: while the broker was responding, some may have been seen.
            silent = self._silent()
            if silent:
                log.warning("instances fell silent and leave the registry", keys=silent[:20], count=len(silent))
                self._remove(silent, lost=True)

    def _silent(self) -> list[str]:
        horizon = time.monotonic() - self._ttl_seconds - EXPIRY_MARGIN_SECONDS
        silent = []
        for key, seen_at in self._seen.items():
            if seen_at > horizon:
                break
            silent.append(key)
        return silent


class NatsKvDiscovery(Discovery):
    """Discovery by the bucket `agents`, over a connection that belongs to the caller.

    Another TTL or load timeout than the contract's is for tests, which would wait for it. A missing bucket is waited
    for: the orchestrator makes it.
    """

    def __init__(
        self,
        client: Client,
        *,
        bucket: str = KV_BUCKET,
        ttl_seconds: float = TTL_SECONDS,
        load_timeout_seconds: float = LOAD_TIMEOUT_SECONDS,
    ) -> None:
        super().__init__()
        self._client = client
        self._bucket = bucket
        self._ttl_seconds = ttl_seconds
        self._load_timeout_seconds = load_timeout_seconds

    def _registration_of(self, record: InstanceRecord) -> KvRegistration:
        refresh_seconds = self._ttl_seconds * REFRESH_SECONDS / TTL_SECONDS
        return KvRegistration(self._client, record, self._bucket, refresh_seconds)

    def _new_follower(self) -> KvFollower:
        return KvFollower(
            self._client, self._bucket, self._ttl_seconds, load_timeout_seconds=self._load_timeout_seconds
        )
