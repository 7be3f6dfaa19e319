"""BucketWatch: follows every key of one NATS KV bucket for ever, through lost brokers and buckets made anew.

It is a plain ephemeral push consumer that is supervised from here: a gap shows in the consumer's sequence, a lost
consumer or a recreated bucket shows in a comparison with the stream from time to time, and after either the bucket is
watched again from the start. (The client library's ordered consumer repairs itself in tasks of its own, and fails
silently when the bucket is gone.)
"""

import asyncio
import random
import time
from dataclasses import dataclass
from typing import Protocol

import nats.errors
import nats.js.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, StreamInfo

from pantheon.discovery.errors import DiscoveryDenied, DiscoveryUnavailable
from protocol.errors import DiscoveryError

REQUEST_TIMEOUT_SECONDS = 3.0
# How often the stream is compared with what was delivered: one small request, the backstop of the watch.
PROBE_SECONDS = 5.0
TICK_SECONDS = 0.5
RETRY_FIRST_SECONDS = 0.25
RETRY_MAX_SECONDS = 5.0
# The broker removes a consumer without a subscriber after this.
INACTIVE_SECONDS = 30.0
# How long delivered messages may lag behind the stream's last sequence before the watch counts as broken.
CATCH_UP_SECONDS = 1.0
CATCH_UP_STEP_SECONDS = 0.02

KV_OPERATION = "KV-Operation"

log = structlog.get_logger(__name__)


class BucketListener(Protocol):
    """What a BucketWatch reports; every method is called on the loop, in the order of the bucket."""

    def value_put(self, key: str, value: bytes, sent_at_ns: int) -> None:
        """A key has this value, sent (by the broker's clock) at this time; also for each key of a first load."""

    def value_deleted(self, key: str) -> None:
        """A key was deleted on purpose. Values that merely age away are not reported: the broker need not announce
        it."""

    def watch_loaded(self) -> None:
        """All that the bucket holds has been reported; from here on come changes."""

    def watch_lost(self, reason: str) -> None:
        """The bucket cannot be followed now; called for each failed try."""


@dataclass(frozen=True)
class AckSubject:
    """The numbers in the reply subject of a JetStream message."""

    stream_sequence: int
    consumer_sequence: int
    sent_at_ns: int
    pending: int


def parse_ack_subject(reply: str) -> AckSubject:
    """Read `$JS.ACK.…` of either form, with and without domain (ADR-15); raises ValueError for anything else."""
    tokens = reply.split(".")
    first = {9: 5, 11: 7, 12: 7}.get(len(tokens))
    if first is None or tokens[:2] != ["$JS", "ACK"]:
        raise ValueError(f"not the reply subject of a JetStream message: {reply!r}")
    return AckSubject(*(int(token) for token in tokens[first : first + 4]))


def explain(error: Exception, bucket: str) -> DiscoveryError:
    """The client library's errors, mapped once for everything that works with a bucket."""
    if isinstance(error, DiscoveryError):
        return error
    if isinstance(error, (nats.js.errors.NotFoundError, nats.js.errors.NoStreamResponseError)):
        return DiscoveryUnavailable(f"the KV bucket {bucket!r} does not exist: the orchestrator makes it on its start")
    if isinstance(error, (nats.errors.NoRespondersError, nats.js.errors.ServiceUnavailableError)):
        return DiscoveryUnavailable("JetStream does not answer: is it enabled, and has the cluster a leader?")
    if isinstance(error, TimeoutError):
        return DiscoveryUnavailable(f"NATS did not answer within {REQUEST_TIMEOUT_SECONDS:g} s")
    if "permission" in str(error).lower():
        return DiscoveryDenied(f"NATS refuses access to the KV bucket {bucket!r}: {error}")
    return DiscoveryUnavailable(f"NATS cannot be used: {error or type(error).__name__}")


class BucketWatch:
    """Follows a bucket; `run` until cancelled, `confirm` to ask whether what was reported is complete."""

    def __init__(
        self,
        client: Client,
        bucket: str,
        listener: BucketListener,
        *,
        probe_seconds: float = PROBE_SECONDS,
        retry_max_seconds: float = RETRY_MAX_SECONDS,
    ) -> None:
        self.bucket = bucket
        self.stream = f"KV_{bucket}"
        self._prefix = f"$KV.{bucket}."
        self._probe_seconds = probe_seconds
        self._retry_max_seconds = retry_max_seconds
        self._client = client
        self._js = client.jetstream(timeout=REQUEST_TIMEOUT_SECONDS)
        self._listener = listener
        self._subscription: Subscription | None = None
        self._consumer = ""
        self._broken = asyncio.Event()
        self._broken_reason = ""
        self._loading: asyncio.Future[None] | None = None
        self._created: object = None
        self._seen = 0
        self._expected = 1
        self._reconnects = -1

    @property
    def attached(self) -> bool:
        """Whether the bucket is being followed, as far as is known without asking."""
        return self._subscription is not None and not self._broken.is_set() and self._client.is_connected

    async def run(self) -> None:
        """Follow for ever."""
        delay = RETRY_FIRST_SECONDS
        try:
            while True:
                try:
                    await self._attach()
                    self._listener.watch_loaded()
                    delay = RETRY_FIRST_SECONDS
                    await self._follow()
                except DiscoveryError as error:
                    self._listener.watch_lost(error.message)
                except Exception as error:
                    # A watch that dies would leave a registry that seems alive.
                    log.exception("the watch of a KV bucket failed, watching again", bucket=self.bucket)
                    self._listener.watch_lost(f"{type(error).__name__}: {error}")
                await self._detach()
                await asyncio.sleep(delay * random.uniform(0.75, 1.25))
                delay = min(delay * 2, self._retry_max_seconds)
                while not self._client.is_connected:
                    await asyncio.sleep(TICK_SECONDS / 2)
                    delay = RETRY_FIRST_SECONDS
        finally:
            await self._detach()

    async def confirm(self) -> bool:
        """Ask the broker now: true when the bucket is the one followed and everything in it has been reported."""
        if not self.attached:
            return False
        # What arrives while the reply is on its way is newer than the reply.
        seen = self._seen
        try:
            info = await self._stream_info()
        except DiscoveryError as error:
            self._break(error.message)
            return False
        if info.created != self._created or info.state.last_seq < seen:
            self._break(f"the KV bucket {self.bucket!r} was made anew")
            return False
        waited = 0.0
        while self._seen < info.state.last_seq:
            if waited >= CATCH_UP_SECONDS:
                self._break(f"the watch of the KV bucket {self.bucket!r} fell behind")
                return False
            await asyncio.sleep(CATCH_UP_STEP_SECONDS)
            waited += CATCH_UP_STEP_SECONDS
        return self.attached

    async def _attach(self) -> None:
        if not self._client.is_connected:
            raise DiscoveryUnavailable("NATS is not connected")
        self._broken.clear()
        self._reconnects = self._client.stats["reconnects"]
        info = await self._stream_info()
        inbox = self._client.new_inbox()
        self._loading = asyncio.get_running_loop().create_future()
        self._expected = 1
        try:
            self._subscription = await self._client.subscribe(inbox, cb=self._on_message)
            consumer = await self._js.add_consumer(
                self.stream,
                ConsumerConfig(
                    deliver_subject=inbox,
                    deliver_policy=DeliverPolicy.LAST_PER_SUBJECT,
                    filter_subject=self._prefix + ">",
                    ack_policy=AckPolicy.NONE,
                    mem_storage=True,
                    num_replicas=1,
                    inactive_threshold=INACTIVE_SECONDS,
                ),
            )
            self._consumer = consumer.name
            delivered = consumer.delivered.consumer_seq if consumer.delivered else 0
            if not consumer.num_pending and not delivered:
                self._set_loaded()
            async with asyncio.timeout(REQUEST_TIMEOUT_SECONDS * 2):
                await self._loading
        except (nats.errors.Error, TimeoutError) as error:
            raise explain(error, self.bucket) from error
        # The stream's last sequence counts messages that it no longer holds and never delivered: none of those is
        # missing.
        self._created = info.created
        self._seen = max(self._seen, info.state.last_seq)

    async def _follow(self) -> None:
        """Returns when the bucket has to be watched again."""
        next_probe = time.monotonic() + self._probe_seconds * random.uniform(0.8, 1.2)
        while not self._broken.is_set():
            try:
                async with asyncio.timeout(TICK_SECONDS):
                    await self._broken.wait()
            except TimeoutError:
                if not self._client.is_connected:
                    self._break("NATS is not connected")
                elif self._client.stats["reconnects"] != self._reconnects:
                    self._break("NATS was connected again")
                elif time.monotonic() >= next_probe:
                    await self.confirm()
                    next_probe = time.monotonic() + self._probe_seconds * random.uniform(0.8, 1.2)
        raise DiscoveryUnavailable(self._broken_reason)

    async def _stream_info(self) -> StreamInfo:
        try:
            return await self._js.stream_info(self.stream)
        except (nats.errors.Error, TimeoutError) as error:
            raise explain(error, self.bucket) from error

    async def _detach(self) -> None:
        subscription, self._subscription = self._subscription, None
        self._seen = 0
        if subscription is None or self._client.is_closed:
            return
        try:
            await subscription.unsubscribe()
            if self._client.is_connected and self._consumer:
                # The broker would notice by itself; the request saves it half a minute of sending to no subscriber.
                consumer, self._consumer = self._consumer, ""
                async with asyncio.timeout(1.0):
                    await self._js.delete_consumer(self.stream, consumer)
        except (nats.errors.Error, TimeoutError):
            pass

    async def _on_message(self, message: Msg) -> None:
        if self._broken.is_set():
            return
        try:
            delivery = parse_ack_subject(message.reply)
        except ValueError:
            return
        if delivery.consumer_sequence != self._expected:
            self._break(f"messages of the KV bucket {self.bucket!r} were missed")
            return
        self._expected += 1
        self._seen = delivery.stream_sequence
        key = message.subject[len(self._prefix) :]
        headers = message.headers
        if not headers:
            self._listener.value_put(key, message.data, delivery.sent_at_ns)
        elif headers.get(KV_OPERATION) in ("DEL", "PURGE"):
            self._listener.value_deleted(key)
        elif "Nats-Marker-Reason" not in headers:
            self._listener.value_put(key, message.data, delivery.sent_at_ns)
        if delivery.pending == 0:
            self._set_loaded()

    def _set_loaded(self) -> None:
        if self._loading is not None and not self._loading.done():
            self._loading.set_result(None)

    def _break(self, reason: str) -> None:
        if not self._broken.is_set():
            self._broken_reason = reason
            self._broken.set()
