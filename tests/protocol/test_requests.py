"""TaskRequest, read from bytes: every sentence of docs/protocol.md on valid ones, and what becomes of invalid ones."""

import contextlib
import json
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import TaskRequest, parse_request, salvage_ids, to_bytes
from protocol.errors import InvalidRequest
from protocol.messages import MAX_TIMEOUT_SECONDS

ID = "01960000-0000-7000-8000-00000000000a"


def body(**fields: Any) -> bytes:
    return json.dumps({"task_id": ID, "task_type": "summarize", **fields}).encode()


def raw(extra: str) -> bytes:
    """A request with a member written as it stands, for what `json.dumps` would never write."""
    return f'{{"task_id":"{ID}","task_type":"summarize",{extra}}}'.encode()


def refused(message: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as raised:
        parse_request(message)
    assert "\n" not in str(raised.value)
    return raised.value


def test_the_example_of_the_contract_is_read_with_its_defaults() -> None:
    request = parse_request(
        b'{"task_id": "01960000-0000-7000-8000-000000000001", "task_type": "create_blog_post",'
        b' "payload": {"topic": "AI ethics"}}'
    )
    assert request.payload == {"topic": "AI ethics"}
    assert (request.tenant, request.priority, request.attempt, request.timeout_seconds) == ("default", 5, 1, 300.0)
    assert (request.requester, request.reply_to, request.deadline, request.metadata) == (None, None, None, {})


OPTIONAL = (
    "payload requester tenant reply_to parent_task_id root_task_id session_id idempotency_key priority attempt "
    "timeout_seconds deadline metadata created_at"
).split()


@pytest.mark.parametrize("field", OPTIONAL)
def test_null_means_absent(field: str) -> None:
    assert parse_request(body(**{field: None})).model_dump() == parse_request(body()).model_dump()


@pytest.mark.parametrize("field", ["task_id", "task_type"])
@pytest.mark.parametrize("how", ["absent", "null"])
def test_what_is_required_is_named_when_it_is_missing(field: str, how: str) -> None:
    fields: dict[str, Any] = {"task_id": ID, "task_type": "x"}
    if how == "absent":
        del fields[field]
    else:
        fields[field] = None
    assert refused(json.dumps(fields).encode()).field == field


def test_unknown_fields_are_ignored_at_every_depth() -> None:
    request = parse_request(body(novelty={"a": [1]}, Task_Type="other"))
    assert request.task_type == "summarize"
    assert not hasattr(request, "novelty")


@pytest.mark.parametrize(
    "task_id",
    [
        ID.upper(),
        f"{{{ID}}}",
        ID.replace("-", ""),
        f"urn:uuid:{ID}",
        f" {ID}",
        f"{ID}\n",
        "",
        "x",
        7,
        True,
        [ID],
        {"id": ID},
    ],
)
def test_an_id_that_is_not_canonical_is_refused_by_name(task_id: object) -> None:
    for field in ("task_id", "parent_task_id", "root_task_id"):
        assert refused(body(**{field: task_id})).field == field


@pytest.mark.parametrize("task_type", ["a", "a" * 63, "a_0", "mesh.replay", "mesh.cancel"])
def test_task_types_within_the_grammar_are_taken(task_type: str) -> None:
    assert parse_request(body(task_type=task_type)).task_type == task_type


@pytest.mark.parametrize(
    "task_type", ["", "A", "a" * 64, "0a", "_a", "a-b", "a.b", "mesh.", "mesh.A", "mesh.a.b", "a\n", "é", 1, None, []]
)
def test_task_types_outside_the_grammar_are_refused(task_type: object) -> None:
    assert refused(body(task_type=task_type)).field == "task_type"


@pytest.mark.parametrize("payload", [[], "text", 1, True])
def test_a_payload_is_an_object(payload: object) -> None:
    assert refused(body(payload=payload)).field == "payload"


@pytest.mark.parametrize("reply_to", ["_INBOX.a", "_INBOX.abc.def", "_INBOX.X-1_2$", "_INBOX.é", "_INBOX." + "a" * 249])
def test_a_subject_below_inbox_is_a_reply_to(reply_to: str) -> None:
    assert parse_request(body(reply_to=reply_to)).reply_to == reply_to


@pytest.mark.parametrize(
    "reply_to",
    [
        "",
        "_INBOX",
        "_INBOX.",
        "_inbox.a",
        "inbox.a",
        " _INBOX.a",
        "_INBOX.a ",
        "_INBOX.a b",
        "_INBOX.a\tb",
        "_INBOX.a\u00a0b",
        "_INBOX.a..b",
        "_INBOX..a",
        "_INBOX.a.",
        "_INBOX.*",
        "_INBOX.>",
        "_INBOX.a*b",
        "_INBOX.a.>",
        "_INBOX.a\r\nPUB agent.x.task 0\r\n",
        "_INBOX.a\0b",
        "agent.llm_agent.task",
        "$JS.API.STREAM.DELETE.AGENT_TASKS",
        "_INBOX." + "a" * 250,
        7,
        ["_INBOX.a"],
    ],
)
def test_no_other_subject_is_a_reply_to(reply_to: object) -> None:
    assert refused(body(reply_to=reply_to)).field == "reply_to"


@pytest.mark.parametrize("value", [0, 9])
def test_priorities_go_from_0_to_9(value: int) -> None:
    assert parse_request(body(priority=value)).priority == value


@pytest.mark.parametrize("value", [-1, 10, 5.5, 5.0, "5", True, [], 10**30])
def test_no_other_priority_is_taken(value: object) -> None:
    assert refused(body(priority=value)).field == "priority"


@pytest.mark.parametrize("value", [0, -1, 2**31, 1.0, "1", True, 10**40])
def test_attempts_count_from_1(value: object) -> None:
    assert refused(body(attempt=value)).field == "attempt"


@pytest.mark.parametrize("value", [1, 0.001, 300.5, MAX_TIMEOUT_SECONDS])
def test_a_timeout_is_a_number_of_seconds(value: float) -> None:
    assert parse_request(body(timeout_seconds=value)).timeout_seconds == value


@pytest.mark.parametrize("value", [0, -1, "300", True, [], MAX_TIMEOUT_SECONDS + 1, 10**400])
def test_no_other_timeout_is_taken(value: object) -> None:
    if value == 10**400:
        assert refused(raw(f'"timeout_seconds":1{"0" * 400}')).field == "timeout_seconds"
        assert refused(raw('"timeout_seconds":1e999')).field == "timeout_seconds"
        return
    assert refused(body(timeout_seconds=value)).field == "timeout_seconds"


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("2026-01-31T12:00:00Z", "2026-01-31T12:00:00+00:00"),
        ("2026-01-31T12:00:00.123456Z", "2026-01-31T12:00:00.123456+00:00"),
        ("2026-01-31T12:00:00+02:00", "2026-01-31T10:00:00+00:00"),
        ("1970-01-01T00:00:00Z", "1970-01-01T00:00:00+00:00"),
        ("9000-12-31T23:59:59-23:59", "9001-01-01T23:58:59+00:00"),
    ],
)
def test_times_are_rfc_3339_and_come_out_in_utc(text: str, utc: str) -> None:
    for field in ("deadline", "created_at"):
        assert getattr(parse_request(body(**{field: text})), field).isoformat() == utc


@pytest.mark.parametrize(
    "value",
    [
        "2026-01-31T12:00:00",  # no zone: whose noon?
        "2026-01-31",
        "tomorrow",
        "",
        "1700000000",
        1700000000,
        1.5,
        True,
        "2026-13-01T00:00:00Z",
        "2026-02-30T00:00:00Z",
        "0001-01-01T00:00:00Z",
        "1969-12-31T23:59:59Z",
        "9999-12-31T23:59:59-23:59",  # beyond what a datetime can hold, once in UTC
        [],
    ],
)
def test_no_other_time_is_taken(value: object) -> None:
    for field in ("deadline", "created_at"):
        assert refused(body(**{field: value})).field == field


@pytest.mark.parametrize("metadata", [{"a": 1}, {"a": None}, {"a": {}}, [], "x"])
def test_metadata_is_an_object_of_strings(metadata: object) -> None:
    assert refused(body(metadata=metadata)).field.startswith("metadata")


@pytest.mark.parametrize("field", ["requester", "tenant", "session_id", "idempotency_key"])
def test_labels_have_1_to_256_characters_and_no_nul(field: str) -> None:
    assert getattr(parse_request(body(**{field: "k" * 256})), field) == "k" * 256
    assert getattr(parse_request(body(**{field: "ключ 🔑"})), field) == "ключ 🔑"
    wrongs: tuple[object, ...] = ("", "k" * 257, "a\0b", 7, [])
    for wrong in wrongs:
        assert refused(body(**{field: wrong})).field == field


# -- payloads that are not quite JSON -------------------------------------------------------------------------------


def test_a_nul_character_in_a_payload_is_as_good_as_any() -> None:
    assert parse_request(raw('"payload":{"a\\u0000":"\\u0000"}')).payload == {"a\0": "\0"}


def test_integers_of_any_size_that_a_parser_takes_are_kept_whole() -> None:
    huge = int("9" * 4000)
    assert parse_request(raw(f'"payload":{{"n":{huge}}}')).payload["n"] == huge


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "[NaN]"])
def test_words_that_json_does_not_have_are_refused(number: str) -> None:
    assert "JSON" in refused(raw(f'"payload":{{"n":{number}}}')).message
    assert parse_request(raw(f'"payload":{{"n":"{number}"}}')).payload["n"] == number


@pytest.mark.parametrize("number", ["1e999", "-1E+999", "[[1e400]]", '{"deep":[1e309]}'])
def test_a_number_that_no_double_holds_is_refused_and_not_made_null(number: str) -> None:
    assert refused(raw(f'"payload":{{"n":{number}}}')).field == "payload"


def test_large_exponents_that_a_double_holds_are_taken() -> None:
    payload = parse_request(raw('"payload":{"n":1e300,"small":1e-999,"text":"1e999"}')).payload
    assert payload == {"n": 1e300, "small": 0.0, "text": "1e999"}


def test_numbers_keep_being_integers_or_doubles() -> None:
    payload = parse_request(raw('"payload":{"int":1,"fraction":1.0,"exponent":1e3}')).payload
    assert [type(payload[name]) for name in ("int", "fraction", "exponent")] == [int, float, float]


@pytest.mark.parametrize(
    ("extra", "field"),
    [
        ('"timeout_seconds":NaN', "timeout_seconds"),
        ('"payload":{"priority":NaN},"priority":1', "payload"),
        ('"metadata":{"a":"\\ud800"}', "metadata"),
        ('"payload":\n{"é":"é",\n"x":-Infinity}', "payload"),
        (f'"session_id":"é","payload":{{"a":{"[" * 300}{"]" * 300}}}', "payload"),
        (f'"payload":{{"a":{"1" * 5000}}}', "payload"),
        ('"payload":{"a":', "payload"),
        ('"session_id":"x', "session_id"),
        ('"x":1,"\\ud800":1', ""),
    ],
)
def test_a_mistake_of_the_json_itself_names_the_field_that_it_is_in(extra: str, field: str) -> None:
    error = refused(raw(extra))
    assert error.field == field
    assert error.message.startswith(f"{field}: Invalid JSON: " if field else "Invalid JSON: ")


def test_text_that_is_not_utf_8_is_refused_in_its_field_with_a_response() -> None:
    """It became a dead letter, or a response that was never received, although the id was there to be read."""
    message = raw('"payload":{"a":"?"},"attempt":3').replace(b'"?"', b'"\xff"')
    assert refused(message).field == "payload"
    known = salvage_ids(message)
    assert (known["task_id"], known["attempt"]) == (UUID(ID), 3)
    assert salvage_ids(raw('"x":1').replace(ID.encode(), ID.encode()[:-1] + b"\xff")) == {"task_type": "summarize"}


UNREADABLE = {
    "a lone surrogate": '"payload":{"a":"\\ud800"}',
    "a lone surrogate in a key": '"payload":{"\\udc00":1}',
    "a lone surrogate in a label": '"requester":"\\ud800"',
    "not a number": '"payload":{"a":NaN}',
    "nesting beyond any parser": f'"payload":{{"a":{"[" * 300}{"]" * 300}}}',
    "nesting beyond any stack": f'"payload":{{"a":{"[" * 200_000}{"]" * 200_000}}}',
    "an integer of five thousand digits": f'"payload":{{"a":{"1" * 5000}}}',
    "a wrong type": '"priority":"high"',
}


@pytest.mark.parametrize("extra", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_what_cannot_be_read_but_has_an_id_gets_a_response(extra: str) -> None:
    message = raw(f'{extra},"attempt":3,"reply_to":"_INBOX.me"')
    refused(message)
    known = salvage_ids(message)
    assert known["task_id"] == UUID(ID)
    assert (known["task_type"], known["attempt"], known["reply_to"]) == ("summarize", 3, "_INBOX.me")


def test_an_upper_case_id_is_an_id_to_respond_to() -> None:
    message = json.dumps({"task_id": ID.upper(), "task_type": "x"}).encode()
    assert refused(message).field == "task_id"
    assert salvage_ids(message)["task_id"] == UUID(ID)


def test_what_is_wrong_beside_the_id_is_not_echoed() -> None:
    known = salvage_ids(body(reply_to="agent.x.task", attempt=0, task_type="No", root_task_id="nobody"))
    assert known == {"task_id": UUID(ID)}
    assert salvage_ids(body(attempt=True, task_type=["x"], reply_to=None, root_task_id=4)) == {"task_id": UUID(ID)}


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"not json",
        b"[]",
        b"null",
        b"7",
        b'"text"',
        b"{}",
        b'{"task_id": 7}',
        b'{"task_id": "nobody"}',
        b'{"task_id": null, "task_type": "x"}',
        b"\xff\xfe\x00",
        f'{{"task_id":"{ID}"'.encode(),
        f'{{"task_id":"{ID}"}} {{}}'.encode(),
        f'[{{"task_id":"{ID}"}}]'.encode(),
        f'{{"payload":{{"task_id":"{ID}"}}}}'.encode(),
        f'{"[" * 200_000}"task_id":"{ID}"'.encode(),
        f'{{"payload":{"[" * 200_000},"task_id":"{ID}"}}'.encode(),
        f'{{"p":{{"task_id":"{ID}","q":{"[" * 200_000}{"]" * 200_000}}}}}'.encode(),
        f'{{"\\u00zz":"{ID}","q":{"[" * 200_000}{"]" * 200_000}}}'.encode(),
    ],
)
def test_without_an_id_nothing_is_known_of_a_message(message: bytes) -> None:
    refused(message)
    assert "task_id" not in salvage_ids(message)


def test_all_mistakes_are_listed_the_first_in_the_message() -> None:
    error = refused(body(priority=11, attempt=0, metadata={"a": 1}))
    assert error.field == "metadata.a" or error.field in ("priority", "attempt")
    assert {mistake["field"] for mistake in error.details["mistakes"]} == {"priority", "attempt", "metadata.a"}
    assert "(and 2 more)" in error.message


def test_a_mistake_within_something_huge_is_described_in_few_words() -> None:
    """The error travels in a response, which must not be too large to be sent."""
    error = refused(body(metadata={"k" * 700_000: 1}))
    assert len(json.dumps(error.details)) + len(error.message) < 10_000


@given(st.binary(max_size=200))
def test_no_bytes_make_the_reader_raise_anything_else(message: bytes) -> None:
    with contextlib.suppress(InvalidRequest):
        assert parse_request(message).task_type
    assert isinstance(salvage_ids(message), dict)


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(["task_id", "task_type", *OPTIONAL, "other"]), _JSON))
def test_any_object_is_a_request_or_an_invalid_request(fields: dict[str, Any]) -> None:
    message = json.dumps(fields).encode()
    with contextlib.suppress(InvalidRequest):
        request = parse_request(message)
        assert parse_request(to_bytes(request)) == request


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), _JSON, max_size=5))
def test_a_payload_survives_the_wire(payload: dict[str, Any]) -> None:
    request = TaskRequest(task_id=UUID(ID), task_type="x", payload=payload)
    assert parse_request(to_bytes(request)).payload == payload
