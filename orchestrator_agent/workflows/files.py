"""Workflow files: read into the model and compiled, every mistake reported with its line and column."""

import re
from collections.abc import Collection, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator_agent.workflows.compiler import compile_workflow, refuse_agent_keys
from orchestrator_agent.workflows.expression import shown
from orchestrator_agent.workflows.plan import Plan
from orchestrator_agent.workflows.source import KeyPath, Source
from orchestrator_agent.workflows.template import QUOTED_CHARS, split
from protocol.errors import InvalidRequest, InvalidWorkflow
from protocol.messages import Message
from protocol.workflow import (
    Budget,
    Compensation,
    Concurrency,
    Fallback,
    Repeat,
    Requires,
    Retry,
    Schedule,
    Step,
    WaitFor,
    Workflow,
)

BUILTIN_FOLDER = Path(__file__).parent / "builtin"
SUFFIXES = (".yaml", ".yml", ".json")


def _keys_of(model: type[Message]) -> frozenset[str]:
    return frozenset(field.alias or name for name, field in model.model_fields.items())


def read_workflow(text: str, *, source: str, default_name: str | None = None, workflows: Collection[str] = ()) -> Plan:
    """Compile a workflow file's text. Raises InvalidWorkflow whose message begins `source:line:column:`.

    `workflows` are the names that are known to be workflows'.
    """
    read = Source(text, source)
    value = read.value
    if not isinstance(value, dict):
        raise read.mistake((), "a workflow file holds an object with 'steps'")
    for path, message in _unknown_keys(value):
        raise read.mistake(path, message)
    try:
        workflow = Workflow.model_validate(value)
    except ValidationError as error:
        path, message = _mistake(value, error)
        raise read.mistake(path, f"{'.'.join(str(part) for part in path)}: {message}") from None
    name = workflow.name or default_name
    if name is None:
        raise read.mistake((), "the workflow has no 'name'")
    try:
        plan = compile_workflow(workflow, name=name, versioned=True)
        _refuse_unfit_schedule(plan)
        refuse_agent_keys(plan, (*workflows, plan.name))
        return plan
    except InvalidWorkflow as error:
        raise read.mistake(_path_of(value, error), error.message, error.step) from None


_QUOTED = re.compile(r"'(\w+)'")
# Pydantic's messages name Python's types; these name the file's.
_MESSAGES = {
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "string_type": "must be a text: put it in quotes where YAML takes it for something else",
}


def _mistake(value: dict[str, Any], error: ValidationError) -> tuple[KeyPath, str]:
    """The first mistake of a file that is no workflow: its path, as deep as the text goes, and what is wrong."""
    first = error.errors(include_url=False, include_input=False)[0]
    message = _MESSAGES.get(first["type"], first["msg"].removeprefix("Value error, "))
    path = tuple(part for part in first["loc"] if part != "[key]")
    if first["type"] != "missing" and "[key]" not in first["loc"] and not _has(value, path):
        # The last part names one of the shapes that the value might have had.
        path = path[:-1]
    if first["type"] == "value_error" and _has(value, path) and isinstance(here := _at(value, path), dict):
        # A step as a whole is wrong; a key of it is what is wrong.
        path += tuple(name for name in _QUOTED.findall(message) if name in here)[:1]
    return path, message


def _refuse_unfit_schedule(plan: Plan) -> None:
    """Refuse an input that would have every scheduled task refused at its start. Raises InvalidWorkflow."""
    if plan.schedule is None:
        return
    try:
        plan.read_input(plan.schedule.input)
    except InvalidRequest as error:
        message = f"schedule.input does not fit the workflow's input: {error.message}"
        raise InvalidWorkflow(message, field="schedule.input" if plan.schedule.input else "schedule") from None


# Keys whose text is an expression without `${…}` around it.
_BARE = ("when", "until", "sticky", "group_by")


def _path_of(value: dict[str, Any], error: InvalidWorkflow) -> KeyPath:
    """The deepest path that the error speaks of: a key, or an expression's own line, is better than its step's."""
    steps = [path for path in _step_paths(value, ()) if path[-1] == error.step] if error.step is not None else []
    if error.field:
        field = tuple(error.field.split("."))
        return next(((*step, *field) for step in steps if _has(value, (*step, *field))), field)
    # In the step that is named, before the same text in another one.
    for around in (*steps, ()):
        for path, text in _strings(_at(value, around), around):
            if any(f"'{shown(quoted)}'" in error.message for quoted in _expressions(path, text)):
                return path
    return steps[0] if steps else ()


def _expressions(path: KeyPath, text: str) -> list[str]:
    """What messages may quote of a text with expressions: the whole text, each expression, an unclosed one's start."""
    if "${" not in text:
        return [text.strip()] if path and path[-1] in _BARE and text.strip() else []
    try:
        return [text, *(piece.strip() for is_expression, piece in split(text) if is_expression and piece.strip())]
    except InvalidWorkflow:
        return [text[at : at + QUOTED_CHARS] for at in range(len(text)) if text.startswith("${", at)]


def _at(value: Any, path: KeyPath) -> Any:
    for part in path:
        value = value[part]
    return value


def _has(value: Any, path: KeyPath) -> bool:
    try:
        _at(value, path)
    except (KeyError, IndexError, TypeError):
        return False
    return True


def _strings(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, field in value.items():
            yield from _strings(field, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _strings(item, (*path, index))


def _step_paths(value: Any, path: KeyPath) -> Iterator[KeyPath]:
    steps = value.get("steps") if isinstance(value, dict) else None
    if isinstance(steps, dict):
        for name, step in steps.items():
            yield (*path, "steps", name)
            yield from _step_paths(step, (*path, "steps", name))


# Where an object of the language stands, by its key: files may hold none but the keys of its model.
_WORKFLOW_PARTS: dict[str, tuple[type[Message], str]] = {
    "budget": (Budget, "'budget'"),
    "concurrency": (Concurrency, "'concurrency'"),
    "schedule": (Schedule, "'schedule'"),
}
_STEP_PARTS: dict[str, tuple[type[Message], str]] = {
    "repeat": (Repeat, "'repeat'"),
    "retry": (Retry, "'retry'"),
    "fallback": (Fallback, "'fallback'"),
    "compensate": (Compensation, "'compensate'"),
    "wait_for": (WaitFor, "'wait_for'"),
    "requires": (Requires, "'requires'"),
}


def _unknown_keys(value: dict[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    yield from _check_keys(value, _keys_of(Workflow), (), "a workflow")
    yield from _unknown_in_parts(value, _WORKFLOW_PARTS, ())
    yield from _unknown_in_steps(value.get("steps"), ("steps",))


def _unknown_in_parts(
    value: dict[str, Any], parts: dict[str, tuple[type[Message], str]], path: KeyPath
) -> Iterator[tuple[KeyPath, str]]:
    for key, (model, what) in parts.items():
        part = value.get(key)
        if isinstance(part, dict):
            yield from _check_keys(part, _keys_of(model), (*path, key), what)
            if isinstance(part.get("retry"), dict):
                yield from _check_keys(part["retry"], _keys_of(Retry), (*path, key, "retry"), "'retry'")


def _unknown_in_steps(steps: Any, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    if not isinstance(steps, dict):
        return
    for name, step in steps.items():
        if not isinstance(step, dict):
            continue
        here = (*path, name)
        yield from _check_keys(step, _keys_of(Step), here, "a step")
        yield from _unknown_in_parts(step, _STEP_PARTS, here)
        yield from _unknown_in_steps(step.get("steps"), (*here, "steps"))


def _check_keys(
    value: dict[str, Any], allowed: frozenset[str], path: KeyPath, what: str
) -> Iterator[tuple[KeyPath, str]]:
    for key in value:
        if key not in allowed:
            close = get_close_matches(str(key), allowed, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else f"; there is {', '.join(sorted(allowed))}"
            yield (*path, key), f"{what} has no '{key}'{hint}"


def load_file(path: Path, *, workflows: Collection[str] = ()) -> Plan:
    """Raises InvalidWorkflow, also where the file cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidWorkflow(f"{path}: cannot be read: {error}") from None
    return read_workflow(text, source=str(path), default_name=path.stem, workflows=workflows)


def load_folder(folder: Path) -> list[Plan]:
    """Every workflow file in a folder, by name. Raises InvalidWorkflow for the first mistake, and for a name twice."""
    if not folder.is_dir():
        raise InvalidWorkflow(f"{folder}: there is no such folder of workflows")
    plans: dict[str, tuple[Plan, Path]] = {}
    for path in sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES):
        plan = load_file(path)
        if plan.name in plans:
            raise InvalidWorkflow(f"{path}: the workflow '{plan.name}' is also in {plans[plan.name][1].name}")
        plans[plan.name] = (plan, path)
    for plan, path in plans.values():
        if any(task_type in plans for _, task_type, _ in plan.agent_only):
            # Once more, for the position of the mistake.
            load_file(path, workflows=plans)
    return [plan for plan, _ in plans.values()]
