"""Plan: a workflow compiled: its graph checked, its expressions ready, everything that planning needs to know."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jsonschema_rs

from orchestrator_agent.workflows.expression import Environment, Expression, shown, shown_names
from orchestrator_agent.workflows.template import Constant, Interpolation, Template, compile_condition, compile_template
from protocol.errors import InvalidRequest, InvalidWorkflow
from protocol.messages import json_bytes
from protocol.workflow import MAX_DEPTH, Repeat, Retry, Step, Workflow

_ITEM_NAMES = frozenset({"item", "index"})


# Of a cycle's steps, a message names at most this many.
MAX_TOLD = 20


@dataclass(frozen=True)
class RepeatPlan:
    until: Expression
    max: int


@dataclass(frozen=True)
class StepPlan:
    """One step. `task_type` is a task type or a workflow's name; `sub` is an inline sub-workflow in its place."""

    name: str
    task_type: str | None
    sub: "Plan | None"
    agent: str | None
    needs: frozenset[str]
    when: Expression | None
    payload: Template
    for_each: Template | None
    concurrency: int
    repeat: RepeatPlan | None
    retry: Retry
    timeout_seconds: float | None


@dataclass(frozen=True)
class Plan:
    """`single` marks a request that is one task for one agent, whose result is passed on as it is."""

    name: str
    steps: Mapping[str, StepPlan]
    dependants: Mapping[str, tuple[str, ...]]
    output: Template | None
    version: str | None = None
    definition: Mapping[str, Any] | None = None
    single: bool = False
    description: str = ""
    _input: "InputSchema | None" = None

    def read_input(self, payload: dict[str, Any]) -> dict[str, Any]:
        """The payload with the input schema's defaults filled in. Raises InvalidRequest that names the field."""
        return payload if self._input is None else self._input.read(payload)

    @property
    def input_schema(self) -> dict[str, Any] | None:
        return None if self._input is None else self._input.schema


class InputSchema:
    """A workflow's JSON Schema of its payload (draft 2020-12)."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self.schema = schema
        try:
            self._validator = jsonschema_rs.validator_for({"type": "object", **schema})
        except (ValueError, jsonschema_rs.ValidationError) as error:
            raise InvalidWorkflow(f"'input' is not a JSON Schema: {shown(' '.join(str(error).split()))}") from None
        self._defaults = {
            name: one["default"]
            for name, one in schema.get("properties", {}).items()
            if isinstance(one, dict) and "default" in one
        }

    def read(self, payload: dict[str, Any]) -> dict[str, Any]:
        filled = {**self._defaults, **payload}
        error = next(iter(self._validator.iter_errors(filled)), None)
        if error is None:
            return filled
        place = ".".join(["payload", *(str(part) for part in error.instance_path)])
        raise InvalidRequest(f"{place}: {shown(error.message)}", field=place)


def compile_workflow(workflow: Workflow, *, name: str, versioned: bool = False) -> Plan:
    """Check and compile a definition. Raises InvalidWorkflow that names the step."""
    definition = None
    version = None
    if versioned:
        definition = workflow.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        version = hashlib.sha256(json_bytes(definition)).hexdigest()[:16]
    plan = _compile(workflow.steps, workflow.output, "output" in workflow.model_fields_set, name=name, depth=0)
    return Plan(
        name=name,
        steps=plan.steps,
        dependants=plan.dependants,
        output=plan.output,
        version=version,
        definition=definition,
        description=workflow.description or "",
        _input=InputSchema(workflow.input) if workflow.input is not None else None,
    )


def single_step(task_type: str) -> Plan:
    """The plan of a request that an agent serves directly: one step, named like its task type."""
    environment = Environment({"input"})
    step = StepPlan(
        name=task_type,
        task_type=task_type,
        sub=None,
        agent=None,
        needs=frozenset(),
        when=None,
        payload=compile_template("${input}", environment),
        for_each=None,
        concurrency=1,
        repeat=None,
        retry=Retry(),
        timeout_seconds=None,
    )
    return Plan(name=task_type, steps={task_type: step}, dependants={task_type: ()}, output=None, single=True)


@dataclass
class _Graph:
    steps: dict[str, StepPlan] = field(default_factory=dict)
    dependants: dict[str, tuple[str, ...]] = field(default_factory=dict)
    output: Template | None = None


def _compile(steps: Mapping[str, Step], output: Any, has_output: bool, *, name: str, depth: int) -> _Graph:
    if depth > MAX_DEPTH:
        raise InvalidWorkflow(f"'{name}': sub-workflows are nested deeper than {MAX_DEPTH}")
    environment = Environment({"input", *steps})
    graph = _Graph()
    for step_name, step in steps.items():
        graph.steps[step_name] = _compile_step(step_name, step, steps, environment, depth)
    dependants: dict[str, list[str]] = {step_name: [] for step_name in steps}
    for step_name, plan in graph.steps.items():
        for need in plan.needs:
            dependants[need].append(step_name)
    graph.dependants = {step_name: tuple(names) for step_name, names in dependants.items()}
    _refuse_cycles(graph)
    if has_output and output is not None:
        graph.output = compile_template(output, environment)
    return graph


def _compile_step(name: str, step: Step, steps: Mapping[str, Step], environment: Environment, depth: int) -> StepPlan:
    each = compile_template(step.for_each, environment, step=name) if step.for_each is not None else None
    # In a fan-out, `item` and `index` are the item at hand, whatever steps are called so.
    inner = environment if each is None else Environment({*environment.names, *_ITEM_NAMES})
    payload = Constant({}) if step.with_ is None else compile_template(step.with_, inner, step=name)
    if isinstance(payload, Interpolation) or (isinstance(payload, Constant) and not isinstance(payload.value, dict)):
        raise InvalidWorkflow(f"step '{name}': 'with' must be an object, or one ${{…}} that gives one", step=name)
    when = compile_condition(step.when, environment, step=name) if step.when is not None else None
    repeat = _compile_repeat(name, step.repeat, environment) if step.repeat is not None else None
    used = payload.uses - (_ITEM_NAMES if each is not None else frozenset()) | (each.uses if each else frozenset())
    used |= (when.uses if when else frozenset()) | (repeat.until.uses if repeat else frozenset())
    for need in step.needs:
        if need not in steps:
            known = shown_names(one for one in steps if one != name) or "no other step"
            raise InvalidWorkflow(
                f"step '{name}' needs '{shown(need)}', which is not a step; there is {known}", step=name
            )
    needs = (used | frozenset(step.needs)) - {"input"}
    if repeat is not None and name not in step.needs:
        # The result of the iteration before, not a need.
        needs -= {name}
    sub = None
    if step.steps is not None:
        graph = _compile(step.steps, step.output, "output" in step.model_fields_set, name=name, depth=depth + 1)
        sub = Plan(name=name, steps=graph.steps, dependants=graph.dependants, output=graph.output)
    return StepPlan(
        name=name,
        task_type=step.task,
        sub=sub,
        agent=step.agent,
        needs=needs,
        when=when,
        payload=payload,
        for_each=each,
        concurrency=step.concurrency,
        repeat=repeat,
        retry=step.retry or Retry(),
        timeout_seconds=step.timeout,
    )


def _compile_repeat(name: str, repeat: Repeat, environment: Environment) -> RepeatPlan:
    return RepeatPlan(compile_condition(repeat.until, environment, step=name), repeat.max)


def _refuse_cycles(graph: _Graph) -> None:
    """Kahn's algorithm; what it cannot order is in, or behind, a cycle, and a walk along needs finds one."""
    missing = {name: len(plan.needs) for name, plan in graph.steps.items()}
    free = [name for name, count in missing.items() if count == 0]
    ordered = 0
    while free:
        ordered += 1
        for dependant in graph.dependants[free.pop()]:
            missing[dependant] -= 1
            if missing[dependant] == 0:
                free.append(dependant)
    if ordered == len(graph.steps):
        return
    # Names in the order of the walk; a dict, because cycles may be thousands of steps long.
    walk: dict[str, None] = {}
    follow = next(name for name, count in missing.items() if count)
    while follow not in walk:
        walk[follow] = None
        follow = min(need for need in graph.steps[follow].needs if missing[need])
    names = list(walk)
    cycle = names[names.index(follow) :]
    told = cycle if len(cycle) <= MAX_TOLD else [*cycle[:MAX_TOLD], "…"]
    raise InvalidWorkflow(f"the steps need each other in a circle: {' -> '.join([*told, follow])}", step=follow)
