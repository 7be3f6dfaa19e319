"""Answers: a TaskResponse as it goes out, and those that were given, for attempts that are delivered again."""

import asyncio
from collections import OrderedDict
from typing import Any
from uuid import UUID

import structlog

from pantheon.bus import Bus, Delivery, Objects, Publisher
from pantheon.bus.dead_letter import publish_dead_letter
from pantheon.worker.context import sayable
from pantheon.worker.runner import Completed
from protocol import subjects
from protocol.errors import BusError, InvalidRequest, PantheonError, TooLarge
from protocol.messages import (
    ErrorInfo,
    TaskRequest,
    TaskResponse,
    json_bytes,
    now,
    salvage_ids,
    time_text,
    to_bytes,
)

log = structlog.get_logger()

# Answers of attempts that were delivered again after they were given: a broker that lost an ack, a redispatch. That
# comes after AckWait, in which an agent of short tasks gives thousands; bounded by bytes, as most are small.
REMEMBERED_ANSWERS = 20_000
REMEMBERED_ANSWER_BYTES = 64 * 1024
REMEMBERED_BYTES = 16 * 1024 * 1024
# A result that the object store does not take just now is kept, and its task, until it does.
STORE_AGAIN_SECONDS = 1.0

Key = tuple[UUID, int]


class SentResponses:
    """What an instance of an agent answers: `body`, then `send`, then `remember`."""

    def __init__(self, bus: Bus, publisher: Publisher, objects: Objects, *, agent: str, instance_id: str) -> None:
        self._bus = bus
        self._publisher = publisher
        self._objects = objects
        self._agent = agent
        self._instance_id = instance_id
        self._says_instance = b',"instance_id":' + json_bytes(instance_id)
        # By task and attempt, the oldest first.
        self.given: OrderedDict[Key, bytes] = OrderedDict()
        self._given_bytes = 0

    async def send(self, request: TaskRequest, body: bytes, *, message_id: str | None) -> None:
        await self._publisher.publish(subjects.response(self._agent), body, message_id=message_id)
        if request.reply_to is not None:
            await self._bus.publish_quietly(request.reply_to, body)

    async def body(self, request: TaskRequest, response: TaskResponse | Completed) -> bytes:
        """A response as JSON, a large result by reference; what JSON cannot carry (a lone surrogate, an object in
        details) is an error of its own, because a task that is not answered is run again and again."""
        failure = response.error if isinstance(response, TaskResponse) else None
        try:
            body = self._spliced(request, response) if isinstance(response, Completed) else to_bytes(response)
            if not self._objects.is_large(body):
                return body
            if isinstance(response, Completed):
                response = self._whole(request, response)
            return await self._by_reference(request, response, body)
        except (ValueError, TypeError) as error:
            log.warning("task.unsayable", task_id=str(request.task_id), task_type=request.task_type, error=str(error))
            what = "result" if failure is None else f"error {sayable(failure.code)}"
            message = f"the {what} of '{request.task_type}' cannot be written as JSON: {sayable(error)}"
            return to_bytes(self.failed(request, PantheonError(message)))

    def _spliced(self, request: TaskRequest, completed: Completed) -> bytes:
        """The same bytes as those of the TaskResponse, in a third of the time; a test holds them against each other."""
        text = str(request.task_id)
        root = text if request.root_task_id is None else str(request.root_task_id)
        parts = [
            f'{{"task_id":"{text}","root_task_id":"{root}","task_type":"{request.task_type}","agent":"{self._agent}",'
            f'"attempt":{request.attempt},"status":"completed"'.encode()
        ]
        if completed.result is not None:
            parts += [b',"result":', json_bytes(completed.result)]
        parts.append(self._says_instance)
        if completed.usage is not None:
            parts += [b',"usage":', completed.usage.model_dump_json(exclude_none=True).encode()]
        started_at, completed_at = time_text(completed.started_at), time_text(completed.completed_at)
        parts.append(f',"started_at":"{started_at}","completed_at":"{completed_at}"}}'.encode())
        return b"".join(parts)

    def _whole(self, request: TaskRequest, completed: Completed) -> TaskResponse:
        return self._response(request, status="completed", **completed._asdict())

    async def _by_reference(self, request: TaskRequest, response: TaskResponse, body: bytes) -> bytes:
        result = json_bytes(response.result)
        while True:
            try:
                ref = await self._objects.put_large(response.root_task_id, result)
            except TooLarge as error:
                message = f"the result of '{request.task_type}': {error}"
                return to_bytes(self.failed(request, TooLarge(message)))
            except BusError as error:
                log.warning("result.waiting", task_id=str(request.task_id), error=str(error))
                await asyncio.sleep(STORE_AGAIN_SECONDS)
            else:
                if ref is None:
                    return body
                return to_bytes(response.model_copy(update={"result": None, "result_ref": ref}))

    def failed(self, request: TaskRequest, error: PantheonError) -> TaskResponse:
        return self._response(request, status="failed", error=ErrorInfo.of(error), completed_at=now())

    def _response(self, request: TaskRequest, **outcome: Any) -> TaskResponse:
        return TaskResponse(
            task_id=request.task_id,
            root_task_id=request.root_task_id or request.task_id,
            task_type=request.task_type,
            agent=self._agent,
            attempt=request.attempt,
            instance_id=self._instance_id,
            **outcome,
        )

    def remember(self, key: Key, body: bytes) -> None:
        if len(body) > REMEMBERED_ANSWER_BYTES:
            return
        self._given_bytes += len(body) - len(self.given.pop(key, b""))
        self.given[key] = body
        while len(self.given) > REMEMBERED_ANSWERS or self._given_bytes > REMEMBERED_BYTES:
            self._given_bytes -= len(self.given.popitem(last=False)[1])

    async def refuse(self, delivery: Delivery, error: InvalidRequest) -> None:
        """Answer what has an id, keep the rest as a dead letter; either way the queue moves on."""
        known = salvage_ids(delivery.data)
        if "task_id" in known:
            response = TaskResponse(
                task_id=known["task_id"],
                root_task_id=known.get("root_task_id", known["task_id"]),
                task_type=known.get("task_type", ""),
                agent=self._agent,
                attempt=known.get("attempt", 1),
                status="failed",
                error=ErrorInfo.of(error),
                instance_id=self._instance_id,
                completed_at=now(),
            )
            body = to_bytes(response)
            await self._publisher.publish(subjects.response(self._agent), body)
            if "reply_to" in known:
                await self._bus.publish_quietly(known["reply_to"], body)
        else:
            await publish_dead_letter(self._publisher, self._agent, delivery, "not a TaskRequest", str(error))
