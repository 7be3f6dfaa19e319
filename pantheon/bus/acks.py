"""Acks that may be lost: a message that was not acknowledged comes again, and changes nothing the second time."""

from collections.abc import Awaitable

import structlog
from nats.errors import Error as NatsError

from pantheon.bus.client import Client
from pantheon.bus.connection import Delivery
from protocol.errors import BusError

log = structlog.get_logger()

# Which token of an ack's subject counts the deliveries, by how many there are: two forms, and one token that may lack.
_DELIVERED_AT = {9: 4, 11: 6, 12: 6}


def times_delivered(delivery: Delivery) -> int:
    """How often JetStream has delivered it, this time included; 1 for what came by core NATS."""
    try:
        return int(delivery.metadata.num_delivered)
    except NatsError:
        return 1


def is_first_delivery(delivery: Delivery) -> bool:
    """Whether JetStream gives it out for the first time, by the subject that it is acknowledged on: without reading all
    of that, which costs more than passing a message on. False where it cannot be told."""
    tokens = delivery.reply.split(".", 7)
    # $JS.ACK.<stream>.<consumer>.<delivered>… has nine tokens; with the domain and the account's hash it has more.
    at = _DELIVERED_AT.get(delivery.reply.count(".") + 1)
    return at is not None and tokens[:2] == ["$JS", "ACK"] and tokens[at] == "1"


async def acknowledge(delivery: Delivery) -> None:
    """Done with it. What was read from its stream, and not delivered, has no one to tell."""
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
        _note(error)


async def nak(delivery: Delivery, *, after_seconds: float | None = None) -> None:
    """Not begun: another may have it, now or so much later."""
    await _quietly(delivery.nak(delay=after_seconds))


async def hold(delivery: Delivery) -> None:
    """Still at it: nobody else may have it for another AckWait."""
    await _quietly(delivery.in_progress())


async def _quietly(saying: Awaitable[None]) -> None:
    try:
        await saying
    except _LOST as error:
        _note(error)


_LOST = (NatsError, OSError, BusError)


def _note(error: Exception) -> None:
    log.debug("ack.failed", error=str(error) or type(error).__name__)
