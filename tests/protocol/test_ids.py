"""Ids that an orchestrator makes faster are the same ids."""

import copy
import json
from uuid import UUID

import asyncpg.pgproto.pgproto
import pytest
from hypothesis import given
from hypothesis import strategies as st

import orchestrator_agent.service
from protocol import TaskRequest, ids
from protocol.messages import json_bytes, to_bytes

PostgresUUID = asyncpg.pgproto.pgproto.UUID


@pytest.fixture(params=[None, PostgresUUID], ids=["uuid", "postgres"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[UUID]:
    monkeypatch.setattr(ids, "_made_fast", request.param)
    made: type[UUID] = request.param or UUID
    return made


@given(st.uuids(), st.text(max_size=20), st.integers(0, 9), st.integers(-1, 9))
def test_a_derived_id_is_the_same_in_every_process(parent: UUID, step: str, iteration: int, item: int) -> None:
    made: list[UUID] = []
    with pytest.MonkeyPatch.context() as patch:
        for fast in (None, PostgresUUID):
            patch.setattr(ids, "_made_fast", fast)
            made += [
                ids.step_task_id(parent_id, step, iteration, item) for parent_id in (parent, PostgresUUID(str(parent)))
            ]
    assert len(set(made)) == 1
    assert len({str(made_id) for made_id in made}) == 1
    assert {(made_id.version, made_id.variant) for made_id in made} == {(8, made[0].variant)}


@given(st.uuids(), st.uuids())
def test_both_kinds_are_equal_in_comparisons_and_collections(one: UUID, other: UUID) -> None:
    fast: UUID = PostgresUUID(str(one))
    assert (fast == one, one == fast, hash(fast) == hash(one)) == (True, True, True)
    assert {one: 1}[fast] == {fast: 1}[one] == 1
    assert (fast < other, other < fast, fast.int, fast.hex) == (one < other, other < one, one.int, one.hex)
    assert str(fast) == str(one) == f"{fast}"
    assert json_bytes({"id": fast}) == json_bytes({"id": one})
    assert copy.deepcopy(fast) == one


def test_a_message_is_the_same_with_either(kind: type[UUID]) -> None:
    text = "01a2175c-4abe-7e0f-a4f4-ed0df67e26a5"
    body = json.dumps({"task_id": text, "task_type": "work", "root_task_id": text, "parent_task_id": None}).encode()
    request = TaskRequest.model_validate_json(body)
    assert type(request.task_id) is kind
    assert request == TaskRequest(task_id=UUID(text), task_type="work", root_task_id=UUID(text))
    assert json.loads(to_bytes(request)) == {"task_id": text, "task_type": "work", "root_task_id": text}


def test_the_orchestrator_makes_ids_as_postgres_does() -> None:
    assert orchestrator_agent.service.VERSION, "its composition root chooses the class"
    assert type(ids.id_of(str(ids.new_id()))) is PostgresUUID
