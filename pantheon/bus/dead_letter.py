"""Dead letters: messages that no process can use, kept whole with the reason (docs/protocol.md, The small messages)."""

import base64
from uuid import UUID

import structlog

from pantheon.bus.acks import times_delivered
from pantheon.bus.connection import Delivery
from pantheon.bus.publisher import Publisher
from protocol import subjects
from protocol.errors import TooLarge
from protocol.ids import new_id
from protocol.messages import DeadLetter, now, to_bytes

log = structlog.get_logger()


async def publish_dead_letter(
    publisher: Publisher,
    name: str,
    delivery: Delivery,
    reason: str,
    error: str,
    task_id: UUID | None = None,
    *,
    deliveries: int | None = None,
) -> None:
    """Publish an unusable message, whole, as a dead letter on `mesh.deadletter.<name>`."""
    if deliveries is None:
        deliveries = times_delivered(delivery)
    letter = DeadLetter(
        id=new_id(),
        subject=delivery.subject,
        reason=reason,
        error=error,
        body_base64=base64.b64encode(delivery.data).decode(),
        headers={name: str(value) for name, value in (delivery.headers or {}).items()},
        task_id=task_id,
        deliveries=deliveries,
        at=now(),
    )
    log.warning("deadletter", subject=delivery.subject, reason=reason, error=error)
    try:
        await publisher.publish(subjects.dead_letter(name), to_bytes(letter), message_id=str(letter.id))
    except TooLarge:
        # A message nearly as large as the broker's limit does not fit once encoded: keep what can be kept of it.
        body = base64.b64encode(delivery.data[: len(delivery.data) // 2]).decode()
        cut = letter.model_copy(update={"body_base64": body, "error": f"{error} (body cut to its first half)"})
        await publisher.publish(subjects.dead_letter(name), to_bytes(cut), message_id=str(letter.id))
