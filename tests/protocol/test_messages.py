"""The other messages, subjects, names, ids, events, errors and streams of the contract."""

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from pydantic import ValidationError

from protocol import errors, ids, names, streams, subjects
from protocol.discovery import InstanceRecord
from protocol.errors import ErrorCode, InvalidRequest, InvalidWorkflow, PantheonError
from protocol.events import EVENTS, event
from protocol.messages import (
    Control,
    DeadLetter,
    ErrorInfo,
    Heartbeat,
    Message,
    TaskProgress,
    TaskRequest,
    TaskResponse,
    Usage,
    json_bytes,
    to_bytes,
)

ID = "01960000-0000-7000-8000-00000000000a"
AT = "2026-01-31T12:00:00Z"
RESPONSE = {"task_id": ID, "root_task_id": ID, "agent": "llm_agent", "status": "completed"}

MINIMAL: list[tuple[type[Message], dict[str, Any]]] = [
    (TaskRequest, {"task_id": ID, "task_type": "x"}),
    (TaskResponse, RESPONSE),
    (TaskProgress, {"task_id": ID, "root_task_id": ID, "agent": "a", "at": AT}),
    (Heartbeat, {"agent": "a", "instance_id": "i", "active": 0, "max_concurrency": 1, "at": AT}),
    (Control, {"command": "drain"}),
    (DeadLetter, {"id": ID, "subject": "s", "reason": "r", "body_base64": "", "at": AT}),
    (ErrorInfo, {"code": "c", "message": "m"}),
    (Usage, {}),
]


@pytest.mark.parametrize(("model", "fields"), MINIMAL, ids=[model.__name__ for model, _ in MINIMAL])
class TestEveryMessage:
    def test_null_means_absent(self, model: type[Message], fields: dict[str, Any]) -> None:
        """Go and Java write null for a list that is empty and a text that is not set."""
        nulls = {name: None for name in model.model_fields if name not in fields}
        read = model.model_validate_json(json.dumps({**fields, **nulls}))
        assert read == model.model_validate_json(json.dumps(fields))

    def test_unknown_fields_are_ignored(self, model: type[Message], fields: dict[str, Any]) -> None:
        assert model.model_validate_json(json.dumps({**fields, "novelty": 1})) == model.model_validate_json(
            json.dumps(fields)
        )

    def test_is_read_back_as_it_was_written(self, model: type[Message], fields: dict[str, Any]) -> None:
        message = model.model_validate_json(json.dumps(fields))
        assert model.model_validate_json(to_bytes(message)) == message

    def test_is_written_without_what_the_reader_must_not_see(
        self, model: type[Message], fields: dict[str, Any]
    ) -> None:
        written = json.loads(to_bytes(model.model_validate_json(json.dumps(fields))))
        assert set(fields) <= set(written) <= set(model.model_fields)
        if model is TaskRequest:
            assert set(written) == set(fields)
        if model is TaskResponse:
            assert None not in written.values()

    def test_cannot_be_changed(self, model: type[Message], fields: dict[str, Any]) -> None:
        message = model.model_validate_json(json.dumps(fields))
        with pytest.raises(ValidationError):
            setattr(message, next(iter(model.model_fields)), None)

    def test_what_is_required_is_required(self, model: type[Message], fields: dict[str, Any]) -> None:
        for name in fields:
            with pytest.raises(ValidationError):
                model.model_validate_json(json.dumps({key: value for key, value in fields.items() if key != name}))


@pytest.mark.parametrize("status", ["done", "", "COMPLETED", None, "running"])
def test_a_response_ends_in_one_of_three_ways(status: object) -> None:
    with pytest.raises(ValidationError):
        TaskResponse.model_validate_json(json.dumps({**RESPONSE, "status": status}))


@pytest.mark.parametrize("result", [None, 0, "text", [1, {"a": None}], {"a": None}, {"deep": {"er": 1.5}}])
def test_a_result_is_any_json(result: object) -> None:
    read = TaskResponse.model_validate_json(json.dumps({**RESPONSE, "result": result}))
    assert read.result == result
    assert TaskResponse.model_validate_json(to_bytes(read)).result == result


@pytest.mark.parametrize("percent", [-1, 101, "50", True])
def test_percents_go_from_0_to_100(percent: object) -> None:
    fields = {"task_id": ID, "root_task_id": ID, "agent": "a", "at": AT}
    assert TaskProgress.model_validate_json(json.dumps({**fields, "percent": 100})).percent == 100
    with pytest.raises(ValidationError):
        TaskProgress.model_validate_json(json.dumps({**fields, "percent": percent}))


@pytest.mark.parametrize("usage", [{"input_tokens": -1}, {"output_tokens": 1.5}, {"cost_usd": -0.1}, {"cost_usd": "1"}])
def test_usage_counts_up(usage: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Usage.model_validate_json(json.dumps(usage))


def test_usage_adds_up() -> None:
    total = Usage(input_tokens=1, output_tokens=2, cost_usd=0.5) + Usage(input_tokens=3)
    assert total == Usage(input_tokens=4, output_tokens=2, cost_usd=0.5)


def test_json_has_no_infinities() -> None:
    assert json_bytes({"a": float("nan"), "b": [float("inf")]}) == b'{"a":null,"b":[null]}'


def test_json_is_compact_utf8() -> None:
    assert (
        json_bytes({"é": ["ü", 1.0, 10**30, None]}) == '{"é":["ü",1.0,1000000000000000000000000000000,null]}'.encode()
    )


# -- names and subjects ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "llm_agent", "a0", "a" * 63])
def test_names_of_agents_task_types_and_steps(name: str) -> None:
    assert names.is_agent_name(name)
    assert names.is_task_type(name)
    assert names.is_step_name(name)


@pytest.mark.parametrize("name", ["", "A", "0a", "_a", "a-b", "a.b", "a" * 64, "a\n", "é", "a b"])
def test_names_outside_the_grammar(name: str) -> None:
    assert not names.is_agent_name(name)
    assert not names.is_task_type(name)
    assert not names.is_step_name(name)


@pytest.mark.parametrize("name", ["input", "in", "as", "break", "const", "for", "function", "null", "true", "while"])
def test_reserved_words_name_no_step(name: str) -> None:
    assert not names.is_step_name(name)
    assert names.is_task_type(name)


def test_instance_ids() -> None:
    assert names.is_instance_id("Host-1_a")
    assert names.is_instance_id("a" * 64)
    assert not any(names.is_instance_id(wrong) for wrong in ("", "a" * 65, "a.b", "a b", "a\n", "é"))


def test_subjects_are_those_of_the_contract() -> None:
    assert subjects.task("llm_agent") == "agent.llm_agent.task"
    assert subjects.response("llm_agent") == "agent.llm_agent.response"
    assert subjects.progress("llm_agent", ID) == f"agent.llm_agent.progress.{ID}"
    assert subjects.all_progress() == "agent.*.progress.*"
    assert subjects.heartbeat("llm_agent") == "agent.llm_agent.heartbeat"
    assert subjects.control("llm_agent") == "agent.llm_agent.control"
    assert subjects.event("task", "accepted") == "mesh.event.task.accepted"
    assert subjects.dead_letter("llm_agent") == "mesh.deadletter.llm_agent"
    assert subjects.query("task") == "mesh.query.task"
    assert subjects.peer(ID) == f"mesh.peer.{ID}"
    assert subjects.agent_of("agent.llm_agent.response") == "llm_agent"


def test_streams_are_those_of_the_contract() -> None:
    tasks, responses, events, letters = streams.ALL_STREAMS
    assert (tasks.name, tasks.subjects, tasks.retention, tasks.discard) == (
        "AGENT_TASKS",
        ("agent.*.task",),
        "workqueue",
        "new",
    )
    assert (tasks.max_msgs_per_subject, tasks.discard_new_per_subject, tasks.allow_msg_ttl) == (1_000_000, True, True)
    assert (responses.name, responses.subjects, responses.retention) == (
        "AGENT_RESPONSES",
        ("agent.*.response",),
        "limits",
    )
    assert (responses.max_age_seconds, responses.discard) == (24 * 3600, "old")
    assert {stream.duplicate_window_seconds for stream in streams.ALL_STREAMS} == {120}
    assert events.name == "MESH_EVENTS"
    assert "mesh.event.step.*" not in events.subjects
    assert set(events.subjects) == {f"mesh.event.{entity}.*" for entity in ("task", "agent", "session", "coordination")}
    assert (letters.name, letters.max_age_seconds) == ("DEAD_LETTERS", 0)
    assert letters.max_bytes > 0


def test_an_agents_consumer_is_the_contracts_exactly() -> None:
    consumer = streams.task_consumer("llm_agent")
    assert (consumer.durable_name, consumer.filter_subject) == ("llm_agent", "agent.llm_agent.task")
    assert (consumer.ack_wait_seconds, consumer.max_deliver, consumer.max_ack_pending) == (30, 5, 10_000)


# -- ids ------------------------------------------------------------------------------------------------------------


def test_new_ids_are_version_7_and_later_ones_sort_later() -> None:
    made = [ids.new_id() for _ in range(2000)]
    assert len(set(made)) == 2000
    assert {made_id.version for made_id in made} == {7}
    assert {made_id.variant for made_id in made} == {UUID(ID).variant}
    stamps = [made_id.int >> 80 for made_id in made]
    assert stamps == sorted(stamps)
    assert abs(stamps[-1] - datetime.now(UTC).timestamp() * 1000) < 60_000


def test_a_steps_id_is_the_same_for_every_planner() -> None:
    parent = UUID(ID)
    assert ids.step_task_id(parent, "a", 0, -1) == ids.step_task_id(UUID(ID), "a", 0, -1)
    others = {
        ids.step_task_id(parent, step, iteration, item)
        for step in ("a", "b", "a0")
        for iteration in (0, 1, 10)
        for item in (-1, 0, 1)
    }
    assert len(others) == 27
    assert {other.version for other in others} == {8}


# -- events ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("entity", "name"), sorted(EVENTS))
def test_events_are_cloudevents(entity: str, name: str) -> None:
    subject, body = event(
        entity, name, "/llm_agent/i", {"task_id": ID} if entity != "agent" else {"agent": "llm_agent"}
    )
    made = json.loads(body)
    assert subject == f"mesh.event.{entity}.{name}"
    assert made["specversion"] == "1.0"
    assert made["type"] == f"pantheon.{entity}.{name}"
    assert made["source"] == "/llm_agent/i"
    assert made["datacontenttype"] == "application/json"
    assert made["subject"] in (ID, "llm_agent")
    assert datetime.fromisoformat(made["time"]).tzinfo is not None
    assert made["id"].isdigit()


def test_an_event_that_is_in_no_table_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="EVENTS"):
        event("task", "exploded", "/a/i", {})


def test_an_event_about_no_task_and_no_agent_has_no_subject() -> None:
    assert "subject" not in json.loads(event("task", "accepted", "/a/i", {})[1])


# -- errors ---------------------------------------------------------------------------------------------------------


def test_every_error_carries_its_code_and_data() -> None:
    error = InvalidRequest("payload.text: too short", field="payload.text", details={"least": 3})
    assert ErrorInfo.of(error) == ErrorInfo(
        code="invalid_request", message="payload.text: too short", details={"field": "payload.text", "least": 3}
    )
    assert ErrorInfo.of(InvalidWorkflow("no", step="draft", line=3, column=1)).model_dump(exclude_none=True) == {
        "code": "invalid_workflow",
        "message": "no",
        "retryable": False,
        "step": "draft",
        "details": {"step": "draft", "line": 3, "column": 1},
    }
    assert ErrorInfo.of(PantheonError("x"), step="s").step == "s"


def test_all_codes_of_the_contract_are_there() -> None:
    contract = (
        "invalid_request invalid_workflow unknown_task_type no_agent_available expression_error step_failed timeout "
        "deadline_exceeded cancelled budget_exceeded too_large poison duplicate"
    )
    assert set(contract.split()) <= {code.value for code in ErrorCode}


def test_every_error_of_the_tree_is_a_pantheon_error_with_a_code_of_its_own_kind() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len(kinds) >= 14
    assert all(issubclass(kind, PantheonError) for kind in kinds)
    assert all(isinstance(getattr(kind, "code", None), str) for kind in kinds)


# -- discovery ------------------------------------------------------------------------------------------------------


def test_an_instance_record_has_the_keys_of_both_registries() -> None:
    record = InstanceRecord(name="llm_agent", instance_id="Host-1", task_types=("generate",))
    assert record.key == "llm_agent.Host-1"
    assert record.consul_id == "llm_agent-Host-1"


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "LLM"},
        {"name": "a\n"},
        {"instance_id": "a.b"},
        {"instance_id": ""},
        {"protocol": 2},
        {"task_types": ["mesh.cancel"]},
        {"task_types": ["a\n"]},
        {"max_concurrency": 0},
        {"status": "gone"},
    ],
)
def test_a_record_that_the_wire_does_not_carry_is_refused(fields: dict[str, object]) -> None:
    whole = {"name": "llm_agent", "instance_id": "i", **fields}
    with pytest.raises(ValidationError):
        InstanceRecord.model_validate_json(json.dumps(whole))


def test_a_foreign_record_with_nulls_and_news_is_read() -> None:
    nulls = dict.fromkeys(("protocol_extra", "task_types", "max_concurrency", "version", "status", "metadata"))
    read = InstanceRecord.model_validate_json(json.dumps({"name": "a", "instance_id": "i", **nulls}))
    assert read == InstanceRecord(name="a", instance_id="i")


def test_an_events_spliced_bytes_are_an_event() -> None:
    from protocol.events import EVENTS, Event, event

    data = {"task_id": "01960000-0000-7000-8000-000000000001", "text": 'quotes " and \n lines and é', "n": None}
    for entity, name in EVENTS:
        subject, body = event(entity, name, "/a_b/host-1", data)
        read = Event.model_validate_json(body)
        assert subject == f"mesh.event.{entity}.{name}"
        assert (read.type, read.source, read.subject) == (f"pantheon.{entity}.{name}", "/a_b/host-1", data["task_id"])
        assert read.data == data
    ids = {Event.model_validate_json(event("task", "accepted", "/a/b", {})[1]).id for _ in range(100)}
    assert len(ids) == 100
