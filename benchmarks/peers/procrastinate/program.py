"""The chain on procrastinate, in Postgres: each job defers the next. Run by the Python of its own environment.

It keeps no results and does not report an end: the last job of a chain notifies the driver, which is one statement in
five jobs. Asynchronous jobs, two workers for two cores, each with several jobs at once, which its documentation advises
where jobs wait for input and output; workers are woken by LISTEN, as by default.

    procrastinate --app=program.app worker      a worker
    python program.py                           the driver (orders on stdin, see benchmarks.conversation)
"""

import asyncio
import os
import time
from typing import Any

import procrastinate  # type: ignore[import-not-found]
import psycopg  # type: ignore[import-not-found]

from benchmarks.conversation import Order, converse

STEPS = 5
PAYLOAD = {"k": "v" * 100}
WAIT_SECONDS = 60
# Sent as its client library would from a busy server: not one after another.
SENDERS = 10
CHANNEL = "chain_ended"

app = procrastinate.App(
    connector=procrastinate.PsycopgConnector(conninfo=os.environ["DATABASE_URL"], min_size=4, max_size=12)
)


async def echo(number: int, position: int, value: dict[str, Any]) -> None:
    if position + 1 < STEPS:
        await step.defer_async(number=number, position=position + 1, value=value)
    else:
        assert value == PAYLOAD
        await app.connector.execute_query_async(f"select pg_notify('{CHANNEL}', %(number)s)", number=str(number))


step = app.task(name="echo")(echo)


class Driver:
    """Defers first jobs and is notified of last ones."""

    def __init__(self) -> None:
        self._sent = 0
        self._open: set[int] = set()
        self._ended = asyncio.Event()

    async def listen(self) -> None:
        connection = await psycopg.AsyncConnection.connect(os.environ["DATABASE_URL"], autocommit=True)
        await connection.execute(f"listen {CHANNEL}")
        async for notice in connection.notifies():
            self._open.discard(int(notice.payload))
            if not self._open:
                self._ended.set()

    async def _run(self, workflows: int) -> None:
        numbers = list(range(self._sent, self._sent + workflows))
        self._sent += workflows
        self._open.update(numbers)
        self._ended.clear()
        waiting = iter(numbers)

        async def send() -> None:
            for number in waiting:
                await step.defer_async(number=number, position=0, value=PAYLOAD)

        await asyncio.gather(*[send() for _ in range(min(SENDERS, workflows))])
        async with asyncio.timeout(WAIT_SECONDS):
            await self._ended.wait()

    async def respond(self, order: Order) -> Order:
        took = []
        for _ in range(1 if order["what"] == "load" else order["workflows"]):
            began = time.perf_counter()
            await self._run(order["workflows"] if order["what"] == "load" else 1)
            took.append(time.perf_counter() - began)
        return {"seconds": took[0]} if order["what"] == "load" else {"took_ms": [seconds * 1e3 for seconds in took]}


async def drive() -> None:
    driver = Driver()
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        listening = asyncio.create_task(driver.listen())
        await converse(driver.respond)
        listening.cancel()


if __name__ == "__main__":
    asyncio.run(drive())
