"""Broker: a process's ways to NATS, together because they are three uses of one connection."""

from dataclasses import dataclass

from pantheon.bus import Bus, Objects, Publisher


@dataclass(frozen=True)
class Broker:
    """Core messages and subscriptions, publishes that JetStream acknowledges, and the store of large values."""

    bus: Bus
    publisher: Publisher
    objects: Objects
