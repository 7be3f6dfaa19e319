"""The messages of the mesh as frozen models (PROTOCOL.md, TaskRequest to The small messages).

Read with `Model.model_validate_json(bytes)`, written with `to_bytes(message)`. Unknown fields are ignored; fields that
are absent and fields that are null mean the same; what has its default is not sent.
"""

import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any, Literal, TypeVar
from uuid import UUID

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
)
from pydantic_core import from_json, to_json

from protocol.discovery import AgentName, InstanceId
from protocol.errors import ErrorCode, InvalidRequest, PantheonError
from protocol.names import MESH_OPERATION, TASK_TYPE, null_means
from protocol.subjects import is_reply_subject

DEFAULT_TENANT = "default"
DEFAULT_TIMEOUT_SECONDS = 300.0
DEFAULT_PRIORITY = 5
# A week: longer than any attempt that an agent makes; what takes longer is a workflow.
MAX_TIMEOUT_SECONDS = 7 * 24 * 3600.0

UUID_SHAPE = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"


_CANONICAL = re.compile(UUID_SHAPE[1:-1])


def _canonical_uuid(value: object) -> object:
    # What has the shape is left to the validator behind this one, which reads it faster than UUID() does.
    if isinstance(value, UUID) or (isinstance(value, str) and _CANONICAL.fullmatch(value)):
        return value
    raise ValueError("must be a UUID in the canonical lower-case form")


def utc(value: datetime) -> datetime:
    """The same moment in UTC. Raises ValueError, saying what it must be, where that cannot be kept."""
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


class Message(BaseModel):
    """The base of everything on the wire: frozen, strict about types, blind to unknown fields."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, ser_json_inf_nan="null")


class ErrorInfo(Message):
    """Why a task ended `failed` or `cancelled`; `code` is one of ErrorCode or an agent's own."""

    code: str = Field(min_length=1, max_length=128)
    message: str
    retryable: Annotated[bool, null_means(False)] = False
    step: str | None = None
    details: dict[str, Any] | None = None

    @classmethod
    def of(cls, error: PantheonError, *, step: str | None = None) -> "ErrorInfo":
        return cls(
            code=str(error.code),
            message=error.message,
            retryable=error.retryable,
            step=step or getattr(error, "step", None),
            details=error.details or None,
        )


class Usage(Message):
    """What a task consumed of models: tokens, and cost in US dollars."""

    input_tokens: Annotated[int, Field(ge=0), null_means(0)] = 0
    output_tokens: Annotated[int, Field(ge=0), null_means(0)] = 0
    cost_usd: Annotated[float, Field(ge=0, allow_inf_nan=False), null_means(0.0)] = 0.0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            cost_usd=self.cost_usd + other.cost_usd,
        )


class ObjectRef(Message):
    """Stands for a value that is too large for a message: the JSON in an object of the bucket `payloads`."""

    name: str = Field(min_length=1, max_length=256)
    size_bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class TaskRequest(Message):
    """Asks an agent, or the orchestrator, to do one task. `timeout_seconds` is of one attempt, from its dispatch."""

    task_id: TaskId
    task_type: RequestedType
    payload: Annotated[dict[str, Any], null_means({})] = Field(default_factory=dict)
    payload_ref: ObjectRef | None = None
    requester: Label | None = None
    tenant: Annotated[Label, null_means(DEFAULT_TENANT)] = DEFAULT_TENANT
    reply_to: ReplyTo | None = None
    parent_task_id: TaskId | None = None
    root_task_id: TaskId | None = None
    session_id: Label | None = None
    idempotency_key: Label | None = None
    priority: Annotated[int, Field(ge=0, le=9), null_means(DEFAULT_PRIORITY)] = DEFAULT_PRIORITY
    attempt: Annotated[Attempt, null_means(1)] = 1
    timeout_seconds: Annotated[float, null_means(DEFAULT_TIMEOUT_SECONDS)] = Field(
        default=DEFAULT_TIMEOUT_SECONDS, gt=0, le=MAX_TIMEOUT_SECONDS, allow_inf_nan=False
    )
    deadline: Time | None = None
    metadata: Annotated[dict[str, str], null_means({})] = Field(default_factory=dict)
    created_at: Time | None = None


class TaskResponse(Message):
    """How a task ended; `failed` and `cancelled` carry `error`."""

    task_id: TaskId
    root_task_id: TaskId
    task_type: Annotated[str, null_means("")] = ""
    agent: AgentName
    attempt: Annotated[Attempt, null_means(1)] = 1
    status: Literal["completed", "failed", "cancelled"]
    result: Any = None
    result_ref: ObjectRef | None = None
    error: ErrorInfo | None = None
    instance_id: str | None = Field(default=None, max_length=64)
    usage: Usage | None = None
    started_at: Time | None = None
    completed_at: Time | None = None
    duplicate_of: TaskId | None = None


class TaskProgress(Message):
    """How far a task is; `text` is streamed output, to be appended to what came before."""

    task_id: TaskId
    root_task_id: TaskId
    step: str | None = None
    agent: AgentName
    percent: float | None = Field(default=None, ge=0, le=100, allow_inf_nan=False)
    message: Annotated[str, null_means("")] = ""
    text: Annotated[str, null_means("")] = ""
    at: Time


class RunningTask(Message):
    """`root_task_id` lets an orchestrator that knows nothing of the attempt find out whether it is still wanted."""

    task_id: TaskId
    attempt: Attempt
    root_task_id: TaskId | None = None


class Heartbeat(Message):
    """Every 5 s from each instance; `cpu_percent` is of one core, `memory_bytes` the resident set."""

    agent: AgentName
    instance_id: InstanceId
    active: int = Field(ge=0)
    max_concurrency: int = Field(ge=1)
    cpu_percent: float | None = None
    memory_bytes: int | None = None
    running: Annotated[tuple[RunningTask, ...], null_means(())] = Field(default=(), strict=False)
    at: Time


class Control(Message):
    """An order to an agent's instances; null means every task, every attempt, every instance. Idempotent."""

    command: Literal["cancel", "pause", "resume", "drain"]
    task_id: TaskId | None = None
    attempt: Attempt | None = None
    instance_id: str | None = None
    reason: Annotated[str, null_means("")] = ""


class DeadLetter(Message):
    """A message that nobody could use, kept whole so that it can be read and sent again."""

    id: TaskId
    subject: str
    reason: str
    error: Annotated[str, null_means("")] = ""
    body_base64: str
    headers: Annotated[dict[str, str], null_means({})] = Field(default_factory=dict)
    task_id: TaskId | None = None
    deliveries: Annotated[int, null_means(1)] = 1
    at: Time


def to_bytes(message: Message) -> bytes:
    """The message as JSON. Requests leave out what has its default, responses what is null; the small messages are
    written whole, as the contract shows them."""
    if isinstance(message, TaskRequest):
        return message.model_dump_json(exclude_defaults=True).encode()
    return message.model_dump_json(exclude_none=isinstance(message, TaskResponse)).encode()


def parse_request(body: bytes) -> TaskRequest:
    """Read a TaskRequest; raises InvalidRequest whose message names the field and what it must be."""
    return _parsed(TaskRequest, body, "payload")


def parse_response(body: bytes) -> TaskResponse:
    """Read a TaskResponse; raises InvalidRequest whose message names the field and what it must be."""
    return _parsed(TaskResponse, body, "result")


MessageT = TypeVar("MessageT", bound=Message)


def _parsed(model: type[MessageT], body: bytes, free: str) -> MessageT:
    """`free` is the field that holds any JSON."""
    try:
        if b"NaN" in body or b"Infinity" in body:
            # Words that JSON does not have, but that lenient parsers take as numbers; inside strings they are fine.
            from_json(body, allow_inf_nan=False)
        message = model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] != "json_invalid":
            raise invalid_request(error) from None
        raise _invalid_json(body, first["ctx"]["error"]) from None
    except ValueError as error:
        raise _invalid_json(body, str(error)) from None
    if has_infinity(getattr(message, free)):
        raise InvalidRequest(f"{free}: holds a number that no double can hold", field=free)
    return message


def _invalid_json(body: bytes, reason: str) -> InvalidRequest:
    field = _field_at(body, reason)
    text = f"Invalid JSON: {reason}"
    message = f"{field}: {text}" if field else text
    return InvalidRequest(message, field=field, details={"mistakes": [{"field": field, "message": text}]})


# Where the parser stopped: lines are counted from 1, and so are columns, in bytes.
_PLACE = re.compile(r"at line ([0-9]+) column ([0-9]+)$")


def _field_at(body: bytes, reason: str) -> str:
    """The field of the outermost object that a parser's mistake is in; nothing where it is in none."""
    place = _PLACE.search(reason)
    if place is None:
        return ""
    *before, _ = body.split(b"\n", int(place[1]) - 1)
    end = sum(len(line) + 1 for line in before) + int(place[2])
    depth, key, last = 0, "", ""
    # A character for each byte: what is cut off at its end may be no UTF-8, and places count bytes.
    for match in _TOKEN.finditer(body[:end].decode("latin-1")):
        word = match[0]
        if word in "{[":
            depth += 1
        elif word in "}]":
            depth -= 1
        elif depth == 1 and word == ",":
            key = ""
        elif depth == 1 and last in ("{", ",") and word.startswith('"'):
            key = word
        last = word
    try:
        field: str = json.loads(key.encode("latin-1"))
        field.encode()
    except ValueError:
        return ""
    return _cut(field)


def has_infinity(value: Any) -> bool:
    """Whether a value read from JSON held a number beyond what a double can hold: one such as 1e999 reads as infinity,
    which JSON cannot say, and would come out as null at the other end."""
    # Writing it again is several times faster than any look through the text, or through the value.
    if b"Infinity" not in to_json(value, inf_nan_mode="constants"):
        return False
    queue = [value]
    while queue:
        one = queue.pop()
        if isinstance(one, float) and math.isinf(one):
            return True
        queue.extend(one.values() if isinstance(one, dict) else one if isinstance(one, list) else ())
    return False


# Of a field's place or a mistake's words: both may quote what was sent, and the error must fit into a response.
_TOLD_CHARS = 300


def _cut(text: str) -> str:
    return text if len(text) <= _TOLD_CHARS else f"{text[:_TOLD_CHARS]}…"


def invalid_request(error: ValidationError, prefix: str = "") -> InvalidRequest:
    """The first mistake of a failed validation, said in one line; all of them in details."""
    mistakes = []
    for mistake in error.errors(include_url=False, include_input=False, include_context=False):
        place = ".".join(str(part) for part in (*([prefix] if prefix else []), *mistake["loc"]))
        message = mistake["msg"].removeprefix("Value error, ")
        mistakes.append({"field": _cut(place), "message": _cut(message)})
    first = mistakes[0]
    more = f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
    text = f"{first['field']}: {first['message']}{more}" if first["field"] else f"{first['message']}{more}"
    return InvalidRequest(text, field=str(first["field"]), details={"mistakes": mistakes[:20]})


def salvage_ids(body: bytes) -> Mapping[str, Any]:
    """What can be told of a message that did not validate: valid `task_id`, `root_task_id`, `attempt`, `task_type`,
    `reply_to`.

    A message with a task_id can be answered; one without becomes a dead letter.
    """
    try:
        text = body.decode(json.detect_encoding(body), "surrogatepass")
    except UnicodeDecodeError:
        # Bytes that are no text, in a string somewhere, leave the ids as readable as they were.
        text = body.decode(errors="replace")
    try:
        # The lenient parser on purpose: it also reads what the strict one refused (NaN, lone surrogates, numbers of
        # thousands of digits).
        fields = json.loads(text, parse_int=lambda digits: int(digits) if len(digits) < 20 else None)
    except RecursionError:
        fields = _top_level_strings(body)
    except ValueError:
        return {}
    if not isinstance(fields, dict):
        return {}
    found: dict[str, Any] = {}
    for name in ("task_id", "root_task_id"):
        value = fields.get(name)
        if isinstance(value, str):
            try:
                found[name] = UUID(value)
            except ValueError:
                continue
    attempt = fields.get("attempt")
    if isinstance(attempt, int) and not isinstance(attempt, bool) and 1 <= attempt < 2**31:
        found["attempt"] = attempt
    task_type = fields.get("task_type")
    if isinstance(task_type, str) and TASK_TYPE.match(task_type):
        found["task_type"] = task_type
    reply_to = fields.get("reply_to")
    if isinstance(reply_to, str) and is_reply_subject(reply_to):
        found["reply_to"] = reply_to
    return found


_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:,]|[^\s"{}\[\]:,]+', re.DOTALL)


def _top_level_strings(body: bytes) -> dict[str, Any]:
    """The fields of an object that is nested deeper than any parser goes, those with a string or a small integer."""
    found: dict[str, Any] = {}
    depth, key, before = 0, None, ""
    for match in _TOKEN.finditer(body.decode(errors="replace")):
        word = match[0]
        if word in "{[":
            depth += 1
        elif word in "}]":
            depth -= 1
        elif depth == 1 and before in "{," and word.startswith('"'):
            key = word
        elif depth == 1 and before == ":" and key is not None and (word.startswith('"') or word.isdecimal()):
            try:
                found[json.loads(key)] = json.loads(word[:20_000])
            except ValueError:
                return {}
        before = word
    return found if depth == 0 else {}


def json_bytes(value: Any) -> bytes:
    """Any JSON value as compact UTF-8; NaN and infinities, which JSON lacks, become null (as browsers do)."""
    return to_json(value, inf_nan_mode="null")


def now() -> datetime:
    return datetime.now(UTC)


@lru_cache(maxsize=64)
def time_text(moment: datetime) -> str:
    """A time in UTC as RFC 3339 writes it. Remembered, because all that one batch decides happens at one moment."""
    return moment.isoformat().replace("+00:00", "Z")


__all__ = [
    "Control",
    "DeadLetter",
    "ErrorCode",
    "ErrorInfo",
    "Heartbeat",
    "Message",
    "ObjectRef",
    "RunningTask",
    "TaskId",
    "TaskProgress",
    "TaskRequest",
    "TaskResponse",
    "Usage",
    "invalid_request",
    "json_bytes",
    "now",
    "parse_request",
    "parse_response",
    "salvage_ids",
    "time_text",
    "to_bytes",
]
