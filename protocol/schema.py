"""JSON Schemas (draft 2020-12) of the messages, generated from the models, and the AsyncAPI document beside them.

What the models check in code, which their own schemas therefore lack (names, reply subjects, one kind of step), is
added from the tables below. Whatever a model accepts in the form that docs/protocol.md describes, its schema accepts.
The output depends on the code alone: same code, same bytes.
"""

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, models_json_schema

from protocol.discovery import InstanceRecord
from protocol.errors import ErrorCode
from protocol.events import Event
from protocol.messages import (
    Control,
    DeadLetter,
    Heartbeat,
    TaskProgress,
    TaskRequest,
    TaskResponse,
)
from protocol.names import MESH_OPERATION, RESERVED_STEP_NAMES, STEP_NAME, TASK_TYPE
from protocol.workflow import STEP_KINDS, ExecuteDag, Workflow

Document = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
ID_PREFIX = "urn:pantheon-mesh:protocol:1:"
_VALIDATION: JsonSchemaMode = "validation"

# File name without its ending -> the model that it describes.
MODELS: dict[str, type[BaseModel]] = {
    "task-request": TaskRequest,
    "task-response": TaskResponse,
    "task-progress": TaskProgress,
    "heartbeat": Heartbeat,
    "control": Control,
    "dead-letter": DeadLetter,
    "event": Event,
    "instance-record": InstanceRecord,
    "workflow": Workflow,
    "execute-dag": ExecuteDag,
}

ERROR_CODES: dict[ErrorCode, str] = {
    ErrorCode.INVALID_REQUEST: "The message, or its payload, is not what the task type takes; the field is named.",
    ErrorCode.INVALID_WORKFLOW: "The workflow cannot run: a cycle, an unknown need, an expression in error.",
    ErrorCode.UNKNOWN_TASK_TYPE: "No workflow has this name, and no agent served it within the wait.",
    ErrorCode.NO_AGENT_AVAILABLE: "No agent took a step within the wait; `details` has the reason for each agent.",
    ErrorCode.EXPRESSION_ERROR: "An expression failed when it was evaluated.",
    ErrorCode.STEP_FAILED: "A step failed for good; `step` names it, `details` is the agent's own error.",
    ErrorCode.TIMEOUT: "One attempt had no response within its time.",
    ErrorCode.DEADLINE_EXCEEDED: "The whole task was not done by its deadline.",
    ErrorCode.CANCELLED: "It was cancelled on request.",
    ErrorCode.BUDGET_EXCEEDED: "It would have consumed more than it may.",
    ErrorCode.TOO_LARGE: "A payload or a result is larger than the mesh's limit.",
    ErrorCode.PAYLOAD_UNAVAILABLE: "What a reference to a large payload or result names is not in the object store.",
    ErrorCode.POISON: "Agents died on it.",
    ErrorCode.DUPLICATE: "Another task with the same key takes its place.",
    ErrorCode.INTERNAL_ERROR: "A handler raised something that is not a TaskFailure, or the orchestrator met a bug.",
    ErrorCode.INVALID_RESPONSE: "What an agent sent was not a TaskResponse.",
    ErrorCode.INVALID_RESULT: "What a handler returned does not fit its annotation, or is no value of JSON.",
}

_TEXT: Document = {"type": "string"}
_COUNT: Document = {"type": "integer"}
_ERROR: Document = {"type": "object", "required": ["code", "message"]}
_STEP: dict[str, Document] = {
    "root_task_id": _TEXT,
    "task_id": _TEXT,
    "parent_task_id": _TEXT,
    "step": {"type": "string", "description": "the step's path in the tree, as in `draft/review`"},
    "task_type": _TEXT,
    "iteration": _COUNT,
    "attempt": {"type": "integer", "description": "the attempt that the event is about"},
}
_TASK: dict[str, Document] = {"task_id": _TEXT, "task_type": _TEXT}
_AGENT: dict[str, Document] = {"agent": _TEXT, "instance_id": _TEXT}
_TASK_TYPES: dict[str, Document] = {"task_types": {"type": "array", "items": _TEXT}}
_SHARED: dict[str, dict[str, Document]] = {"task": _TASK, "step": _STEP, "agent": _AGENT}
# What an event's data holds beyond what all of its entity hold.
_OWN: dict[tuple[str, str], dict[str, Document]] = {
    ("task", "failed"): {"error": _ERROR},
    ("task", "signalled"): {"signal": _TEXT, "by": {"type": ["string", "null"]}},
    ("task", "compensating"): {"error": _ERROR},
    ("step", "compensating"): {"error": _ERROR},
    ("task", "cancelled"): {"error": _ERROR},
    ("agent", "registered"): _TASK_TYPES,
    ("agent", "deregistered"): _TASK_TYPES,
    ("agent", "failed"): {"reason": _TEXT, "detail": {"type": "string", "description": "the reason as a sentence"}},
    ("step", "dispatched"): {"agent": _TEXT},
    ("step", "completed"): {"agent": {"type": ["string", "null"], "description": "null for a sub-workflow"}},
    ("step", "retrying"): {"error": _ERROR, "wait_seconds": {"type": "number"}},
    ("step", "failed"): {"error": _ERROR},
}
_OPTIONAL: dict[tuple[str, str], dict[str, Document]] = {
    ("task", "accepted"): {"session_id": _TEXT},
    ("step", "waiting"): {"waits_for": _TEXT},
}


class _Plain(GenerateJsonSchema):
    """Without the titles that only repeat the field's name."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _ecma(pattern: str) -> str:
    # JSON Schema's regular expressions are ECMA-262's, where `$` without the flag m is the end and `\Z` is nothing.
    return pattern.replace(r"\Z", "$")


_STEP_NAMES: Document = {"pattern": _ecma(STEP_NAME.pattern), "not": {"enum": sorted(RESERVED_STEP_NAMES)}}
_NULL_OR_ABSENT: Document = {"type": "null"}
_OF_WORK = ("with", "for_each", "repeat", "fallback", "compensate")
_OF_TASKS = ("agent", "requires", "sticky", "timeout", "retry")
_WAITS = ("wait_for", "sleep", "until")


def _kind_of_step(kind: str) -> Document:
    """What a step of a kind may not have, as its model checks."""
    others = [other for other in STEP_KINDS if other != kind]
    others += [] if kind == "steps" else ["output"]
    others += [] if kind == "task" else _OF_TASKS
    others += _OF_WORK if kind in _WAITS else []
    return {
        "required": [kind],
        "properties": {kind: {"not": _NULL_OR_ABSENT}, **dict.fromkeys(others, _NULL_OR_ABSENT)},
    }


_ONE_KIND_OF_STEP: list[Document] = [_kind_of_step(kind) for kind in STEP_KINDS]
# Model -> keywords for the model itself.
_MODEL_KEYWORDS: dict[str, Document] = {
    "Step": {"oneOf": _ONE_KIND_OF_STEP, "dependentRequired": {"concurrency": ["for_each"]}}
}
# Model -> field -> keywords beside those that pydantic makes; they hold for every type that the field may have.
_FIELD_KEYWORDS: dict[str, dict[str, Document]] = {
    "TaskRequest": {
        "task_type": {"pattern": f"{_ecma(TASK_TYPE.pattern)}|{_ecma(MESH_OPERATION.pattern)}"},
        "reply_to": {"pattern": r"^_INBOX(\.[^\s.*>]+)+$", "maxLength": 256},
    },
    "Workflow": {"name": {"pattern": _ecma(TASK_TYPE.pattern)}, "steps": {"propertyNames": _STEP_NAMES}},
    "ExecuteDag": {"steps": {"propertyNames": _STEP_NAMES}},
    "Step": {
        "task": {"pattern": _ecma(TASK_TYPE.pattern)},
        "steps": {"propertyNames": _STEP_NAMES},
        "with": {"type": ["object", "string", "null"]},
    },
}
# Where null may stand for absence by the code that reads the message, not by the model: model -> fields.
_NULL_MEANS_DEFAULT: dict[str, set[str]] = {"ExecuteDag": {"input"}}


# A message's unknown fields are ignored; a file's unknown keys are mistakes, and an editor should mark them.
CLOSED = "workflow"


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _all_models() -> dict[str, type[BaseModel]]:
    """The messages' models and those inside them, by name."""
    found: dict[str, type[BaseModel]] = {}
    left = list(MODELS.values())
    while left:
        model = left.pop()
        if model.__name__ not in found:
            found[model.__name__] = model
            left += [inner for field in model.model_fields.values() for inner in _models_in(field.annotation)]
    return found


def _null_means_default(model: type[BaseModel]) -> set[str]:
    """The fields, as they are on the wire, that may be null and have a default.

    The model itself is tried: a validator in its code decides, which no JSON Schema shows.
    """
    optional = {field.alias or name for name, field in model.model_fields.items() if not field.is_required()}
    try:
        model.model_validate(dict.fromkeys(optional))
    except ValidationError as error:
        optional -= {str(mistake["loc"][0]) for mistake in error.errors() if mistake["loc"]}
    return optional | _NULL_MEANS_DEFAULT.get(model.__name__, set())


def _enriched(model: type[BaseModel], schema: Document) -> Document:
    schema |= _MODEL_KEYWORDS.get(model.__name__, {})
    properties: dict[str, Document] = schema.get("properties", {})
    for field, keywords in _FIELD_KEYWORDS.get(model.__name__, {}).items():
        properties[field] |= keywords
    defaults = {field.alias or name: field for name, field in model.model_fields.items()}
    for name in sorted(_null_means_default(model)):
        described = properties[name]
        if described.get("default", ...) is None:
            continue  # its type allows null already
        about: Document = {word: described.pop(word) for word in ("default", "description") if word in described}
        about.setdefault("default", defaults[name].get_default(call_default_factory=True))
        properties[name] = {"anyOf": [described, {"type": "null"}], **about}
    return schema


def model_schemas(ref_template: str) -> dict[str, Document]:
    """The schema of every model that is, or is in, a message, by the model's name; references follow the template."""
    inputs = [(model, _VALIDATION) for model in MODELS.values()]
    _, made = models_json_schema(inputs, ref_template=ref_template, schema_generator=_Plain)
    models = _all_models()
    return {name: _enriched(models[name], schema) for name, schema in sorted(made["$defs"].items())}


def event_data(entity: str, name: str) -> Document:
    """The schema of `data` of one event."""
    always = {**_SHARED[entity], **_OWN.get((entity, name), {})}
    optional = _OPTIONAL.get((entity, name), {})
    return {"type": "object", "properties": {**always, **optional}, "required": list(always)}


def error_codes() -> Document:
    """The mesh's own codes; an ErrorInfo's `code` may also be one of an agent's own."""
    return {
        "title": "ErrorCode",
        "description": "The mesh's own error codes. Agents use codes of their own beside these.",
        "oneOf": [{"const": code.value, "description": ERROR_CODES[code]} for code in ErrorCode],
    }


def _references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"].rsplit("/", 1)[1]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*(_references(item) for item in value.values()))
    if isinstance(value, list):
        return set().union(*(_references(item) for item in value))
    return set()


def needed_of(schema: Document, schemas: dict[str, Document]) -> dict[str, Document]:
    """The other schemas that this one refers to, directly or not."""
    found: set[str] = set()
    left = _references(schema)
    while left:
        name = left.pop()
        found.add(name)
        left |= _references(schemas[name]) - found
    return {name: schemas[name] for name in sorted(found)}
