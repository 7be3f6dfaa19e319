"""Client: the client library's connection, whose waits end when the task that waits is cancelled.

nats-py (2.16) takes the cancellation of its caller for its own in some places: while a publish waits for the socket,
while a connection is closed, and, on Python 3.11, in every `asyncio.wait_for` whose answer comes in the same moment.
The caller then goes on as if nobody had asked it to end, and is never asked again: a signal, or a cancelled task, is
lost.
"""

import asyncio
from typing import Any

import nats.aio.client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription


class Client(nats.aio.client.Client):
    """nats-py's client. What a call did is done; a cancellation that came meanwhile is raised when it returns."""

    async def publish(
        self, subject: str, payload: bytes = b"", reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        before = _cancellations()
        await super().publish(subject, payload, reply=reply, headers=headers)
        _raise_if_more(before)

    async def request(self, *args: Any, **options: Any) -> Msg:
        before = _cancellations()
        answer = await super().request(*args, **options)
        _raise_if_more(before)
        return answer

    async def subscribe(self, *args: Any, **options: Any) -> Subscription:
        before = _cancellations()
        subscription = await super().subscribe(*args, **options)
        _raise_if_more(before)
        return subscription

    async def flush(self, *args: Any, **options: Any) -> None:
        before = _cancellations()
        await super().flush(*args, **options)
        _raise_if_more(before)

    async def close(self) -> None:
        before = _cancellations()
        await super().close()
        _raise_if_more(before)


def _cancellations() -> int:
    """How often the current task has been asked to end; `asyncio.timeout` takes its own back."""
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0


def _raise_if_more(before: int) -> None:
    if _cancellations() > before:
        raise asyncio.CancelledError
