"""Library: the workflows an orchestrator knows, by name (the newest) and by version (what a running task stays on)."""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from orchestrator_agent.workflows.compiler import compile_workflow, refuse_agent_keys, single_step
from orchestrator_agent.workflows.plan import Plan
from protocol.errors import InvalidWorkflow
from protocol.messages import invalid_request, json_bytes
from protocol.workflow import ExecuteDag, Workflow

# Requests often repeat an inline graph with other inputs; each graph is compiled once while it is in use.
INLINE_PLANS = 512


class Library:
    """Plans in memory. `remember` adds what only the database has, before it is needed."""

    def __init__(self, plans: Iterable[Plan] = ()) -> None:
        self._by_name: dict[str, Plan] = {}
        self._by_version: dict[str, Plan] = {}
        self._inline: OrderedDict[bytes, Plan] = OrderedDict()
        self._single: dict[str, Plan] = {}
        for plan in plans:
            self.add(plan)
        self._files = frozenset(self._by_name)
        for plan in self._by_name.values():
            self.refuse_agent_keys(plan)

    def refuse_agent_keys(self, plan: Plan) -> None:
        """Raises InvalidWorkflow where keys of a step do nothing because its task is a workflow that is known now."""
        if plan.agent_only:
            refuse_agent_keys(plan, self._by_name)

    def add(self, plan: Plan) -> None:
        """Make a plan the newest of its name."""
        self._by_name[plan.name] = plan
        if plan.version is not None:
            self._by_version[plan.version] = plan

    def from_file(self, name: str) -> bool:
        """Whether a name is defined by a file: then the database's definitions of it are not used."""
        return name in self._files

    def remember(self, version: str, name: str, definition: Mapping[str, Any]) -> None:
        """Add an older version, as the database has it. Raises InvalidWorkflow."""
        try:
            workflow = Workflow.model_validate(dict(definition))
        except ValidationError as error:
            wrong = invalid_request(error, prefix=f"workflow {name}, version {version}")
            raise InvalidWorkflow(wrong.message) from None
        # Known by the version that rows have, however versions are made today.
        self._by_version[version] = replace(compile_workflow(workflow, name=name, versioned=True), version=version)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._by_name))

    @property
    def plans(self) -> tuple[Plan, ...]:
        return tuple(self._by_name[name] for name in self.names)

    def newest(self, name: str) -> Plan | None:
        return self._by_name.get(name)

    def has_version(self, version: str) -> bool:
        return version in self._by_version

    def version(self, version: str) -> Plan:
        """Raises InvalidWorkflow where the version was not added."""
        try:
            return self._by_version[version]
        except KeyError:
            raise InvalidWorkflow(f"the workflow's version {version} is not in the database") from None

    def single(self, task_type: str) -> Plan:
        if (plan := self._single.get(task_type)) is None:
            plan = self._single[task_type] = single_step(task_type)
        return plan

    def inline(self, payload: Mapping[str, Any]) -> tuple[Plan, dict[str, Any]]:
        """The plan and the input of an `execute_dag` payload. Raises InvalidWorkflow that names the step or field."""
        input_value = payload.get("input")
        if not isinstance(input_value, dict | None):
            raise InvalidWorkflow("payload.input: must be an object")
        text = json_bytes({name: value for name, value in payload.items() if name != "input"})
        # Graphs may be megabytes; what is kept of their text is a digest.
        key = hashlib.blake2b(text, digest_size=32).digest()
        if (plan := self._inline.get(key)) is not None:
            self._inline.move_to_end(key)
            return plan, input_value or {}
        try:
            dag = ExecuteDag.model_validate({name: value for name, value in payload.items() if value is not None})
        except ValidationError as error:
            wrong = invalid_request(error, prefix="payload")
            raise InvalidWorkflow(wrong.message, step=_step_in(wrong.field)) from None
        definition = {name: value for name, value in payload.items() if name != "input"}
        plan = replace(compile_workflow(dag, name="execute_dag"), definition=definition)
        self._inline[key] = plan
        if len(self._inline) > INLINE_PLANS:
            self._inline.popitem(last=False)
        return plan, input_value or {}


def _step_in(field: str) -> str | None:
    parts = field.split(".")
    return parts[2] if len(parts) > 2 and parts[1] == "steps" else None
