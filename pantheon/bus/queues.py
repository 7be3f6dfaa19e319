"""Agents' queues as the broker sees them: what lies in them, what was delivered from them, who asks for more."""

from collections.abc import Collection
from dataclasses import dataclass

from nats.errors import Error as NatsError
from nats.js.errors import NotFoundError

from pantheon.bus.connection import Bus
from pantheon.bus.stored import NoBatches, Stored, remove_stored, stored_batch, stored_from
from protocol import subjects
from protocol.errors import BusError
from protocol.streams import TASKS

# A batch of reads holds so many messages and bytes.
BATCH_MESSAGES = 256
BATCH_BYTES = 4 * 1024**2


@dataclass(frozen=True)
class QueueState:
    """`pulls`: requests for more that are open at the broker. `in_queue` messages were never delivered; `in_hand` were,
    and are not acknowledged. `delivered`: the newest sequence that was delivered, `deliveries` how many there were."""

    pulls: int
    in_queue: int
    in_hand: int
    delivered: int
    deliveries: int


async def queue_lengths(bus: Bus) -> dict[str, int]:
    """Agents with messages in the broker, delivered or not, and how many. One request. Raises BusError."""
    try:
        info = await bus.js.stream_info(TASKS.name, subjects_filter=subjects.ALL_TASKS)
    except (TimeoutError, NatsError, OSError) as error:
        raise BusError(f"cannot count the messages of {TASKS.name}: {error or type(error).__name__}") from error
    return {subjects.agent_of(subject): count for subject, count in (info.state.subjects or {}).items()}


async def queue_state(bus: Bus, agent: str) -> QueueState | None:
    """None where the agent has no consumer. Raises BusError."""
    try:
        info = await bus.js.consumer_info(TASKS.name, agent)
    except NotFoundError:
        return None
    except (TimeoutError, NatsError, OSError) as error:
        raise BusError(f"cannot ask about the queue of {agent}: {error or type(error).__name__}") from error
    delivered = info.delivered
    return QueueState(
        pulls=info.num_waiting or 0,
        in_queue=info.num_pending or 0,
        in_hand=info.num_ack_pending or 0,
        delivered=0 if delivered is None else delivered.stream_seq,
        deliveries=0 if delivered is None else delivered.consumer_seq,
    )


async def queued_messages(bus: Bus, agent: str, *, up_to: int | None = None, limit: int) -> list[Stored]:
    """Messages to an agent that are not acknowledged, oldest first, at most about `limit`; `up_to`: no newer sequence
    than that. Raises BusError."""
    subject, found, following = subjects.task(agent), list[Stored](), 1
    while len(found) < limit:
        try:
            batch, _ = await stored_batch(
                bus, TASKS.name, subject, start=following, count=BATCH_MESSAGES, max_bytes=BATCH_BYTES
            )
        except NoBatches:
            one = await stored_from(bus, TASKS.name, following, subject)
            batch = [] if one is None else [one]
        within = [message for message in batch if up_to is None or message.sequence <= up_to]
        found += within
        if not batch or len(within) < len(batch):
            break
        following = batch[-1].sequence + 1
    return found


async def remove_messages(bus: Bus, sequences: Collection[int]) -> None:
    """Take messages out of agents' queues; one that stays, because the broker is away, does no harm."""
    for sequence in sequences:
        await remove_stored(bus, TASKS.name, sequence)
