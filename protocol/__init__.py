"""The wire contract of the mesh: messages, subjects, events, errors. Pydantic and the standard library, no I/O."""

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
