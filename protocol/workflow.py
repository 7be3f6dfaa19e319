"""The workflow language as a model: what a workflow file holds, and the payload of `execute_dag` (PROTOCOL.md).

A workflow is a graph of steps. A step runs a task type (routed by capability), a workflow by name, or an inline
sub-workflow (`steps`). Strings may hold `${…}`: CEL expressions over `input` and the results of earlier steps.
"""

from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from protocol.discovery import AgentName
from protocol.messages import MAX_TIMEOUT_SECONDS, Message
from protocol.names import RESERVED_STEP_NAMES, STEP_NAME, TASK_TYPE, null_means

# A hard bound on what one step can repeat: a loop that needs more is a mistake, or a schedule.
MAX_ITERATIONS = 1000
# Items of a fan-out at work at once, where the step does not say: enough to keep agents busy, few enough for others.
DEFAULT_CONCURRENCY = 100
MAX_STEPS = 10_000
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


class Retry(Message):
    """How a step's failed attempts are tried again: after `initial_seconds`, then `multiplier` times as long.

    The wait is spread by ±`jitter` of itself, so that what failed together does not come back together.
    """

    max_attempts: int | None = Field(default=None, ge=1, le=1000)
    initial_seconds: Annotated[float, Field(ge=0, le=3600), null_means(1.0)] = 1.0
    multiplier: Annotated[float, Field(ge=1, le=100), null_means(2.0)] = 2.0
    max_seconds: Annotated[float, Field(ge=0, le=86400), null_means(60.0)] = 60.0
    jitter: Annotated[float, Field(ge=0, le=1), null_means(0.2)] = 0.2


class Repeat(Message):
    """Run a step again until `until` is true, `max` times at most. In `with`, `when` and `until`, the step's own name
    is the result of the iteration before (null in the first)."""

    until: str
    max: int = Field(ge=1, le=MAX_ITERATIONS)


class Step(Message):
    """One node of a workflow: exactly one of `task` (a task type or a workflow's name) and `steps` (inline).

    With `for_each` (a list, or one `${…}` that gives one) it runs once for each item, `concurrency` of them at once;
    in `with`, `item` and `index` are the item at hand; the step's result is the list of results, in the items' order.
    """

    model_config = ConfigDict(populate_by_name=True)

    task: Annotated[str, AfterValidator(_task_type)] | None = None
    steps: dict[StepName, "Step"] | None = Field(default=None, min_length=1, max_length=MAX_STEPS)
    output: Any = None
    description: str | None = None
    agent: AgentName | None = None
    needs: Annotated[tuple[str, ...], null_means(())] = Field(default=(), strict=False)
    when: str | None = None
    with_: Any = Field(default=None, alias="with")
    for_each: list[Any] | str | None = None
    concurrency: Annotated[int, Field(ge=1, le=10_000), null_means(DEFAULT_CONCURRENCY)] = DEFAULT_CONCURRENCY
    repeat: Repeat | None = None
    retry: Retry | None = None
    timeout: float | None = Field(default=None, gt=0, le=MAX_TIMEOUT_SECONDS, allow_inf_nan=False)

    @model_validator(mode="after")
    def _one_kind(self) -> "Step":
        if (self.task is None) == (self.steps is None):
            raise ValueError("a step has exactly one of 'task' and 'steps'")
        if self.steps is None and self.output is not None:
            raise ValueError("'output' belongs to a step with 'steps', or to the workflow")
        if self.steps is not None and (self.agent is not None or self.timeout is not None or self.retry is not None):
            raise ValueError("'agent', 'timeout' and 'retry' belong to a step with 'task'")
        if self.with_ is not None and not isinstance(self.with_, dict | str):
            raise ValueError("'with' is an object, or a string that is one ${…}")
        if self.for_each is None and self.concurrency != DEFAULT_CONCURRENCY:
            raise ValueError("'concurrency' belongs to a step with 'for_each'")
        return self


class Workflow(Message):
    """A workflow file. `input` is a JSON Schema (2020-12) of the payload; its top-level `default`s are filled in."""

    model_config = ConfigDict(populate_by_name=True)

    name: Annotated[str, AfterValidator(_task_type)] | None = None
    description: str | None = None
    input: dict[str, Any] | None = None
    steps: dict[StepName, Step] = Field(min_length=1, max_length=MAX_STEPS)
    output: Any = None


class ExecuteDag(Message):
    """The payload of an `execute_dag` task: a workflow and its input."""

    input: dict[str, Any] = Field(default_factory=dict)
    steps: dict[StepName, Step] = Field(min_length=1, max_length=MAX_STEPS)
    output: Any = None
