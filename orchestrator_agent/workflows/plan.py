"""Plan: a workflow compiled: its graph checked, its expressions ready, everything that planning needs to know."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

from orchestrator_agent.workflows.expression import Expression
from orchestrator_agent.workflows.payload_schema import PayloadSchema
from orchestrator_agent.workflows.template import Constant, Template
from protocol.workflow import Budget, Requires, Retry, Schedule

OnError = Literal["fail", "continue", "compensate"]


@dataclass(frozen=True)
class RepeatPlan:
    until: Expression
    max: int


@dataclass(frozen=True)
class FallbackPlan:
    """What replaces a failed step: a task with its payload, or (`task_type` None) the rendered payload itself."""

    task_type: str | None
    agent: str | None
    payload: Template


@dataclass(frozen=True)
class CompensationPlan:
    task_type: str
    agent: str | None
    payload: Template
    retry: Retry
    timeout_seconds: float | None
    agent_keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class WaitPlan:
    """What a step waits for: a signal or an approval, who may give it, what it must hold, and how long."""

    name: str
    approval: bool
    givers: frozenset[str]
    schema: PayloadSchema | None
    timeout_seconds: float | None
    continue_on_timeout: bool

    def accepts(self, giver: str | None) -> bool:
        return not self.givers or giver in self.givers


@dataclass(frozen=True)
class ConcurrencyPlan:
    group_by: Expression | None
    max: int
    cancel_older: bool


class AgentOnly(NamedTuple):
    """Keys of a step that do nothing if its task type is a workflow's name: whether it is, is known when it runs."""

    step: str
    task_type: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class StepPlan:
    """One step. It is what one of these says: `task_type` (a task type or a workflow's name), `workflow`, `sub` (an
    inline sub-workflow), `wait`, `sleep_seconds`, `until`.

    `agent_keys` are those keys of it that define how a task is delegated to an agent.
    """

    name: str
    needs: frozenset[str] = frozenset()
    when: Expression | None = None
    payload: Template = field(default_factory=lambda: Constant({}))
    task_type: str | None = None
    workflow: str | None = None
    sub: "Plan | None" = None
    wait: WaitPlan | None = None
    sleep_seconds: Template | None = None
    until: Expression | None = None
    agent: str | None = None
    requires: Requires | None = None
    sticky: Expression | None = None
    for_each: Template | None = None
    concurrency: int = 1
    repeat: RepeatPlan | None = None
    retry: Retry = field(default_factory=Retry)
    timeout_seconds: float | None = None
    agent_keys: tuple[str, ...] = ()
    fallback: FallbackPlan | None = None
    on_error: OnError = "fail"
    compensate: CompensationPlan | None = None

    @cached_property
    def waits(self) -> bool:
        """Whether no agent works on it: it ends at its time, or with its signal."""
        return self.wait is not None or self.sleep_seconds is not None or self.until is not None

    @cached_property
    def shown_type(self) -> str:
        """The task type in this step's rows."""
        if self.task_type is not None or self.workflow is not None:
            return self.task_type or self.workflow or ""
        if self.wait is not None:
            return "wait_for"
        return "sleep" if self.sleep_seconds is not None or self.until is not None else self.name


@dataclass(frozen=True)
class Plan:
    """`single` marks a request that is one task for one agent, whose result is the root's.

    `compensates`: a step of it, or of an inline sub-workflow, has a compensation.
    """

    name: str
    steps: Mapping[str, StepPlan]
    dependants: Mapping[str, tuple[str, ...]]
    output: Template | None
    version: str | None = None
    definition: Mapping[str, Any] | None = None
    single: bool = False
    compensates: bool = False
    agent_only: tuple[AgentOnly, ...] = ()
    description: str = ""
    timeout_seconds: float | None = None
    priority: int | None = None
    budget: Budget | None = None
    concurrency: ConcurrencyPlan | None = None
    schedule: Schedule | None = None
    schema: PayloadSchema | None = None

    def read_input(self, payload: dict[str, Any]) -> dict[str, Any]:
        """The payload with the input schema's defaults filled in. Raises InvalidRequest that names the field."""
        return payload if self.schema is None else self.schema.read(payload)

    @property
    def input_schema(self) -> dict[str, Any] | None:
        return None if self.schema is None else self.schema.schema
