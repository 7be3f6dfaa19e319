"""The micro service's responses, requested over a real broker and read with the client library's own models."""

import json
from typing import Any

import nats.errors
import pytest
from nats.aio.client import Client
from nats.micro.service import ServiceInfo, ServicePing, ServiceStats

from pantheon.discovery.micro_service import Endpoint, MicroService
from tests.waiting import PATIENCE_SECONDS, until

SCHEMA = {"type": "object", "properties": {"text": {"type": "string"}}}


def make(client: Client, instance_id: str = "i1", **values: Any) -> MicroService:
    fields: dict[str, Any] = {
        "name": "llm_agent",
        "instance_id": instance_id,
        "version": "1.2.3",
        "description": "writes",
        "metadata": {"model": "none"},
        "endpoints": [Endpoint("generate_content", SCHEMA, SCHEMA), Endpoint("summarize_content")],
        **values,
    }
    return MicroService(client, **fields)


async def ask(client: Client, subject: str) -> dict[str, Any]:
    response: dict[str, Any] = json.loads((await client.request(subject, timeout=PATIENCE_SECONDS)).data)
    return response


@pytest.mark.parametrize("scope", ["", ".llm_agent", ".llm_agent.i1"])
async def test_each_verb_has_a_response_in_each_scope(client: Client, other_client: Client, scope: str) -> None:
    async with make(client):
        ping = await ask(other_client, f"$SRV.PING{scope}")
        assert ping["type"] == "io.nats.micro.v1.ping_response"
        assert ServicePing.from_dict(ping) == ServicePing("i1", "llm_agent", "1.2.3", {"model": "none"})
        info = await ask(other_client, f"$SRV.INFO{scope}")
        assert info["type"] == "io.nats.micro.v1.info_response"
        read = ServiceInfo.from_dict(info)
        assert [endpoint.name for endpoint in read.endpoints] == ["generate_content", "summarize_content"]
        assert {endpoint.subject for endpoint in read.endpoints} == {"agent.llm_agent.task"}
        metadata = read.endpoints[0].metadata
        assert json.loads(metadata["input_schema"]) == json.loads(metadata["output_schema"]) == SCHEMA
        assert metadata["input_schema"] == json.dumps(SCHEMA, separators=(",", ":"))
        assert all(isinstance(value, str) for value in metadata.values())
        stats = await ask(other_client, f"$SRV.STATS{scope}")
        assert stats["type"] == "io.nats.micro.v1.stats_response"
        assert ServiceStats.from_dict(stats).endpoints[0].num_requests == 0


async def test_other_names_and_ids_have_no_response(client: Client, other_client: Client) -> None:
    async with make(client, "i1"), make(client, "i2"):
        inbox = other_client.new_inbox()
        answers: list[str] = []

        async def note(message: Any) -> None:
            answers.append(json.loads(message.data)["id"])

        await other_client.subscribe(inbox, cb=note)
        for subject in ("$SRV.PING.other_agent", "$SRV.PING.llm_agent.i2", "$SRV.PING.llm_agent"):
            await other_client.publish(subject, b"", reply=inbox)
        await other_client.publish("$SRV.PING", b"")  # without a reply subject
        await until(lambda: len(answers) == 3)
        assert sorted(answers) == ["i1", "i2", "i2"]


async def test_statistics_count_requests_errors_and_time(client: Client, other_client: Client) -> None:
    service = make(client)
    async with service:
        service.record("generate_content", 0.5)
        service.record("generate_content", 1.5, "timeout:\n the model did not answer")
        service.record("unknown", 1.0)
        first = ServiceStats.from_dict(await ask(other_client, "$SRV.STATS.llm_agent")).endpoints[0]
        assert (first.num_requests, first.num_errors) == (2, 1)
        assert (first.processing_time, first.average_processing_time) == (2_000_000_000, 1_000_000_000)
        assert first.last_error == "timeout: the model did not answer"


async def test_endpoints_come_and_go_and_keep_what_was_counted(client: Client, other_client: Client) -> None:
    async with make(client) as service:
        service.record("generate_content", 0.5)
        service.describe([Endpoint("generate_content", {"type": "object"}), Endpoint("translate_content")])
        stats = ServiceStats.from_dict(await ask(other_client, "$SRV.STATS.llm_agent"))
        assert {endpoint.name: endpoint.num_requests for endpoint in stats.endpoints} == {
            "generate_content": 1,
            "translate_content": 0,
        }
        info = ServiceInfo.from_dict(await ask(other_client, "$SRV.INFO.llm_agent"))
        assert info.endpoints[0].metadata == {"input_schema": '{"type":"object"}'}


async def test_the_tasks_subject_is_not_listened_to(client: Client, other_client: Client) -> None:
    async with make(client):
        before = client.stats["in_msgs"]
        await other_client.publish("agent.llm_agent.task", b"{}")
        for connection in (other_client, client):
            await connection.flush()
            await connection.flush()
        assert client.stats["in_msgs"] == before
        await ask(other_client, "$SRV.PING")
        assert client.stats["in_msgs"] == before + 1


async def test_schemas_beyond_what_the_broker_carries_are_left_out(client: Client, other_client: Client) -> None:
    async with make(client, endpoints=[Endpoint("big", {"description": "x" * 2_000_000}, metadata={"kept": "yes"})]):
        info = ServiceInfo.from_dict(await ask(other_client, "$SRV.INFO"))
        assert info.endpoints[0].metadata == {"kept": "yes"}


async def test_closing_ends_the_responses_even_after_the_connection(client: Client, other_client: Client) -> None:
    service = make(other_client)
    await service.start()
    assert service.endpoints.keys() == {"generate_content", "summarize_content"}
    await other_client.close()
    await service.close()
    async with make(client):
        assert (await ask(client, "$SRV.PING.llm_agent"))["id"] == "i1"
    with pytest.raises(nats.errors.NoRespondersError):
        await client.request("$SRV.PING.llm_agent", timeout=PATIENCE_SECONDS)


@pytest.mark.parametrize("values", [{"version": "1.0"}, {"version": "v1.0.0"}, {"name": "with space"}])
async def test_names_and_versions_that_the_protocol_forbids_are_refused(client: Client, values: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="is no"):
        make(client, **values)
