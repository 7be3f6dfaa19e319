"""Queries: reads of the orchestrator's state by NATS request-reply on `mesh.query.<what>`; any orchestrator answers.

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
from orchestrator_agent.runtime.run_cache import RunCache
from orchestrator_agent.runtime.wire import final_response
from orchestrator_agent.store.pauses import COUNTED_ROWS, PauseStore
from orchestrator_agent.store.reads import Reader
from orchestrator_agent.store.ready_queue import ReadyQueue
from orchestrator_agent.store.records import facts_of, row_of
from orchestrator_agent.workflows.expression import shown
from orchestrator_agent.workflows.library import Library
from pantheon.bus import Bus, Delivery, Objects, Subscription
from protocol import subjects
from protocol.errors import InvalidRequest, InvalidWorkflow, PantheonError, UnknownTask
from protocol.messages import json_bytes, time_text
from protocol.names import is_agent_name

log = structlog.get_logger()

QUEUE = "orchestrators"
DEFAULT_LIMIT = 50
MAX_LIMIT = 1000
BULKY = ("payload", "result")

Answer = dict[str, Any]


class Queries:
    """`tasks`, `task`, `response`, `workflows`, `pauses`, `dead_letters`."""

    def __init__(
        self,
        bus: Bus,
        objects: Objects,
        *,
        reader: Reader,
        runs: RunCache,
        router: Router,
        library: Library,
        dead_letters: DeadLetters,
        pause_store: PauseStore,
        line: ReadyQueue,
    ) -> None:
        self._bus = bus
        self._objects = objects
        self._reader = reader
        self._runs = runs
        self._router = router
        self._library = library
        self._dead_letters = dead_letters
        self._pause_store = pause_store
        self._line = line
        self._subscriptions: list[Subscription] = []

    async def start(self) -> None:
        answers: dict[str, Callable[[Mapping[str, Any]], Awaitable[Answer]]] = {
            "tasks": self._tasks,
            "task": self._task,
            "response": self._response,
            "workflows": self._workflows,
            "pauses": self._read_pauses,
            "dead_letters": self._read_dead_letters,
        }
        for name, answer in answers.items():
            self._subscriptions.append(
                await self._bus.subscribe(subjects.query(name), self._answering(answer), queue=QUEUE)
            )

    def _answering(
        self, answer: Callable[[Mapping[str, Any]], Awaitable[Answer]]
    ) -> Callable[[Delivery], Awaitable[None]]:
        async def on_request(delivery: Delivery) -> None:
            try:
                arguments = json.loads(delivery.data or b"{}")
                if not isinstance(arguments, dict):
                    raise InvalidRequest("a query is a JSON object")
                reply = await answer(arguments)
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

    async def _tasks(self, arguments: Mapping[str, Any]) -> Answer:
        statuses = arguments.get("status")
        if isinstance(statuses, str):
            statuses = [statuses]
        known = {status.value for status in Status}
        if statuses is not None and (not isinstance(statuses, list) or not set(statuses) <= known):
            raise InvalidRequest(f"status: must be among {', '.join(sorted(known))}", field="status")
        records = await self._reader.roots(
            statuses=statuses,
            task_type=_text(arguments, "task_type"),
            requester=_text(arguments, "requester"),
            session_id=_text(arguments, "session_id"),
            limit=_limit(arguments),
        )
        return {"tasks": [_shown(record) for record in records]}

    async def _task(self, arguments: Mapping[str, Any]) -> Answer:
        records = await self._reader.tree(_id(arguments))
        if not records:
            raise UnknownTask(f"there is no task {arguments.get('task_id')}")
        # Payloads and results of a whole tree may be more than one message carries; who draws it needs none.
        hidden = BULKY if arguments.get("brief") is True else ()
        answer: Answer = {"tasks": [_shown(record, hidden) for record in records]}
        if arguments.get("waiting") is True:
            answer["waiting"] = await self._waiting(records)
        return answer

    async def _waiting(self, records: Sequence[Any]) -> list[Answer]:
        if not any(record["status"] == Status.READY for record in records):
            return []
        try:
            return waiting_of(await self._runs.build(records), self._router)
        except InvalidWorkflow:
            # The task will end by it.
            return []

    async def _response(self, arguments: Mapping[str, Any]) -> Answer:
        task_id = _id(arguments)
        record = (await self._reader.known([task_id])).get(task_id)
        if record is None:
            raise UnknownTask(f"there is no task {task_id}")
        row = row_of(record)
        if row.status not in ENDED:
            return {"status": row.status.value, "response": None}
        ref = await self._objects.put_large(row.root_task_id, row.result)
        return {"status": row.status.value, "response": json.loads(final_response(row, facts_of(record), ref))}

    async def _workflows(self, arguments: Mapping[str, Any]) -> Answer:
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

    async def _read_pauses(self, arguments: Mapping[str, Any]) -> Answer:
        pauses = [_shown(record) for record in await self._pause_store.listed(_limit(arguments))]
        agents = [one for one in pauses if one["kind"] == "agent"]
        if agents:
            queues = [Queue.of(name) for name in await self._line.queues()]
            may_go_to = {queue.name: self._router.agents(queue.task_type, queue.agent) for queue in queues}
            lengths = await self._line.lengths(list(may_go_to), COUNTED_ROWS)
            for one in agents:
                waiting = sum(lengths[name] for name, names in may_go_to.items() if one["name"] in names)
                one["waiting"] = min(waiting, COUNTED_ROWS)
        return {"pauses": pauses}

    async def _read_dead_letters(self, arguments: Mapping[str, Any]) -> Answer:
        wanted, name = _text(arguments, "id"), _text(arguments, "name")
        if name is not None and not is_agent_name(name):
            raise InvalidRequest(f"name: '{shown(name)}' cannot be an agent's name", field="name")
        letters = await self._dead_letters.read(
            letter_id=wanted,
            name=name,
            reason=_text(arguments, "reason"),
            limit=_limit(arguments),
        )
        told = [
            {"sequence": sequence, **letter.model_dump(mode="json", exclude=None if wanted else {"body_base64"})}
            for sequence, letter in letters
        ]
        return {"dead_letters": told}


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


def _shown(record: Any, hidden: Collection[str] = ()) -> Answer:
    shown: Answer = {}
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
