"""Many agents in one process: each has a name, a registration and a consumer of its own, and returns its payload.

They speak the wire contract over one connection, without the kit, whose thousand processes would be what is measured.

python -m benchmarks.named_agents --nats URL --type TASK_TYPE --names NUMBER      (orders on stdin, which it ignores)
"""

import argparse
import asyncio
import json
from datetime import UTC, datetime

import nats
import uvloop
from nats.aio.client import Client
from nats.aio.msg import Msg

from benchmarks.conversation import Order, converse
from pantheon.bus.streams import consumer_config
from protocol import subjects
from protocol.discovery import KV_BUCKET, REFRESH_SECONDS, InstanceRecord
from protocol.streams import TASKS, task_consumer

# Of all names together: far more than a fan-out has at work.
CONCURRENCY = 4000
PULL_SECONDS = 25
MADE_AT_ONCE = 50


class NamedAgents:
    def __init__(self, connection: Client, task_type: str, names: int) -> None:
        self._connection = connection
        self._records = [
            InstanceRecord(
                name=f"{task_type}_{number:04d}",
                instance_id=f"{task_type}-{number}",
                task_types=(task_type,),
                max_concurrency=max(1, CONCURRENCY // names),
            )
            for number in range(names)
        ]
        self._by_name = {record.name: record for record in self._records}
        self._inbox = connection.new_inbox()
        # What an open pull request of each may still bring.
        self._left = {record.name: 0 for record in self._records}

    async def start(self) -> None:
        await self._connection.subscribe(f"{self._inbox}.*", cb=self._on_message)
        slots = asyncio.Semaphore(MADE_AT_ONCE)

        async def make(record: InstanceRecord) -> None:
            async with slots:
                config = consumer_config(task_consumer(record.name))
                await self._connection.jetstream().add_consumer(TASKS.name, config)
                await self._pull(record)

        await asyncio.gather(*map(make, self._records))
        await self._register()

    async def keep_alive(self) -> None:
        """Registrations and pull requests, renewed before they end."""
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            await self._register()

    async def _register(self) -> None:
        for record in self._records:
            await self._connection.publish(f"$KV.{KV_BUCKET}.{record.key}", record.model_dump_json().encode())
        await self._connection.flush()

    async def _pull(self, record: InstanceRecord) -> None:
        batch = max(1, record.max_concurrency)
        self._left[record.name] = batch
        request = {"batch": batch, "expires": PULL_SECONDS * 1_000_000_000}
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{TASKS.name}.{record.name}"
        number = record.instance_id.rpartition("-")[2]
        await self._connection.publish(subject, json.dumps(request).encode(), reply=f"{self._inbox}.{number}")

    async def _on_message(self, message: Msg) -> None:
        if not message.reply:
            # The request is over: its time, or all that it asked for. Its subject is the inbox, that of a task is not.
            await self._pull(self._records[int(message.subject.rpartition(".")[2])])
            return
        record = self._by_name[message.subject.split(".")[1]]
        await self._respond(message, record)
        self._left[record.name] -= 1
        if self._left[record.name] == 0:
            await self._pull(record)

    async def _respond(self, message: Msg, record: InstanceRecord) -> None:
        request = json.loads(message.data)
        at = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        response = {
            "protocol": 1,
            "task_id": request["task_id"],
            "root_task_id": request["root_task_id"],
            "task_type": request["task_type"],
            "agent": record.name,
            "instance_id": record.instance_id,
            "attempt": request["attempt"],
            "status": "completed",
            "result": request["payload"],
            "started_at": at,
            "completed_at": at,
        }
        body = json.dumps(response, separators=(",", ":")).encode()
        await self._connection.publish(subjects.response(record.name), body)
        await self._connection.publish(message.reply, b"+ACK")


async def run(url: str, task_type: str, names: int) -> None:
    connection = await nats.connect(url, pending_size=256 * 1024 * 1024)
    agents = NamedAgents(connection, task_type, names)
    await agents.start()
    keeping = asyncio.create_task(agents.keep_alive())

    async def respond(order: Order) -> Order:
        return {"names": names}

    await converse(respond)
    keeping.cancel()
    await connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nats", required=True)
    parser.add_argument("--type", required=True)
    parser.add_argument("--names", type=int, required=True)
    arguments = parser.parse_args()
    uvloop.run(run(arguments.nats, arguments.type, arguments.names))


if __name__ == "__main__":
    main()
