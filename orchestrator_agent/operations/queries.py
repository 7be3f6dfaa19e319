"""Queries: reads of the orchestrator's state by NATS request-reply on `mesh.query.<what>`; any orchestrator replies.

Requests and replies are JSON objects. A reply with `error` (`code`, `message`) is a refusal.
"""

import json
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import structlog

from orchestrator_agent.dispatch.queues import Queue
from orchestrator_agent.dispatch.router import Router
from orchestrator_agent.dispatch.wait_reasons import waiting_of
from orchestrator_agent.engine.state import ENDED, Status
from orchestrator_agent.operations.dead_letters import DeadLetters
from orchestrator_agent.runtime.broker import Broker
from orchestrator_agent.runtime.run_cache import RunCache
from orchestrator_agent.runtime.wire import final_response
from orchestrator_agent.store.pauses import COUNTED_ROWS, PauseStore
from orchestrator_agent.store.ready_queue import ReadyQueue
from orchestrator_agent.store.records import facts_of, row_of
from orchestrator_agent.store.task_queries import TaskQueries
from orchestrator_agent.workflows.expression import shown
from orchestrator_agent.workflows.library import Library
from pantheon.bus import Delivery, Subscription
from protocol import subjects
from protocol.errors import InvalidRequest, InvalidWorkflow, PantheonError, UnknownTask
from protocol.messages import json_bytes, time_text
from protocol.names import is_agent_name

log = structlog.get_logger()

QUEUE = "orchestrators"
DEFAULT_LIMIT = 50
MAX_LIMIT = 1000
BULKY = ("payload", "result")

Reply = dict[str, Any]


class Queries:
    """`tasks`, `task`, `response`, `workflows`, `pauses`, `dead_letters`."""

    def __init__(
        self,
        broker: Broker,
        *,
        tasks: TaskQueries,
        runs: RunCache,
        router: Router,
        library: Library,
        dead_letters: DeadLetters,
        pause_store: PauseStore,
        ready_queue: ReadyQueue,
    ) -> None:
        self._bus = broker.bus
        self._objects = broker.objects
        self._task_queries = tasks
        self._runs = runs
        self._router = router
        self._library = library
        self._dead_letters = dead_letters
        self._pause_store = pause_store
        self._ready_queue = ready_queue
        self._subscriptions: list[Subscription] = []

    async def start(self) -> None:
        queries: dict[str, Callable[[Mapping[str, Any]], Awaitable[Reply]]] = {
            "tasks": self._tasks,
            "task": self._task,
            "response": self._response,
            "workflows": self._workflows,
            "pauses": self._read_pauses,
            "dead_letters": self._read_dead_letters,
        }
        for name, query in queries.items():
            self._subscriptions.append(
                await self._bus.subscribe(subjects.query(name), self._replying(query), queue=QUEUE)
            )

    async def stop(self) -> None:
        while self._subscriptions:
            await self._bus.unsubscribe(self._subscriptions.pop())

    def _replying(
        self, query: Callable[[Mapping[str, Any]], Awaitable[Reply]]
    ) -> Callable[[Delivery], Awaitable[None]]:
        async def on_request(delivery: Delivery) -> None:
            try:
                arguments = json.loads(delivery.data or b"{}")
                if not isinstance(arguments, dict):
                    raise InvalidRequest("a query is a JSON object")
                reply = await query(arguments)
            except ValueError as error:
                reply = {"error": {"code": "invalid_request", "message": f"not JSON: {error}"}}
            except PantheonError as error:
                reply = {"error": {"code": str(error.code), "message": error.message}}
            body = json_bytes(reply)
            if len(body) > self._bus.max_payload - 1024:
                message = f"the answer has {len(body)} bytes, more than one message carries: ask for less"
                body = json_bytes({"error": {"code": "too_large", "message": message}})
            if delivery.reply:
                await self._bus.publish_quietly(delivery.reply, body)

        return on_request

    async def _tasks(self, arguments: Mapping[str, Any]) -> Reply:
        statuses = arguments.get("status")
        if isinstance(statuses, str):
            statuses = [statuses]
        known = {status.value for status in Status}
        if statuses is not None and (not isinstance(statuses, list) or not set(statuses) <= known):
            raise InvalidRequest(f"status: must be among {', '.join(sorted(known))}", field="status")
        records = await self._task_queries.list_roots(
            statuses=statuses,
            task_type=_text(arguments, "task_type"),
            requester=_text(arguments, "requester"),
            session_id=_text(arguments, "session_id"),
            limit=_limit(arguments),
        )
        return {"tasks": [_shown(record) for record in records]}

    async def _task(self, arguments: Mapping[str, Any]) -> Reply:
        records = await self._task_queries.tree(_id(arguments))
        if not records:
            raise UnknownTask(f"there is no task {arguments.get('task_id')}")
        # Payloads and results of a whole tree may be more than one message carries; to draw it they are not needed.
        hidden = BULKY if arguments.get("brief") is True else ()
        reply: Reply = {"tasks": [_shown(record, hidden) for record in records]}
        if arguments.get("waiting") is True:
            reply["waiting"] = await self._waiting(records)
        return reply

    async def _waiting(self, records: Sequence[Any]) -> list[Reply]:
        if not any(record["status"] == Status.READY for record in records):
            return []
        try:
            return waiting_of(await self._runs.build(records), self._router)
        except InvalidWorkflow:
            # The task's next transition ends it with that error.
            return []

    async def _response(self, arguments: Mapping[str, Any]) -> Reply:
        task_id = _id(arguments)
        record = await self._task_queries.root(task_id)
        if record is None:
            raise UnknownTask(f"there is no task {task_id}")
        row = row_of(record)
        if row.status not in ENDED:
            return {"status": row.status.value, "response": None}
        ref = await self._objects.put_large(row.root_task_id, row.result)
        return {"status": row.status.value, "response": json.loads(final_response(row, facts_of(record), ref))}

    async def _workflows(self, arguments: Mapping[str, Any]) -> Reply:
        return {
            "workflows": [
                {
                    "name": plan.name,
                    "version": plan.version,
                    "description": plan.description,
                    "steps": list(plan.steps),
                    "input": plan.input_schema,
                }
                for plan in self._library.plans
            ]
        }

    async def _read_pauses(self, arguments: Mapping[str, Any]) -> Reply:
        pauses = [_shown(record) for record in await self._pause_store.listed(_limit(arguments))]
        agents = [pause for pause in pauses if pause["kind"] == "agent"]
        if agents:
            queues = [Queue.of(name) for name in await self._ready_queue.queues()]
            may_go_to = {queue.name: self._router.agents(queue.task_type, queue.agent) for queue in queues}
            lengths = await self._ready_queue.lengths(list(may_go_to), COUNTED_ROWS)
            for pause in agents:
                queued = sum(lengths[name] for name, names in may_go_to.items() if pause["name"] in names)
                pause["waiting"] = min(queued, COUNTED_ROWS)
        return {"pauses": pauses}

    async def _read_dead_letters(self, arguments: Mapping[str, Any]) -> Reply:
        letter_id, name = _text(arguments, "id"), _text(arguments, "name")
        if name is not None and not is_agent_name(name):
            raise InvalidRequest(f"name: '{shown(name)}' cannot be an agent's name", field="name")
        letters = await self._dead_letters.read(
            letter_id=letter_id,
            name=name,
            reason=_text(arguments, "reason"),
            limit=_limit(arguments),
        )
        hidden = None if letter_id else {"body_base64"}
        return {
            "dead_letters": [
                {"sequence": sequence, **letter.model_dump(mode="json", exclude=hidden)} for sequence, letter in letters
            ]
        }


def _limit(arguments: Mapping[str, Any]) -> int:
    limit = arguments.get("limit", DEFAULT_LIMIT)
    if not isinstance(limit, int) or not 1 <= limit <= MAX_LIMIT:
        raise InvalidRequest(f"limit: must be a whole number, 1 to {MAX_LIMIT}", field="limit")
    return limit


def _text(arguments: Mapping[str, Any], name: str) -> str | None:
    value = arguments.get(name)
    if not isinstance(value, str | None):
        raise InvalidRequest(f"{name}: must be a string", field=name)
    return value


def _id(arguments: Mapping[str, Any]) -> UUID:
    try:
        return UUID(str(arguments.get("task_id")))
    except ValueError:
        raise InvalidRequest("task_id: must be the id of a task", field="task_id") from None


def _shown(record: Any, hidden: Collection[str] = ()) -> Reply:
    shown: Reply = {}
    for name, value in record.items():
        if value is None or name in hidden:
            continue
        if isinstance(value, UUID):
            shown[name] = str(value)
        elif isinstance(value, datetime):
            shown[name] = time_text(value)
        elif name in ("payload", "result", "error", "usage", "metadata", "routing"):
            shown[name] = json.loads(value)
        else:
            shown[name] = value
    return shown
