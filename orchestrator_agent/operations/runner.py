"""OperationRunner: the mesh's own task types: cancel, pause, resume, signal, approve, redrive, put_workflow.

Each is a root task like any other: durable from its acceptance, idempotent by its id, with one response, which is its
outcome. (`mesh.retry` and `mesh.replay` start a workflow again and are planned like one.)
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from uuid import UUID

import structlog

from orchestrator_agent.dispatch.router import Pauses
from orchestrator_agent.engine.events import (
    CancelRequested,
    OperationEnded,
    PauseRequested,
    ResumeRequested,
    RunEvent,
    SignalReceived,
)
from orchestrator_agent.engine.state import Run, Status
from orchestrator_agent.inbox import Inbox
from orchestrator_agent.operations.dead_letters import DeadLetters
from orchestrator_agent.runtime.sweep_signal import SweepSignal
from orchestrator_agent.runtime.workflow_catalog import WorkflowCatalog
from orchestrator_agent.store.availability import retry_until_available
from orchestrator_agent.store.pauses import PauseStore
from orchestrator_agent.store.task_queries import TaskQueries
from orchestrator_agent.workflows.expression import shown
from orchestrator_agent.workflows.files import read_workflow
from pantheon.bus import Bus
from pantheon.runtime.background import end
from protocol import subjects
from protocol.errors import ErrorCode, InvalidRequest, InvalidWorkflow, PantheonError, UnknownTask
from protocol.messages import Control, ErrorInfo, to_bytes
from protocol.names import TASK_TYPE, is_agent_name
from protocol.workflow import MAX_LABEL_CHARS

log = structlog.get_logger()

Result = dict[str, Any]


class OperationRunner:
    """`begin` starts one; `begin_again` one that a dead process left."""

    def __init__(
        self,
        bus: Bus,
        *,
        tasks: TaskQueries,
        catalog: WorkflowCatalog,
        dead_letters: DeadLetters,
        pauses: Pauses,
        pause_store: PauseStore,
        inbox: Inbox,
        sweep: SweepSignal,
    ) -> None:
        self._bus = bus
        self._task_queries = tasks
        self._catalog = catalog
        self._dead_letters = dead_letters
        self._pauses = pauses
        self._pause_store = pause_store
        self._inbox = inbox
        self._sweep = sweep
        self._tasks: dict[UUID, asyncio.Task[None]] = {}
        self._operations: dict[str, Callable[[UUID, Mapping[str, Any], str | None], Awaitable[Result]]] = {
            "mesh.cancel": self._cancel,
            "mesh.pause": self._pause,
            "mesh.resume": self._resume,
            "mesh.signal": self._signal,
            "mesh.approve": self._approve,
            "mesh.redrive": self._redrive,
            "mesh.put_workflow": self._put_workflow,
        }

    async def start(self) -> None:
        """Nothing to start: an operation begins when its task is accepted, or is found by a sweep."""

    async def stop(self) -> None:
        await end(self._tasks.values())

    def begin(self, run: Run) -> None:
        self.begin_again(run.root_task_id, run.root.task_type, run.root.payload or b"{}", run.facts.requester)

    def begin_again(self, operation: UUID, task_type: str, payload: bytes, requester: str | None) -> None:
        if operation in self._tasks or task_type not in self._operations:
            return
        task = asyncio.create_task(self._run(operation, task_type, payload, requester), name=task_type)
        self._tasks[operation] = task
        task.add_done_callback(lambda _: self._tasks.pop(operation, None))

    async def _run(self, operation: UUID, task_type: str, payload: bytes, requester: str | None) -> None:
        try:
            result = await self._operations[task_type](operation, json.loads(payload), requester)
        except PantheonError as error:
            if error.retryable:
                # Postgres or the broker is away: the sweep begins it again.
                log.warning("operation.waiting", operation=task_type, error=str(error))
                return
            self._inbox.post(OperationEnded(operation, error=ErrorInfo.of(error)))
        except Exception as error:
            log.exception("operation.failed", operation=task_type, task_id=str(operation))
            wrong = ErrorInfo(code=ErrorCode.INTERNAL_ERROR, message=f"{type(error).__name__}: {error}")
            self._inbox.post(OperationEnded(operation, error=wrong))
        else:
            self._inbox.post(OperationEnded(operation, result=result))

    # -- on one task --------------------------------------------------------------------------------------------------

    async def _outcome(self, run_event: RunEvent) -> Result:
        """The outcome of a run event of another task. Raises PantheonError for a refusal, UnknownTask."""
        outcome = await self._inbox.perform(run_event)
        if isinstance(outcome, ErrorInfo):
            raise _refused(outcome)
        if isinstance(outcome, dict):
            return outcome
        task_id = run_event.root_task_id
        record = await retry_until_available(self._task_queries.root, task_id)
        if record is None:
            raise UnknownTask(f"payload.task_id: there is no root task {task_id}")
        if isinstance(run_event, SignalReceived):
            for row in await retry_until_available(self._task_queries.tree, task_id):
                if row["task_id"] == run_event.row_id:
                    # It was taken, and the task has ended, before that could be noted.
                    taken = row["status"] == Status.COMPLETED
                    return {"task_id": str(task_id), "signal": run_event.name, "taken": taken}
            raise InvalidRequest(f"task {task_id} is {record['status']}: nothing waits for a signal")
        return {"task_id": str(task_id), "status": record["status"], "changed": False}

    async def _cancel(self, operation: UUID, payload: Mapping[str, Any], requester: str | None) -> Result:
        reason = _text(payload, "reason") or f"cancelled by {requester or 'an operator'}"
        return await self._outcome(CancelRequested(_task_id(payload), reason, operation))

    async def _pause(self, operation: UUID, payload: Mapping[str, Any], requester: str | None) -> Result:
        if (target := _target(payload, "workflow", "agent")) is not None:
            kind, name = target
            await retry_until_available(self._pause_store.pause, kind, name, operation, requester)
            self._pauses.add(kind, name)
            await self._send_control(kind, name, "pause")
            return {kind: name, "paused": True}
        task_id = _task_id(payload)
        outcome = await self._outcome(PauseRequested(task_id, operation))
        if outcome["status"] == Status.PAUSED:
            # Also when nothing has changed: a process that paused it may have died before it could note so.
            await retry_until_available(self._pause_store.pause, "task", str(task_id), operation, requester)
        return outcome

    async def _resume(self, operation: UUID, payload: Mapping[str, Any], requester: str | None) -> Result:
        if (target := _target(payload, "workflow", "agent")) is not None:
            kind, name = target
            await retry_until_available(self._pause_store.resume, kind, name)
            self._pauses.remove(kind, name)
            await self._send_control(kind, name, "resume")
            self._sweep.wake()
            return {kind: name, "paused": False}
        task_id = _task_id(payload)
        outcome = await self._outcome(ResumeRequested(task_id, operation))
        await retry_until_available(self._pause_store.resume, "task", str(task_id))
        return outcome

    async def _send_control(self, kind: str, name: str, command: Any) -> None:
        if kind == "agent":
            await self._bus.publish_quietly(subjects.control(name), to_bytes(Control(command=command)))

    async def _signal(self, operation: UUID, payload: Mapping[str, Any], requester: str | None) -> Result:
        name = _label(payload, "signal")
        signal = payload.get("payload", {})
        if not isinstance(signal, dict):
            raise InvalidRequest("payload.payload: must be an object", field="payload.payload")
        waiting_id = _waiting_id(payload)
        return await self._outcome(SignalReceived(_task_id(payload), operation, name, signal, requester, waiting_id))

    async def _approve(self, operation: UUID, payload: Mapping[str, Any], requester: str | None) -> Result:
        name = _label(payload, "approval")
        approved = payload.get("approved", True)
        if not isinstance(approved, bool):
            raise InvalidRequest("payload.approved: must be true or false", field="payload.approved")
        approval: Result = {"approved": approved}
        if (comment := _text(payload, "comment")) is not None:
            approval["comment"] = comment
        waiting_id = _waiting_id(payload)
        return await self._outcome(SignalReceived(_task_id(payload), operation, name, approval, requester, waiting_id))

    # -- on the mesh --------------------------------------------------------------------------------------------------

    async def _redrive(self, operation: UUID, payload: Mapping[str, Any], requester: str | None) -> Result:
        letter_id = payload.get("id")
        if letter_id is not None and not isinstance(letter_id, str):
            raise InvalidRequest("payload.id: must be the id of a dead letter", field="payload.id")
        if letter_id is None and not any(payload.get(name) for name in ("name", "reason", "all")):
            raise InvalidRequest("say which: payload.id, or a filter (payload.name, payload.reason), or payload.all")
        if payload.get("all") not in (None, True, False):
            raise InvalidRequest("payload.all: must be true or false", field="payload.all")
        name = _text(payload, "name")
        if name is not None and not is_agent_name(name):
            raise InvalidRequest(f"payload.name: '{shown(name)}' cannot be an agent's name", field="payload.name")
        redriven, more = await self._dead_letters.redrive(
            letter_id=letter_id, name=name, reason=_text(payload, "reason")
        )
        if more:
            return {"redriven": redriven, "more": True}
        if letter_id is not None and not redriven:
            return {"redriven": [], "note": f"there is no dead letter {letter_id} (any more)"}
        return {"redriven": redriven}

    async def _put_workflow(self, operation: UUID, payload: Mapping[str, Any], requester: str | None) -> Result:
        definition = payload.get("definition")
        text = json.dumps(definition) if isinstance(definition, dict) else definition
        if not isinstance(text, str):
            raise InvalidRequest(
                "payload.definition: must be a workflow, as an object or as the text of a file",
                field="payload.definition",
            )
        plan = read_workflow(text, source="definition", workflows=self._catalog.library.names)
        if self._catalog.library.from_file(plan.name):
            raise InvalidWorkflow(f"'{plan.name}' comes from a file of the orchestrator's: change it there")
        await retry_until_available(self._catalog.publish, plan)
        return {"workflow": plan.name, "version": plan.version}


def _refused(error: ErrorInfo) -> PantheonError:
    raised = PantheonError(error.message, details=error.details)
    raised.code = error.code
    return raised


def _task_id(payload: Mapping[str, Any]) -> UUID:
    try:
        return UUID(str(payload.get("task_id")))
    except ValueError:
        raise InvalidRequest("payload.task_id: must be the id of a root task", field="payload.task_id") from None


def _waiting_id(payload: Mapping[str, Any]) -> UUID | None:
    text = _text(payload, "waiting_id")
    try:
        return None if text is None else UUID(text)
    except ValueError:
        raise InvalidRequest("payload.waiting_id: must be the id of a step's row", field="payload.waiting_id") from None


def _text(payload: Mapping[str, Any], name: str) -> str | None:
    value = payload.get(name)
    if not isinstance(value, str | None):
        raise InvalidRequest(f"payload.{name}: must be a string", field=f"payload.{name}")
    return value


def _label(payload: Mapping[str, Any], kind: str) -> str:
    """The name of a signal or an approval: such as a workflow may wait for, and the database keeps."""
    name = _text(payload, kind)
    if not name or len(name) > MAX_LABEL_CHARS or not name.isprintable():
        raise InvalidRequest(
            f"payload.{kind}: must be the name of a{'n' if kind == 'approval' else ''} {kind}, "
            f"1 to {MAX_LABEL_CHARS} characters",
            field=f"payload.{kind}",
        )
    return name


def _target(payload: Mapping[str, Any], *names: str) -> tuple[str, str] | None:
    targets = [(kind, name) for kind in (*names, "task_id") if (name := _text(payload, kind)) is not None]
    if len(targets) != 1:
        raise InvalidRequest(
            f"say what: exactly one of payload.task_id, {', '.join(f'payload.{kind}' for kind in names)}"
        )
    kind, name = targets[0]
    if kind == "task_id":
        return None
    if TASK_TYPE.match(name) is None:
        # Workflows and agents are named alike. One that is not there yet may be paused, one that cannot be is wrong.
        raise InvalidRequest(f"payload.{kind}: '{shown(name)}' cannot be a name", field=f"payload.{kind}")
    return kind, name
