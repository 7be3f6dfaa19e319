"""Stored messages: single ones of a stream, read and removed; and how many a consumer has before it."""

from collections.abc import Mapping
from dataclasses import dataclass

import structlog
from nats.errors import Error as NatsError
from nats.js.api import RawStreamMsg
from nats.js.errors import NotFoundError

from pantheon.bus.connection import Bus
from protocol.errors import BusError

log = structlog.get_logger()


@dataclass(frozen=True)
class Stored:
    sequence: int
    subject: str
    data: bytes
    headers: Mapping[str, str]


async def stored_at(bus: Bus, stream: str, sequence: int) -> Stored | None:
    """The message of that number, or None where there is none any more. Raises BusError."""
    return await _get(bus, stream, sequence, subject=None)


async def stored_from(bus: Bus, stream: str, sequence: int, subject: str) -> Stored | None:
    """The first message on `subject` (which may hold wildcards) from that number on, or None. Raises BusError."""
    return await _get(bus, stream, sequence, subject=subject)


async def _get(bus: Bus, stream: str, sequence: int, *, subject: str | None) -> Stored | None:
    try:
        found: RawStreamMsg = await bus.js.get_msg(stream, seq=sequence, subject=subject, next=subject is not None)
    except NotFoundError:
        return None
    except (TimeoutError, NatsError, OSError) as error:
        raise BusError(f"cannot read the stream {stream}: {error or type(error).__name__}") from error
    return Stored(found.seq or sequence, found.subject or "", found.data or b"", dict(found.headers or {}))


async def remove_stored(bus: Bus, stream: str, sequence: int) -> None:
    """Take a message out of its stream. One that stays, because the broker is away, is there to be removed again."""
    try:
        await bus.js.delete_msg(stream, sequence)
    except (TimeoutError, NatsError, OSError) as error:
        log.debug("stored.kept", stream=stream, sequence=sequence, error=str(error) or type(error).__name__)


async def before_consumer(bus: Bus, stream: str, durable_name: str) -> int | None:
    """How many messages wait for a consumer, or are with its takers; None where the broker does not say, or nobody has
    made the consumer yet."""
    try:
        info = await bus.js.consumer_info(stream, durable_name)
    except (TimeoutError, NatsError, OSError) as error:
        log.debug("consumer.not_counted", consumer=durable_name, error=str(error) or type(error).__name__)
        return None
    return (info.num_pending or 0) + (info.num_ack_pending or 0)
