"""compile_workflow: checks a definition and makes a Plan of it, once per version."""

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from orchestrator_agent.workflows.expression import Environment, shown, shown_names
from orchestrator_agent.workflows.payload_schema import PayloadSchema
from orchestrator_agent.workflows.plan import (
    AgentOnly,
    CompensationPlan,
    ConcurrencyPlan,
    FallbackPlan,
    Plan,
    RepeatPlan,
    StepPlan,
    WaitPlan,
)
from orchestrator_agent.workflows.template import (
    Constant,
    Interpolation,
    Template,
    compile_condition,
    compile_template,
)
from protocol.errors import InvalidWorkflow
from protocol.messages import json_bytes, now
from protocol.names import EXECUTE_DAG, ORCHESTRATOR
from protocol.workflow import (
    MAX_DEPTH,
    Compensation,
    Concurrency,
    Fallback,
    Graph,
    Retry,
    Schedule,
    Step,
    WaitFor,
    Workflow,
)

# Of a step's keys, those that define how an agent's task is delegated: a sub-workflow's steps have their own.
_AGENT_KEYS = ("requires", "sticky", "timeout", "retry")
_ITEM_NAMES = frozenset({"item", "index"})
# A message lists at most this many steps of a cycle: cycles may be thousands of steps long.
MAX_LISTED_STEPS = 20
# The fields of a cron expression, each with its largest value: a longer step would only ever be taken from the start.
CRON_FIELDS = {"minute": 59, "hour": 23, "day of the month": 31, "month": 12, "day of the week": 7}
_CRON_STEP = re.compile(r"/(\d+)")


def compile_workflow(workflow: Graph, *, name: str, versioned: bool = False) -> Plan:
    """Check and compile a definition. Raises InvalidWorkflow that names the step."""
    definition = None
    version = None
    if versioned:
        if name == EXECUTE_DAG:
            raise InvalidWorkflow(f"no workflow can be called '{name}': it is how one is sent inline", field="name")
        # The name is hashed too: a file may leave it out, and two files of one content are two workflows.
        definition = {**workflow.model_dump(mode="json", by_alias=True, exclude_unset=True), "name": name}
        version = hashlib.sha256(json_bytes(definition)).hexdigest()[:16]
    graph = _compile(workflow.steps, workflow.output, "output" in workflow.model_fields_set, name=name, depth=0)
    root_only: dict[str, Any] = {}
    if isinstance(workflow, Workflow):
        root_only = {
            "description": workflow.description or "",
            "priority": workflow.priority,
            "concurrency": _concurrency(workflow.concurrency),
            "schedule": _schedule(workflow.schedule),
            "schema": PayloadSchema(workflow.input) if workflow.input is not None else None,
        }
    return Plan(
        name=name,
        steps=graph.steps,
        dependants=graph.dependants,
        output=graph.output,
        version=version,
        definition=definition,
        compensates=graph.compensates,
        agent_only=tuple(graph.agent_only()),
        timeout_seconds=workflow.timeout,
        budget=workflow.budget,
        **root_only,
    )


def refuse_agent_keys(plan: Plan, workflows: Collection[str]) -> None:
    """Raises InvalidWorkflow where a step of a plan has keys that do nothing, as its task is one of these workflows."""
    for step, task_type, keys in plan.agent_only:
        if task_type in workflows:
            raise InvalidWorkflow(
                f"step '{step}': {' and '.join(map(repr, keys))} would do nothing, as '{task_type}' is a workflow: its "
                "own steps have them",
                step=step,
                field=keys[0],
            )


def single_step(task_type: str) -> Plan:
    """The plan of a request that an agent serves directly: one step, named like its task type."""
    payload = compile_template("${input}", Environment({"input"}))
    step = StepPlan(name=task_type, task_type=task_type, payload=payload)
    return Plan(name=task_type, steps={task_type: step}, dependants={task_type: ()}, output=None, single=True)


@dataclass
class _Graph:
    steps: dict[str, StepPlan] = field(default_factory=dict)
    dependants: dict[str, tuple[str, ...]] = field(default_factory=dict)
    output: Template | None = None

    @property
    def compensates(self) -> bool:
        return any(
            step.compensate is not None or (step.sub is not None and step.sub.compensates)
            for step in self.steps.values()
        )

    def agent_only(self) -> Iterator[AgentOnly]:
        """The keys of steps, inline sub-workflows' too, that do nothing where the task is a workflow's name."""
        for name, step in self.steps.items():
            if step.sub is not None:
                yield from step.sub.agent_only
            if step.task_type is not None and step.agent in (None, ORCHESTRATOR) and step.agent_keys:
                yield AgentOnly(name, step.task_type, step.agent_keys)
            compensate = step.compensate
            if compensate is not None and compensate.agent in (None, ORCHESTRATOR) and compensate.agent_keys:
                yield AgentOnly(name, compensate.task_type, compensate.agent_keys)


def _compile(steps: Mapping[str, Step], output: Any, has_output: bool, *, name: str, depth: int) -> _Graph:
    if depth > MAX_DEPTH:
        raise InvalidWorkflow(f"'{name}': sub-workflows are nested deeper than {MAX_DEPTH}")
    environment = Environment({"input", *steps})
    graph = _Graph()
    for step_name, step in steps.items():
        graph.steps[step_name] = _StepCompiler(step_name, step, steps, environment, depth).compile()
    dependants: dict[str, list[str]] = {step_name: [] for step_name in steps}
    for step_name, plan in graph.steps.items():
        for need in plan.needs:
            dependants[need].append(step_name)
    graph.dependants = {step_name: tuple(names) for step_name, names in dependants.items()}
    _refuse_cycles(graph)
    if has_output and output is not None:
        try:
            graph.output = compile_template(output, environment)
        except InvalidWorkflow as error:
            inner = f"step '{name}': " if depth else ""
            raise InvalidWorkflow(f"{inner}'output': {error.message}", step=name if depth else None) from None
    return graph


class _StepCompiler:
    """Compiles one step and gathers the names that its expressions use: those are needs."""

    def __init__(self, name: str, step: Step, steps: Mapping[str, Step], environment: Environment, depth: int) -> None:
        self.name = name
        self.step = step
        self.steps = steps
        self.environment = environment
        self.depth = depth
        self.used: frozenset[str] = frozenset()

    def compile(self) -> StepPlan:
        step, name = self.step, self.name
        if step.task == EXECUTE_DAG:
            raise InvalidWorkflow(
                f"step '{name}': '{EXECUTE_DAG}' is sent as a task of its own: put the steps into 'steps'", step=name
            )
        each = self._list(step.for_each) if step.for_each is not None else None
        # In a fan-out, `item` and `index` are the current item, also where steps have these names.
        here = _ITEM_NAMES if each is not None else frozenset[str]()
        payload = self._object(step.with_, "with", here)
        when = self._condition(step.when)
        repeat = RepeatPlan(self._present(self._condition(step.repeat.until)), step.repeat.max) if step.repeat else None
        sleep = self._template(step.sleep) if step.sleep is not None else None
        if isinstance(sleep, Interpolation):
            raise InvalidWorkflow(
                f"step '{name}': 'sleep' must be a duration, or one ${{…}} that gives one", step=name, field="sleep"
            )
        until = self._condition(step.until)
        sticky = self._condition(step.sticky, here)
        needs = (self.used | self._named_needs()) - {"input"}
        if step.repeat is not None and name not in step.needs:
            # The result of the iteration before, not a need.
            needs -= {name}
        return StepPlan(
            name=name,
            needs=needs,
            when=when,
            payload=payload,
            task_type=step.task,
            workflow=step.workflow,
            sub=self._sub(),
            wait=self._wait(step.wait_for) if step.wait_for is not None else None,
            sleep_seconds=sleep,
            until=until,
            agent=step.agent,
            requires=step.requires,
            sticky=sticky,
            for_each=each,
            concurrency=step.concurrency,
            repeat=repeat,
            retry=step.retry or Retry(),
            timeout_seconds=step.timeout,
            agent_keys=tuple(key for key in _AGENT_KEYS if getattr(step, key) is not None),
            fallback=self._fallback(step.fallback, here) if step.fallback is not None else None,
            on_error=step.on_error,
            compensate=self._compensation(step.compensate, here) if step.compensate is not None else None,
        )

    def _template(self, value: Any, here: frozenset[str] = frozenset()) -> Template:
        environment = self.environment if not here else Environment({*self.environment.names, *here})
        template = compile_template(value, environment, step=self.name)
        self.used |= template.uses - here
        return template

    def _object(self, value: Any, key: str, here: frozenset[str]) -> Template:
        template = Constant({}) if value is None else self._template(value, here)
        wrong = isinstance(template, Constant) and not isinstance(template.value, dict)
        if wrong or isinstance(template, Interpolation):
            raise InvalidWorkflow(
                f"step '{self.name}': '{key}' must be an object, or one ${{…}} that gives one",
                step=self.name,
                field=key,
            )
        return template

    def _list(self, value: Any) -> Template:
        template = self._template(value)
        if isinstance(template, Interpolation) or (isinstance(template, Constant) and isinstance(value, str)):
            raise InvalidWorkflow(
                f"step '{self.name}': 'for_each' must be a list, or one ${{…}} that gives one",
                step=self.name,
                field="for_each",
            )
        return template

    def _condition(self, text: str | None, here: frozenset[str] = frozenset()) -> Any:
        if text is None:
            return None
        environment = self.environment if not here else Environment({*self.environment.names, *here})
        expression = compile_condition(text, environment, step=self.name)
        self.used |= expression.uses - here
        return expression

    @staticmethod
    def _present(expression: Any) -> Any:
        assert expression is not None
        return expression

    def _named_needs(self) -> frozenset[str]:
        for need in self.step.needs:
            if need not in self.steps:
                known = shown_names(name for name in self.steps if name != self.name) or "no other step"
                raise InvalidWorkflow(
                    f"step '{self.name}' needs '{shown(need)}', which is not a step; there is {known}",
                    step=self.name,
                    field="needs",
                )
        return frozenset(self.step.needs)

    def _sub(self) -> Plan | None:
        step = self.step
        if step.steps is None:
            return None
        graph = _compile(
            step.steps, step.output, "output" in step.model_fields_set, name=self.name, depth=self.depth + 1
        )
        return Plan(
            name=self.name,
            steps=graph.steps,
            dependants=graph.dependants,
            output=graph.output,
            compensates=graph.compensates,
            agent_only=tuple(graph.agent_only()),
        )

    def _wait(self, wait: WaitFor) -> WaitPlan:
        where = f"step '{self.name}': 'schema'"
        return WaitPlan(
            name=wait.name,
            approval=wait.approval is not None,
            givers=frozenset(wait.from_),
            schema=PayloadSchema(wait.schema_, where=where, field="wait_for.schema", step=self.name)
            if wait.schema_ is not None
            else None,
            timeout_seconds=wait.timeout,
            continue_on_timeout=wait.on_timeout == "continue",
        )

    def _fallback(self, fallback: Fallback, here: frozenset[str]) -> FallbackPlan:
        # What only the fallback reads adds no need: it must be in `needs` anyway, so it has ended by then.
        before = self.used
        names = here | {"error"}
        payload = (
            self._object(fallback.with_, "fallback.with", names)
            if fallback.task is not None
            else self._template(fallback.result, names)
        )
        self._only_known(before, "fallback")
        return FallbackPlan(task_type=fallback.task, agent=fallback.agent, payload=payload)

    def _compensation(self, compensation: Compensation, here: frozenset[str]) -> CompensationPlan:
        before = self.used
        payload = self._object(compensation.with_, "compensate.with", here | {"result"})
        self._only_known(before, "compensate")
        return CompensationPlan(
            task_type=compensation.task,
            agent=compensation.agent,
            payload=payload,
            retry=compensation.retry or Retry(),
            timeout_seconds=compensation.timeout,
            agent_keys=tuple(f"compensate.{key}" for key in ("retry", "timeout") if getattr(compensation, key)),
        )

    def _only_known(self, before: frozenset[str], key: str) -> None:
        """What is used here must be among the step's needs: otherwise its value might not be known yet."""
        extra = self.used - before - self._named_needs() - {"input", self.name}
        self.used = before
        if extra:
            raise InvalidWorkflow(
                f"step '{self.name}': '{key}' uses {', '.join(sorted(extra))}: put it into 'needs' as well",
                step=self.name,
                field=key,
            )


def _concurrency(concurrency: Concurrency | None) -> ConcurrencyPlan | None:
    if concurrency is None:
        return None
    group_by = None
    if concurrency.group_by is not None:
        group_by = compile_condition(concurrency.group_by, Environment({"input"}))
    return ConcurrencyPlan(group_by, concurrency.max, concurrency.when_full == "cancel_older")


def _schedule(schedule: Schedule | None) -> Schedule | None:
    if schedule is None:
        return None
    try:
        ZoneInfo(schedule.timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise InvalidWorkflow(
            f"schedule.timezone: there is no time zone '{shown(schedule.timezone)}'", field="schedule.timezone"
        ) from None
    subject = f"schedule.cron: '{shown(schedule.cron)}'"
    fields = schedule.cron.split()
    if len(fields) != len(CRON_FIELDS):
        # A sixth field would be seconds: the library accepts it, the scheduler does not support it.
        raise InvalidWorkflow(
            f"{subject} is not a cron expression: it has {len(fields)} fields, not {len(CRON_FIELDS)}",
            field="schedule.cron",
        )
    for text, (name, largest) in zip(fields, CRON_FIELDS.items(), strict=True):
        for step in _CRON_STEP.findall(text):
            if len(step) > 3 or int(step) > largest:
                raise InvalidWorkflow(
                    f"{subject} is not a cron expression: /{shown(step)} is beyond the {name}, which ends at {largest}",
                    field="schedule.cron",
                )
    try:
        next(CronSim(schedule.cron, now()))
    except CronSimError as error:
        raise InvalidWorkflow(f"{subject} is not a cron expression: {error}", field="schedule.cron") from None
    except StopIteration:
        raise InvalidWorkflow(f"{subject} is a time that never comes", field="schedule.cron") from None
    return schedule


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
    # Names in the order of the walk; a dict for its fast membership test.
    walk: dict[str, None] = {}
    follow = next(name for name, count in missing.items() if count)
    while follow not in walk:
        walk[follow] = None
        follow = min(need for need in graph.steps[follow].needs if missing[need])
    names = list(walk)
    cycle = names[names.index(follow) :]
    listed = cycle if len(cycle) <= MAX_LISTED_STEPS else [*cycle[:MAX_LISTED_STEPS], "…"]
    raise InvalidWorkflow(f"the steps need each other in a circle: {' -> '.join([*listed, follow])}", step=follow)
