"""NATS: connection, pulling, publishing, streams and objects; with `pantheon.discovery` the only user of nats-py.

What it is responsible for:

- `Bus`: one connection, which reconnects for ever; core NATS publish, subscribe and request. Its `generation` counts
  connections, and `on_reconnect` calls who must send something again.
- `Puller`: a durable pull consumer with an open request all the time, so that a message arrives when it is published.
  It makes the consumer again when that is gone.
- `Publisher`: JetStream publishes, pipelined; each is repeated until its ack has come.
- `Objects`: payloads and results too large for a message, in the object store.
- `ensure_streams`, `StreamMark`, `on_purge`: the streams' settings, and the signs that a broker lost messages.
- `stored_batch` and its like: messages of a stream read without a consumer, and where a consumer stands.

Invariants:

- Errors of nats-py become BusError or TooLarge here, once; no other module of the kit catches them, but for discovery.
- Delivery is at least once. An ack or a publish may be lost, and then happens again; message ids and the attempts'
  fence make that harmless. Nothing here decides what a duplicate means.
- A cancelled caller is always cancelled (`Client` repairs what nats-py swallows).
- Per message on the hot paths (`Bus.subscribe_direct`, `Publisher.send`, `acknowledge`) there is no task, no queue and,
  unless the socket is full, no await.

Who may call it: every package of the kit above it (see `pantheon` for their order), and the orchestrator. It imports
`pantheon.runtime` and `protocol`.
"""

from pantheon.bus.acks import acknowledge, hold, hold_over, is_first_delivery, nak, stream_position, times_delivered
from pantheon.bus.client import NatsClient
from pantheon.bus.connection import Bus, Delivery, Subscription
from pantheon.bus.objects import OBJECTS_STREAM, Objects, ensure_objects
from pantheon.bus.publisher import Publisher, PublishRetries
from pantheon.bus.puller import Puller, PullTimes
from pantheon.bus.queues import QueueState, queue_lengths, queue_state, queued_messages, remove_messages
from pantheon.bus.storage import StreamFill, account_limit, storage_used, stream_fill
from pantheon.bus.stored import (
    NoBatches,
    Stored,
    delivered_sequence,
    pending_messages,
    remove_stored,
    stored_at,
    stored_batch,
    stored_from,
    stream_sequence,
)
from pantheon.bus.streams import Purge, ensure_streams, on_purge, stream_mark
from pantheon.bus.transport import Transport

__all__ = [
    "OBJECTS_STREAM",
    "Bus",
    "Delivery",
    "NatsClient",
    "NoBatches",
    "Objects",
    "PublishRetries",
    "Publisher",
    "PullTimes",
    "Puller",
    "Purge",
    "QueueState",
    "Stored",
    "StreamFill",
    "Subscription",
    "Transport",
    "account_limit",
    "acknowledge",
    "delivered_sequence",
    "ensure_objects",
    "ensure_streams",
    "hold",
    "hold_over",
    "is_first_delivery",
    "nak",
    "on_purge",
    "pending_messages",
    "queue_lengths",
    "queue_state",
    "queued_messages",
    "remove_messages",
    "remove_stored",
    "storage_used",
    "stored_at",
    "stored_batch",
    "stored_from",
    "stream_fill",
    "stream_mark",
    "stream_position",
    "stream_sequence",
    "times_delivered",
]
