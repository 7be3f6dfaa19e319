"""Mesh: the client. Sends tasks to the orchestrator and waits for their outcome, over NATS alone.

Acceptance and answers both survive lost messages by the contract's rule: send the same task_id again until it is
accepted or answered; that never runs it twice (PROTOCOL.md, TaskRequest).
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NotRequired, Self, TypedDict
from uuid import UUID

import structlog
from pydantic import ValidationError

from pantheon.bus import Bus, Delivery, Objects, Publisher, Subscription
from pantheon.context import TaskContext
from pantheon.credentials import nats_options
from pantheon.settings import MeshSettings
from protocol import subjects
from protocol.errors import BusError, NotAccepted, ObjectMissing, PantheonError, TaskCancelled, TaskFailed
from protocol.ids import new_id
from protocol.large import parse_value
from protocol.messages import TaskProgress, TaskRequest, TaskResponse, Usage, json_bytes, to_bytes
from protocol.names import ORCHESTRATOR

log = structlog.get_logger()

RESEND_FIRST_SECONDS = 1.0
RESEND_MAX_SECONDS = 15.0
# The copy of the answer comes by core NATS, at most once. Asking again this often costs one row look-up.
ASK_AGAIN_SECONDS = 20.0
ACCEPT_SECONDS = 30.0
LAST_EVENTS_SECONDS = 1.0
ENDS = frozenset({"task.completed", "task.failed", "task.cancelled"})


@dataclass
class _Waiter:
    request: TaskRequest
    accepted: asyncio.Event = field(default_factory=asyncio.Event)
    answered: "asyncio.Future[TaskResponse]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


@dataclass(frozen=True)
class Watched:
    """One thing that happened in a task's tree: an event of a step or of the task, or a progress message."""

    kind: str
    data: dict[str, Any]


class Changed(TypedDict):
    """What `cancel`, and `pause` and `resume` of a task came to; not `changed`: there was nothing left to change."""

    task_id: str
    status: str
    changed: bool


class Signalled(TypedDict):
    """What a signal or an approval came to: `taken` by a step that waited, or kept for the one that will."""

    task_id: str
    signal: str
    taken: bool


class Paused(TypedDict):
    """What is paused: a task (`name` is its id), a workflow or an agent; since when, by which operation and whose; and
    how many tasks are ready and wait for its end, counted up to 10,000."""

    kind: Literal["task", "workflow", "agent"]
    name: str
    waiting: int
    task_type: NotRequired[str]
    paused_at: NotRequired[str]
    paused_by: NotRequired[str]
    requester: NotRequired[str]


class PutWorkflow(TypedDict):
    """A workflow in the database; `version` is the hash of its definition."""

    workflow: str
    version: str


class Mesh:
    """`async with Mesh(url) as mesh: result = await mesh.run("create_blog_post", {...})`.

    Without a URL, the environment's NATS_URL and credentials are used. Several tasks may be awaited at once.
    """

    def __init__(
        self, url: str | None = None, *, requester: str | None = None, connect_seconds: float | None = 10.0
    ) -> None:
        self._settings = MeshSettings.load(nats_url=url)
        self._requester = requester
        self._connect_seconds = connect_seconds
        self._own_bus = True
        self._subscriptions: list[Subscription] = []
        self._waiters: dict[UUID, _Waiter] = {}
        self._bus: Bus
        self._publisher: Publisher
        self._objects: Objects
        self._inbox = ""

    @classmethod
    async def over(
        cls, bus: Bus, publisher: Publisher, objects: Objects | None = None, *, requester: str | None = None
    ) -> Self:
        """A client over a connection that somebody else owns."""
        mesh = cls.__new__(cls)
        mesh._requester = requester
        mesh._own_bus = False
        mesh._subscriptions = []
        mesh._waiters = {}
        mesh._bus = bus
        mesh._publisher = publisher
        mesh._objects = objects or Objects(bus)
        await mesh._listen()
        return mesh

    async def __aenter__(self) -> Self:
        self._bus = await Bus.connect(
            self._settings.nats_url,
            name=self._requester or "mesh-client",
            wait_seconds=self._connect_seconds,
            options=nats_options(self._settings),
        )
        self._publisher = Publisher(self._bus)
        self._objects = Objects(self._bus, max_bytes=self._settings.max_payload_bytes)
        await self._listen()
        return self

    async def _listen(self) -> None:
        self._inbox = self._bus.new_inbox()
        self._subscriptions = [
            await self._bus.subscribe(f"{self._inbox}.*", self._on_answer),
            await self._bus.subscribe(subjects.event("task", "accepted"), self._on_accepted),
        ]
        await self._bus.flush()

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        for waiter in self._waiters.values():
            waiter.answered.cancel()
        if self._own_bus:
            await self._publisher.close()
            await self._bus.close()
            return
        for subscription in self._subscriptions:
            await self._bus.unsubscribe(subscription)

    async def _on_answer(self, delivery: Delivery) -> None:
        try:
            response = TaskResponse.model_validate_json(delivery.data)
        except ValidationError as error:
            log.warning("answer.invalid", error=str(error))
            return
        waiter = self._waiters.get(response.task_id)
        if waiter is not None and not waiter.answered.done():
            waiter.answered.set_result(response)
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
        given: dict[str, Any] = {
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
            reply_to=f"{self._inbox}.{task_id.hex}",
            **{name: value for name, value in given.items() if value is not None},
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
        waiter = self._waiters.setdefault(request.task_id, _Waiter(request))
        loop = asyncio.get_running_loop()
        end = loop.time() + accept_seconds
        wait = RESEND_FIRST_SECONDS
        while not waiter.accepted.is_set():
            left = end - loop.time()
            if left <= 0:
                self._waiters.pop(request.task_id, None)
                raise NotAccepted(
                    f"task {request.task_id} was not accepted within {accept_seconds:g} s: is an orchestrator running, "
                    "and can it reach Postgres?"
                )
            try:
                await self._send(request, give_up_seconds=left)
                async with asyncio.timeout(min(wait, max(0.0, end - loop.time()))):
                    await waiter.accepted.wait()
            except TimeoutError:
                wait = min(wait * 2, RESEND_MAX_SECONDS)
            except BusError as error:
                if not error.retryable:
                    self._waiters.pop(request.task_id, None)
                    raise
                # An answer that comes at once (a bucket that is gone) must not be asked for as fast as it comes.
                log.debug("submit.again", error=str(error))
                await asyncio.sleep(min(wait, max(0.0, end - loop.time())))
                wait = min(wait * 2, RESEND_MAX_SECONDS)
        return request.task_id

    async def _send(self, request: TaskRequest, *, give_up_seconds: float) -> None:
        body = to_bytes(request)
        if self._objects.is_large(body):
            # Each time: the store may have lost it since. One that is there is not sent again.
            ref = await self._objects.put_large(request.task_id, json_bytes(request.payload))
            if ref is not None:
                body = to_bytes(request.model_copy(update={"payload": {}, "payload_ref": ref}))
        await self._publisher.publish(subjects.task(ORCHESTRATOR), body, give_up_seconds=give_up_seconds)

    async def wait(self, task_id: UUID, *, timeout_seconds: float | None = None) -> TaskResponse:
        """The final response of a task that this client submitted, whatever its status.

        Raises TimeoutError; the task goes on all the same, and `wait` may be called again.
        """
        waiter = self._waiters.get(task_id)
        if waiter is None:
            return await self._wait_foreign(task_id, timeout_seconds)
        async with asyncio.timeout(timeout_seconds):
            while True:
                try:
                    response = await self._whole(await self._answer(waiter))
                    break
                except BusError as error:
                    if not error.retryable:
                        raise
                    # A large result that the object store has lost is put there again by whoever answers again.
                    log.debug("wait.result_gone", task_id=str(task_id), error=str(error))
                    waiter.answered = asyncio.get_running_loop().create_future()
                    await self._ask_again(waiter)
        self._waiters.pop(task_id, None)
        return response

    async def _answer(self, waiter: _Waiter) -> TaskResponse:
        while not waiter.answered.done():
            generation = self._bus.generation
            await asyncio.wait({waiter.answered}, timeout=ASK_AGAIN_SECONDS)
            if not waiter.answered.done():
                reconnected = generation != self._bus.generation
                log.debug("wait.again", task_id=str(waiter.request.task_id), reconnected=reconnected)
                await self._ask_again(waiter)
        return await waiter.answered

    async def _ask_again(self, waiter: _Waiter) -> None:
        try:
            await self._send(waiter.request, give_up_seconds=ASK_AGAIN_SECONDS)
        except BusError as error:
            log.debug("wait.unsent", error=str(error))

    async def _whole(self, response: TaskResponse) -> TaskResponse:
        """A response with a large result in the place of its reference. Raises BusError, InvalidRequest."""
        if response.result_ref is None:
            return response
        body = await self._objects.get(response.result_ref)
        result = parse_value(body, response.result_ref, "result")
        return response.model_copy(update={"result": result, "result_ref": None})

    async def _wait_foreign(self, task_id: UUID, timeout_seconds: float | None) -> TaskResponse:
        """A task of another process: its row is asked for until it has ended."""
        async with asyncio.timeout(timeout_seconds):
            pause = 0.05
            while True:
                answer = await self.query("response", {"task_id": str(task_id)})
                if answer.get("response") is not None:
                    with contextlib.suppress(ObjectMissing):
                        return await self._whole(TaskResponse.model_validate_json(json.dumps(answer["response"])))
                await asyncio.sleep(pause)
                pause = min(pause * 1.5, 2.0)

    async def run(
        self,
        task_type: str,
        payload: Mapping[str, Any] | None = None,
        *,
        wait_seconds: float | None = None,
        **options: Any,
    ) -> Any:
        """Submit, wait, return the result. Raises TaskFailed or TaskCancelled with the response's error, TimeoutError.

        `wait_seconds` bounds this call; `timeout_seconds` and `deadline`, as in `request`, bound the task itself.
        """
        request = self.request(task_type, payload, **options)
        async with asyncio.timeout(wait_seconds):
            await self.submit(request)
            response = await self.wait(request.task_id)
        return result_of(response)

    async def progress(self, task_id: UUID) -> AsyncIterator[TaskProgress]:
        """Progress and streamed text of all agents that work on a task, from now until it has ended."""
        async for seen in self.watch(task_id):
            if seen.kind == "progress":
                yield TaskProgress.model_validate_json(json.dumps(seen.data))

    async def watch(self, task_id: UUID, *, on_listening: Callable[[], None] | None = None) -> AsyncIterator[Watched]:
        """Steps' events (kind `step.completed`, …), progress (kind `progress`) and at last the task's own end.

        `on_listening` is called once nothing more can be missed: to watch a task from its beginning, submit it then.
        """
        queue: asyncio.Queue[Watched] = asyncio.Queue(10_000)
        wanted = str(task_id)

        def put(seen: Watched) -> None:
            # Whoever watches slower than the mesh works loses the oldest, never memory.
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(seen)

        async def on_event(delivery: Delivery) -> None:
            if wanted.encode() not in delivery.data:
                return
            data = json.loads(delivery.data).get("data", {})
            if wanted in (data.get("root_task_id"), data.get("task_id")):
                _, _, entity, name = delivery.subject.split(".", 3)
                put(Watched(f"{entity}.{name}", data))

        async def on_progress(delivery: Delivery) -> None:
            put(Watched("progress", json.loads(delivery.data)))

        subscriptions = [
            await self._bus.subscribe(subjects.event("step", "*"), on_event),
            await self._bus.subscribe(subjects.event("task", "*"), on_event),
            await self._bus.subscribe(subjects.all_progress(task_id), on_progress),
        ]
        await self._bus.flush()
        if on_listening is not None:
            on_listening()
        ended = asyncio.ensure_future(self._until_ended(task_id))
        try:
            while True:
                getting = asyncio.ensure_future(queue.get())
                await asyncio.wait({getting, ended}, return_when=asyncio.FIRST_COMPLETED)
                if getting.done():
                    seen = getting.result()
                    yield seen
                    if seen.kind in ENDS:
                        return
                    continue
                getting.cancel()
                ended.result()
                # The answer overtakes the last events; they are a moment behind, or lost.
                while (late := await _next(queue, LAST_EVENTS_SECONDS)) is not None:
                    yield late
                    if late.kind in ENDS:
                        return
                return
        finally:
            ended.cancel()
            for subscription in subscriptions:
                await self._bus.unsubscribe(subscription)

    async def _until_ended(self, task_id: UUID) -> None:
        waiter = self._waiters.get(task_id)
        if waiter is not None:
            await asyncio.wait({waiter.answered})
        else:
            await self._wait_foreign(task_id, None)

    async def query(self, what: str, arguments: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Ask any orchestrator to read its state (`tasks`, `task`, `response`, `workflows`, `pauses`,
        `dead_letters`).

        Raises PantheonError with the refusal's code.
        """
        delivery = await self._bus.request(
            subjects.query(what), json.dumps(dict(arguments or {})).encode(), timeout_seconds=10
        )
        answer: dict[str, Any] = json.loads(delivery.data)
        if (error := answer.get("error")) is not None:
            raised = PantheonError(error["message"], details=error.get("details"))
            raised.code = error["code"]
            raise raised
        return answer

    # -- operations (protocol.md, Operations): each is a task of the orchestrator, durable once it is accepted ---------

    async def cancel(self, task_id: UUID, *, reason: str | None = None) -> Changed:
        """End a root task `cancelled`: its agents are told to stop, what it did is undone. Raises TaskFailed.

        Returns when that is committed; compensations may still run, `wait` tells when the task has ended.
        """
        result: Changed = await self.run("mesh.cancel", _given(task_id=task_id, reason=reason))
        return result

    async def pause(
        self, task_id: UUID | None = None, *, workflow: str | None = None, agent: str | None = None
    ) -> dict[str, Any]:
        """Begin nothing new of a root task, of all tasks of a workflow, or at an agent; exactly one of the three.

        What agents have at work goes on. Raises TaskFailed.
        """
        result: dict[str, Any] = await self.run("mesh.pause", _given(task_id=task_id, workflow=workflow, agent=agent))
        return result

    async def resume(
        self, task_id: UUID | None = None, *, workflow: str | None = None, agent: str | None = None
    ) -> dict[str, Any]:
        """The end of a `pause` of the same. Raises TaskFailed."""
        result: dict[str, Any] = await self.run("mesh.resume", _given(task_id=task_id, workflow=workflow, agent=agent))
        return result

    async def pauses(self, *, limit: int | None = None) -> list[Paused]:
        """What is paused, the newest first, at most `limit` (50; 1000). Raises PantheonError."""
        found: list[Paused] = (await self.query("pauses", {} if limit is None else {"limit": limit}))["pauses"]
        return found

    async def signal(self, task_id: UUID, name: str, payload: Mapping[str, Any] | None = None) -> Signalled:
        """Give a root task a signal; it is kept until a step waits for it. Raises TaskFailed.

        The mesh knows the giver by this client's `requester`.
        """
        result: Signalled = await self.run(
            "mesh.signal", {"task_id": str(task_id), "signal": name, "payload": dict(payload or {})}
        )
        return result

    async def approve(
        self, task_id: UUID, name: str, approved: bool = True, *, comment: str | None = None
    ) -> Signalled:
        """Give a root task an approval, or refuse it with `approved=False`. Raises TaskFailed.

        What a refusal means is the workflow's own: the step ends well either way, with `approved` in its result.
        """
        given = _given(task_id=task_id, approval=name, comment=comment)
        result: Signalled = await self.run("mesh.approve", {**given, "approved": approved})
        return result

    async def retry(self, task_id: UUID) -> UUID:
        """Run a failed or cancelled root task again from what did not complete; returns the new task's id.

        `wait` for that one's outcome. Where the old one cannot be retried, the new one ends `failed`,
        `invalid_request`.
        """
        return await self.submit("mesh.retry", {"task_id": str(task_id)})

    async def replay(
        self,
        task_id: UUID,
        *,
        from_step: str | None = None,
        input: Mapping[str, Any] | None = None,  # noqa: A002 - its name on the wire
    ) -> UUID:
        """Run a root task again, whatever became of it; returns the new task's id.

        `from_step` reuses what completed and does not depend on that step; `input` (a fork) is laid over the old one,
        top-level key by key. `wait` for the outcome; a step that is not there ends the new one `failed`,
        `invalid_request`.
        """
        payload: dict[str, Any] = {"task_id": str(task_id)}
        if from_step is not None:
            payload["from"] = from_step
        if input is not None:
            payload["input"] = dict(input)
        return await self.submit("mesh.replay", payload)

    async def redrive(
        self,
        letter_id: UUID | str | None = None,
        *,
        name: str | None = None,
        reason: str | None = None,
        everything: bool = False,
    ) -> list[str]:
        """Send dead letters again: one, those of an agent's `name`, those whose `reason` holds a text, or everything.

        Returns the ids of those that were sent; they are dead letters no more. Raises TaskFailed.
        """
        given = _given(id=letter_id, name=name, reason=reason)
        redriven: list[str] = []
        more = True
        while more:
            result = await self.run("mesh.redrive", {**given, "all": True} if everything else given)
            redriven += result["redriven"]
            # One answer holds only so many.
            more = result.get("more", False)
        return redriven

    async def put_workflow(self, definition: Mapping[str, Any] | str) -> PutWorkflow:
        """Put a workflow into the database, as an object or as the text of a file: the newest version of its name.

        Running tasks stay on theirs. Raises TaskFailed: `invalid_workflow` with the mistake's line and column, or for a
        name that a file of the orchestrator's defines.
        """
        given = definition if isinstance(definition, str) else dict(definition)
        result: PutWorkflow = await self.run("mesh.put_workflow", {"definition": given})
        return result

    async def dead_letters(
        self,
        *,
        letter_id: UUID | str | None = None,
        name: str | None = None,
        reason: str | None = None,
        limit: int | None = None,
    ) -> list[dict[str, Any]]:
        """Dead letters, oldest first: of an agent's `name`, whose `reason` holds a text, at most `limit` (50; 1000).

        With `letter_id`, that one alone, with its body in `body_base64`. Raises PantheonError.
        """
        arguments = _given(id=letter_id, name=name, reason=reason)
        if limit is not None:
            arguments["limit"] = limit
        found: list[dict[str, Any]] = (await self.query("dead_letters", arguments))["dead_letters"]
        return found


def _given(**fields: object) -> dict[str, Any]:
    """A payload of what is there; ids as text."""
    return {name: str(value) for name, value in fields.items() if value is not None}


async def _next(queue: "asyncio.Queue[Watched]", within_seconds: float) -> Watched | None:
    try:
        return await asyncio.wait_for(queue.get(), within_seconds)
    except TimeoutError:
        return None


def result_of(response: TaskResponse) -> Any:
    """The result of a completed task. Raises TaskCancelled or TaskFailed for the others."""
    if response.status == "completed":
        return response.result
    error = response.error
    kind = TaskCancelled if response.status == "cancelled" else TaskFailed
    code = error.code if error else "internal_error"
    message = error.message if error else f"the task ended {response.status}"
    raise kind(message, code=code, response=response, details=error.details if error else None)


class Delegation:
    """What `ctx.run` uses: a client over the agent's own connection, made at the first delegation."""

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
        sent = request.model_copy(update={"reply_to": f"{self._mesh._inbox}.{request.task_id.hex}"})
        await self._mesh.submit(sent)
        response = await self._mesh.wait(sent.task_id)
        if response.usage is not None:
            used: Usage = response.usage
            context.report_usage(used.input_tokens, used.output_tokens, used.cost_usd)
        return result_of(response)
