"""Returning a task to its queue, so that a clean stop is not taken for a death.

The broker counts deliveries, and stops delivering what it has delivered five times: agents die on it. A nak counts
like a death. So a task that was delivered a few times is published anew, as a message of its own, before the old one is
acknowledged; its deliveries are counted from the beginning.
"""

from uuid import uuid4

import structlog
from nats.js.api import Header

from pantheon.bus.acks import acknowledge, nak, times_delivered
from pantheon.bus.connection import Delivery
from pantheon.bus.publisher import Publisher
from protocol.errors import BusError, TooLarge

log = structlog.get_logger()

# So often a nak returns it: it keeps its position in the queue then.
NAKS = 2
PUBLISH_SECONDS = 2.0


async def return_to_queue(publisher: Publisher, delivery: Delivery) -> None:
    """Another instance gets the task, however often it has been returned before.

    A process that dies in between leaves both messages: the same attempt, whose response counts once.
    """
    if times_delivered(delivery) <= NAKS:
        await nak(delivery)
        return
    headers = {name: str(value) for name, value in (delivery.headers or {}).items()}
    message_id = f"{headers.pop(Header.MSG_ID, delivery.subject)}:returned:{uuid4().hex}"
    try:
        await publisher.publish(
            delivery.subject, delivery.data, message_id=message_id, headers=headers, give_up_seconds=PUBLISH_SECONDS
        )
    except (BusError, TooLarge) as error:
        log.debug("return.by_nak", subject=delivery.subject, error=str(error))
        await nak(delivery)
        return
    await acknowledge(delivery)
