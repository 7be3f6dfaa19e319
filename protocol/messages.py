"""The messages of the mesh as frozen models (PROTOCOL.md, TaskRequest to The small messages).

Read with `Model.model_validate_json(bytes)`, written with `to_bytes(message)`. Unknown fields are ignored; fields that
are absent and fields that are null mean the same; what has its default is not sent.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    WithJsonSchema,
)
from pydantic_core import from_json, to_json

from protocol.discovery import AgentName, InstanceId
from protocol.errors import ErrorCode, InvalidRequest, PantheonError
from protocol.names import MESH_OPERATION, TASK_TYPE
from protocol.subjects import is_reply_subject

DEFAULT_TENANT = "default"
DEFAULT_TIMEOUT_SECONDS = 300.0
DEFAULT_PRIORITY = 5
# A week: longer than any attempt that an agent makes; what takes longer is a workflow.
MAX_TIMEOUT_SECONDS = 7 * 24 * 3600.0

UUID_SHAPE = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"


def _canonical_uuid(value: object) -> UUID:
    if isinstance(value, UUID):
        return value
    if isinstance(value, str):
        try:
            parsed = UUID(value)
        except ValueError:
            parsed = None
        if parsed is not None and str(parsed) == value:
            return parsed
    raise ValueError("must be a UUID in the canonical lower-case form")


def _utc(value: datetime) -> datetime:
    # A few years from either end no zone's offset can overflow, and Postgres can keep the time.
    if not 1970 <= value.year <= 9000:
        raise ValueError("must be a time between the years 1970 and 9000")
    return value.astimezone(UTC)


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
    BeforeValidator(_canonical_uuid),
    PlainSerializer(str, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "format": "uuid", "pattern": UUID_SHAPE}),
]
Time = Annotated[AwareDatetime, Field(strict=False), AfterValidator(_utc)]
Label = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_plain)]
ReplyTo = Annotated[str, Field(max_length=256), AfterValidator(_reply_to)]
RequestedType = Annotated[str, Field(max_length=68), AfterValidator(_task_type)]
Attempt = Annotated[int, Field(ge=1, le=2**31 - 1)]


def _or(default: Any) -> BeforeValidator:
    # Many languages' clients send null for what is not set: on the wire it means the same as absent.
    return BeforeValidator(lambda value: default if value is None else value)


class Message(BaseModel):
    """The base of everything on the wire: frozen, strict about types, blind to unknown fields."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, ser_json_inf_nan="null")


class ErrorInfo(Message):
    """Why a task ended `failed` or `cancelled`; `code` is one of ErrorCode or an agent's own."""

    code: str = Field(min_length=1, max_length=128)
    message: str
    retryable: bool = False
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

    input_tokens: int = Field(default=0, ge=0)
    output_tokens: int = Field(default=0, ge=0)
    cost_usd: float = Field(default=0.0, ge=0, strict=False)

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            cost_usd=self.cost_usd + other.cost_usd,
        )


class TaskRequest(Message):
    """Asks an agent, or the orchestrator, to do one task. `timeout_seconds` is of one attempt, from its dispatch."""

    task_id: TaskId
    task_type: RequestedType
    payload: Annotated[dict[str, Any], _or({})] = Field(default_factory=dict)
    requester: Label | None = None
    tenant: Annotated[Label, _or(DEFAULT_TENANT)] = DEFAULT_TENANT
    reply_to: ReplyTo | None = None
    parent_task_id: TaskId | None = None
    root_task_id: TaskId | None = None
    session_id: Label | None = None
    idempotency_key: Label | None = None
    priority: Annotated[int, Field(ge=0, le=9), _or(DEFAULT_PRIORITY)] = DEFAULT_PRIORITY
    attempt: Annotated[Attempt, _or(1)] = 1
    timeout_seconds: Annotated[float, _or(DEFAULT_TIMEOUT_SECONDS)] = Field(
        default=DEFAULT_TIMEOUT_SECONDS, gt=0, le=MAX_TIMEOUT_SECONDS, strict=False, allow_inf_nan=False
    )
    deadline: Time | None = None
    metadata: Annotated[dict[str, str], _or({})] = Field(default_factory=dict)
    created_at: Time | None = None


class TaskResponse(Message):
    """How a task ended; `failed` and `cancelled` carry `error`."""

    task_id: TaskId
    root_task_id: TaskId
    task_type: str = ""
    agent: AgentName
    attempt: Attempt = 1
    status: Literal["completed", "failed", "cancelled"]
    result: Any = None
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
    percent: float | None = Field(default=None, ge=0, le=100, strict=False)
    message: str = ""
    text: str = ""
    at: Time


class RunningTask(Message):
    task_id: TaskId
    attempt: Attempt


class Heartbeat(Message):
    """Every 5 s from each instance; `cpu_percent` is of one core, `memory_bytes` the resident set."""

    agent: AgentName
    instance_id: InstanceId
    active: int = Field(ge=0)
    max_concurrency: int = Field(ge=1)
    cpu_percent: float | None = Field(default=None, strict=False)
    memory_bytes: int | None = None
    running: tuple[RunningTask, ...] = Field(default=(), strict=False)
    at: Time


class Control(Message):
    """An order to an agent's instances; null means every task, every attempt, every instance. Idempotent."""

    command: Literal["cancel", "pause", "resume", "drain"]
    task_id: TaskId | None = None
    attempt: Attempt | None = None
    instance_id: str | None = None
    reason: str = ""


class DeadLetter(Message):
    """A message that nobody could use, kept whole so that it can be read and sent again."""

    id: TaskId
    subject: str
    reason: str
    error: str = ""
    body_base64: str
    headers: dict[str, str] = Field(default_factory=dict)
    task_id: TaskId | None = None
    deliveries: int = 1
    at: Time


def to_bytes(message: Message) -> bytes:
    """The message as JSON; fields that have their default are left out, as the contract allows."""
    return message.model_dump_json(exclude_defaults=True).encode()


def parse_request(body: bytes) -> TaskRequest:
    """Read a TaskRequest; raises InvalidRequest whose message names the field and what it must be."""
    try:
        if b"NaN" in body or b"Infinity" in body:
            # Words that JSON does not have, but that lenient parsers take as numbers; inside strings they are fine.
            from_json(body, allow_inf_nan=False)
        return TaskRequest.model_validate_json(body)
    except ValidationError as error:
        raise invalid_request(error) from None
    except ValueError as error:
        raise InvalidRequest(f"Invalid JSON: {error}") from None


def invalid_request(error: ValidationError, prefix: str = "") -> InvalidRequest:
    """The first mistake of a failed validation, said in one line; all of them in details."""
    mistakes = []
    for mistake in error.errors(include_url=False, include_input=False, include_context=False):
        place = ".".join(str(part) for part in (*([prefix] if prefix else []), *mistake["loc"]))
        message = mistake["msg"].removeprefix("Value error, ")
        mistakes.append({"field": place, "message": message})
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
        # The lenient parser on purpose: it also reads what the strict one refused (NaN, lone surrogates).
        fields = json.loads(body)
    except (ValueError, RecursionError):
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


def json_bytes(value: Any) -> bytes:
    """Any JSON value as compact UTF-8; NaN and infinities, which JSON lacks, become null (as browsers do)."""
    return to_json(value, inf_nan_mode="null")


def now() -> datetime:
    return datetime.now(UTC)


__all__ = [
    "Control",
    "DeadLetter",
    "ErrorCode",
    "ErrorInfo",
    "Heartbeat",
    "Message",
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
    "salvage_ids",
    "to_bytes",
]
