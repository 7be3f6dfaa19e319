"""A full agent without the kit: nats-py and the standard library, written from docs/protocol.md alone.

It registers itself, pulls from its consumer, and publishes TaskResponses; nothing else is asked of an agent. It serves
one task type, `count_words`: {"text": "…"} -> {"words": n}. Run it with NATS_URL set: `python plain_agent.py`.

Discovery here is NATS KV. In a mesh that uses Consul, register a Consul service instead (docs/protocol.md, Discovery).
"""

import asyncio
import base64
import contextlib
import io
import json
import logging
import os
import secrets
import signal
import uuid
from datetime import UTC, datetime
from typing import Any

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig
from nats.js.errors import NotFoundError

NAME = "plain_agent"
TASK_TYPES = ["count_words"]
INSTANCE_ID = f"{os.getpid()}-{secrets.token_hex(4)}"
MAX_CONCURRENCY = 8
REGISTER_EVERY_SECONDS = 5
IN_PROGRESS_EVERY_SECONDS = 10
PULL_SECONDS = 5

log = logging.getLogger(NAME)


def handle(task_type: str, payload: dict[str, Any]) -> dict[str, Any]:
    """The work itself. Raises ValueError for a payload that it cannot take."""
    text = payload.get("text")
    if not isinstance(text, str):
        raise ValueError(f"payload.text: '{task_type}' needs a string")
    return {"words": len(text.split())}


def response_base(request: dict[str, Any]) -> dict[str, Any]:
    """What every TaskResponse holds: ids and attempt as they came, and which instance responds."""
    return {
        "task_id": request["task_id"],
        "root_task_id": request.get("root_task_id") or request["task_id"],
        "attempt": request.get("attempt") or 1,
        "task_type": request.get("task_type") or "",
        "agent": NAME,
        "instance_id": INSTANCE_ID,
        "started_at": datetime.now(UTC).isoformat(),
    }


def response_to(request: dict[str, Any]) -> dict[str, Any]:
    """The TaskResponse, with a result or an error."""
    response = response_base(request)
    try:
        if response["task_type"] not in TASK_TYPES:
            raise ValueError(f"task_type: {NAME} serves {', '.join(TASK_TYPES)}, not '{response['task_type']}'")
        response |= {"status": "completed", "result": handle(response["task_type"], request.get("payload") or {})}
    except ValueError as error:
        problem = {"code": "invalid_request", "message": str(error), "retryable": False}
        response |= {"status": "failed", "error": problem}
    return response | {"completed_at": datetime.now(UTC).isoformat()}


async def work(js: JetStreamContext, message: Msg) -> None:
    """The order is the guarantee: work, publish the response and have its ack, then ack the task."""
    keeping = asyncio.create_task(keep_in_progress(message))
    try:
        try:
            request = json.loads(message.data)
            uuid.UUID(request["task_id"])
        except (ValueError, KeyError, TypeError) as error:
            # There is no id to respond to.
            await js.publish(f"mesh.deadletter.{NAME}", dead_letter(message, str(error)))
        else:
            response = await respond(js, request)
            message_id = f"{response['task_id']}:{response['attempt']}:response"
            body = json.dumps(response).encode()
            await js.publish(f"agent.{NAME}.response", body, headers={"Nats-Msg-Id": message_id})
        await message.ack()
    except NatsError as error:
        # Not acknowledged: it will be delivered again, to this instance or another.
        log.warning("no response sent: %s", error)
    finally:
        keeping.cancel()


async def respond(js: JetStreamContext, request: dict[str, Any]) -> dict[str, Any]:
    """The TaskResponse; the payload may be an object of its own (docs/protocol.md, Large payloads and results)."""
    if (ref := request.get("payload_ref")) is not None:
        try:
            stored = io.BytesIO()
            await (await js.object_store("payloads")).get(ref["name"], writeinto=stored)
            request["payload"] = json.loads(stored.getvalue())
        except NotFoundError:
            # The orchestrator has it, and puts it there again for the next attempt.
            problem = {"code": "payload_unavailable", "message": f"no object {ref['name']}", "retryable": True}
            return response_base(request) | {"status": "failed", "error": problem}
    # In a thread, so that work which computes does not stop the acks.
    return await asyncio.to_thread(response_to, request)


def dead_letter(message: Msg, error: str) -> bytes:
    letter = {
        "id": str(uuid.uuid4()),
        "subject": message.subject,
        "reason": "not a TaskRequest",
        "error": error,
        "body_base64": base64.b64encode(message.data).decode(),
        "headers": message.headers or {},
        "deliveries": message.metadata.num_delivered,
        "at": datetime.now(UTC).isoformat(),
    }
    return json.dumps(letter).encode()


async def keep_in_progress(message: Msg) -> None:
    while True:
        await asyncio.sleep(IN_PROGRESS_EVERY_SECONDS)
        await message.in_progress()


async def register(js: JetStreamContext) -> None:
    """Put this instance's key again and again: it lives for 15 s after the last put."""
    record = {
        "protocol": 1,
        "name": NAME,
        "instance_id": INSTANCE_ID,
        "task_types": TASK_TYPES,
        "max_concurrency": MAX_CONCURRENCY,
        "version": "1.0.0",
        "status": "ready",
        "metadata": {},
    }
    while True:
        # The orchestrator makes the bucket; until then, and while the broker is away, trying again is all there is.
        with contextlib.suppress(NatsError):
            await js.publish(f"$KV.agents.{NAME}.{INSTANCE_ID}", json.dumps(record).encode())
        await asyncio.sleep(REGISTER_EVERY_SECONDS)


async def pull(js: JetStreamContext) -> None:
    """Take tasks, at most MAX_CONCURRENCY at once; a consumer that is missing or gone is made (again)."""
    room = asyncio.Semaphore(MAX_CONCURRENCY)
    running: set[asyncio.Task[None]] = set()

    def done(task: "asyncio.Task[None]") -> None:
        running.discard(task)
        room.release()

    while True:
        try:
            await js.add_consumer(
                "AGENT_TASKS",
                ConsumerConfig(
                    durable_name=NAME,
                    filter_subject=f"agent.{NAME}.task",
                    ack_policy=AckPolicy.EXPLICIT,
                    ack_wait=30,
                    max_deliver=5,
                    max_ack_pending=10_000,
                ),
            )
            subscription = await js.pull_subscribe_bind(NAME, "AGENT_TASKS")
            log.info("%s is ready", INSTANCE_ID)
            while True:
                async with room:
                    message = await next_message(js, subscription)
                if message is not None:
                    await room.acquire()
                    task = asyncio.create_task(work(js, message))
                    running.add(task)
                    task.add_done_callback(done)
        except (NatsError, TimeoutError) as error:
            log.warning("waiting for the mesh: %s", error)
            await asyncio.sleep(1)


async def next_message(js: JetStreamContext, subscription: JetStreamContext.PullSubscription) -> Msg | None:
    """One message, or None while there is nothing to do. Raises NatsError where the consumer is gone."""
    try:
        return (await subscription.fetch(1, timeout=PULL_SECONDS, heartbeat=1))[0]
    except TimeoutError:
        await js.consumer_info("AGENT_TASKS", NAME)
        return None


async def run(client: Client, stop: asyncio.Event) -> None:
    js = client.jetstream()
    loops = [asyncio.create_task(register(js)), asyncio.create_task(pull(js))]
    await stop.wait()
    for loop in loops:
        loop.cancel()
    await asyncio.gather(*loops, return_exceptions=True)
    # A clean end removes the key, which would stay for 15 s otherwise.
    with contextlib.suppress(NatsError):
        await js.publish(f"$KV.agents.{NAME}.{INSTANCE_ID}", b"", headers={"KV-Operation": "DEL"})


async def main() -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)

    async def on_error(error: Exception) -> None:
        log.warning("NATS: %s", error)

    url = os.environ.get("NATS_URL", "nats://127.0.0.1:4222")
    client = await nats.connect(url, name=NAME, max_reconnect_attempts=-1, error_cb=on_error)
    try:
        await run(client, stop)
    finally:
        await client.drain()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    asyncio.run(main())
