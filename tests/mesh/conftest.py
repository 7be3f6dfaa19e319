"""A mesh in the test's own process: orchestrator, an agent, and a client that knows nothing but docs/protocol.md."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import nats
import pytest
import pytest_asyncio
from nats.aio.client import Client
from nats.aio.msg import Msg

from orchestrator_agent.parts import DEFAULT_TUNING, Tuning
from orchestrator_agent.service import load_library, orchestrator
from pantheon import Mesh
from pantheon.bus import PublishRetries
from pantheon.process.agent_process import AgentProcess
from pantheon.runtime.settings import MeshSettings
from protocol.ids import new_id
from tests.mesh.agents import Seen, registry_of, words_agent
from tests.waiting import PATIENCE_SECONDS, until


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def tuning() -> Tuning:
    """Of the orchestrators; a test that is parametrized with `tuning` has its own."""
    return DEFAULT_TUNING


@pytest_asyncio.fixture
async def orchestrated(settings: MeshSettings, tuning: Tuning) -> AsyncIterator[AgentProcess]:
    async with orchestrator(settings, load_library([]), tuning=tuning) as process:
        yield process


@pytest_asyncio.fixture
async def words(settings: MeshSettings, orchestrated: AgentProcess, seen: Seen) -> AsyncIterator[AgentProcess]:
    """The agent, in the registry and known there to the orchestrator."""
    registry = registry_of(orchestrated)
    async with AgentProcess(words_agent(seen), settings) as process:
        await until(lambda: registry.serving("uppercase"), "the agent in the registry")
        yield process


@pytest_asyncio.fixture
async def mesh(settings: MeshSettings) -> AsyncIterator[Mesh]:
    async with Mesh(settings.nats_url) as client:
        yield client


class PlainClient:
    """nats-py and docs/protocol.md, nothing of the kit."""

    def __init__(self, connection: Client) -> None:
        self.connection = connection
        self.responses: dict[str, list[bytes]] = {}
        self.accepted: dict[str, int] = {}
        self.events: list[dict[str, Any]] = []
        self.dead: list[dict[str, Any]] = []
        self.overheard: list[tuple[dict[str, Any], dict[str, str]]] = []
        self._changed = asyncio.Event()

    async def listen(self) -> None:
        await self.connection.subscribe("agent.orchestrator_agent.response", cb=self._on_response)
        await self.connection.subscribe("mesh.event.>", cb=self._on_event)
        await self.connection.subscribe("mesh.deadletter.*", cb=self._on_dead)
        await self.connection.flush()

    async def _on_response(self, message: Msg) -> None:
        self.responses.setdefault(json.loads(message.data)["task_id"], []).append(message.data)
        self._changed.set()

    async def _on_event(self, message: Msg) -> None:
        event = {**json.loads(message.data), "channel": message.subject}
        self.events.append(event)
        if message.subject == "mesh.event.task.accepted":
            task_id = event["data"]["task_id"]
            self.accepted[task_id] = self.accepted.get(task_id, 0) + 1
        self._changed.set()

    async def _on_dead(self, message: Msg) -> None:
        self.dead.append(json.loads(message.data))
        self._changed.set()

    async def overhear(self, agent: str) -> None:
        """Read along what an agent is given: each request and its headers, in `overheard`."""
        await self.connection.subscribe(f"agent.{agent}.task", cb=self._on_overheard)
        await self.connection.flush()

    async def _on_overheard(self, message: Msg) -> None:
        self.overheard.append((json.loads(message.data), dict(message.headers or {})))
        self._changed.set()

    async def send(self, task_type: str, payload: Any = None, **fields: Any) -> str:
        task_id = fields.pop("task_id", None) or str(new_id())
        body = {"task_id": task_id, "task_type": task_type, **fields}
        if payload is not None:
            body["payload"] = payload
        await self.connection.publish("agent.orchestrator_agent.task", json.dumps(body).encode())
        return str(task_id)

    async def submit(
        self, task_type: str, payload: Any = None, *, within_seconds: float = PATIENCE_SECONDS, **fields: Any
    ) -> str:
        """Send, and send again, until accepted, as the page requires of a client that must be sure."""
        task_id = fields.pop("task_id", None) or str(new_id())
        try:
            async with asyncio.timeout(within_seconds):
                while task_id not in self.accepted and task_id not in self.responses:
                    await self.send(task_type, payload, task_id=task_id, **fields)
                    try:
                        await self.until(lambda: task_id in self.accepted or task_id in self.responses, 1)
                    except TimeoutError:
                        continue
        except TimeoutError:
            raise AssertionError(f"task {task_id} was not accepted within {within_seconds:g} s") from None
        return str(task_id)

    async def until(self, condition: Callable[[], Any], within_seconds: float = PATIENCE_SECONDS) -> None:
        async with asyncio.timeout(within_seconds):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def response(self, task_id: str, within_seconds: float = PATIENCE_SECONDS) -> dict[str, Any]:
        await self.until(lambda: task_id in self.responses, within_seconds)
        response: dict[str, Any] = json.loads(self.responses[task_id][0])
        return response

    async def collect(
        self, task_type: str, payload: Any, ids: list[str], *, within_seconds: float = 2 * PATIENCE_SECONDS
    ) -> None:
        """Have all responses, sending again the tasks whose response was published while this client was away."""
        missing = ids
        try:
            async with asyncio.timeout(within_seconds):
                while missing := [task_id for task_id in ids if task_id not in self.responses]:
                    try:
                        await self.until(partial(self.responses.keys().__ge__, set(missing)), 3)
                    except TimeoutError:
                        for task_id in missing:
                            await self.send(task_type, payload, task_id=task_id)
        except TimeoutError:
            broker_was_down = [task_id for task_id in missing if task_id not in self.accepted]
            raise AssertionError(
                f"of {len(ids)} tasks {len(missing)} had no response within {within_seconds:g} s: "
                f"{', '.join(missing)}; not even accepted, by the events: {', '.join(broker_was_down) or 'none'}"
            ) from None

    async def ask(self, task_type: str, payload: Any = None, **fields: Any) -> dict[str, Any]:
        return await self.response(await self.send(task_type, payload, **fields))


@pytest.fixture(autouse=True)
def slow_publishers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a broker has not acknowledged for a while is published again. On a machine that stalls that is no second
    response: where a test counts them (`plain`), its processes are more patient."""
    if "plain" in request.fixturenames:
        monkeypatch.setattr(
            "pantheon.bus.publisher.DEFAULT_RETRIES", PublishRetries(ack_timeout_seconds=PATIENCE_SECONDS)
        )


@pytest_asyncio.fixture
async def plain(settings: MeshSettings) -> AsyncIterator[PlainClient]:
    connection = await nats.connect(settings.nats_url)
    client = PlainClient(connection)
    await client.listen()
    yield client
    await connection.close()
