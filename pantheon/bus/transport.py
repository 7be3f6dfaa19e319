"""Transport: what a part of a process sends and receives with."""

from dataclasses import dataclass

from pantheon.bus.connection import Bus
from pantheon.bus.objects import Objects
from pantheon.bus.publisher import Publisher


@dataclass(frozen=True)
class Transport:
    """One connection with its publisher (JetStream, acknowledged) and its store of large values.

    Its owner, who made the three, closes them.
    """

    bus: Bus
    publisher: Publisher
    objects: Objects
