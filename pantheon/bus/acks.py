"""Acks, which may be lost: an unacknowledged message is delivered again, and changes nothing the second time."""

from collections.abc import Awaitable
from typing import NamedTuple

import structlog
from nats.errors import Error as NatsError

from pantheon.bus.client import Client
from pantheon.bus.connection import Bus, Delivery
from protocol.errors import BusError

log = structlog.get_logger()

# Which token of an ack subject counts the deliveries, by the number of its tokens: the subject has two forms, and the
# last token of the longer one may be absent.
_DELIVERED_AT = {9: 4, 11: 6, 12: 6}


def times_delivered(delivery: Delivery) -> int:
    """How often JetStream has delivered a message, this time included; 1 for a message of core NATS."""
    try:
        return int(delivery.metadata.num_delivered)
    except NatsError:
        return 1


class StreamPosition(NamedTuple):
    """Where a delivered message is in its stream, and how many messages its consumer has behind it."""

    sequence: int
    behind: int


def stream_position(delivery: Delivery) -> StreamPosition | None:
    """None for a message of core NATS."""
    try:
        metadata = delivery.metadata
    except NatsError:
        return None
    return StreamPosition(int(metadata.sequence.stream), int(metadata.num_pending))


def is_first_delivery(delivery: Delivery) -> bool:
    """Whether JetStream delivers a message for the first time; False where its ack subject does not show it.

    Only the token that counts deliveries is read: parsing the whole subject costs more than forwarding the message.
    """
    tokens = delivery.reply.split(".", 7)
    # $JS.ACK.<stream>.<consumer>.<delivered>… has nine tokens; with the domain and the account's hash it has more.
    at = _DELIVERED_AT.get(delivery.reply.count(".") + 1)
    return at is not None and tokens[:2] == ["$JS", "ACK"] and tokens[at] == "1"


async def acknowledge(delivery: Delivery) -> None:
    """Acknowledge a message: it is done. One that was read from its stream has no subject to acknowledge on."""
    client = delivery._client
    if not delivery.reply:
        return
    if isinstance(client, Client) and not delivery.is_acked:
        delivery._ackd = client.post(delivery.reply, b"")
    if delivery.is_acked:
        return
    try:
        await delivery.ack()
    except _LOST as error:
        _log_lost(error)


async def nak(delivery: Delivery, *, after_seconds: float | None = None) -> None:
    """Return a message to its queue unprocessed: JetStream delivers it again, now or after `after_seconds`."""
    await _or_lose(delivery.nak(delay=after_seconds))


async def hold(delivery: Delivery) -> None:
    """Report that work on a message goes on: no other instance gets the message for another AckWait."""
    await _or_lose(delivery.in_progress())


async def hold_over(bus: Bus, delivery: Delivery) -> None:
    """As `hold`, over another connection than the one that the message came by."""
    if delivery.reply:
        await bus.publish_quietly(delivery.reply, Delivery.Ack.Progress)


async def _or_lose(sending: Awaitable[None]) -> None:
    try:
        await sending
    except _LOST as error:
        _log_lost(error)


_LOST = (NatsError, OSError, BusError)


def _log_lost(error: Exception) -> None:
    log.debug("ack.failed", error=str(error) or type(error).__name__)
