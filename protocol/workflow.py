"""The workflow language as a model: what a workflow file holds, and the payload of `execute_dag` (docs/protocol.md,
execute_dag).

A workflow is a graph of steps. A step runs a task type (routed by capability), a workflow by name or inline
(`steps`), waits for a signal or an approval, or sleeps. Strings may hold `${…}`: CEL expressions over `input` and the
results of earlier steps.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from protocol.discovery import AgentName
from protocol.messages import MAX_TIMEOUT_SECONDS, Message
from protocol.names import RESERVED_STEP_NAMES, STEP_NAME, TASK_TYPE, null_means

# A hard bound on what one step can repeat: a loop that needs more is a mistake, or a schedule.
MAX_ITERATIONS = 1000
# Items of a fan-out at work at once, where the step has no bound: enough to keep agents busy, few enough for others.
DEFAULT_CONCURRENCY = 100
MAX_STEPS = 10_000
# The longest a step may sleep or wait: a year. What is further away is a schedule.
MAX_WAIT_SECONDS = 366 * 86400
STEP_KINDS = ("task", "workflow", "steps", "wait_for", "sleep", "until")
MAX_DEPTH = 16


def _step_name(value: str) -> str:
    if value in RESERVED_STEP_NAMES:
        raise ValueError(f"'{value}' cannot be a step's name: it is a word that expressions reserve")
    if STEP_NAME.match(value) is None:
        raise ValueError(f"'{value}' cannot be a step's name: names match ^[a-z][a-z0-9_]{{0,62}}$")
    return value


def _task_type(value: str) -> str:
    if TASK_TYPE.match(value) is None:
        raise ValueError(f"'{value}' is not a task type: those match ^[a-z][a-z0-9_]{{0,62}}$")
    return value


StepName = Annotated[str, AfterValidator(_step_name)]
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+)ms)?")


def seconds_of(value: object) -> float:
    """A duration in seconds: a number of them, or text such as `90s`, `5m`, `1h30m`, `2d`, `250ms`.

    Raises ValueError.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    elif isinstance(value, str) and value and (match := _DURATION.fullmatch(value)) is not None:
        days, hours, minutes, rest, milliseconds = (float(part or 0) for part in match.groups())
        seconds = ((days * 24 + hours) * 60 + minutes) * 60 + rest + milliseconds / 1000
    else:
        raise ValueError(f"{value!r} is not a duration: a number of seconds, or text such as 90s, 5m, 1h30m, 2d")
    if not 0 <= seconds <= MAX_WAIT_SECONDS:
        raise ValueError(f"{value!r} is not between 0 and {MAX_WAIT_SECONDS // 86400} days")
    return seconds


def _template_or_seconds(value: object) -> object:
    return value if isinstance(value, str) and "${" in value else seconds_of(value)


_DURATION_TEXT = r"^(?=.)(\d+d)?(\d+h)?(\d+m)?(\d+(\.\d+)?s)?(\d+ms)?$"
_DURATION_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "number", "minimum": 0, "maximum": MAX_WAIT_SECONDS},
        {"type": "string", "pattern": _DURATION_TEXT},
    ]
}
_TEMPLATE_SCHEMA: dict[str, Any] = {"anyOf": [*_DURATION_SCHEMA["anyOf"], {"type": "string", "pattern": r"\$\{"}]}
Duration = Annotated[float, BeforeValidator(seconds_of), WithJsonSchema(_DURATION_SCHEMA)]
DurationTemplate = Annotated[float | str, BeforeValidator(_template_or_seconds), WithJsonSchema(_TEMPLATE_SCHEMA)]
_ATTEMPT_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_TIMEOUT_SECONDS},
        {"type": "string", "pattern": _DURATION_TEXT},
    ]
}
MAX_LABEL_CHARS = 128
Code = Annotated[str, Field(min_length=1, max_length=128)]
Label = Annotated[str, Field(min_length=1, max_length=MAX_LABEL_CHARS)]


class Retry(Message):
    """How a step's failed attempts are tried again: after `initial_seconds`, then `multiplier` times as long.

    The wait is spread by ±`jitter` of itself, so that what failed together does not come back together. The error's own
    `retryable` decides, unless its code is in `retry_on` (then it is retried) or `no_retry_on` (then it is not).
    """

    max_attempts: int | None = Field(default=None, ge=1, le=1000)
    initial_seconds: Annotated[float, Field(ge=0, le=3600), null_means(1.0)] = 1.0
    multiplier: Annotated[float, Field(ge=1, le=100), null_means(2.0)] = 2.0
    max_seconds: Annotated[float, Field(ge=0, le=86400), null_means(60.0)] = 60.0
    jitter: Annotated[float, Field(ge=0, le=1), null_means(0.2)] = 0.2
    retry_on: Annotated[tuple[Code, ...], null_means(())] = Field(default=(), strict=False)
    no_retry_on: Annotated[tuple[Code, ...], null_means(())] = Field(default=(), strict=False)


class Repeat(Message):
    """Run a step again until `until` is true, `max` times at most. In `with`, `when` and `until`, the step's own name
    is the result of the iteration before (null in the first)."""

    until: str
    max: int = Field(ge=1, le=MAX_ITERATIONS)


class Fallback(Message):
    """What replaces a step that failed for good: another task, or a literal `result`. In `with` and `result`,
    `error` is what failed: `code`, `message`."""

    model_config = ConfigDict(populate_by_name=True)

    task: Annotated[str, AfterValidator(_task_type)] | None = None
    agent: AgentName | None = None
    with_: Any = Field(default=None, alias="with")
    result: Any = None

    @model_validator(mode="after")
    def _one_kind(self) -> "Fallback":
        if (self.task is None) == ("result" not in self.model_fields_set):
            raise ValueError("a fallback has exactly one of 'task' and 'result'")
        return self


class Compensation(Message):
    """A task that compensates a completed step when its workflow fails or is cancelled. In `with`, `result` is the
    step's own."""

    model_config = ConfigDict(populate_by_name=True)

    task: Annotated[str, AfterValidator(_task_type)]
    agent: AgentName | None = None
    with_: Any = Field(default=None, alias="with")
    retry: Retry | None = None
    timeout: Duration | None = None


class WaitFor(Message):
    """A step that waits for a `signal` or an `approval` of that name; its result is what was sent.

    `from` names the requesters who may send it (none named: all); `schema` is a JSON Schema of the payload; after
    `timeout` the step fails with code `timeout`, or, with `on_timeout: continue`, ends with null.
    """

    model_config = ConfigDict(populate_by_name=True)

    signal: Label | None = None
    approval: Label | None = None
    from_: Annotated[tuple[Label, ...], null_means(())] = Field(default=(), strict=False, alias="from")
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    timeout: Duration | None = None
    on_timeout: Annotated[Literal["fail", "continue"], null_means("fail")] = "fail"

    @model_validator(mode="after")
    def _one_kind(self) -> "WaitFor":
        if (self.signal is None) == (self.approval is None):
            raise ValueError("'wait_for' has exactly one of 'signal' and 'approval'")
        return self

    @property
    def name(self) -> str:
        return self.signal or self.approval or ""


class Requires(Message):
    """What the agent that gets a step must be: `model` and `tags` as in its registry entry, times and reliability as
    the orchestrator has seen them. Unless `strict`, an agent that is none of this gets the step where no other has a
    slot."""

    model: Label | None = None
    tags: Annotated[tuple[Label, ...], null_means(())] = Field(default=(), strict=False)
    max_response_ms: float | None = Field(default=None, gt=0)
    min_reliability: float | None = Field(default=None, ge=0, le=1)
    strict: bool = True


class Step(Message):
    """One node of a workflow, with exactly one of: `task` (a task type, or a workflow's name), `workflow`, `steps` (an
    inline sub-workflow), `wait_for`, `sleep` (a duration), `until` (a time).

    With `for_each` (a list, or one `${…}` that gives one) it runs once for each item, `concurrency` of them at once;
    in `with`, `item` and `index` are the item at hand; the step's result is the list of results, in the items' order.
    """

    model_config = ConfigDict(populate_by_name=True)

    task: Annotated[str, AfterValidator(_task_type)] | None = None
    workflow: Annotated[str, AfterValidator(_task_type)] | None = None
    steps: dict[StepName, "Step"] | None = Field(default=None, min_length=1, max_length=MAX_STEPS)
    output: Any = None
    wait_for: WaitFor | None = None
    sleep: DurationTemplate | None = None
    until: str | None = None
    description: str | None = None
    agent: AgentName | None = None
    requires: Requires | None = None
    sticky: str | None = None
    needs: Annotated[tuple[str, ...], null_means(())] = Field(default=(), strict=False)
    when: str | None = None
    with_: Any = Field(default=None, alias="with")
    for_each: list[Any] | str | None = None
    concurrency: Annotated[int, Field(ge=1, le=10_000), null_means(DEFAULT_CONCURRENCY)] = DEFAULT_CONCURRENCY
    repeat: Repeat | None = None
    retry: Retry | None = None
    timeout: (
        Annotated[
            float,
            BeforeValidator(seconds_of),
            Field(gt=0, le=MAX_TIMEOUT_SECONDS),
            WithJsonSchema(_ATTEMPT_SCHEMA),
        ]
        | None
    ) = None
    fallback: Fallback | None = None
    on_error: Annotated[Literal["fail", "continue", "compensate"], null_means("fail")] = "fail"
    compensate: Compensation | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> "Step":
        kinds = [name for name in STEP_KINDS if getattr(self, name) is not None]
        if len(kinds) != 1:
            has = f", not {' and '.join(kinds)}" if kinds else ""
            raise ValueError(f"a step has exactly one of {', '.join(STEP_KINDS)}{has}")
        if self.steps is None and self.output is not None:
            raise ValueError("'output' belongs to a step with 'steps', or to the workflow")
        if self.task is None:
            for name in ("agent", "requires", "sticky", "timeout", "retry"):
                if getattr(self, name) is not None:
                    raise ValueError(f"'{name}' belongs to a step with 'task'")
        if kinds[0] in ("wait_for", "sleep", "until"):
            for name in ("with_", "for_each", "repeat", "fallback", "compensate"):
                if getattr(self, name) is not None:
                    raise ValueError(f"'{name.rstrip('_')}' does not belong to a step that waits")
        if self.with_ is not None and not isinstance(self.with_, dict | str):
            raise ValueError("'with' is an object, or a string that is one ${…}")
        if self.for_each is None and self.concurrency != DEFAULT_CONCURRENCY:
            raise ValueError("'concurrency' belongs to a step with 'for_each'")
        return self


class Budget(Message):
    """Hard bounds of a root task's whole tree, enforced before each dispatch: what is used up ends it with code
    `budget_exceeded`. `tokens` counts input and output, `tasks` the sub-tasks made, `depth` nested sub-workflows."""

    tokens: int | None = Field(default=None, ge=1)
    cost_usd: float | None = Field(default=None, gt=0)
    tasks: int | None = Field(default=None, ge=1)
    depth: int | None = Field(default=None, ge=1, le=MAX_DEPTH)


class Concurrency(Message):
    """At most `max` tasks of the workflow at once for each value of `group_by` (an expression over `input`); one more
    waits until it is admitted (`queue`), or the oldest that runs is cancelled (`cancel_older`)."""

    group_by: str | None = None
    max: int = Field(ge=1, le=100_000)
    when_full: Annotated[Literal["queue", "cancel_older"], null_means("queue")] = "queue"


class Schedule(Message):
    """Start the workflow by the clock: `cron` (five fields) in `timezone` (IANA), with `input` as its payload.

    `catch_up`: which of the times that passed while no orchestrator ran are made up for.
    """

    cron: str
    timezone: Annotated[str, null_means("UTC")] = "UTC"
    input: Annotated[dict[str, Any], null_means({})] = Field(default_factory=dict)
    catch_up: Annotated[Literal["none", "last", "all"], null_means("last")] = "last"


class Graph(Message):
    """What a workflow file and an `execute_dag` payload have in common."""

    model_config = ConfigDict(populate_by_name=True)

    steps: dict[StepName, Step] = Field(min_length=1, max_length=MAX_STEPS)
    output: Any = None
    timeout: Duration | None = Field(default=None, description="for the whole task, from its acceptance")
    budget: Budget | None = None


class Workflow(Graph):
    """A workflow file. `input` is a JSON Schema (2020-12) of the payload; its top-level `default`s are filled in."""

    name: Annotated[str, AfterValidator(_task_type)] | None = None
    description: str | None = None
    input: dict[str, Any] | None = None
    priority: int | None = Field(default=None, ge=0, le=9)
    concurrency: Concurrency | None = None
    schedule: Schedule | None = None


class ExecuteDag(Graph):
    """The payload of an `execute_dag` task: a workflow and its input."""

    input: dict[str, Any] = Field(default_factory=dict)
