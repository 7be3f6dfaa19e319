"""The load: a process that knows nothing but the wire contract, sends TaskRequests and counts final responses.

python -m benchmarks.load_generator --nats URL      (orders on stdin, see benchmarks.conversation)
"""

import argparse
import asyncio
import json
import time
import uuid
from typing import Any

import nats
import uvloop
from nats.aio.client import Client
from nats.aio.msg import Msg

from benchmarks.conversation import Order, converse
from benchmarks.shapes import SHAPES, compensated, fan_out

SUBJECT = "agent.orchestrator_agent.task"
RESPONSES = "agent.orchestrator_agent.response"
ACCEPTED = "mesh.event.task.accepted"
# Requests of the requester that comes behind a backlog.
FEW = 5
# Written to the socket in one go; then the loop may read what has come.
BURST = 200
# Nothing ended for this long: the run is lost, and the error has the number of open tasks.
STALL_SECONDS = 60.0


class Generator:
    """Sends roots of one shape and waits for the last final response."""

    def __init__(self, connection: Client) -> None:
        self._connection = connection
        self._open: set[str] = set()
        self._failed: list[str] = []
        self._ended = asyncio.Event()
        self._received = asyncio.Event()
        self._last_end = 0.0

    async def listen(self) -> None:
        await self._connection.subscribe(RESPONSES, cb=self._on_response)
        await self._connection.flush()

    async def _on_response(self, message: Msg) -> None:
        response = json.loads(message.data)
        if response["task_id"] not in self._open:
            return
        self._open.discard(response["task_id"])
        self._received.set()
        self._last_end = time.perf_counter()
        if response["status"] != "completed":
            self._failed.append(json.dumps(response.get("error")))
        if not self._open:
            self._ended.set()

    async def _send(self, body: bytes) -> None:
        task_id = str(uuid.uuid4())
        self._open.add(task_id)
        self._ended.clear()
        await self._connection.publish(SUBJECT, b'{"task_id":"' + task_id.encode() + b'",' + body)

    async def _wait(self) -> None:
        while not self._ended.is_set():
            before = len(self._open)
            try:
                async with asyncio.timeout(STALL_SECONDS):
                    await self._ended.wait()
            except TimeoutError:
                if len(self._open) == before:
                    missing, self._open = len(self._open), set()
                    raise RuntimeError(f"{missing} tasks had no response within {STALL_SECONDS:g} s") from None
        if self._failed:
            failed, self._failed = self._failed, []
            raise RuntimeError(f"{len(failed)} tasks failed, the first with {failed[0]}")

    async def load(self, body: bytes, workflows: int) -> Order:
        """As many as that at once; seconds from the first request to the last response."""
        began = time.perf_counter()
        for count in range(workflows):
            await self._send(body)
            if count % BURST == 0:
                await asyncio.sleep(0)
        sent = time.perf_counter()
        await self._wait()
        return {"seconds": self._last_end - began, "sending_seconds": sent - began}

    async def failing(self, body: bytes) -> Order:
        """One that fails; seconds until its response."""
        began = time.perf_counter()
        await self._send(body)
        try:
            await self._wait()
        except RuntimeError:
            return {"seconds": time.perf_counter() - began}
        raise RuntimeError("a task that should fail completed")

    async def idle(self, body: bytes, workflows: int) -> Order:
        """One at a time; how long each took, in milliseconds."""
        took = []
        for _ in range(workflows):
            began = time.perf_counter()
            await self._send(body)
            await self._wait()
            took.append((time.perf_counter() - began) * 1e3)
        return {"took_ms": took}

    async def leave(self, body: bytes, tasks: int) -> Order:
        """Send so many and wait for none: for tasks that are open in the mesh while something else is measured."""
        for count in range(tasks):
            await self._send(body)
            if count % BURST == 0:
                await self._connection.flush()
        await self._connection.flush()
        self._open.clear()
        return {"tasks": tasks}

    async def behind(self, body: bytes, tasks: int) -> Order:
        """Send so many as one requester, and right behind them, one after the other, a few as another; how long each of
        these took until its acceptance, and until its response, in milliseconds."""
        accepted: dict[str, float] = {}

        async def on_accepted(message: Msg) -> None:
            accepted.setdefault(json.loads(message.data)["data"]["task_id"], time.perf_counter())
            self._received.set()

        await self._connection.subscribe(ACCEPTED, cb=on_accepted)
        await self._connection.flush()
        for count in range(tasks):
            await self._send(b'"requester":"many",' + body)
            if count % BURST == 0:
                await self._connection.flush()
        await self._connection.flush()
        took_accepted, took = [], []
        for _ in range(FEW):
            others = set(self._open)
            began = time.perf_counter()
            await self._send(b'"requester":"one",' + body)
            (mine,) = self._open - others
            async with asyncio.timeout(STALL_SECONDS):
                while mine in self._open or mine not in accepted:
                    self._received.clear()
                    await self._received.wait()
            took.append((time.perf_counter() - began) * 1e3)
            took_accepted.append((accepted[mine] - began) * 1e3)
        await self._wait()
        return {"accepted_ms": took_accepted, "took_ms": took}

    async def steady(self, body: bytes, seconds: float, at_once: int) -> Order:
        """Keep `at_once` roots open for that long: for what is watched over time."""
        end, done = time.perf_counter() + seconds, 0
        while time.perf_counter() < end:
            await self.load(body, at_once)
            done += at_once
        return {"workflows": done}


def body_of(task_type: str, payload: dict[str, Any]) -> bytes:
    """A TaskRequest without its opening brace and task_id: the payload is dumped once for all."""
    return json.dumps({"task_type": task_type, "payload": payload}, separators=(",", ":")).encode()[1:]


async def run(url: str) -> None:
    generator = Generator(await nats.connect(url, pending_size=256 * 1024 * 1024))
    await generator.listen()

    async def respond(order: Order) -> Order:
        if order["what"] == "leave":
            return await generator.leave(body_of(order["task_type"], {"k": 1}), order["tasks"])
        if order["what"] == "fan_out":
            shape = fan_out(order["items"], order["task_type"])
            return await generator.load(body_of("execute_dag", shape.payload), order["workflows"])
        if order["what"] == "compensated":
            return await generator.failing(body_of("execute_dag", compensated(order["items"]).payload))
        body = body_of("execute_dag", SHAPES[order["shape"]]().payload)
        if order["what"] == "load":
            return await generator.load(body, order["workflows"])
        if order["what"] == "behind":
            return await generator.behind(body_of("echo", {"k": 1}), order["tasks"])
        if order["what"] == "steady":
            return await generator.steady(body, order["seconds"], order["at_once"])
        return await generator.idle(body, order["workflows"])

    await converse(respond)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nats", required=True)
    uvloop.run(run(parser.parse_args().nats))


if __name__ == "__main__":
    main()
