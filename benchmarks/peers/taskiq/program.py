"""The chain on taskiq: JetStream carries the tasks, taskiq-pipelines chains them, results are kept in Valkey.

Run by the Python of its own environment. A pipeline needs a result backend that all workers read; of those that taskiq
documents, the one on Redis is the quickest (an object store on JetStream takes several messages for each result).
uvloop is installed, which its worker then uses. A client that waits for a result polls; the driver does so much more
often than by default (0.2 s) when one workflow is timed.

    taskiq worker program:broker    the workers
    python program.py               the driver (orders on stdin, see benchmarks.conversation)
"""

import itertools
import os
import time
from typing import Any

import uvloop
from nats.js.api import StreamConfig
from taskiq_nats import PushBasedJetStreamBroker  # type: ignore[import-not-found]
from taskiq_pipelines import Pipeline, PipelineMiddleware  # type: ignore[import-not-found]
from taskiq_redis import RedisAsyncResultBackend  # type: ignore[import-not-found]

from benchmarks.conversation import Order, converse

STEPS = 5
PAYLOAD = {"k": "v" * 100}
WAIT_SECONDS = 60
IDLE_POLL_SECONDS = 0.001
LOAD_POLL_SECONDS = 0.02

results = RedisAsyncResultBackend(os.environ["REDIS_URL"], result_ex_time=3600)
broker = PushBasedJetStreamBroker(servers=os.environ["NATS_URL"], queue="taskiq_workers").with_result_backend(results)
broker.add_middlewares(PipelineMiddleware())


async def echo(value: dict[str, Any]) -> dict[str, Any]:
    return value


numbers = itertools.count()
step = broker.task(task_name="echo")(echo)


async def start() -> tuple[Any, dict[str, Any]]:
    payload = {**PAYLOAD, "n": next(numbers)}
    pipeline = Pipeline(broker, step)
    for _ in range(STEPS - 1):
        pipeline = pipeline.call_next(step)
    return await pipeline.kiq(payload), payload


async def wait(task: Any, payload: dict[str, Any], poll_seconds: float) -> None:
    result = await task.wait_result(check_interval=poll_seconds, timeout=WAIT_SECONDS)
    assert not result.is_err
    assert result.return_value == payload


async def respond(order: Order) -> Order:
    if order["what"] == "load":
        began = time.perf_counter()
        for task, payload in [await start() for _ in range(order["workflows"])]:
            await wait(task, payload, LOAD_POLL_SECONDS)
        return {"seconds": time.perf_counter() - began}
    took = []
    for _ in range(order["workflows"]):
        began = time.perf_counter()
        await wait(*await start(), IDLE_POLL_SECONDS)
        took.append((time.perf_counter() - began) * 1e3)
    return {"took_ms": took}


async def drive() -> None:
    # Of the broker's start only what sends: with a consumer of its own, the driver would be given tasks.
    await results.startup()
    await broker.client.connect(broker.servers)
    broker.js = broker.client.jetstream()
    # As its workers make it; the driver sends before they are up.
    await broker.js.add_stream(StreamConfig(name=broker.stream_name, subjects=[broker.subject]))
    await converse(respond)
    await broker.client.close()


if __name__ == "__main__":
    uvloop.run(drive())
