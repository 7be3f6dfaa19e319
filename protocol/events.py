"""Events of the mesh: CloudEvents 1.0 in JSON structured mode (docs/protocol.md, Events).

Subjects are `mesh.event.<entity>.<event>`; the CloudEvents `type` is the same words under `pantheon.`.
"""

import itertools
import time
from datetime import datetime
from functools import lru_cache
from typing import Any

from pydantic import Field

from protocol import subjects
from protocol.fields import Time
from protocol.messages import Message, json_bytes, now, time_text

# One row for each event: (entity, event) -> what it means. The AsyncAPI document is made from this table.
EVENTS: dict[tuple[str, str], str] = {
    ("task", "accepted"): "A root task is committed in Postgres.",
    ("task", "started"): "A root task's first step was planned.",
    ("task", "completed"): "A root task ended well.",
    ("task", "failed"): "A root task ended with an error.",
    ("task", "cancelled"): "A root task was cancelled.",
    ("task", "paused"): "A root task begins nothing new.",
    ("task", "resumed"): "A paused root task goes on.",
    ("task", "signalled"): "A signal or an approval was given to a root task.",
    ("task", "compensating"): "A root task failed or was cancelled, and compensates its completed steps.",
    ("step", "ready"): "A step waits for an agent.",
    ("step", "dispatched"): "An attempt of a step was given to an agent.",
    ("step", "completed"): "A step ended well.",
    ("step", "retrying"): "An attempt failed; another will be made.",
    ("step", "failed"): "A step ended with an error.",
    ("step", "cancelled"): "A step was cancelled, because its workflow ended without it.",
    ("step", "skipped"): "A step's condition was false.",
    ("step", "waiting"): "A step waits for a time, a signal or an approval.",
    ("step", "compensating"): "A sub-workflow failed, and compensates its completed steps.",
    ("agent", "registered"): "An instance of an agent appeared in the registry.",
    ("agent", "deregistered"): "An instance of an agent left the registry.",
    ("agent", "failed"): "An instance of an agent is gone without goodbye, or takes nothing from its queue.",
}


class Event(Message):
    """One CloudEvent; `data` always names the task (`task_id`, `root_task_id`) or the agent it is about."""

    specversion: str = "1.0"
    id: str
    source: str = Field(description="`/<agent>/<instance_id>` of the process that published it")
    type: str
    subject: str | None = None
    time: Time
    datacontenttype: str = "application/json"
    data: dict[str, Any]


def event(
    entity: str, name: str, source: str, data: dict[str, Any], *, at: datetime | None = None
) -> tuple[str, bytes]:
    """A subject and the bytes to publish on it. `entity` and `name` are a row of EVENTS; `at` is when it happened, in
    UTC (None: now).

    Every attempt of every step makes some, so the bytes are spliced, not validated; a test holds them against Event.
    The id is a number: CloudEvents ask for one that is unique for its source, and a source is one process.
    """
    subject, head = _fixed(entity, name, source)
    about = data.get("task_id") or data.get("agent")
    about_field = f'"subject":"{about}",' if about else ""
    text = f'{head}"id":"{next(_numbers)}",{about_field}"time":"{time_text(at or now())}","data":'
    return subject, b"".join((text.encode(), json_bytes(data), b"}"))


@lru_cache(maxsize=256)
def _fixed(entity: str, name: str, source: str) -> tuple[str, str]:
    """The subject, and what all events of a kind begin with."""
    if (entity, name) not in EVENTS:
        raise ValueError(f"no event {entity}.{name}: add it to protocol.events.EVENTS")
    head = (
        f'{{"specversion":"1.0","source":"{source}","type":"pantheon.{entity}.{name}",'
        '"datacontenttype":"application/json",'
    )
    return subjects.event(entity, name), head


# Not from 1: a process that takes over another's instance id would repeat its ids.
_numbers = itertools.count(time.time_ns() // 1000)
