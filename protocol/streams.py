"""The streams and consumers of the mesh, as values (docs/protocol.md, Subjects and streams).

The orchestrator makes the streams; every agent makes its own consumer. Durations are seconds.
"""

from dataclasses import dataclass
from typing import Literal

from protocol import subjects

DUPLICATE_WINDOW_SECONDS = 120
RESPONSES_MAX_AGE_SECONDS = 24 * 3600
EVENTS_MAX_AGE_SECONDS = 24 * 3600
TASKS_MAX_PER_SUBJECT = 1_000_000
# One for each name of an agent. A stream that sets no maximum has one all the same since nats-server 2.15: 1,000.
TASKS_MAX_CONSUMERS = 100_000
DEAD_LETTERS_MAX_BYTES = 1024**3


@dataclass(frozen=True)
class StreamSpec:
    name: str
    subjects: tuple[str, ...]
    retention: Literal["limits", "workqueue"] = "limits"
    discard: Literal["old", "new"] = "old"
    discard_new_per_subject: bool = False
    max_msgs_per_subject: int = -1
    max_age_seconds: float = 0
    # Its part of the storage that the mesh's streams have together, and what it never has more of.
    share: float = 0.0
    max_bytes: int = -1
    max_consumers: int = -1
    allow_msg_ttl: bool = False
    duplicate_window_seconds: float = DUPLICATE_WINDOW_SECONDS


TASKS = StreamSpec(
    name="AGENT_TASKS",
    subjects=(subjects.ALL_TASKS,),
    retention="workqueue",
    discard="new",
    discard_new_per_subject=True,
    max_msgs_per_subject=TASKS_MAX_PER_SUBJECT,
    share=0.5,
    max_consumers=TASKS_MAX_CONSUMERS,
    allow_msg_ttl=True,
)
RESPONSES = StreamSpec(
    name="AGENT_RESPONSES", subjects=(subjects.ALL_RESPONSES,), max_age_seconds=RESPONSES_MAX_AGE_SECONDS, share=0.25
)
# Steps' events are core NATS only: every attempt makes some, and keeping them would slow the work.
EVENTS = StreamSpec(
    name="MESH_EVENTS",
    subjects=tuple(f"mesh.event.{entity}.*" for entity in ("task", "agent", "session", "coordination")),
    max_age_seconds=EVENTS_MAX_AGE_SECONDS,
    share=0.05,
)
DEAD_LETTERS = StreamSpec(
    name="DEAD_LETTERS", subjects=(subjects.ALL_DEAD_LETTERS,), share=0.05, max_bytes=DEAD_LETTERS_MAX_BYTES
)
# What is left is the bucket's of large values.
OBJECTS_SHARE = 0.15
ALL_STREAMS = (TASKS, RESPONSES, EVENTS, DEAD_LETTERS)


@dataclass(frozen=True)
class ConsumerSpec:
    """A durable pull consumer with explicit acks."""

    durable_name: str
    filter_subject: str
    ack_wait_seconds: float
    max_deliver: int
    max_ack_pending: int


# An in-progress ack every 10 s keeps a message away from other instances; 30 s forgives two that were lost.
TASK_ACK_WAIT_SECONDS = 30.0
IN_PROGRESS_SECONDS = 10.0


def task_consumer(agent: str) -> ConsumerSpec:
    """The one consumer that all instances of an agent share, with exactly the contract's values."""
    return ConsumerSpec(
        durable_name=agent,
        filter_subject=subjects.task(agent),
        ack_wait_seconds=TASK_ACK_WAIT_SECONDS,
        max_deliver=5,
        max_ack_pending=10_000,
    )
