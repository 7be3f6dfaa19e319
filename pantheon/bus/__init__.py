"""NATS, the one place that knows its client library: connection, pulling, publishing, streams, objects."""

from pantheon.bus.acks import acknowledge, hold, is_first_delivery, nak, times_delivered
from pantheon.bus.connection import Bus, Delivery, Subscription
from pantheon.bus.objects import OBJECTS_STREAM, Objects, ensure_objects
from pantheon.bus.publisher import Publisher
from pantheon.bus.puller import Puller
from pantheon.bus.stored import (
    NoBatches,
    Stored,
    before_consumer,
    given_out,
    remove_stored,
    stored_at,
    stored_batch,
    stored_from,
)
from pantheon.bus.streams import Purge, ensure_streams, on_purge, stream_mark

__all__ = [
    "OBJECTS_STREAM",
    "Bus",
    "Delivery",
    "NoBatches",
    "Objects",
    "Publisher",
    "Puller",
    "Purge",
    "Stored",
    "Subscription",
    "acknowledge",
    "before_consumer",
    "ensure_objects",
    "ensure_streams",
    "given_out",
    "hold",
    "is_first_delivery",
    "nak",
    "on_purge",
    "remove_stored",
    "stored_at",
    "stored_batch",
    "stored_from",
    "stream_mark",
    "times_delivered",
]
