"""The error tree of the mesh: every error the product raises on purpose, each with a wire code.

    PantheonError                      code, message, retryable, details
    ├── InvalidRequest                 invalid_request: not a TaskRequest, or a payload its task type refuses
    ├── InvalidWorkflow                invalid_workflow: a definition that cannot run; names step and position
    ├── ExpressionError                expression_error: a CEL expression failed when evaluated
    ├── TaskFailure                    any code: what an agent's handler raises to end the attempt `failed`
    ├── TaskFailed                     a task a client waited for ended `failed`; carries the response
    ├── TaskCancelled                  the same, ended `cancelled`
    ├── NotAccepted                    no orchestrator accepted a request in time
    ├── UnknownTask                    unknown_task: no such task in the database
    ├── SettingsError                  a setting (environment, file) has a wrong value
    ├── BusError                       NATS cannot be reached, or refuses
    │   ├── TooLarge                   too_large: a message, a payload or a result exceeds its limit
    │   └── ObjectMissing              payload_unavailable: what a reference stands for is not in the object store
    ├── StoreError                     Postgres cannot be reached, or refuses
    ├── DiscoveryError                 Consul or the KV bucket cannot be reached, or refuses
    └── StackError                     a part of the embedded stack cannot start

A library's errors are mapped to these once, at the seam that owns the library.
"""

from enum import StrEnum
from typing import Any


class ErrorCode(StrEnum):
    """The mesh's own codes (docs/protocol.md, Error codes); agents use codes of their own beside these."""

    INVALID_REQUEST = "invalid_request"
    INVALID_WORKFLOW = "invalid_workflow"
    UNKNOWN_TASK_TYPE = "unknown_task_type"
    NO_AGENT_AVAILABLE = "no_agent_available"
    EXPRESSION_ERROR = "expression_error"
    STEP_FAILED = "step_failed"
    TIMEOUT = "timeout"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    CANCELLED = "cancelled"
    BUDGET_EXCEEDED = "budget_exceeded"
    TOO_LARGE = "too_large"
    POISON = "poison"
    DUPLICATE = "duplicate"
    # A reference to a large payload or result stands for nothing: the object store has lost it.
    PAYLOAD_UNAVAILABLE = "payload_unavailable"
    # Not in the contract's list, used by the kit for a handler that raised something of its own.
    INTERNAL_ERROR = "internal_error"
    # Set by the orchestrator for a message that is not a TaskResponse.
    INVALID_RESPONSE = "invalid_response"
    # Set by the kit: what a handler returned does not fit its annotation, or is no value of JSON.
    INVALID_RESULT = "invalid_result"


class PantheonError(Exception):
    """The root of the tree; `str()` of any of these is one line: what is wrong and what to do."""

    code: str = ErrorCode.INTERNAL_ERROR
    retryable: bool = False

    def __init__(self, message: str, *, details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.details = details or {}


class InvalidResult(PantheonError):
    """What a handler returned does not fit its annotation, or is no value of JSON."""

    code = ErrorCode.INVALID_RESULT


class InvalidRequest(PantheonError):
    """Not a TaskRequest, or a payload that its task type refuses; `field` is its path, dotted."""

    code = ErrorCode.INVALID_REQUEST

    def __init__(self, message: str, *, field: str = "", details: dict[str, Any] | None = None) -> None:
        super().__init__(message, details={**({"field": field} if field else {}), **(details or {})})
        self.field = field


class InvalidWorkflow(PantheonError):
    """A definition that cannot run; `step` and, for files, `line` and `column` (from 1) are the position. `field` is
    the key that is wrong, dotted: of the step, where one is named, else of the workflow."""

    code = ErrorCode.INVALID_WORKFLOW

    def __init__(
        self,
        message: str,
        *,
        step: str | None = None,
        field: str = "",
        line: int | None = None,
        column: int | None = None,
    ):
        position = {"step": step, "line": line, "column": column}
        super().__init__(message, details={key: value for key, value in position.items() if value is not None})
        self.step = step
        self.field = field
        self.line = line
        self.column = column


class ExpressionError(PantheonError):
    """A CEL expression failed when evaluated; `expression` is its text."""

    code = ErrorCode.EXPRESSION_ERROR

    def __init__(self, message: str, *, expression: str = "", step: str | None = None) -> None:
        super().__init__(message, details={"expression": expression} if expression else {})
        self.expression = expression
        self.step = step


class TaskFailure(PantheonError):
    """Raised by an agent's handler: the attempt ends `failed` with exactly this error.

    `retryable` decides whether the orchestrator makes another attempt.
    """

    def __init__(
        self, code: str, message: str, *, retryable: bool = False, details: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message, details=details)
        self.code = code
        self.retryable = retryable


class TaskFailed(PantheonError):
    """A task that a client waited for ended `failed`; `response` is its TaskResponse."""

    def __init__(self, message: str, *, code: str, response: Any, details: dict[str, Any] | None = None) -> None:
        super().__init__(message, details=details)
        self.code = code
        self.response = response


class TaskCancelled(TaskFailed):
    """A task that a client waited for ended `cancelled`."""


class NotAccepted(PantheonError):
    """No orchestrator accepted a request in time: none runs, or it cannot reach Postgres."""


class UnknownTask(PantheonError):
    """No such task in the database, or its age has passed the retention."""

    code = "unknown_task"


class SettingsError(PantheonError):
    """A setting has a wrong value; the message names the variable, the value and what is allowed."""


class BusError(PantheonError):
    """NATS cannot be reached, or refuses."""

    retryable = True


class TooLarge(BusError):
    """A message exceeds what the broker carries, a payload or result what the mesh does; names both sizes in bytes."""

    code = ErrorCode.TOO_LARGE
    retryable = False


class ObjectMissing(BusError):
    """What a reference stands for is not in the object store; the process that has the value can put it there again."""

    code = ErrorCode.PAYLOAD_UNAVAILABLE


class StoreError(PantheonError):
    """Postgres cannot be reached, or refuses."""

    retryable = True


class DiscoveryError(PantheonError):
    """Consul or the KV bucket cannot be reached, or refuses."""

    retryable = True


class StackError(PantheonError):
    """A part of the embedded stack cannot start; one line: what, and what to do."""
