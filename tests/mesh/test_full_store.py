"""A broker with little storage: every stream has a bound, so that none stops the others, and it is reported in time."""

import contextlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from nats.js.api import RetentionPolicy, StreamConfig
from nats.js.errors import APIError
from structlog.testing import capture_logs

from orchestrator_agent.maintenance.broker_storage import BrokerStorage
from orchestrator_agent.service import load_library, orchestrator
from pantheon import Mesh
from pantheon.bus import OBJECTS_STREAM, Bus, ensure_streams
from pantheon.process.agent_process import AgentProcess
from pantheon.runtime.settings import MeshSettings
from pantheon.stack.servers import NatsServer
from protocol.errors import BusError, NotAccepted
from protocol.streams import ALL_STREAMS, RESPONSES, TASKS
from tests.mesh.agents import registry_of, words_agent
from tests.waiting import PATIENCE_SECONDS, until

MEGABYTE = 1_000_000
STREAMS = [spec.name for spec in ALL_STREAMS] + [OBJECTS_STREAM]


@asynccontextmanager
async def small_store(folder: Path, max_bytes: int) -> AsyncIterator[NatsServer]:
    jetstream = {"store_dir": str(folder), "max_file_store": max_bytes}
    async with NatsServer(folder, settings={"jetstream": jetstream}) as server:
        yield server


@asynccontextmanager
async def small_account(folder: Path, max_bytes: int) -> AsyncIterator[str]:
    accounts = {"MESH": {"jetstream": {"max_file": max_bytes}, "users": [{"user": "mesh", "password": "mesh"}]}}
    async with NatsServer(folder, settings={"accounts": accounts}) as server:
        yield server.url.replace("nats://", "nats://mesh:mesh@")


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Bus]:
    async with await Bus.connect(url, name="test", wait_seconds=PATIENCE_SECONDS) as bus:
        yield bus


async def bounds(bus: Bus) -> dict[str, int]:
    return {name: (await bus.js.stream_info(name)).config.max_bytes or -1 for name in STREAMS}


async def fill(bus: Bus, subject: str) -> None:
    """To the last thousand bytes or so."""
    for size in (MEGABYTE, 100_000, 10_000, 500):
        with contextlib.suppress(APIError):
            while True:
                await bus.js.publish(subject, os.urandom(size))


async def test_all_bounds_together_are_within_a_server_of_100_megabytes(tmp_path: Path) -> None:
    """It did not start at all below 1 GiB."""
    async with small_store(tmp_path, 100 * MEGABYTE) as server, connected(server.url) as bus:
        await ensure_streams(bus)
        found = await bounds(bus)
        assert min(found.values()) > MEGABYTE
        assert 50 * MEGABYTE < sum(found.values()) < 100 * MEGABYTE
        # At the next start too, and by another process.
        await ensure_streams(bus)
        assert await bounds(bus) == found


async def test_bounds_are_parts_of_what_the_account_has(tmp_path: Path) -> None:
    async with small_account(tmp_path, 60 * MEGABYTE) as url, connected(url) as bus:
        await ensure_streams(bus)
        assert 50 * MEGABYTE < sum((await bounds(bus)).values()) < 60 * MEGABYTE
        await ensure_streams(bus, storage_bytes=30 * MEGABYTE)
        assert 25 * MEGABYTE < sum((await bounds(bus)).values()) < 30 * MEGABYTE


async def test_streams_of_an_older_version_get_their_bounds_and_lose_nothing(tmp_path: Path) -> None:
    async with small_store(tmp_path, 200 * MEGABYTE) as server, connected(server.url) as bus:
        retention = RetentionPolicy.WORK_QUEUE
        await bus.js.add_stream(StreamConfig(name=TASKS.name, subjects=list(TASKS.subjects), retention=retention))
        for _ in range(60):
            await bus.js.publish("agent.some_agent.task", os.urandom(MEGABYTE))
        await ensure_streams(bus, storage_bytes=100 * MEGABYTE)
        info = await bus.js.stream_info(TASKS.name)
        assert info.state.messages == 60
        assert (info.config.max_bytes or 0) > info.state.bytes, "it takes more"


async def test_a_server_with_too_little_is_refused_with_what_to_raise(tmp_path: Path) -> None:
    async with small_store(tmp_path, 10 * MEGABYTE) as server, connected(server.url) as bus:
        with pytest.raises(BusError, match=r"insufficient storage resources.*max_file_store"):
            await ensure_streams(bus)


async def test_an_account_with_too_little_is_refused_with_what_to_raise(tmp_path: Path) -> None:
    async with small_account(tmp_path, 10 * MEGABYTE) as url, connected(url) as bus:
        with pytest.raises(BusError, match=r"may take 10000000 bytes.*max_file"):
            await ensure_streams(bus)


async def test_a_mesh_works_on_when_its_responses_have_filled_their_part(
    settings: MeshSettings, tmp_path: Path
) -> None:
    """They give way to newer ones; with no bound they stopped the whole account."""
    async with small_store(tmp_path, 40 * MEGABYTE) as server:
        there = settings.model_copy(update={"nats_url": server.url})
        async with orchestrator(there, load_library([])) as process, AgentProcess(words_agent(), there):
            await until(lambda: registry_of(process).serving("echo"), "the agent in the registry")
            async with Mesh(server.url) as mesh:
                blob = os.urandom(100_000).hex()
                for _ in range(60):
                    assert await mesh.run("echo", {"blob": blob}) == {"blob": blob}
            info = await process.bus.js.stream_info(RESPONSES.name)
            # Each task leaves its agent's response and its final one.
            assert info.state.last_seq >= 120
            assert info.state.messages < 120
            assert info.state.bytes <= (info.config.max_bytes or 0)


async def test_a_full_queue_of_requests_is_named_in_the_brokers_own_words(tmp_path: Path) -> None:
    async with small_store(tmp_path, 40 * MEGABYTE) as server, connected(server.url) as bus:
        await ensure_streams(bus)
        await fill(bus, "agent.orchestrator_agent.task")
        async with Mesh(server.url) as mesh:
            with pytest.raises(NotAccepted, match=r"maximum bytes exceeded.*Storage of the broker"):
                await mesh.submit("echo", {"blob": os.urandom(240_000).hex()}, accept_seconds=1)


async def test_a_store_that_fills_is_reported_before_it_is_full(tmp_path: Path) -> None:
    async with small_store(tmp_path, 100 * MEGABYTE) as server, connected(server.url) as bus:
        await ensure_streams(bus)
        storage = BrokerStorage(bus, replicas=1)

        async def events() -> list[tuple[Any, ...]]:
            with capture_logs() as logs:
                await storage.check()
                await storage.check()
            return [(entry["event"], entry["of"]) for entry in logs]

        assert await events() == []
        bound = (await bounds(bus))[TASKS.name]
        while (await bus.js.stream_info(TASKS.name)).state.bytes < 0.8 * bound:
            await bus.js.publish("agent.some_agent.task", os.urandom(MEGABYTE))
        assert await events() == [("broker.storage_low", TASKS.name)]
        await bus.js.purge_stream(TASKS.name)
        assert await events() == [("broker.storage_enough", TASKS.name)]
