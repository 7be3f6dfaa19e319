"""The chain on Celery, Valkey as broker and as result backend. Run by the Python of Celery's own environment.

As its guide to optimizing advises for many short tasks: a large prefetch multiplier, as many processes as cores, no
heartbeat, gossip or mingling of workers, which nothing here reads. Every step's result is stored, as every other
subject here stores it.

    celery -A program worker        the worker
    python program.py               the driver (orders on stdin, see benchmarks.conversation)
"""

import itertools
import os
import time
from typing import Any

from celery import Celery, chain  # type: ignore[import-not-found]

from benchmarks.conversation import Order, converse_plainly

STEPS = 5
PAYLOAD = {"k": "v" * 100}
WAIT_SECONDS = 60

app = Celery("bench", broker=os.environ["REDIS_URL"], backend=os.environ["REDIS_URL"])
app.conf.update(worker_prefetch_multiplier=64, broker_connection_retry_on_startup=True)


def echo(value: dict[str, Any]) -> dict[str, Any]:
    return value


step = app.task(name="echo")(echo)
numbers = itertools.count()


def start() -> tuple[Any, dict[str, Any]]:
    """A new chain each time: one that is applied again keeps its last task's id, whose result is there already.

    The payload is numbered, so that a result of another chain is not taken for this one's.
    """
    payload = {**PAYLOAD, "n": next(numbers)}
    return chain(step.s(payload), *[step.s() for _ in range(STEPS - 1)]).apply_async(), payload


def wait(result: Any, payload: dict[str, Any]) -> None:
    assert result.get(timeout=WAIT_SECONDS) == payload


def respond(order: Order) -> Order:
    if order["what"] == "load":
        began = time.perf_counter()
        for result, payload in [start() for _ in range(order["workflows"])]:
            wait(result, payload)
        return {"seconds": time.perf_counter() - began}
    took = []
    for _ in range(order["workflows"]):
        began = time.perf_counter()
        wait(*start())
        took.append((time.perf_counter() - began) * 1e3)
    return {"took_ms": took}


if __name__ == "__main__":
    converse_plainly(respond)
