"""The types of the messages' fields: what ids, times, labels and subjects must be (docs/protocol.md, Names)."""

import re
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field, WithJsonSchema

from protocol.ids import id_of
from protocol.names import MESH_OPERATION, TASK_TYPE
from protocol.subjects import is_reply_subject

UUID_SHAPE = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
_CANONICAL = re.compile(UUID_SHAPE[1:-1])


def _canonical_uuid(value: object) -> object:
    # Text of the right shape is left to the validator behind this one, which is faster than UUID() is.
    if isinstance(value, str) and _CANONICAL.fullmatch(value):
        return id_of(value)
    if isinstance(value, UUID):
        return value
    raise ValueError("must be a UUID in the canonical lower-case form")


def utc(value: datetime) -> datetime:
    """The same moment in UTC. Raises ValueError for a time that Postgres cannot keep."""
    # A few years from either end no zone's offset can overflow, and Postgres can keep the time.
    if not 1970 <= value.year <= 9000:
        raise ValueError("must be a time between the years 1970 and 9000")
    return value.astimezone(UTC)


def _time_text(value: object) -> object:
    # The validator behind this one would take a number, and digits in a string, as seconds since 1970.
    if isinstance(value, datetime) or (isinstance(value, str) and "-" in value[:5]):
        return value
    raise ValueError("must be a time as RFC 3339 writes it, such as 2026-01-31T12:00:00Z")


def _plain(value: str) -> str:
    if "\0" in value:
        raise ValueError("must not contain a NUL character")
    return value


def _reply_to(value: str) -> str:
    if not is_reply_subject(value):
        raise ValueError("must be a subject below _INBOX., without wildcards or spaces")
    return value


def _task_type(value: str) -> str:
    if TASK_TYPE.match(value) is None and MESH_OPERATION.match(value) is None:
        raise ValueError("must match ^[a-z][a-z0-9_]{0,62}$, or be an operation of the mesh such as mesh.replay")
    return value


TaskId = Annotated[
    UUID,
    Field(strict=False),
    BeforeValidator(_canonical_uuid),
    WithJsonSchema({"type": "string", "format": "uuid", "pattern": UUID_SHAPE}),
]
Time = Annotated[AwareDatetime, Field(strict=False), BeforeValidator(_time_text), AfterValidator(utc)]
Label = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_plain)]
ReplyTo = Annotated[str, Field(max_length=256), AfterValidator(_reply_to)]
RequestedType = Annotated[str, Field(max_length=68), AfterValidator(_task_type)]
Attempt = Annotated[int, Field(ge=1, le=2**31 - 1)]
