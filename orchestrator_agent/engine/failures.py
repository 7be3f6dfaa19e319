"""Failures: how the engine words the errors of steps and workflows. Functions of a run; they change nothing."""

from orchestrator_agent.engine.decisions import Rules, WaitReasons
from orchestrator_agent.engine.state import Row, Run
from protocol.errors import ErrorCode, ExpressionError
from protocol.messages import ErrorInfo, json_bytes

# Of an agent's error that becomes its workflow's: its message, and all of it.
MAX_ERROR_CHARS = 32_000


def step_failed_error(run: Run, row: Row, error: ErrorInfo) -> ErrorInfo:
    """A step's error as its workflow's: the agent's own goes into details."""
    path = run.path(row)
    details = error.model_dump(mode="json", exclude_none=True)
    if len(error.message) > MAX_ERROR_CHARS or len(json_bytes(details)) > MAX_ERROR_CHARS:
        # Three messages carry it, the task's response among them, which must not become too large to be sent.
        details = {"code": error.code, "message": error.message[:MAX_ERROR_CHARS], "retryable": error.retryable}
    return ErrorInfo(
        code=ErrorCode.STEP_FAILED,
        message=f"step '{path}' failed: {error.message[:MAX_ERROR_CHARS]}",
        retryable=error.retryable,
        step=path,
        details=details,
    )


def no_agent_error(run: Run, rules: Rules, row: Row, wait_reasons: WaitReasons) -> ErrorInfo:
    path = run.path(row)
    task = f"'{row.task_type}' of agent '{row.pinned_agent}'" if row.pinned_agent else f"'{row.task_type}'"
    within = f"no agent took {task} within {rules.no_agent_wait_seconds:g} s"
    return ErrorInfo(
        code=ErrorCode.NO_AGENT_AVAILABLE,
        message=f"step '{path}': {within}: {wait_reasons}",
        step=path,
        details=wait_reasons.shown(),
    )


def invalid_workflow_error(run: Run, row: Row, reason: str) -> ErrorInfo:
    path = run.path(row)
    return ErrorInfo(code=ErrorCode.INVALID_WORKFLOW, message=f"step '{path}': {reason}", step=path)


def expression_error(run: Run, above: Row, name: str, error: ExpressionError) -> ErrorInfo:
    """`above` is the row of the workflow whose step `name` (or `output`) holds the expression."""
    prefix = run.path(above)
    path = f"{prefix}/{name}" if prefix else name
    return ErrorInfo(
        code=ErrorCode.EXPRESSION_ERROR,
        message=f"{'' if name == 'output' else 'step '}'{path}': {error.message}",
        step=path,
        details=error.details or None,
    )


def too_large_error(run: Run, rules: Rules, row: Row, what: str, size_bytes: int) -> ErrorInfo:
    path = run.path(row)
    where = f"step '{path}': " if path else ""
    limit = rules.max_payload_bytes
    return ErrorInfo(
        code=ErrorCode.TOO_LARGE,
        message=f"{where}a {what} of {size_bytes} bytes exceeds the limit of {limit} bytes",
        step=path or None,
        details={"size_bytes": size_bytes, "limit_bytes": limit},
    )
