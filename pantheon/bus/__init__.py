"""NATS, the one place that knows its client library: connection, pulling, publishing, streams, objects."""

from pantheon.bus.connection import Bus, Delivery, Subscription
from pantheon.bus.objects import Objects, ensure_objects
from pantheon.bus.publisher import Publisher
from pantheon.bus.puller import Puller
from pantheon.bus.streams import ensure_streams, stream_mark

__all__ = [
    "Bus",
    "Delivery",
    "Objects",
    "Publisher",
    "Puller",
    "Subscription",
    "ensure_objects",
    "ensure_streams",
    "stream_mark",
]
