"""The chain on DBOS, in Postgres. Run by the Python of its own environment, as two executors for two cores.

Workflows are called in the process that runs them, as its documentation begins with: no queue, whose polling would cost
an idle workflow hundreds of milliseconds. Under load as many run at once as its pool has connections.

    python program.py EXECUTOR      (orders on stdin, see benchmarks.conversation)
"""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dbos import DBOS, DBOSConfig  # type: ignore[import-not-found]

from benchmarks.conversation import Order, converse_plainly

STEPS = 5
PAYLOAD = {"k": "v" * 100}
# The default size of its pool of connections.
AT_ONCE = 20


def echo(value: dict[str, Any]) -> dict[str, Any]:
    return value


step = DBOS.step(name="echo")(echo)


def chain(value: dict[str, Any]) -> dict[str, Any]:
    for _ in range(STEPS):
        value = step(value)
    return value


workflow = DBOS.workflow(name="chain")(chain)


def run_one(number: int) -> None:
    payload = {**PAYLOAD, "n": number}
    assert workflow(payload) == payload


def respond(order: Order) -> Order:
    if order["what"] == "load":
        began = time.perf_counter()
        with ThreadPoolExecutor(AT_ONCE) as threads:
            for _ in threads.map(run_one, range(order["workflows"])):
                pass
        return {"seconds": time.perf_counter() - began}
    took = []
    for number in range(order["workflows"]):
        began = time.perf_counter()
        run_one(number)
        took.append((time.perf_counter() - began) * 1e3)
    return {"took_ms": took}


if __name__ == "__main__":
    config: DBOSConfig = {
        "name": "bench",
        "system_database_url": os.environ["DATABASE_URL"],
        "executor_id": sys.argv[1],
        "application_version": "bench",
        # Its lines would be mixed with the replies.
        "log_level": "ERROR",
    }
    DBOS(config=config)
    DBOS.launch()
    converse_plainly(respond)
    DBOS.destroy()
