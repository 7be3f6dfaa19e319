"""Watch: the events of one task's tree as they come: of its steps, progress, its end."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from pantheon.bus import Bus, Delivery
from pantheon.runtime.background import end
from protocol import subjects

LAST_EVENTS_SECONDS = 1.0
ENDS = frozenset({"task.completed", "task.failed", "task.cancelled"})


@dataclass(frozen=True)
class Watched:
    """An event of a step or of the task, or a progress message."""

    kind: str
    data: dict[str, Any]


async def watch(
    bus: Bus,
    task_id: UUID,
    until_ended: Callable[[], Awaitable[None]],
    on_listening: Callable[[], None] | None,
) -> AsyncIterator[Watched]:
    """As `Mesh.watch`. `until_ended` returns once the task has its response, whether its events have come or not."""
    queue: asyncio.Queue[Watched] = asyncio.Queue(10_000)
    watched = str(task_id)

    def put(seen: Watched) -> None:
        # A watcher that is slower than the mesh loses the oldest events; memory stays bounded.
        if queue.full():
            queue.get_nowait()
        queue.put_nowait(seen)

    async def on_event(delivery: Delivery) -> None:
        if watched.encode() not in delivery.data:
            return
        data = json.loads(delivery.data).get("data", {})
        if watched in (data.get("root_task_id"), data.get("task_id")):
            _, _, entity, name = delivery.subject.split(".", 3)
            put(Watched(f"{entity}.{name}", data))

    async def on_progress(delivery: Delivery) -> None:
        put(Watched("progress", json.loads(delivery.data)))

    subscriptions = [
        await bus.subscribe(subjects.event("step", "*"), on_event),
        await bus.subscribe(subjects.event("task", "*"), on_event),
        await bus.subscribe(subjects.all_progress(task_id), on_progress),
    ]
    await bus.flush()
    if on_listening is not None:
        on_listening()
    ended = asyncio.ensure_future(until_ended())
    getting = asyncio.ensure_future(queue.get())
    try:
        while True:
            await asyncio.wait({getting, ended}, return_when=asyncio.FIRST_COMPLETED)
            if getting.done():
                seen = getting.result()
                getting = asyncio.ensure_future(queue.get())
                yield seen
                if seen.kind in ENDS:
                    return
                continue
            getting.cancel()
            ended.result()
            # The response overtakes the last events; they are a moment behind, or lost.
            while (late := await _next(queue, LAST_EVENTS_SECONDS)) is not None:
                yield late
                if late.kind in ENDS:
                    return
            return
    finally:
        await end((ended, getting))
        for subscription in subscriptions:
            await bus.unsubscribe(subscription)


async def _next(queue: "asyncio.Queue[Watched]", within_seconds: float) -> Watched | None:
    try:
        return await asyncio.wait_for(queue.get(), within_seconds)
    except TimeoutError:
        return None
