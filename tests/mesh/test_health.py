"""Probes over HTTP: alive, ready, and what is missing."""

import asyncio
import json
import socket
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

import migrations
from orchestrator_agent.service import load_library, orchestrator
from pantheon.bus import ensure_streams
from pantheon.process.agent_process import AgentProcess
from pantheon.runtime.settings import MeshSettings
from pantheon.stack.servers import NatsServer
from protocol.errors import SettingsError
from tests.mesh.agents import Seen, words_agent
from tests.servers import pick_own_free, postgres_server
from tests.waiting import PATIENCE_SECONDS, until


async def ask(port: int, path: str) -> tuple[int, dict[str, Any]]:
    def get() -> tuple[int, dict[str, Any]]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE_SECONDS) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    return await asyncio.to_thread(get)


async def test_an_orchestrator_is_ready_only_with_nats_and_postgres(broker: NatsServer, tmp_path: Path) -> None:
    port = pick_own_free()
    async with postgres_server(tmp_path / "postgres") as database:
        await migrations.upgrade(database.url)
        settings = MeshSettings.load(
            nats_url=broker.url, database_url=database.url, agent_orchestrator_port=port, drain_grace_seconds=1.0
        )
        async with orchestrator(settings, load_library([])):
            assert await ask(port, "/healthz") == (200, {"status": "ok"})
            assert await ask(port, "/readyz") == (200, {"status": "ok", "missing": []})
            await database.stop()
            status, told = await ask(port, "/readyz")
            assert status == 503
            assert "Postgres" in told["missing"][0]
            assert await ask(port, "/healthz") == (200, {"status": "ok"})
            await database.start()

            async def ready() -> bool:
                return (await ask(port, "/readyz"))[0] == 200

            await until(ready, "that it is ready again")


async def test_a_taken_port_is_one_clear_line(settings: MeshSettings) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        wanted = settings.model_copy(update={"agent_orchestrator_port": port})
        with pytest.raises(SettingsError, match=f"AGENT_ORCHESTRATOR_PORT={port}") as raised:
            async with orchestrator(wanted, load_library([])):
                pass
    assert "\n" not in str(raised.value)


async def test_an_agent_is_ready_once_it_can_take_tasks(broker: NatsServer, tmp_path: Path) -> None:
    """It waits for the streams, which the orchestrator makes; and while NATS is away it is alive, but not ready."""
    port = pick_own_free()
    settings = MeshSettings.load(nats_url=broker.url, health_port=port, drain_grace_seconds=1.0)
    async with AgentProcess(words_agent(Seen()), settings) as process:
        assert await ask(port, "/healthz") == (200, {"status": "ok"})
        status, told = await ask(port, "/readyz")
        assert (status, told["missing"]) == (503, ["there is no stream to take tasks from yet"])
        await ensure_streams(process.bus)
        await process.worker.wait_ready()
        assert await ask(port, "/readyz") == (200, {"status": "ok", "missing": []})
        await broker.stop()
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (await ask(port, "/readyz"))[1]["missing"] != ["NATS is not connected"]:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        assert await ask(port, "/healthz") == (200, {"status": "ok"})
        await broker.start()


async def test_who_waits_for_nats_is_alive(tmp_path: Path) -> None:
    port = pick_own_free()
    settings = MeshSettings.load(nats_url=f"nats://127.0.0.1:{pick_own_free()}", health_port=port)
    starting = asyncio.create_task(AgentProcess(words_agent(Seen()), settings).__aenter__())
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                try:
                    assert await ask(port, "/healthz") == (200, {"status": "ok"})
                    break
                except urllib.error.URLError:
                    await asyncio.sleep(0.05)
        assert (await ask(port, "/readyz"))[1]["missing"] == ["NATS is not connected"]
    finally:
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
