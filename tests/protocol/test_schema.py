"""The published schemas: what the models accept they accept, and the checked-in copy is what the code makes."""

import json
import string
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from protocol import documents, schema
from protocol.errors import ErrorCode
from protocol.events import EVENTS, event
from protocol.messages import Message, TaskRequest, parse_request, to_bytes
from protocol.streams import ALL_STREAMS

CHECKED_IN = Path(__file__).parents[2] / "docs" / "schemas"
REGENERATE = "run: python -c 'import pathlib, protocol.documents as d; d.write(pathlib.Path(\"docs/schemas\"))'"
DOCUMENTS = documents.documents()
VALIDATORS = {file: jsonschema_rs.validator_for(DOCUMENTS[f"{file}.schema.json"]) for file in schema.MODELS}

ID = "01960000-0000-7000-8000-000000000001"
OTHER_ID = "01960000-0000-7000-8000-000000000002"
AT = "2025-11-20T09:30:00Z"

# The examples of the contract, and what its tables hold, a line each.
EXAMPLES: list[tuple[str, dict[str, Any]]] = [
    ("task-request", {"task_id": ID, "task_type": "create_blog_post", "payload": {"topic": "AI ethics"}}),
    ("task-request", {"task_id": ID, "task_type": "mesh.replay", "payload": {"task_id": OTHER_ID, "from": None}}),
    ("task-request", {"task_id": ID, "task_type": "a", "payload": None, "priority": None, "metadata": None}),
    ("task-request", {"task_id": ID, "task_type": "a", "reply_to": "_INBOX.abc.1", "deadline": AT, "surprise": [1]}),
    (
        "task-response",
        {
            "task_id": ID,
            "root_task_id": ID,
            "task_type": "create_blog_post",
            "agent": "orchestrator_agent",
            "attempt": 1,
            "status": "completed",
            "result": {"any": ["thing"]},
        },
    ),
    (
        "task-response",
        {
            "task_id": ID,
            "root_task_id": ID,
            "agent": "llm_agent",
            "status": "failed",
            "error": {"code": "no_luck", "message": "try again", "retryable": True, "step": None, "details": {"n": 1}},
            "usage": {"input_tokens": 1, "output_tokens": 2, "cost_usd": 0},
        },
    ),
    ("task-progress", {"task_id": ID, "root_task_id": ID, "agent": "llm_agent", "percent": 12.5, "at": AT}),
    ("task-progress", {"task_id": ID, "root_task_id": ID, "agent": "a", "percent": None, "text": "word ", "at": AT}),
    (
        "heartbeat",
        {
            "agent": "llm_agent",
            "instance_id": "host-1-ab",
            "active": 1,
            "max_concurrency": 10,
            "cpu_percent": None,
            "memory_bytes": 1,
            "running": [{"task_id": ID, "attempt": 1}],
            "at": AT,
        },
    ),
    ("control", {"command": "cancel", "task_id": ID, "attempt": None, "instance_id": None, "reason": "no longer"}),
    ("control", {"command": "drain", "reason": None}),
    ("dead-letter", {"id": ID, "subject": "agent.a.task", "reason": "not JSON", "body_base64": "e30=", "at": AT}),
    (
        "instance-record",
        {
            "protocol": 1,
            "name": "llm_agent",
            "instance_id": "host-1",
            "task_types": ["generate_content"],
            "max_concurrency": 10,
            "version": "1.0.0",
            "status": "ready",
            "metadata": {"model": "none"},
        },
    ),
    (
        "execute-dag",
        {
            "input": {"text": "hello"},
            "steps": {
                "shout": {"task": "uppercase", "with": {"text": "${input.text}"}},
                "twice": {"task": "repeat", "with": {"text": "${shout.text}", "times": 2}, "needs": ["shout"]},
            },
            "output": {"text": "${twice.text}"},
        },
    ),
    ("execute-dag", {"input": None, "steps": {"one": {"task": "uppercase", "with": "${input}"}}}),
    (
        "workflow",
        {
            "name": "many",
            "input": {"properties": {"texts": {"type": "array", "default": []}}},
            "steps": {
                "each": {"task": "uppercase", "for_each": "${input.texts}", "concurrency": 4, "with": {"t": "${item}"}},
                "inner": {"steps": {"one": {"task": "repeat"}}, "output": "${one}", "when": "true", "task": None},
                "plain": {"task": "a", "output": None, "needs": None, "retry": {"initial_seconds": None}},
                "again": {"task": "a", "repeat": {"until": "again.done", "max": 3}, "retry": {"max_attempts": 2}},
            },
        },
    ),
]

REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("task-request", {"task_type": "a"}),
    ("task-request", {"task_id": ID.upper().replace("0", "A"), "task_type": "a"}),
    ("task-request", {"task_id": ID, "task_type": "A"}),
    ("task-request", {"task_id": ID, "task_type": "other.operation"}),
    ("task-request", {"task_id": ID, "task_type": "a", "payload": []}),
    ("task-request", {"task_id": ID, "task_type": "a", "priority": 10}),
    ("task-request", {"task_id": ID, "task_type": "a", "timeout_seconds": 0}),
    ("task-request", {"task_id": ID, "task_type": "a", "reply_to": "agent.llm_agent.task"}),
    ("task-request", {"task_id": ID, "task_type": "a", "reply_to": "_INBOX.>"}),
    ("task-response", {"task_id": ID, "root_task_id": ID, "agent": "a", "status": "done"}),
    ("control", {"command": "stop"}),
    ("instance-record", {"name": "llm-agent", "instance_id": "1"}),
    ("execute-dag", {"steps": {}}),
    ("execute-dag", {"steps": {"input": {"task": "a"}}}),
    ("execute-dag", {"steps": {"in": {"task": "a"}}}),
    ("execute-dag", {"steps": {"one": {}}}),
    ("execute-dag", {"steps": {"one": {"task": "a", "steps": {"b": {"task": "c"}}}}}),
    ("execute-dag", {"steps": {"one": {"task": "a", "output": 1}}}),
    ("execute-dag", {"steps": {"one": {"task": "a", "with": [1]}}}),
    ("execute-dag", {"steps": {"one": {"task": "a", "concurrency": 2}}}),
    ("workflow", {"steps": {"one": {"steps": {"b": {"task": "c"}}, "agent": "a"}}}),
]


# A misspelt key at each level of a workflow file.
MISSPELT: list[dict[str, Any]] = [
    {"steps": {"a": {"task": "b"}}, "buget": {}},
    {"steps": {"a": {"task": "b", "wiht": {}}}},
    {"steps": {"a": {"steps": {"b": {"task": "c", "need": []}}}}},
    {"steps": {"a": {"task": "b", "retry": {"max_attempt": 2}}}},
    {"steps": {"a": {"wait_for": {"signal": "go", "form": ["anna"]}}}},
    {"steps": {"a": {"task": "b"}}, "schedule": {"cron": "* * * * *", "time_zone": "UTC"}},
]


def accepted_by_model(file: str, document: Mapping[str, Any]) -> bool:
    model = schema.MODELS[file]
    # The contract lets a top-level null stand for absence; the orchestrator drops it before it reads the model.
    fields = {name: value for name, value in document.items() if value is not None or model.__name__ != "ExecuteDag"}
    try:
        model.model_validate_json(json.dumps(fields))
    except ValidationError:
        return False
    return True


def test_the_checked_in_documents_are_what_the_code_makes() -> None:
    made = {name: documents.text_of(document) for name, document in DOCUMENTS.items()}
    there = {path.name: path.read_text(encoding="utf-8") for path in CHECKED_IN.iterdir()}
    assert sorted(there) == sorted(made), REGENERATE
    for name, text in made.items():
        assert there[name] == text, f"docs/schemas/{name} is old; {REGENERATE}"


def test_write_makes_the_folder_and_every_document_the_same_each_time(tmp_path: Path) -> None:
    first = [path.read_bytes() for path in documents.write(tmp_path / "new" / "folder")]
    second = [path.read_bytes() for path in documents.write(tmp_path / "new" / "folder")]
    assert first == second
    assert len(first) == len(DOCUMENTS)


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if name.endswith(".schema.json")])
def test_every_schema_is_a_schema_of_draft_2020_12(name: str) -> None:
    document = DOCUMENTS[name]
    assert document["$schema"] == schema.DIALECT
    jsonschema_rs.meta.validate(document)


@pytest.mark.parametrize(("file", "example"), EXAMPLES)
def test_a_schema_accepts_what_the_contract_shows(file: str, example: dict[str, Any]) -> None:
    assert [error.message for error in VALIDATORS[file].iter_errors(example)] == []
    assert accepted_by_model(file, example)


@pytest.mark.parametrize(("file", "wrong"), REFUSED)
def test_a_schema_refuses_what_the_models_refuse(file: str, wrong: dict[str, Any]) -> None:
    assert not VALIDATORS[file].is_valid(wrong)
    assert not accepted_by_model(file, wrong)


def test_every_error_code_is_described() -> None:
    assert set(schema.ERROR_CODES) == set(ErrorCode)
    codes = [code["const"] for code in DOCUMENTS["error-code.schema.json"]["oneOf"]]
    assert codes == [code.value for code in ErrorCode]


@pytest.mark.parametrize(("entity", "name"), list(EVENTS))
def test_an_event_as_it_is_made_fits_its_schema(entity: str, name: str) -> None:
    _, body = event(entity, name, "/llm_agent/host-1", {"task_id": ID})
    assert VALIDATORS["event"].is_valid(json.loads(body))
    assert schema.event_data(entity, name)["required"]


# -- properties -----------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
LABELS = st.none() | st.text(max_size=5)
IDS = st.none() | st.uuids().map(str)
NAMES = st.text(string.ascii_lowercase + string.digits + "_.-AZ \n", max_size=6)
OPTIONAL_FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "payload": st.none() | st.dictionaries(st.text(), JSON, max_size=3),
    "requester": LABELS,
    "tenant": LABELS,
    "reply_to": st.none() | st.text("_INBOX.ab*> \t", max_size=12).map("_INBOX.".__add__),
    "parent_task_id": IDS,
    "root_task_id": IDS,
    "session_id": LABELS,
    "idempotency_key": LABELS,
    "priority": st.none() | st.integers(-1, 10),
    "attempt": st.none() | st.integers(0, 3) | st.just(2**31),
    "timeout_seconds": st.none() | st.floats(0, 10) | st.integers(0, 700_000),
    "deadline": st.none() | st.datetimes(timezones=st.timezones()).map(lambda time: time.isoformat()),
    "metadata": st.none() | st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2),
    "unknown": JSON,
}
REQUESTS = st.fixed_dictionaries(
    {"task_id": st.uuids().map(str), "task_type": NAMES | st.just("mesh.replay")}, optional=OPTIONAL_FIELDS
)
STEP_NAMES: st.SearchStrategy[str] = st.sampled_from(["a", "b", "in", "input", "A", "9"])
STEPS: st.SearchStrategy[dict[str, Any]] = st.deferred(
    lambda: st.fixed_dictionaries(
        {},
        optional={
            "task": st.none() | st.sampled_from(["a", "A", ""]),
            "steps": st.none() | st.dictionaries(STEP_NAMES, STEPS, max_size=2),
            "output": JSON,
            "agent": st.none() | st.just("llm_agent"),
            "needs": st.lists(st.just("a"), max_size=2),
            "when": st.none() | st.text(max_size=3),
            "with": JSON,
            "for_each": st.none() | st.just("${input.all}") | st.lists(JSON, max_size=2),
            "concurrency": st.integers(0, 3),
            "retry": st.none() | st.fixed_dictionaries({}, optional={"max_attempts": st.none() | st.integers(0, 2)}),
            "timeout": st.none() | st.floats(0, 10),
            "unknown": JSON,
        },
    )
)
GRAPHS = st.fixed_dictionaries(
    {"steps": st.dictionaries(STEP_NAMES, STEPS, max_size=3)},
    optional={"input": st.none() | st.dictionaries(st.text(max_size=3), JSON, max_size=2), "output": JSON},
)


@settings(max_examples=300)
@given(REQUESTS)
def test_a_request_that_the_model_accepts_is_accepted_by_the_schema(request: dict[str, Any]) -> None:
    if accepted_by_model("task-request", request):
        assert VALIDATORS["task-request"].is_valid(request)
        message = parse_request(json.dumps(request).encode())
        assert VALIDATORS["task-request"].is_valid(json.loads(to_bytes(message)))


@settings(max_examples=300)
@given(st.one_of(STEPS.map(lambda step: {"steps": {"a": step}}), GRAPHS))
def test_a_graph_that_the_model_accepts_is_accepted_by_the_schemas(graph: dict[str, Any]) -> None:
    if accepted_by_model("execute-dag", graph):
        assert VALIDATORS["execute-dag"].is_valid(graph)
    # What a message may have beside, is a mistake in a file.
    known = {**graph, "steps": without_unknown(graph["steps"])}
    if accepted_by_model("workflow", known):
        assert VALIDATORS["workflow"].is_valid(known)


def without_unknown(steps: dict[str, Any]) -> dict[str, Any]:
    kept = {}
    for name, step in steps.items():
        kept[name] = {key: value for key, value in step.items() if key != "unknown"}
        if isinstance(step.get("steps"), dict):
            kept[name]["steps"] = without_unknown(step["steps"])
    return kept


@pytest.mark.parametrize("misspelt", MISSPELT)
def test_the_schema_of_a_file_refuses_misspelt_keys_and_that_of_a_message_ignores_them(
    misspelt: dict[str, Any],
) -> None:
    assert not VALIDATORS["workflow"].is_valid(misspelt)
    assert accepted_by_model("workflow", misspelt)
    assert VALIDATORS["execute-dag"].is_valid(misspelt)


@settings(max_examples=300)
@given(NAMES)
def test_model_and_schema_agree_on_names(name: str) -> None:
    request = {"task_id": ID, "task_type": name}
    assert VALIDATORS["task-request"].is_valid(request) == accepted_by_model("task-request", request)
    graph = {"steps": {name: {"task": "a"}}}
    assert VALIDATORS["execute-dag"].is_valid(graph) == accepted_by_model("execute-dag", graph)
    record = {"name": "a", "instance_id": name}
    assert VALIDATORS["instance-record"].is_valid(record) == accepted_by_model("instance-record", record)


# -- the AsyncAPI document ------------------------------------------------------------------------------------------

ASYNCAPI = DOCUMENTS["asyncapi.json"]


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def at(pointer: str) -> Any:
    found: Any = ASYNCAPI
    for part in pointer.removeprefix("#/").split("/"):
        found = found[part]
    return found


def test_every_reference_in_the_asyncapi_document_leads_somewhere() -> None:
    found = set(references(ASYNCAPI))
    assert "#/components/schemas/TaskRequest" in found
    for reference in found:
        assert isinstance(at(reference), dict), reference


def test_the_asyncapi_document_has_a_channel_for_everything_on_the_wire() -> None:
    addresses = {channel["address"] for channel in ASYNCAPI["channels"].values()}
    words = ("task", "response", "heartbeat", "control", "progress.{rootTaskId}")
    assert {f"agent.{{agent}}.{word}" for word in words} <= addresses
    assert {f"mesh.event.{entity}.{name}" for entity, name in EVENTS} <= addresses
    assert {f"mesh.query.{name}" for name in ("tasks", "task", "response", "workflows")} <= addresses
    assert "mesh.deadletter.{agent}" in addresses


def test_the_asyncapi_document_gives_the_streams_as_the_code_makes_them() -> None:
    streams = ASYNCAPI["x-jetstream-streams"]
    assert list(streams) == [spec.name for spec in ALL_STREAMS]
    assert streams["AGENT_TASKS"]["max_msgs_per_subject"] == 1_000_000
    named = {channel.get("x-jetstream-stream") for channel in ASYNCAPI["channels"].values()} - {None}
    assert named == set(streams)


def test_steps_events_are_in_no_stream() -> None:
    channels = ASYNCAPI["channels"].values()
    of_steps = [channel for channel in channels if str(channel["address"]).startswith("mesh.event.step.")]
    assert of_steps
    assert all("x-jetstream-stream" not in channel for channel in of_steps)


def test_every_operation_speaks_on_a_channel_and_messages_have_payloads() -> None:
    for operation in ASYNCAPI["operations"].values():
        assert operation["action"] in ("send", "receive")
        assert at(operation["channel"]["$ref"])["messages"]
    for name, message in ASYNCAPI["components"]["messages"].items():
        assert message["payload"], name


def test_models_of_messages_are_all_documented() -> None:
    def below(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
        for subclass in model.__subclasses__():
            yield subclass
            yield from below(subclass)

    mine = {
        subclass.__name__
        for subclass in below(Message)
        if subclass.__module__.startswith("protocol.") and not subclass.__subclasses__()
    }
    assert mine <= set(ASYNCAPI["components"]["schemas"])
    assert TaskRequest.__name__ in mine
