"""What the broker holds of an agent's tasks: those that wait in its queue, and those that its instances have taken."""

import structlog
from nats.errors import Error as NatsError

from pantheon.bus import Bus
from protocol.streams import TASKS

log = structlog.get_logger()


async def in_broker(bus: Bus, agent: str) -> int | None:
    """How many; None where the broker does not say, or nobody has made the agent's consumer yet."""
    try:
        info = await bus.js.consumer_info(TASKS.name, agent)
    except (TimeoutError, NatsError, OSError) as error:
        log.debug("window.not_checked", agent=agent, error=str(error) or type(error).__name__)
        return None
    return (info.num_pending or 0) + (info.num_ack_pending or 0)
