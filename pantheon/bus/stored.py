"""Stored messages: those of a stream, read and removed without a consumer; and where a consumer stands in it."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass

import structlog
from nats.errors import Error as NatsError
from nats.js.api import RawStreamMsg
from nats.js.errors import NotFoundError

from pantheon.bus.acks import stream_position
from pantheon.bus.connection import Bus, Delivery
from protocol.errors import BusError

log = structlog.get_logger()

# A batch of which nothing comes for so long is lost.
BATCH_SECONDS = 5.0


class NoBatches(BusError):
    """The server has no batched reads of stored messages: it is older than 2.11."""

    retryable = False


@dataclass(frozen=True)
class Stored:
    sequence: int
    subject: str
    data: bytes
    headers: Mapping[str, str]

    def as_delivery(self, bus: Bus) -> "StoredDelivery":
        """As if it had come by a subscription; acknowledging it does nothing."""
        made = StoredDelivery(_client=bus.client, subject=self.subject, data=self.data, headers=dict(self.headers))
        made.sequence = self.sequence
        return made


class StoredDelivery(Delivery):
    """A message that was read from its stream."""

    sequence: int = 0


def stream_sequence(delivery: Delivery) -> int | None:
    """The sequence of a message in its stream; None for one of core NATS."""
    if isinstance(delivery, StoredDelivery):
        return delivery.sequence
    position = stream_position(delivery)
    return None if position is None else position.sequence


async def stored_at(bus: Bus, stream: str, sequence: int) -> Stored | None:
    """The message of that sequence, or None where it is gone. Raises BusError."""
    return await _get(bus, stream, sequence, subject=None)


async def stored_from(bus: Bus, stream: str, sequence: int, subject: str) -> Stored | None:
    """The first message on `subject` (which may hold wildcards) from that sequence on, or None. Raises BusError."""
    return await _get(bus, stream, sequence, subject=subject)


async def _get(bus: Bus, stream: str, sequence: int, *, subject: str | None) -> Stored | None:
    try:
        found: RawStreamMsg = await bus.js.get_msg(stream, seq=sequence, subject=subject, next=subject is not None)
    except NotFoundError:
        return None
    except (TimeoutError, NatsError, OSError) as error:
        raise BusError(f"cannot read the stream {stream}: {error or type(error).__name__}") from error
    return Stored(found.seq or sequence, found.subject or "", found.data or b"", dict(found.headers or {}))


async def stored_batch(
    bus: Bus, stream: str, subject: str, *, start: int, count: int, max_bytes: int
) -> tuple[list[Stored], int]:
    """Messages on `subject` from the sequence `start` on, in their order: at most `count`, or `max_bytes` together, but
    at least one where there is one; and how many come after them. One request (NATS ADR-31: batched direct get).

    Raises BusError, NoBatches.
    """
    inbox = bus.new_inbox()
    found: list[Stored] = []
    ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def on_message(message: Delivery) -> None:
        headers = message.headers or {}
        if ended.done():
            return
        # The server adds subject and sequence to every stored message, and to none of its own. A status shows nothing:
        # the sender of a stored message may have added a header of that name.
        if "Nats-Subject" not in headers or "Nats-Sequence" not in headers:
            status = headers.get("Status", "")
            left = headers.get("Nats-Num-Pending", "")
            if status == "204" or status == "404":
                ended.set_result(int(left) if left.isdigit() else 0)
            else:
                ended.set_exception(
                    BusError(f"cannot read the stream {stream}: {headers.get('Description') or status}")
                )
            return
        if "Nats-Num-Pending" not in headers:
            ended.set_exception(NoBatches("the NATS server reads no batches of stored messages: it is older than 2.11"))
            return
        own = {name: value for name, value in headers.items() if not name.startswith("Nats-")}
        found.append(Stored(int(headers["Nats-Sequence"]), headers["Nats-Subject"], message.data, own))

    subscription = await bus.subscribe_direct(inbox, on_message)
    try:
        request = {"seq": start, "batch": count, "max_bytes": max_bytes, "next_by_subj": subject}
        await bus.publish(f"$JS.API.DIRECT.GET.{stream}", json.dumps(request).encode(), reply=inbox)
        async with asyncio.timeout(BATCH_SECONDS):
            return found, await ended
    except TimeoutError:
        raise BusError(f"cannot read the stream {stream}: no answer within {BATCH_SECONDS:g} s") from None
    finally:
        await bus.unsubscribe(subscription)


async def remove_stored(bus: Bus, stream: str, sequence: int) -> None:
    """Remove a message from its stream. One that stays, because the broker is away, can be removed later."""
    try:
        # The library's own call makes the server overwrite the message on its disk, which takes milliseconds.
        request = json.dumps({"seq": sequence, "no_erase": True}).encode()
        await bus.request(f"$JS.API.STREAM.MSG.DELETE.{stream}", request, timeout_seconds=BATCH_SECONDS)
    except BusError as error:
        log.debug("stored.kept", stream=stream, sequence=sequence, error=str(error) or type(error).__name__)


async def pending_messages(bus: Bus, stream: str, durable_name: str) -> int | None:
    """How many messages of a consumer are not delivered or not acknowledged; None where the broker does not respond, or
    the consumer does not exist yet."""
    try:
        info = await bus.js.consumer_info(stream, durable_name)
    except (TimeoutError, NatsError, OSError) as error:
        log.debug("consumer.not_counted", consumer=durable_name, error=str(error) or type(error).__name__)
        return None
    return (info.num_pending or 0) + (info.num_ack_pending or 0)


async def delivered_sequence(bus: Bus, stream: str, durable_name: str) -> int | None:
    """The sequence of the newest message that a consumer has delivered; None where the broker does not respond."""
    try:
        info = await bus.js.consumer_info(stream, durable_name)
    except (TimeoutError, NatsError, OSError) as error:
        log.debug("consumer.not_asked", consumer=durable_name, error=str(error) or type(error).__name__)
        return None
    return None if info.delivered is None else info.delivered.stream_seq
