"""Discovery by a NATS JetStream KV bucket: `agents`, TTL 15 s, key `<name>.<instance_id>` (PROTOCOL.md, Discovery).

The bucket's TTL makes silent instances vanish for those who read it anew; whoever follows it keeps an expiry of its
own, because a broker need not announce what aged away. An instance is dropped only on the word of a broker that has
just answered, so an outage of the broker never looks like the death of everybody.
"""

import asyncio
import contextlib
import time
from types import TracebackType
from typing import Self

import nats.errors
import nats.js.errors
import structlog
from nats.aio.client import Client
from nats.js.api import StorageType, StreamInfo
from nats.js.client import JetStreamContext

from pantheon.discovery.interface import DiscoveryUnavailable
from pantheon.discovery.kv_watch import REQUEST_TIMEOUT_SECONDS, BucketWatch, explain
from pantheon.discovery.refusals import Refusals
from pantheon.discovery.registration import KeptRegistration
from pantheon.discovery.registry import Registry
from pantheon.runtime.background import end
from protocol.discovery import KV_BUCKET, REFRESH_SECONDS, TTL_SECONDS, InstanceRecord

log = structlog.get_logger(__name__)

# A put may be on its way for a moment when the TTL is over; who is silent for longer than both is gone.
EXPIRY_MARGIN_SECONDS = 1.5
EXPIRY_TICK_SECONDS = 0.5
# An orchestrator that makes the bucket, or a connection that is back, is met within this time.
RETRY_SECONDS = 1.0
LOAD_TIMEOUT_SECONDS = 5.0
STREAM_NAME_IN_USE = 10058
BUCKET_STREAM = f"KV_{KV_BUCKET}"


async def ensure_bucket(
    js: JetStreamContext, replicas: int = 1, *, bucket: str = KV_BUCKET, ttl_seconds: float = TTL_SECONDS
) -> None:
    """Make the bucket, or bring an existing one to the contract's TTL and the wanted replicas; the orchestrator's task.

    On file, although it lives for seconds: a bucket in memory would be gone after a broker's restart, and everybody
    would wait for an orchestrator to make it again.
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
        wanted = info.config.evolve(
            max_age=ttl_seconds, duplicate_window=ttl_seconds, max_msgs_per_subject=1, num_replicas=replicas
        )
        await js.update_stream(wanted)
    except (nats.errors.Error, TimeoutError) as error:
        raise explain(error, bucket) from error


class KvRegistration(KeptRegistration):
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


class KvFollower:
    """Feeds a Registry from the bucket: parses what is new, expires who is silent."""

    def __init__(self, client: Client, bucket: str, ttl_seconds: float) -> None:
        self._ttl_seconds = ttl_seconds
        self.registry = Registry(on_close=self.close)
        self._watch = BucketWatch(client, bucket, self)
        self._values: dict[str, bytes] = {}
        self._records: dict[str, InstanceRecord] = {}
        # In the order in which instances were last heard of: the silent ones are at the front.
        self._heard: dict[str, float] = {}
        self._refusals = Refusals()
        self._loading: list[tuple[str, bytes, int]] | None = []
        self._loaded_once = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Follow; returns when loaded, or after a while without the source."""
        self._tasks = [
            asyncio.create_task(self._watch.run(), name="discovery-kv-watch"),
            asyncio.create_task(self._expire_for_ever(), name="discovery-kv-expiry"),
        ]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOAD_TIMEOUT_SECONDS):
                await self._loaded_once.wait()

    async def close(self) -> None:
        """Stop following."""
        tasks, self._tasks = self._tasks, []
        await end(tasks)

    # BucketListener

    def value_put(self, key: str, value: bytes, sent_at_ns: int) -> None:
        if self._loading is not None:
            self._loading.append((key, value, sent_at_ns))
            return
        if self._heard.pop(key, None) is not None and self._values.get(key) == value:
            self._heard[key] = time.monotonic()
            return
        record = self._take(key, value, time.monotonic())
        if record is not None:
            self.registry.apply(upserts=(record,))

    def value_deleted(self, key: str) -> None:
        if self._loading is not None:
            self._loading = [entry for entry in self._loading if entry[0] != key]
        self._remove([key])

    def watch_loaded(self) -> None:
        loading, self._loading = self._loading or [], None
        now = time.monotonic()
        if not self._loaded_once.is_set():
            # By the broker's own clock, compared with the newest entry: clocks of two machines need not agree.
            newest = max((sent for _, _, sent in loading), default=0)
            ages = {key: (newest - sent) / 1e9 for key, _, sent in loading}
        else:
            # The source was away, and so were the puts: everybody known gets a whole TTL to be heard again.
            ages = {}
            self._heard = dict.fromkeys(self._heard, now)
        taken = (self._take(key, value, now - ages.get(key, 0.0)) for key, value, _ in loading)
        self.registry.apply(upserts=[record for record in taken if record is not None])
        was_stale = self.registry.stale and self._loaded_once.is_set()
        self._loaded_once.set()
        self.registry.mark_fresh()
        if was_stale:
            log.info("the registry is current again", instances=len(self.registry))

    def watch_lost(self, reason: str) -> None:
        first_failure = not self.registry.stale or self.registry.degraded_reason == "not loaded yet"
        self._loading = []
        self.registry.mark_stale(reason)
        if first_failure:
            log.warning("the registry cannot be followed, the last known one is kept", reason=reason)

    def _take(self, key: str, value: bytes, heard_at: float) -> InstanceRecord | None:
        """The record of a value that is new, or nothing; one that does not validate is refused once a key."""
        self._heard.pop(key, None)
        if self._values.get(key) == value:
            self._heard[key] = heard_at
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
        self._heard[key] = heard_at
        return record

    def _remove(self, keys: list[str]) -> None:
        removals = []
        for key in keys:
            self._heard.pop(key, None)
            self._values.pop(key, None)
            record = self._records.pop(key, None)
            if record is not None:
                removals.append((record.name, record.instance_id))
        self.registry.apply(removals=removals)

    async def _expire_for_ever(self) -> None:
        while True:
            await asyncio.sleep(EXPIRY_TICK_SECONDS)
            if self._silent() and self._watch.attached and await self._watch.confirm():
                # Asked again: while the broker was answering, some may have been heard.
                silent = self._silent()
                if silent:
                    log.warning("instances fell silent and leave the registry", keys=silent[:20], count=len(silent))
                    self._remove(silent)

    def _silent(self) -> list[str]:
        horizon = time.monotonic() - self._ttl_seconds - EXPIRY_MARGIN_SECONDS
        silent = []
        for key, heard_at in self._heard.items():
            if heard_at > horizon:
                break
            silent.append(key)
        return silent


class NatsKvDiscovery:
    """Discovery by the bucket `agents`, over a connection that belongs to the caller.

    Another TTL than the contract's is for tests, which would rather not wait for it.
    """

    def __init__(self, client: Client, *, bucket: str = KV_BUCKET, ttl_seconds: float = TTL_SECONDS) -> None:
        self._client = client
        self._bucket = bucket
        self._ttl_seconds = ttl_seconds
        self._registrations: list[KvRegistration] = []
        self._followers: list[KvFollower] = []

    async def register(self, record: InstanceRecord) -> KvRegistration:
        """See Discovery.register. A missing bucket is waited for: the orchestrator makes it."""
        registration = KvRegistration(
            self._client, record, self._bucket, self._ttl_seconds * REFRESH_SECONDS / TTL_SECONDS
        )
        self._registrations.append(registration)
        await registration.start()
        return registration

    async def registry(self) -> Registry:
        """See Discovery.registry."""
        follower = KvFollower(self._client, self._bucket, self._ttl_seconds)
        self._followers.append(follower)
        await follower.start()
        return follower.registry

    async def close(self) -> None:
        """Close all that was made here; the connection stays open."""
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
