"""Mesh: the client. Sends tasks to the orchestrator and waits for their outcome, over NATS alone.

Acceptance and responses both survive lost messages by the contract's rule: send the same task_id again until its
acceptance, or its response, has come; that never runs it twice (docs/protocol.md, TaskRequest).
"""

import asyncio
import contextlib
import json
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self
from uuid import UUID

import structlog
from pydantic import ValidationError

from pantheon.bus import Bus, Delivery, Objects, Publisher, Subscription, Transport
from pantheon.bus.credentials import nats_options
from pantheon.client.operations import Changed as Changed
from pantheon.client.operations import ClientOperations
from pantheon.client.operations import Paused as Paused
from pantheon.client.operations import PutWorkflow as PutWorkflow
from pantheon.client.operations import SignalTaken as SignalTaken
from pantheon.client.watch import Watched, watch
from pantheon.runtime.settings import MeshSettings
from protocol import subjects
from protocol.errors import BusError, NotAccepted, PantheonError, TaskCancelled, TaskFailed
from protocol.ids import new_id
from protocol.large import parse_value
from protocol.messages import TaskProgress, TaskRequest, TaskResponse, json_bytes, to_bytes
from protocol.names import ORCHESTRATOR

log = structlog.get_logger()

RESEND_FIRST_SECONDS = 1.0
RESEND_MAX_SECONDS = 15.0
# The copy of the response comes by core NATS, at most once. Sending the request again this often costs one row look-up.
RESEND_WAITING_SECONDS = 20.0
ACCEPT_SECONDS = 30.0
# Between two queries for the response of a task that another client submitted.
QUERY_FIRST_SECONDS = 0.05
QUERY_MAX_SECONDS = 2.0
# JetStream's words for a stream, an account or a server that is full.
FULL_WORDS = ("maximum", "insufficient", "resource limits")
# Ids of tasks that were submitted, whose responses come to this client's inbox.
SUBMITTED_IDS = 10_000


@dataclass
class _Waiter:
    """One call that waits, or several. `request` is kept by those that send it again."""

    request: TaskRequest | None = None
    calls: int = 0
    accepted: asyncio.Event = field(default_factory=asyncio.Event)
    response: "asyncio.Future[TaskResponse]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Mesh(ClientOperations):
    """`async with Mesh(url) as mesh: result = await mesh.run("create_blog_post", {...})`.

    Without a URL, the environment's NATS_URL and credentials are used. Several tasks may be awaited at once.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        requester: str | None = None,
        connect_seconds: float | None = 10.0,
        transport: Transport | None = None,
    ) -> None:
        """`transport` is a connection that another part owns (see `over`); without it, this client makes its own."""
        self._settings = MeshSettings.load(nats_url=url) if transport is None else None
        self._requester = requester
        self._connect_seconds = connect_seconds
        self._subscriptions: list[Subscription] = []
        # Of calls that wait now: what nothing waits for is not kept.
        self._waiters: dict[UUID, _Waiter] = {}
        self._submitted: OrderedDict[UUID, None] = OrderedDict()
        self._inbox = ""
        self._bus: Bus
        self._publisher: Publisher
        self._objects: Objects
        if transport is not None:
            self._bus, self._publisher, self._objects = transport.bus, transport.publisher, transport.objects

    @classmethod
    async def over(cls, transport: Transport, *, requester: str | None = None) -> Self:
        """A client over a connection that another part owns, ready to use; `close` leaves the connection open."""
        mesh = cls(requester=requester, transport=transport)
        await mesh._listen()
        return mesh

    async def __aenter__(self) -> Self:
        if (settings := self._settings) is not None:
            self._bus = await Bus.connect(
                settings.nats_url,
                name=self._requester or "mesh-client",
                wait_seconds=self._connect_seconds,
                options=nats_options(settings),
            )
            self._publisher = Publisher(self._bus)
            self._objects = Objects(self._bus, max_bytes=settings.max_payload_bytes)
        await self._listen()
        return self

    async def _listen(self) -> None:
        self._inbox = self._bus.new_inbox()
        self._subscriptions = [
            await self._bus.subscribe(f"{self._inbox}.*", self._on_response),
            await self._bus.subscribe(subjects.event("task", "accepted"), self._on_accepted),
        ]
        await self._bus.flush()

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        for waiter in self._waiters.values():
            waiter.response.cancel()
        if self._settings is not None:
            await self._publisher.close()
            await self._bus.close()
            return
        for subscription in self._subscriptions:
            await self._bus.unsubscribe(subscription)

    async def _on_response(self, delivery: Delivery) -> None:
        try:
            response = TaskResponse.model_validate_json(delivery.data)
        except ValidationError as error:
            log.warning("answer.invalid", error=str(error))
            return
        waiter = self._waiters.get(response.task_id)
        if waiter is not None and not waiter.response.done():
            waiter.response.set_result(response)
            waiter.accepted.set()

    async def _on_accepted(self, delivery: Delivery) -> None:
        if not self._waiters:
            return
        try:
            task_id = UUID(json.loads(delivery.data)["data"]["task_id"])
        except (ValueError, KeyError, TypeError):
            return
        if (waiter := self._waiters.get(task_id)) is not None:
            waiter.accepted.set()

    def reply_to(self, task_id: UUID) -> str:
        """The subject on which this client receives a task's response."""
        return f"{self._inbox}.{task_id.hex}"

    def request(
        self,
        task_type: str,
        payload: Mapping[str, Any] | None = None,
        *,
        task_id: UUID | None = None,
        idempotency_key: str | None = None,
        priority: int | None = None,
        timeout_seconds: float | None = None,
        deadline: datetime | None = None,
        session_id: str | None = None,
        tenant: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> TaskRequest:
        """The TaskRequest that `submit` and `run` send for these arguments. Raises ValidationError of pydantic."""
        task_id = task_id or new_id()
        options: dict[str, Any] = {
            "idempotency_key": idempotency_key,
            "priority": priority,
            "timeout_seconds": timeout_seconds,
            "deadline": deadline,
            "session_id": session_id,
            "tenant": tenant,
            "requester": self._requester,
            "metadata": dict(metadata) if metadata else None,
        }
        return TaskRequest(
            task_id=task_id,
            task_type=task_type,
            payload=dict(payload or {}),
            reply_to=self.reply_to(task_id),
            **{name: value for name, value in options.items() if value is not None},
        )

    async def submit(
        self,
        task_type: str | TaskRequest,
        payload: Mapping[str, Any] | None = None,
        *,
        accept_seconds: float = ACCEPT_SECONDS,
        **options: Any,
    ) -> UUID:
        """Send a task and return its id once it is accepted, which means committed; re-sent until then.

        `options` are those of `request`. Raises NotAccepted after `accept_seconds`, TooLarge at once. It may still be
        accepted after NotAccepted: submit the same request again to be sure.
        """
        request = task_type if isinstance(task_type, TaskRequest) else self.request(task_type, payload, **options)
        with self._waiting(request.task_id, request) as waiter:
            await self._accepted(request, waiter, accept_seconds)
        return request.task_id

    @contextlib.contextmanager
    def _waiting(self, task_id: UUID, request: TaskRequest | None = None) -> Iterator[_Waiter]:
        """Receive what comes for a task, as long as this lasts."""
        waiter = self._waiters.setdefault(task_id, _Waiter())
        waiter.request = request or waiter.request
        waiter.calls += 1
        try:
            yield waiter
        finally:
            waiter.calls -= 1
            if not waiter.calls:
                del self._waiters[task_id]

    async def _accepted(self, request: TaskRequest, waiter: _Waiter, accept_seconds: float) -> None:
        """Send a request until its task is accepted."""
        loop = asyncio.get_running_loop()
        end = loop.time() + accept_seconds
        wait = RESEND_FIRST_SECONDS
        # Why the broker did not take it, in its own words.
        refused: BusError | None = None
        while not waiter.accepted.is_set():
            left = end - loop.time()
            if left <= 0:
                raise NotAccepted(
                    f"task {request.task_id} was not accepted within {accept_seconds:g} s: {_why_not(refused)}"
                )
            try:
                await self._send(request, give_up_seconds=left)
                refused = None
                async with asyncio.timeout(min(wait, max(0.0, end - loop.time()))):
                    await waiter.accepted.wait()
            except TimeoutError:
                wait = min(wait * 2, RESEND_MAX_SECONDS)
            except BusError as error:
                if not error.retryable:
                    raise
                # An error that comes at once (a bucket that is gone) must not be met by a retry at once.
                refused = error
                log.debug("submit.again", error=str(error))
                await asyncio.sleep(min(wait, max(0.0, end - loop.time())))
                wait = min(wait * 2, RESEND_MAX_SECONDS)
        self._submitted[request.task_id] = None
        if len(self._submitted) > SUBMITTED_IDS:
            self._submitted.popitem(last=False)

    async def _send(self, request: TaskRequest, *, give_up_seconds: float) -> None:
        body = to_bytes(request)
        if self._objects.is_large(body):
            # With every send: the store may have lost it since. A value that is there is not sent again.
            ref = await self._objects.put_large(request.task_id, json_bytes(request.payload))
            if ref is not None:
                body = to_bytes(request.model_copy(update={"payload": {}, "payload_ref": ref}))
        await self._publisher.publish(subjects.task(ORCHESTRATOR), body, give_up_seconds=give_up_seconds)

    async def wait(self, task_id: UUID, *, timeout_seconds: float | None = None) -> TaskResponse:
        """The final response of a task, whatever its status, and whichever client submitted it.

        Raises TimeoutError; the task goes on all the same, and `wait` may be called again.
        """
        async with asyncio.timeout(timeout_seconds):
            with self._waiting(task_id) as waiter:
                return await self._response(task_id, waiter)

    async def _response(self, task_id: UUID, waiter: _Waiter) -> TaskResponse:
        """The copy that comes to this client; what may have been lost, and another client's, is asked for."""
        # Sent by this call a moment ago: nothing was lost yet.
        ask = waiter.request is None
        pause = QUERY_FIRST_SECONDS
        while True:
            if ask and not waiter.response.done():
                await self._ask_for(task_id, waiter)
            ask = True
            if not waiter.response.done():
                generation = self._bus.generation
                seconds = RESEND_WAITING_SECONDS if task_id in self._submitted else pause
                await asyncio.wait({waiter.response}, timeout=seconds)
                pause = min(pause * 1.5, QUERY_MAX_SECONDS)
            if not waiter.response.done():
                log.debug("wait.again", task_id=str(task_id), reconnected=generation != self._bus.generation)
                continue
            try:
                return await self._whole(await waiter.response)
            except BusError as error:
                if not error.retryable:
                    raise
                # The orchestrator puts a large result that the object store has lost there again when it responds
                # again.
                log.debug("wait.result_gone", task_id=str(task_id), error=str(error))
                waiter.response = asyncio.get_running_loop().create_future()
                await asyncio.sleep(pause)

    async def _ask_for(self, task_id: UUID, waiter: _Waiter) -> None:
        """Have the response of a task sent again if it has ended; where its request is not kept, by a query."""
        if waiter.request is not None:
            try:
                await self._send(waiter.request, give_up_seconds=RESEND_WAITING_SECONDS)
            except BusError as error:
                log.debug("wait.unsent", error=str(error))
            return
        try:
            reply = await self.query("response", {"task_id": str(task_id)})
        except (PantheonError, TimeoutError) as error:
            if task_id not in self._submitted:
                raise
            # It is accepted, so it will end: no orchestrator is there just now.
            log.debug("wait.unanswered", task_id=str(task_id), error=str(error))
            return
        if reply.get("response") is not None and not waiter.response.done():
            waiter.response.set_result(TaskResponse.model_validate_json(json.dumps(reply["response"])))

    async def _whole(self, response: TaskResponse) -> TaskResponse:
        """A response with a large result in the place of its reference. Raises BusError, InvalidRequest."""
        if response.result_ref is None:
            return response
        body = await self._objects.get(response.result_ref)
        result = parse_value(body, response.result_ref, "result")
        return response.model_copy(update={"result": result, "result_ref": None})

    async def run(
        self,
        task_type: str,
        payload: Mapping[str, Any] | None = None,
        *,
        wait_seconds: float | None = None,
        **options: Any,
    ) -> Any:
        """Submit, wait, return the result. Raises TaskFailed or TaskCancelled with the response's error, TimeoutError.

        `wait_seconds` bounds this call; `timeout_seconds` and `deadline`, as in `request`, bound the task itself. The
        message of the TimeoutError has the task's id: the task goes on, and `wait` may be called for it.
        """
        request = self.request(task_type, payload, **options)
        bound = asyncio.timeout(wait_seconds)
        try:
            async with bound:
                response = await self.submit_and_wait(request)
        except TimeoutError:
            if not bound.expired():
                raise
            raise TimeoutError(
                f"task {request.task_id} did not end within {wait_seconds:g} s; it goes on: wait(task_id) waits for it"
            ) from None
        return result_of(response)

    async def submit_and_wait(self, request: TaskRequest) -> TaskResponse:
        """The final response, whatever its status. Nothing is missed that comes with the acceptance, as for a task that
        has ended before."""
        with self._waiting(request.task_id, request) as waiter:
            await self._accepted(request, waiter, ACCEPT_SECONDS)
            return await self._response(request.task_id, waiter)

    async def progress(self, task_id: UUID) -> AsyncIterator[TaskProgress]:
        """Progress and streamed text of all agents that work on a task, from now until it has ended."""
        async for seen in self.watch(task_id):
            if seen.kind == "progress":
                yield TaskProgress.model_validate_json(json.dumps(seen.data))

    def watch(self, task_id: UUID, *, on_listening: Callable[[], None] | None = None) -> AsyncIterator[Watched]:
        """Steps' events (kind `step.completed`, …), progress (kind `progress`) and at last the task's own end.

        `on_listening` is called once nothing more can be missed: to watch a task from its beginning, submit it then.
        """
        return watch(self._bus, task_id, lambda: self._until_ended(task_id), on_listening)

    async def _until_ended(self, task_id: UUID) -> None:
        await self.wait(task_id)

    async def query(self, what: str, arguments: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Ask any orchestrator to read its state (`tasks`, `task`, `response`, `workflows`, `pauses`,
        `dead_letters`).

        Raises PantheonError with the refusal's code.
        """
        delivery = await self._bus.request(
            subjects.query(what), json.dumps(dict(arguments or {})).encode(), timeout_seconds=10
        )
        reply: dict[str, Any] = json.loads(delivery.data)
        if (error := reply.get("error")) is not None:
            raised = PantheonError(error["message"], details=error.get("details"))
            raised.code = error["code"]
            raise raised
        return reply


def _why_not(refused: BusError | None) -> str:
    """Why nothing was accepted, with what to check; `refused` is why the broker did not take the request."""
    if refused is None:
        return "is an orchestrator running, and can it reach Postgres?"
    if any(words in str(refused) for words in FULL_WORDS):
        return f"{refused}; see docs/operations.md, Storage of the broker"
    return f"{refused}; is an orchestrator running? It makes the streams"


def result_of(response: TaskResponse) -> Any:
    """The result of a completed task. Raises TaskCancelled or TaskFailed for the others."""
    if response.status == "completed":
        return response.result
    error = response.error
    kind = TaskCancelled if response.status == "cancelled" else TaskFailed
    code = error.code if error else "internal_error"
    message = error.message if error else f"the task ended {response.status}"
    raise kind(message, code=code, response=response, details=error.details if error else None)
