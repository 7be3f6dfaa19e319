"""Delegation: what `ctx.run` does, a task that an agent gives out while it works on another."""

import asyncio
from typing import Any

from pantheon.bus import Bus, Objects, Publisher
from pantheon.client.mesh import Mesh, result_of
from pantheon.worker.context import TaskContext
from protocol.messages import TaskRequest, Usage


class Delegation:
    """A client over the agent's own connection, made at the first delegation."""

    def __init__(self, bus: Bus, publisher: Publisher, objects: Objects) -> None:
        self._bus = bus
        self._publisher = publisher
        self._objects = objects
        self._mesh: Mesh | None = None
        self._lock = asyncio.Lock()

    async def run(self, context: TaskContext, request: TaskRequest) -> Any:
        async with self._lock:
            if self._mesh is None:
                self._mesh = await Mesh.over(self._bus, self._publisher, self._objects, requester=context.agent)
        sent = request.model_copy(update={"reply_to": self._mesh.reply_to(request.task_id)})
        await self._mesh.submit(sent)
        response = await self._mesh.wait(sent.task_id)
        if response.usage is not None:
            used: Usage = response.usage
            context.report_usage(used.input_tokens, used.output_tokens, used.cost_usd)
        return result_of(response)
