"""The messages of the mesh as frozen models (docs/protocol.md, TaskRequest, TaskResponse, The small messages).

Read with `Model.model_validate_json(bytes)`, written with `to_bytes(message)`. Unknown fields are ignored; fields that
are absent and fields that are null mean the same; what has its default is not sent.
"""

from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json

from protocol.discovery import AgentName, InstanceId
from protocol.errors import ErrorCode, PantheonError
from protocol.fields import Attempt, Label, ReplyTo, RequestedType, TaskId, Time
from protocol.names import null_means
from protocol.reading import invalid_request, parsed, salvage_ids

DEFAULT_TENANT = "default"
DEFAULT_TIMEOUT_SECONDS = 300.0
DEFAULT_PRIORITY = 5
# A week: longer than any attempt that an agent makes; what takes longer is a workflow.
MAX_TIMEOUT_SECONDS = 7 * 24 * 3600.0


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
            cost_usd=_sum_of_money(self.cost_usd, other.cost_usd),
        )


def _sum_of_money(one: float, other: float) -> float:
    """Of the decimal numbers that the two are written as: ten times 0.1 is 1. Exact up to 15 digits."""
    return float(Decimal(repr(one)) + Decimal(repr(other))) if one and other else one + other


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
    """`root_task_id` lets an orchestrator that does not know the attempt find out whether it is still needed."""

    task_id: TaskId
    attempt: Attempt
    root_task_id: TaskId | None = None


class Heartbeat(Message):
    """Every 5 s from each instance; `cpu_percent` is of one core, `memory_bytes` the resident set. `blocked_seconds`:
    for how long its event loop has stood still, so that it takes and sends nothing; null where it does not."""

    agent: AgentName
    instance_id: InstanceId
    active: int = Field(ge=0)
    max_concurrency: int = Field(ge=1)
    cpu_percent: float | None = None
    memory_bytes: int | None = None
    running: Annotated[tuple[RunningTask, ...], null_means(())] = Field(default=(), strict=False)
    blocked_seconds: float | None = Field(default=None, ge=0)
    at: Time


class Control(Message):
    """An order to an agent's instances; null means every task, every attempt, every instance. Idempotent."""

    command: Literal["cancel", "pause", "resume", "drain"]
    task_id: TaskId | None = None
    attempt: Attempt | None = None
    instance_id: str | None = None
    reason: Annotated[str, null_means("")] = ""


class DeadLetter(Message):
    """A message that no process could use, kept whole so that it can be read and sent again."""

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
    return parsed(TaskRequest, body, "payload")


def parse_response(body: bytes) -> TaskResponse:
    """Read a TaskResponse; raises InvalidRequest whose message names the field and what it must be."""
    return parsed(TaskResponse, body, "result")


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
