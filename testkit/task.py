"""Task: a root task of a test's mesh: its status and history, what people do to it, and what a test asserts of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

from orchestrator_agent.engine.events import CancelRequested, PauseRequested, ResumeRequested, RunEvent, SignalReceived
from orchestrator_agent.engine.state import Role, Row, Status
from orchestrator_agent.intake.replay import ReplayRequest
from orchestrator_agent.runtime.wire import final_response
from pantheon.client.mesh import result_of
from protocol.ids import new_id
from protocol.messages import ErrorInfo, TaskResponse, Usage
from testkit.explain import shown_time
from testkit.table import json_of
from testkit.tracked_run import RecordedEvent, TrackedRun

# Longer than any wait of the language; a longer one is an argument.
WITHIN = timedelta(days=400)


class Stuck(AssertionError):
    """A task will never end, or not within its time; the message says what each of its steps waits for."""


@dataclass(frozen=True)
class StepView:
    """One row of a task's tree, as it is now. `role` is empty for a step, else `fallback`, `compensation`,
    `delegated`. `task_id` is the row's own: what `waiting_id` of a signal names."""

    task_id: UUID
    path: str
    task_type: str
    role: str
    status: str
    iteration: int
    item: int
    attempt: int
    failures: int
    agent: str | None
    payload: Any
    result: Any
    error: ErrorInfo | None
    usage: Usage | None
    created_at: datetime | None
    completed_at: datetime | None


class MeshOfTask(Protocol):
    """What a task asks of the mesh that it is in: see `testkit.mesh.TestMesh`."""

    @property
    def now(self) -> datetime: ...
    async def until_ended(self, tracked: TrackedRun, within: timedelta | float | str) -> None: ...
    async def operate(self, tracked: TrackedRun, run_event: RunEvent, operation: UUID) -> dict[str, Any]: ...
    def run_again(self, tracked: TrackedRun, request: ReplayRequest) -> "Task": ...
    def explain(self, tracked: TrackedRun) -> str: ...


class Task:
    def __init__(self, mesh: MeshOfTask, tracked: TrackedRun) -> None:
        self._mesh = mesh
        self._tracked = tracked

    def __repr__(self) -> str:
        return f"task '{self._tracked.root.task_type}' ({self.status})"

    @property
    def task_id(self) -> UUID:
        return self._tracked.run.root_task_id

    @property
    def task_type(self) -> str:
        return self._tracked.root.task_type

    @property
    def status(self) -> str:
        return self._tracked.root.status.value

    @property
    def error(self) -> ErrorInfo | None:
        return self._tracked.root.error

    @property
    def usage(self) -> Usage | None:
        """What all attempts of all steps have consumed so far."""
        return self._tracked.run.usage()

    @property
    def metadata(self) -> dict[str, str]:
        return self._tracked.run.facts.metadata

    @property
    def replay_of(self) -> UUID | None:
        return self._tracked.run.facts.replay_of

    @property
    def duplicate_of(self) -> UUID | None:
        return self._tracked.run.facts.duplicate_of

    # -- how it ends ---------------------------------------------------------------------------------------------------

    async def result(self, *, within: timedelta | float | str = WITHIN) -> Any:
        """Let time pass until the task has ended. Raises TaskFailed, TaskCancelled, and Stuck where it never ends."""
        return result_of(await self.response(within=within))

    async def response(self, *, within: timedelta | float | str = WITHIN) -> TaskResponse:
        """Let time pass until the task has ended, however it does; the final response, as it is on the wire."""
        await self._mesh.until_ended(self._tracked, within)
        return TaskResponse.model_validate_json(final_response(self._tracked.root, self._tracked.run.facts))

    # -- what people do to it ------------------------------------------------------------------------------------------

    async def signal(
        self,
        name: str,
        payload: Mapping[str, Any] | None = None,
        *,
        by: str | None = None,
        waiting_id: UUID | None = None,
    ) -> bool:
        """Give a signal; whether a step has taken it now (it is kept otherwise). Raises PantheonError for a refusal."""
        values = dict(payload or {})
        outcome = await self._perform(
            lambda operation: SignalReceived(self.task_id, operation, name, values, by, waiting_id)
        )
        return bool(outcome["taken"])

    async def approve(
        self,
        name: str,
        *,
        approved: bool = True,
        comment: str | None = None,
        by: str | None = None,
        waiting_id: UUID | None = None,
    ) -> bool:
        values: dict[str, Any] = {"approved": approved, **({"comment": comment} if comment is not None else {})}
        return await self.signal(name, values, by=by, waiting_id=waiting_id)

    async def cancel(self, reason: str = "cancelled") -> bool:
        """Whether it made a difference; what completed is compensated before the task ends."""
        outcome = await self._perform(lambda operation: CancelRequested(self.task_id, reason, operation))
        return bool(outcome["changed"])

    async def pause(self) -> bool:
        return bool((await self._perform(lambda operation: PauseRequested(self.task_id, operation)))["changed"])

    async def resume(self) -> bool:
        return bool((await self._perform(lambda operation: ResumeRequested(self.task_id, operation)))["changed"])

    async def _perform(self, make_event: Callable[[UUID], RunEvent]) -> dict[str, Any]:
        operation = new_id()
        return await self._mesh.operate(self._tracked, make_event(operation), operation)

    def retry(self, *, input: Mapping[str, Any] | None = None) -> "Task":  # noqa: A002
        """A new task that reuses what completed in this one, which failed. Raises PantheonError."""
        return self._mesh.run_again(self._tracked, ReplayRequest(self.task_id, retry=True, input=_changes(input)))

    def replay(self, *, from_step: str | None = None, input: Mapping[str, Any] | None = None) -> "Task":  # noqa: A002
        """A new task that runs again, from a step or as a whole; with `input` laid over the old one, a fork."""
        request = ReplayRequest(self.task_id, retry=False, from_step=from_step, input=_changes(input))
        return self._mesh.run_again(self._tracked, request)

    # -- its history ---------------------------------------------------------------------------------------------------

    @property
    def history(self) -> list[StepView]:
        """Every row of the tree, in the order in which they were made."""
        rows = self._tracked.run.rows
        return [self._view(rows[task_id]) for task_id in self._tracked.table.records if task_id != self.task_id]

    @property
    def events(self) -> list[RecordedEvent]:
        """The events of the task and its steps, in order, with their times."""
        return list(self._tracked.events)

    @property
    def steps(self) -> dict[str, str]:
        """The status of each step by its path (`draft/review`, `notes[3]`): of its newest iteration or fallback."""
        return {view.path: view.status for view in self.history if view.role in ("", Role.FALLBACK)}

    def step(self, path: str) -> StepView:
        """The newest row at a path. Raises AssertionError, with the paths that there are."""
        found = [view for view in self.history if view.path == path and view.role != Role.SIGNAL]
        own = [view for view in found if view.role in ("", Role.FALLBACK)]
        if not found:
            known = ", ".join(self.steps) or "none yet"
            raise AssertionError(f"there is no step '{path}' in {self!r}; there is {known}")
        return (own or found)[-1]

    def _view(self, row: Row) -> StepView:
        record = self._tracked.table.records[row.task_id]
        return StepView(
            task_id=row.task_id,
            path=self._tracked.run.path(row),
            task_type=row.task_type,
            role=row.role.value,
            status=row.status.value,
            iteration=row.iteration,
            item=row.item,
            attempt=row.attempt,
            failures=row.failures,
            agent=row.agent,
            payload=json_of(record["payload"]),
            result=json_of(record["result"]),
            error=row.error,
            usage=row.usage,
            created_at=row.created_at,
            completed_at=row.completed_at,
        )

    def explain(self) -> str:
        """What the task waits for, a line for each step."""
        return self._mesh.explain(self._tracked)

    # -- what a test asserts of it -------------------------------------------------------------------------------------

    def assert_status(self, status: str) -> None:
        if self.status != status:
            raise AssertionError(f"{self!r} is not {status}:\n{self._why()}")

    def assert_failed(self, code: str | None = None, *, step: str | None = None) -> ErrorInfo:
        """It failed, with this code (of the task's error, or of the step's own in its details), at this step."""
        self.assert_status(Status.FAILED.value)
        error = self.error
        assert error is not None
        codes = {error.code, (error.details or {}).get("code")}
        if code is not None and code not in codes:
            raise AssertionError(f"{self!r} failed with {error.code}, not {code}: {error.message}")
        if step is not None and error.step != step:
            raise AssertionError(f"{self!r} failed at step '{error.step}', not '{step}': {error.message}")
        return error

    def assert_waits_for(self, *texts: str) -> None:
        """Each of these is in a line of `explain`: the name of a step, of a signal, of an agent."""
        lines = self.explain()
        for text in texts:
            if text not in lines:
                raise AssertionError(f"{self!r} does not wait for {text!r}; it waits for:\n{lines}")

    def assert_steps(self, **statuses: str) -> None:
        """The statuses of top-level steps, by name."""
        wrong = [
            f"  '{name}' is {self.steps.get(name, 'not begun')}, not {status}"
            for name, status in statuses.items()
            if self.steps.get(name) != status
        ]
        if wrong:
            raise AssertionError(f"steps of {self!r}:\n" + "\n".join(wrong) + f"\n{self._why()}")

    def assert_undone(self, *paths: str) -> None:
        """Exactly these steps were compensated, in this order, each successfully."""
        found = [(view.path, view.status) for view in self.history if view.role == Role.COMPENSATION]
        if found != [(path, Status.COMPLETED.value) for path in paths]:
            shown = ", ".join(f"{path} ({status})" for path, status in found) or "nothing"
            raise AssertionError(f"undone was {shown}, not {', '.join(paths) or 'nothing'}")

    def _why(self) -> str:
        if self.error is not None:
            return f"  {self.error.code}: {self.error.message}"
        return f"  it is {shown_time(self._mesh.now)}\n{self.explain()}"


def _changes(values: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What a fork changes of the old input; nothing is no fork."""
    return dict(values) if values else None
