"""Responses: how an instance sends them, and which it remembers for attempts that are delivered again."""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass

import structlog

from pantheon.bus import Delivery, Transport
from pantheon.bus.dead_letter import publish_dead_letter
from pantheon.worker.attempt import Completed, Key
from pantheon.worker.context import as_unicode
from pantheon.worker.response_form import ResponseForm
from protocol import subjects
from protocol.errors import BusError, InvalidRequest, PantheonError, TooLarge
from protocol.messages import TaskRequest, TaskResponse, json_bytes, salvage_ids, to_bytes

log = structlog.get_logger()

# A result that the object store does not take now is kept, and its task with it, until it does.
STORE_AGAIN_SECONDS = 1.0


@dataclass(frozen=True)
class ResponseMemory:
    """How many responses are remembered.

    An attempt is delivered again after its response when a broker lost the ack, or by a redispatch. That comes after
    AckWait, in which an agent of short tasks sends thousands; most are small, so `total_bytes` is the bound.
    """

    count: int = 20_000
    response_bytes: int = 64 * 1024
    total_bytes: int = 16 * 1024 * 1024


DEFAULT_MEMORY = ResponseMemory()


class RecentResponses:
    """The bytes of the newest responses, by task and attempt."""

    def __init__(self, memory: ResponseMemory) -> None:
        self._memory = memory
        # The oldest first.
        self._bodies: OrderedDict[Key, bytes] = OrderedDict()
        self._bytes = 0

    def get(self, key: Key) -> bytes | None:
        return self._bodies.get(key)

    def add(self, key: Key, body: bytes) -> None:
        if len(body) > self._memory.response_bytes:
            return
        self._bytes += len(body) - len(self._bodies.pop(key, b""))
        self._bodies[key] = body
        while len(self._bodies) > self._memory.count or self._bytes > self._memory.total_bytes:
            self._bytes -= len(self._bodies.popitem(last=False)[1])


class ResponseSender:
    """Sends the responses of one instance of an agent: `body`, then `send`."""

    def __init__(self, transport: Transport, form: ResponseForm, *, agent: str) -> None:
        self._bus = transport.bus
        self._publisher = transport.publisher
        self._objects = transport.objects
        self._form = form
        self._agent = agent

    async def send(self, request: TaskRequest, body: bytes, *, message_id: str | None) -> None:
        """Publish a response, and return when the broker has acknowledged it. Raises TooLarge."""
        await self._publisher.publish(subjects.response(self._agent), body, message_id=message_id)
        if request.reply_to is not None:
            await self._bus.publish_quietly(request.reply_to, body)

    async def body(self, request: TaskRequest, response: TaskResponse | Completed) -> bytes:
        """A response as JSON, a large result by reference. What JSON cannot carry (a lone surrogate, an object in
        details) becomes an error response, because a task without a response is run again and again."""
        failure = response.error if isinstance(response, TaskResponse) else None
        try:
            if isinstance(response, Completed):
                body = self._form.completed_bytes(request, response)
            else:
                body = to_bytes(response)
            if not self._objects.is_large(body):
                return body
            if isinstance(response, Completed):
                response = self._form.completed(request, response)
            return await self._by_reference(request, response, body)
        except (ValueError, TypeError) as error:
            log.warning("task.unsayable", task_id=str(request.task_id), task_type=request.task_type, error=str(error))
            what = "result" if failure is None else f"error {as_unicode(failure.code)}"
            message = f"the {what} of '{request.task_type}' cannot be written as JSON: {as_unicode(error)}"
            return to_bytes(self._form.failed(request, PantheonError(message)))

    async def _by_reference(self, request: TaskRequest, response: TaskResponse, body: bytes) -> bytes:
        result = json_bytes(response.result)
        while True:
            try:
                ref = await self._objects.put_large(response.root_task_id, result)
            except TooLarge as error:
                message = f"the result of '{request.task_type}': {error}"
                return to_bytes(self._form.failed(request, TooLarge(message)))
            except BusError as error:
                log.warning("result.waiting", task_id=str(request.task_id), error=str(error))
                await asyncio.sleep(STORE_AGAIN_SECONDS)
            else:
                if ref is None:
                    return body
                return to_bytes(response.model_copy(update={"result": None, "result_ref": ref}))

    async def refuse(self, delivery: Delivery, error: InvalidRequest) -> None:
        """Respond `failed` to an invalid request that has an id, make a dead letter of any other; either way the queue
        moves on."""
        known = salvage_ids(delivery.data)
        if "task_id" in known:
            body = to_bytes(self._form.refused(known, error))
            await self._publisher.publish(subjects.response(self._agent), body)
            if "reply_to" in known:
                await self._bus.publish_quietly(known["reply_to"], body)
        else:
            await publish_dead_letter(self._publisher, self._agent, delivery, "not a TaskRequest", str(error))
