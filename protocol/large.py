"""Payloads and results that are too large for a message: what stands for them on the wire (docs/protocol.md, Large
payloads and results).

The value, as JSON, is an object in the JetStream object store's bucket `payloads`; the message names it. The bucket
holds copies only: who has the value (the orchestrator in Postgres, a client in its hands) can make the object again.
"""

import hashlib
from typing import Any
from uuid import UUID

from pydantic import ValidationError
from pydantic_core import from_json

from protocol.errors import InvalidRequest
from protocol.messages import ObjectRef
from protocol.reading import has_infinity

BUCKET = "payloads"
# As long as a response may be read along or caught up with. Earlier, an object goes with its task.
BUCKET_MAX_AGE_SECONDS = 24 * 3600
# A payload or a result of more bytes than this, as JSON, travels by reference.
INLINE_MAX_BYTES = 512 * 1024
DEFAULT_MAX_BYTES = 64 * 1024 * 1024


def ref_of(root_task_id: UUID, value: bytes) -> ObjectRef:
    """The reference to a value of a tree. By its content: the same value of a tree is the same object, however
    often."""
    digest = hashlib.sha256(value).hexdigest()
    return ObjectRef(name=f"{root_task_id}.{digest}", size_bytes=len(value), sha256=digest)


def root_of(name: str) -> UUID | None:
    """The tree that an object belongs to, by its name; None where its name holds no id."""
    try:
        return UUID(name.partition(".")[0])
    except ValueError:
        return None


def parse_value(value: bytes, ref: ObjectRef, field: str) -> Any:
    """The JSON value that a reference stands for. Raises InvalidRequest, which names the field."""
    if len(value) != ref.size_bytes:
        raise InvalidRequest(f"{field}: the object has {len(value)} bytes, not {ref.size_bytes}", field=field)
    if hashlib.sha256(value).hexdigest() != ref.sha256:
        raise InvalidRequest(f"{field}: the object's SHA-256 is not {ref.sha256}", field=field)
    try:
        parsed = from_json(value, allow_inf_nan=False)
    except (ValueError, ValidationError) as error:
        raise InvalidRequest(f"{field}: the object is not JSON: {error}", field=field) from None
    if has_infinity(parsed):
        raise InvalidRequest(f"{field}: holds a number that no double can hold", field=field)
    return parsed
