"""The mesh's streams in JetStream: made by the orchestrator, brought to their settings, compared to find a loss."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from nats.errors import Error as NatsError
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DeliverPolicy,
    DiscardPolicy,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)
from nats.js.errors import NotFoundError

from pantheon.bus.connection import Bus, Delivery, Subscription
from pantheon.bus.objects import ensure_objects
from pantheon.bus.storage import LEAST_BYTES, StorageBudget, StorageRefused, is_refusal, storage_budget
from protocol.errors import BusError
from protocol.streams import ALL_STREAMS, ConsumerSpec, StreamSpec

log = structlog.get_logger()


def stream_config(spec: StreamSpec, replicas: int, max_bytes: int) -> StreamConfig:
    return StreamConfig(
        name=spec.name,
        subjects=list(spec.subjects),
        retention=RetentionPolicy.WORK_QUEUE if spec.retention == "workqueue" else RetentionPolicy.LIMITS,
        discard=DiscardPolicy.NEW if spec.discard == "new" else DiscardPolicy.OLD,
        discard_new_per_subject=spec.discard_new_per_subject,
        max_msgs_per_subject=spec.max_msgs_per_subject,
        max_age=spec.max_age_seconds,
        max_bytes=max_bytes,
        max_consumers=spec.max_consumers,
        storage=StorageType.FILE,
        num_replicas=replicas,
        duplicate_window=spec.duplicate_window_seconds,
        allow_msg_ttl=spec.allow_msg_ttl,
        allow_direct=True,
    )


def consumer_config(spec: ConsumerSpec, *, deliver_new: bool = False) -> ConsumerConfig:
    """`deliver_new`: of the messages that come after the consumer was made, instead of all."""
    return ConsumerConfig(
        durable_name=spec.durable_name,
        filter_subject=spec.filter_subject,
        ack_policy=AckPolicy.EXPLICIT,
        deliver_policy=DeliverPolicy.NEW if deliver_new else DeliverPolicy.ALL,
        ack_wait=spec.ack_wait_seconds,
        max_deliver=spec.max_deliver,
        max_ack_pending=spec.max_ack_pending,
    )


async def ensure_streams(bus: Bus, *, replicas: int = 1, storage_bytes: int | None = None) -> None:
    """Make the mesh's streams and its bucket of large values, or bring them to the contract's settings, and to their
    parts of the storage that there is (`storage_bytes`: at most so much).

    Safe from several processes at once. Raises BusError when JetStream is absent or refuses.
    """
    budget = await storage_budget(bus, replicas=replicas, storage_bytes=storage_bytes)
    while True:
        try:
            for spec in ALL_STREAMS:
                await _ensure_stream(bus, spec, replicas, budget)
            await ensure_objects(bus, replicas=replicas, budget=budget)
            return
        except StorageRefused as error:
            smaller = budget.reduced()
            if smaller.total < LEAST_BYTES:
                raise BusError(
                    f"{error}: the broker's server has less JetStream storage left than the {LEAST_BYTES} bytes that "
                    "the mesh needs (max_file_store in its configuration, or streams of others)"
                ) from error
            log.info("streams.smaller", error=str(error), total_bytes=smaller.total)
            budget = smaller


async def _ensure_stream(bus: Bus, spec: StreamSpec, replicas: int, budget: StorageBudget) -> None:
    config = stream_config(spec, replicas, budget.bound(spec))
    try:
        try:
            info = await bus.js.stream_info(spec.name)
        except NotFoundError:
            await bus.js.add_stream(config)
            log.info("stream.made", stream=spec.name, replicas=replicas, max_bytes=config.max_bytes)
            return
        bound = info.config.max_bytes or -1
        if not budget.exact and 0 < bound < (config.max_bytes or 0):
            # What was there room for once; each start would else try for more.
            config.max_bytes = bound
        if spec.discard == "new":
            # What is in it must not stop it from taking more.
            config.max_bytes = max(config.max_bytes or 0, min(info.state.bytes * 5 // 4, budget.total))
        if _differs(info.config, config):
            await bus.js.update_stream(config)
            log.info("stream.updated", stream=spec.name, replicas=replicas, max_bytes=config.max_bytes)
    except (TimeoutError, NatsError, OSError) as error:
        if is_refusal(error):
            raise StorageRefused(f"no room for {config.max_bytes} bytes of the stream {spec.name} ({error})") from error
        raise BusError(
            f"cannot make the stream {spec.name}: {error or type(error).__name__} (is JetStream on, "
            f"and are there {replicas} servers for its {replicas} replicas?)"
        ) from error


def _differs(found: StreamConfig, required: StreamConfig) -> bool:
    names = (
        "subjects discard discard_new_per_subject max_msgs_per_subject max_age max_bytes max_consumers "
        "num_replicas duplicate_window allow_msg_ttl"
    ).split()
    return any((getattr(found, name) or None) != (getattr(required, name) or None) for name in names)


@dataclass(frozen=True)
class StreamMark:
    """Where a stream stands. A later mark with another `created`, or a lower `last_sequence`, means lost messages."""

    created: str
    last_sequence: int

    def lost_since(self, before: "StreamMark") -> bool:
        return self.created != before.created or self.last_sequence < before.last_sequence


async def stream_mark(bus: Bus, name: str) -> StreamMark | None:
    """The stream's mark, or None where it does not exist. Raises BusError when the broker does not respond."""
    try:
        info = await bus.js.stream_info(name)
    except NotFoundError:
        return None
    except (TimeoutError, NatsError, OSError) as error:
        raise BusError(f"cannot read the stream {name}: {error or type(error).__name__}") from error
    return StreamMark(str(info.created), info.state.last_seq)


# JetStream announces every request that changed something on core NATS; here, a purge.
API_ADVISORIES = "$JS.EVENT.ADVISORY.API"
_PURGE = re.compile(r"\$JS\.(?:[^.]+\.)?API\.STREAM\.PURGE\.(.+)")


@dataclass(frozen=True)
class Purge:
    """A removal of messages from a stream: those of `subject`, or all. `id` is the broker's, for this request."""

    stream: str
    subject: str | None
    id: str


async def on_purge(bus: Bus, callback: Callable[[Purge], None]) -> Subscription:
    """Call `callback` for each purge of a stream, which neither its creation time nor its last sequence shows."""

    async def on_advisory(delivery: Delivery) -> None:
        try:
            advisory = json.loads(delivery.data)
            purged = _PURGE.fullmatch(advisory["subject"])
            if purged is not None:
                request = json.loads(advisory["request"] or "{}")
                callback(Purge(purged[1], request.get("filter") or None, advisory["id"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            log.debug("advisory.unread", error=str(error))

    return await bus.subscribe(API_ADVISORIES, on_advisory)
