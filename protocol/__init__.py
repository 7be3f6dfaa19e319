"""The wire contract of the mesh, docs/protocol.md in code: pydantic and the standard library, no I/O.

- `messages`, with the types of their fields in `fields`: frozen models, written by `to_bytes`. `reading` makes models
  of
  bytes, with mistakes in one line, and salvages the ids of an invalid message. `large`: payloads by reference.
- `names`, `ids`, `subjects`: the grammar of names, UUIDs new and derived, every subject as a function.
- `streams`: the streams and consumers with the contract's values. `events`: the mesh's CloudEvents.
- `discovery`: what an instance publishes of itself. `workflow`: the workflow language, and `execute_dag`.
- `errors`: the tree of the errors that the product raises on purpose, each with its code on the wire.
- `schema`, `asyncapi`, `documents`: the JSON Schemas and the AsyncAPI document, made from all of these.

Invariants:

- Version 1 changes only by additions that old readers ignore: a reader ignores unknown fields, null means absent, and
  what has its default is not sent.
- A model that exists is valid: what cannot be kept in Postgres, or published, is refused when the message is read.
- The bytes that are spliced for speed (events here, responses in `pantheon.worker`) equal those of their models, and
  tests compare them.
- docs/schemas is the output of `documents`; the same code makes the same bytes.

Who may call it: everything; it imports nothing of the mesh.
"""

from protocol.discovery import InstanceRecord
from protocol.errors import ErrorCode, PantheonError
from protocol.events import Event, event
from protocol.ids import new_id, step_task_id
from protocol.messages import (
    Control,
    DeadLetter,
    ErrorInfo,
    Heartbeat,
    RunningTask,
    TaskProgress,
    TaskRequest,
    TaskResponse,
    Usage,
    json_bytes,
    now,
    parse_request,
    salvage_ids,
    to_bytes,
)

PROTOCOL_VERSION = 1

__all__ = [
    "PROTOCOL_VERSION",
    "Control",
    "DeadLetter",
    "ErrorCode",
    "ErrorInfo",
    "Event",
    "Heartbeat",
    "InstanceRecord",
    "PantheonError",
    "RunningTask",
    "TaskProgress",
    "TaskRequest",
    "TaskResponse",
    "Usage",
    "event",
    "json_bytes",
    "new_id",
    "now",
    "parse_request",
    "salvage_ids",
    "step_task_id",
    "to_bytes",
]
