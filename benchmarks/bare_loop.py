"""The yardstick: the messages and writes of a durable 5-step workflow and nothing else, no engine.

A request comes in, a row is written, a sub-task is published, an echo agent in another process responds, the row is
updated and the next one written, five times. It is fixed: what an engine sends beyond it is the engine's own cost.

    python -m benchmarks.bare_loop agent   --nats URL
    python -m benchmarks.bare_loop loops   --nats URL --postgres DSN     (orders on stdin, see benchmarks.conversation)
"""

import argparse
import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Iterable
from typing import Any

import asyncpg
import nats
import uvloop
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, RetentionPolicy, StreamConfig
from nats.js.errors import NotFoundError
from pydantic import BaseModel

from benchmarks.conversation import Order, converse
from benchmarks.shapes import CHAIN_STEPS, PAYLOAD

TASKS, RESPONSES = "BARE_TASKS", "BARE_RESPONSES"
FETCH = 512
FETCH_SECONDS = 5.0
INSERT = """insert into bare_tasks(id, workflow_id, step, task_type, status, payload)
            select *, '{"k":1}'::jsonb from unnest($1::uuid[], $2::uuid[], $3::int[], $4::text[], $5::text[])"""
UPDATE = """update bare_tasks t set status = u.s, result = u.r::jsonb, updated_at = now()
            from unnest($1::uuid[], $2::text[], $3::text[]) u(id, s, r) where t.id = u.id"""
TABLE = """drop table if exists bare_tasks;
           create table bare_tasks(id uuid primary key, workflow_id uuid, step int, task_type text, status text,
             payload jsonb, result jsonb, created_at timestamptz default now(), updated_at timestamptz default now())
             with (fillfactor = 70);
           create index on bare_tasks(workflow_id)"""


class Request(BaseModel):
    task_id: str
    task_type: str
    payload: dict[str, Any]
    workflow_id: str | None = None
    step: int = 0


class Response(BaseModel):
    task_id: str
    status: str
    result: dict[str, Any] | None = None
    workflow_id: str | None = None
    step: int = 0


async def publish(js: JetStreamContext, subject: str, bodies: Iterable[tuple[str, bytes]]) -> None:
    """Pairs of message id and body, sent pipelined, all acknowledged on return."""
    await asyncio.gather(*[await js.publish_async(subject, body, headers={"Nats-Msg-Id": key}) for key, body in bodies])


async def batches(js: JetStreamContext, subject: str, durable: str, stream: str) -> AsyncIterator[list[Msg]]:
    sub = await js.pull_subscribe(subject, durable=durable, stream=stream, config=ConsumerConfig(max_ack_pending=20000))
    while True:
        try:
            messages = await sub.fetch(FETCH, timeout=FETCH_SECONDS)
        except TimeoutError:  # the library's own error is one of these
            continue
        # It may come back with nothing.
        if messages:
            yield messages


async def make_streams(js: JetStreamContext) -> None:
    for name, subject in ((TASKS, "bare.*.task"), (RESPONSES, "bare.*.response")):
        with contextlib.suppress(NotFoundError):
            await js.delete_stream(name)
        await js.add_stream(StreamConfig(name=name, subjects=[subject], retention=RetentionPolicy.WORK_QUEUE))


async def agent(url: str) -> None:
    js = (await nats.connect(url)).jetstream()
    async for messages in batches(js, "bare.echo.task", "echo", TASKS):
        responses = []
        for message in messages:
            request = Request.model_validate_json(message.data)
            response = Response(
                task_id=request.task_id,
                status="completed",
                result=request.payload,
                workflow_id=request.workflow_id,
                step=request.step,
            )
            responses.append((request.task_id, response.model_dump_json().encode()))
        await publish(js, "bare.echo.response", responses)
        for message in messages:
            await message.ack()


def step_request(task_id: str, workflow_id: str | None, step: int) -> tuple[str, bytes]:
    request = Request(task_id=task_id, task_type="echo", payload=PAYLOAD, workflow_id=workflow_id, step=step)
    return task_id, request.model_dump_json().encode()


class BareLoops:
    """The two loops, and the sending of requests, which this process does itself."""

    def __init__(self, connection: Client, pool: "asyncpg.Pool[Any]") -> None:
        self._connection = connection
        self._js = connection.jetstream()
        self._pool = pool
        self._finished: asyncio.Queue[str | None] = asyncio.Queue()

    async def intake(self) -> None:
        async for messages in batches(self._js, "bare.orchestrator.task", "orchestrator", TASKS):
            rows, out = [], []
            for message in messages:
                workflow_id = Request.model_validate_json(message.data).task_id
                task_id = str(uuid.uuid4())
                rows += [
                    (workflow_id, workflow_id, -1, "workflow", "running"),
                    (task_id, workflow_id, 0, "echo", "dispatched"),
                ]
                out.append(step_request(task_id, workflow_id, 0))
            await self._pool.execute(INSERT, *zip(*rows, strict=True))
            await publish(self._js, "bare.echo.task", out)
            for message in messages:
                await message.ack()

    async def responses(self) -> None:
        async for messages in batches(self._js, "bare.*.response", "responses", RESPONSES):
            updates: list[tuple[str | None, str, str]] = []
            rows, out, ended = [], [], []
            for message in messages:
                response = Response.model_validate_json(message.data)
                result = json.dumps(response.result, separators=(",", ":"))
                updates.append((response.task_id, response.status, result))
                if response.step + 1 < CHAIN_STEPS:
                    task_id = str(uuid.uuid4())
                    rows.append((task_id, response.workflow_id, response.step + 1, "echo", "dispatched"))
                    out.append(step_request(task_id, response.workflow_id, response.step + 1))
                else:
                    updates.append((response.workflow_id, "completed", "{}"))
                    ended.append(response.workflow_id)
            async with self._pool.acquire() as connection, connection.transaction():
                await connection.execute(UPDATE, *zip(*updates, strict=True))
                if rows:
                    await connection.execute(INSERT, *zip(*rows, strict=True))
            await publish(self._js, "bare.echo.task", out)
            for message in messages:
                await message.ack()
            for workflow_id in ended:
                self._finished.put_nowait(workflow_id)

    async def _submit(self) -> None:
        request = Request(task_id=str(uuid.uuid4()), task_type="workflow", payload=PAYLOAD)
        await self._connection.publish("bare.orchestrator.task", request.model_dump_json().encode())

    async def load(self, workflows: int) -> Order:
        began = time.perf_counter()
        for count in range(workflows):
            await self._submit()
            if count % 200 == 0:
                await asyncio.sleep(0)
        for _ in range(workflows):
            await self._finished.get()
        return {"seconds": time.perf_counter() - began}

    async def idle(self, workflows: int) -> Order:
        took = []
        for _ in range(workflows):
            began = time.perf_counter()
            await self._submit()
            await self._finished.get()
            took.append((time.perf_counter() - began) * 1e3)
        return {"took_ms": took}


async def run_loops(url: str, database: str) -> None:
    connection = await nats.connect(url)
    await make_streams(connection.jetstream())
    pool = await asyncpg.create_pool(database, min_size=2, max_size=4)
    await pool.execute(TABLE)
    bare = BareLoops(connection, pool)
    loops = [asyncio.create_task(bare.intake()), asyncio.create_task(bare.responses())]

    async def respond(order: Order) -> Order:
        if dead := next((loop for loop in loops if loop.done()), None):
            dead.result()
        if order["what"] == "load":
            # Each round on an empty table, as in a run of its own.
            await pool.execute("truncate bare_tasks")
            return await bare.load(order["workflows"])
        return await bare.idle(order["workflows"])

    await converse(respond)
    for loop in loops:
        loop.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["agent", "loops"])
    parser.add_argument("--nats", required=True)
    parser.add_argument("--postgres", default="")
    arguments = parser.parse_args()
    uvloop.run(agent(arguments.nats) if arguments.what == "agent" else run_loops(arguments.nats, arguments.postgres))


if __name__ == "__main__":
    main()
