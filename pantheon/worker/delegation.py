"""Delegation: what `ctx.run` does: a task that an agent delegates while it works on another."""

import asyncio
from typing import Any

from pantheon.bus import Transport
from pantheon.client.mesh import Mesh, result_of
from pantheon.worker.context import TaskContext
from protocol.messages import TaskRequest, Usage


class Delegation:
    """A client over the agent's own connection, made at the first delegation."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._mesh: Mesh | None = None
        self._lock = asyncio.Lock()

    async def run(self, context: TaskContext, request: TaskRequest) -> Any:
        """Send a task and wait for its result; its usage counts for the attempt too. Raises TaskFailed."""
        async with self._lock:
            if self._mesh is None:
                self._mesh = await Mesh.over(self._transport, requester=context.agent)
        sent = request.model_copy(update={"reply_to": self._mesh.reply_to(request.task_id)})
        response = await self._mesh.submit_and_wait(sent)
        if response.usage is not None:
            used: Usage = response.usage
            context.report_usage(used.input_tokens, used.output_tokens, used.cost_usd)
        return result_of(response)
