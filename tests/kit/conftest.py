"""A broker with the mesh's streams, and a rig that stands outside of the kit: plain NATS, plain JSON."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio

from pantheon import Agent
from pantheon.bus import Bus, Objects, Publisher, PublishRetries, Transport, ensure_streams
from pantheon.stack.servers import NatsServer
from pantheon.worker.worker import Worker
from protocol import TaskResponse, new_id, subjects
from tests.waiting import PATIENCE_SECONDS, until


class Rig:
    """Sends tasks and sees responses as a process does that knows docs/protocol.md and no kit."""

    def __init__(self, bus: Bus, retries: PublishRetries) -> None:
        self.bus = bus
        self.js = bus.js
        self.publisher = Publisher(bus, retries)
        self.transport = Transport(bus, self.publisher, Objects(bus))
        self.bodies: list[bytes] = []
        self.responses: list[TaskResponse] = []
        self.workers: list[Worker] = []

    async def listen(self) -> None:
        async def on_response(message: Any) -> None:
            self.bodies.append(message.data)
            self.responses.append(TaskResponse.model_validate_json(message.data))

        await self.bus.subscribe(subjects.ALL_RESPONSES, on_response)
        await self.bus.flush()

    async def worker(
        self,
        agent: Agent,
        *,
        max_concurrency: int = 10,
        ready: bool = True,
        transport: Transport | None = None,
        **more: Any,
    ) -> Worker:
        number = len(self.workers)
        worker = Worker(
            agent,
            transport or self.transport,
            instance_id=f"instance-{number}",
            max_concurrency=max_concurrency,
            **more,
        )
        self.workers.append(worker)
        await worker.start()
        if ready:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await worker.wait_ready()
        return worker

    async def send_raw(self, agent: str, body: bytes, headers: dict[str, str] | None = None) -> None:
        await self.publisher.publish(subjects.task(agent), body, headers=headers, give_up_seconds=PATIENCE_SECONDS)

    async def send(self, agent: str, task_type: str, payload: dict[str, Any] | None = None, **fields: Any) -> UUID:
        task_id = fields.pop("task_id", None) or new_id()
        request = {"task_id": str(task_id), "task_type": task_type, "payload": payload or {}, **fields}
        await self.send_raw(agent, json.dumps(request).encode())
        return UUID(str(task_id))

    def responses_to(self, task_id: UUID) -> list[TaskResponse]:
        return [response for response in self.responses if response.task_id == task_id]

    async def response(self, task_id: UUID, *, seconds: float = PATIENCE_SECONDS) -> TaskResponse:
        await until(lambda: bool(self.responses_to(task_id)), f"a response to {task_id}", seconds=seconds)
        return self.responses_to(task_id)[0]

    async def run(
        self, agent: str, task_type: str, payload: dict[str, Any] | None = None, **fields: Any
    ) -> TaskResponse:
        return await self.response(await self.send(agent, task_type, payload, **fields))

    async def queued(self) -> int:
        """Tasks in the broker, at work or not: a task leaves it when it is acknowledged."""
        return int((await self.js.stream_info("AGENT_TASKS")).state.messages)

    async def until_empty(self) -> None:
        async def empty() -> bool:
            return await self.queued() == 0

        await until(empty, "an empty queue")

    async def dead_letters(self, count: int) -> list[dict[str, Any]]:
        async def there() -> bool:
            return (await self.js.stream_info("DEAD_LETTERS")).state.messages >= count

        await until(there, f"{count} dead letters")
        letters = []
        for sequence in range(1, count + 1):
            message = await self.js.get_msg("DEAD_LETTERS", sequence)
            letter = json.loads(message.data or b"")
            letters.append({**letter, "on": message.subject, "body": base64.b64decode(letter["body_base64"])})
        return letters

    async def close(self) -> None:
        for worker in self.workers:
            await worker.drain(0)
        await self.publisher.close()


@pytest_asyncio.fixture
async def bus(broker: NatsServer) -> AsyncIterator[Bus]:
    async with await Bus.connect(broker.url, name="test", wait_seconds=PATIENCE_SECONDS) as made:
        await ensure_streams(made)
        yield made


# Repeats that come after tenths of seconds, as they do after seconds otherwise.
QUICK = PublishRetries(ack_timeout_seconds=0.3, first_seconds=0.05, max_seconds=0.2)


@pytest.fixture
def retries() -> PublishRetries:
    """Of the rig's publisher. A test may have others by `@quick_retries`."""
    return PublishRetries()


quick_retries = pytest.mark.parametrize("retries", [QUICK], ids=["quick"])


@pytest_asyncio.fixture
async def rig(bus: Bus, retries: PublishRetries) -> AsyncIterator[Rig]:
    made = Rig(bus, retries)
    await made.listen()
    yield made
    await made.close()


@pytest.fixture
def agent() -> Agent:
    return Agent("test_agent")
