"""Orchestrator: the one of a test's mesh: production's planner, router, transitions and schedules, around rows in
memory."""

import asyncio
from datetime import datetime, timedelta
from random import Random
from typing import Any
from uuid import UUID

from orchestrator_agent.dispatch.agent_health import AgentHealth
from orchestrator_agent.dispatch.router import Pauses, Router
from orchestrator_agent.engine.advance import advance
from orchestrator_agent.engine.concurrency import OpenRoot, decide_concurrency
from orchestrator_agent.engine.decisions import Decisions, Rules
from orchestrator_agent.engine.due import due_event
from orchestrator_agent.engine.events import Begin, CancelRequested, Due, Expired, OriginalEnded, RunEvent
from orchestrator_agent.engine.state import Row, Run, Status
from orchestrator_agent.intake.delegation import delegation_of, known_child
from orchestrator_agent.intake.planner import Planner
from orchestrator_agent.intake.replay import REPLAY, RETRY, ReplayRequest, make_replay
from orchestrator_agent.maintenance.concurrency_keys import REPLACED, Schedules, bound_of, workflow_of
from orchestrator_agent.runtime.response_reader import received
from orchestrator_agent.runtime.wire import final_response, task_request
from orchestrator_agent.workflows.files import BUILTIN_FOLDER, load_folder
from orchestrator_agent.workflows.library import Library
from orchestrator_agent.workflows.plan import Plan
from pantheon.client.mesh import result_of
from pantheon.worker.context import TaskContext
from protocol.errors import InvalidRequest
from protocol.ids import new_id
from protocol.messages import (
    DEFAULT_TIMEOUT_SECONDS,
    ErrorInfo,
    TaskRequest,
    TaskResponse,
    parse_request,
    to_bytes,
)
from testkit.agents import Agents, LoadOnly
from testkit.clock import Clock, await_mesh
from testkit.tracked_run import TrackedRun

# As the reconciler, which finds slots at agents that no message announces (a circuit that half-opens).
SWEEP_SECONDS = 2.0


class FiredTimes:
    """The table `schedules`, in memory."""

    def __init__(self) -> None:
        self._rows: dict[str, tuple[datetime, str]] = {}

    async def last_fired(self) -> dict[str, tuple[datetime, str]]:
        return dict(self._rows)

    async def note_fired(self, workflow: str, at: datetime, definition: str) -> None:
        before = self._rows.get(workflow, (at, ""))[0]
        self._rows[workflow] = (max(at, before), definition)


class Orchestrator:
    """Applies what has happened when it is driven (`step`), and posts what is due when the clock was moved
    (`post_due`)."""

    def __init__(self, clock: Clock, rules: Rules, seed: int) -> None:
        self.clock = clock
        self.rules = rules
        self.library = Library(load_folder(BUILTIN_FOLDER))
        self.agents = Agents(clock, self._delegate)
        self._agent_health = AgentHealth(clock.seconds)
        self._random = Random(seed)
        self.router = Router(
            self.agents, self.library, self._agent_health, Pauses(), LoadOnly(self.agents), random=self._random
        )
        self._planner = Planner(self.library, self.router, rules, DEFAULT_TIMEOUT_SECONDS, random=self._random)
        self.runs: dict[UUID, TrackedRun] = {}
        self._posted: list[RunEvent] = []
        # Delegated tasks, and what their agents wait for.
        self._delegations: dict[UUID, list[asyncio.Future[TaskResponse]]] = {}
        self._fired_times = FiredTimes()
        self._schedules = self._new_schedules()
        self._next_scheduled: datetime | None = None
        self._workflows_changed = False
        self._swept_at = clock.now
        self._slots_changed = False

    # -- tasks and workflows ------------------------------------------------------------------------------------------

    def add(self, plan: Plan) -> None:
        self.library.add(plan)
        self._workflows_changed = True

    def slots_changed(self) -> None:
        """Agents may have slots that they had not before."""
        self._slots_changed = True

    def accept(self, request: TaskRequest) -> TrackedRun:
        if (known := self.runs.get(request.task_id)) is not None:
            return known
        now = self.clock.now
        original = self._original(request)
        if original is not None:
            return self._begin(request, *self._planner.duplicate(request, original, headers=None, now=now))
        return self._begin(request, *self._planner.plan(request, headers=None, now=now))

    def run_again(self, old: TrackedRun, request: ReplayRequest) -> TrackedRun:
        """A `mesh.retry` or a `mesh.replay` of a task. Raises PantheonError."""
        replayed = make_replay(request, list(old.table.records.values()), self.library)
        again = TaskRequest(task_id=new_id(), task_type=RETRY if request.retry else REPLAY)
        return self._begin(again, *self._planner.plan(again, headers=None, now=self.clock.now, replayed=replayed))

    def _begin(self, request: TaskRequest, run: Run, decisions: Decisions) -> TrackedRun:
        """A new root has been planned."""
        tracked = self.runs[run.root_task_id] = TrackedRun(request, run)
        tracked.table.accept(run, decisions)
        run.version = 1
        self._deliver(tracked, decisions)
        if run.facts.duplicate_of is not None:
            self._end_duplicate(tracked)
        elif run.root.status is Status.WAITING and run.facts.concurrency_key is not None:
            self._admit(run.facts.concurrency_key)
        return tracked

    def _original(self, request: TaskRequest) -> UUID | None:
        """The task that has a request's idempotency key."""
        if request.idempotency_key is None:
            return None
        key = (request.tenant, request.requester, request.idempotency_key)
        for tracked in self.runs.values():
            facts = tracked.run.facts
            if (facts.tenant, facts.requester, facts.idempotency_key) == key and facts.duplicate_of is None:
                return tracked.run.root_task_id
        return None

    def restart(self) -> None:
        """The orchestrator dies, another one reads every task from its rows. Agents work on meanwhile."""
        for tracked in self.runs.values():
            tracked.read_again(self.library)
        self._schedules = self._new_schedules()
        self._workflows_changed = True

    def _new_schedules(self) -> Schedules:
        return Schedules(self._fired_times, self.library, self._accept_scheduled, clock=lambda: self.clock.now)

    # -- time ---------------------------------------------------------------------------------------------------------

    def next_moment(self) -> datetime | None:
        """The earliest time at which something is due; None where nothing ever is."""
        moments = [moment for tracked in self.runs.values() for _, moment in tracked.due_moments()]
        if (wake := self.clock.next_wake()) is not None:
            moments.append(wake)
        if any(tracked.ready_rows() for tracked in self.runs.values()):
            moments.append(self._swept_at + timedelta(seconds=SWEEP_SECONDS))
        if self._next_scheduled is not None:
            moments.append(self._next_scheduled)
        return max(self.clock.now, min(moments)) if moments else None

    async def post_due(self) -> None:
        """What the reconciler does: post what is due, and start what is scheduled."""
        now = self.clock.now
        for tracked in self.runs.values():
            self._posted += [self._due(tracked.run, row) for row, moment in tracked.due_moments() if moment <= now]
        if now >= self._swept_at + timedelta(seconds=SWEEP_SECONDS):
            self.slots_changed()
        await self._start_scheduled()

    def _due(self, run: Run, row: Row) -> RunEvent:
        deadline = run.facts.deadline_at
        late = deadline is not None and deadline <= self.clock.now
        event = due_event(run.root_task_id, row.task_id, status=row.status, attempt=row.attempt, late=late)
        if isinstance(event, Expired):
            self._agent_health.responded(row.agent or "", row.task_type, None, failed=True)
        return event

    async def _start_scheduled(self) -> None:
        self._workflows_changed = False
        self._next_scheduled = await self._schedules.start_due()

    async def _accept_scheduled(self, request: TaskRequest) -> bool:
        new = request.task_id not in self.runs
        self.accept(request)
        return new

    async def step(self) -> bool:
        """Apply what has happened, assign ready rows, set agents to work; False where there was nothing to do."""
        if self._workflows_changed:
            await self._start_scheduled()
        run_events, self._posted = self._posted, []
        for run_event in run_events:
            self.apply(run_event)
        slots_changed = self._slots_changed
        if slots_changed:
            self._slots_changed, self._swept_at = False, self.clock.now
            for tracked in list(self.runs.values()):
                for row in tracked.ready_rows():
                    self.apply(Due(tracked.run.root_task_id, row.task_id))
        return self.agents.begin() or bool(run_events) or slots_changed

    # -- what happens -------------------------------------------------------------------------------------------------

    def apply(self, run_event: RunEvent) -> Decisions:
        """The engine's transition, its writes, its messages."""
        tracked = self.runs[run_event.root_task_id]
        run = tracked.run
        decisions = advance(
            run, [run_event], directory=self.router, rules=self.rules, now=self.clock.now, random=self._random
        )
        if not decisions.empty:
            tracked.table.apply(run, decisions)
        self._deliver(tracked, decisions)
        if run.root.ended and decisions.root_ended:
            self._ended(run)
        return decisions

    def _deliver(self, tracked: TrackedRun, decisions: Decisions) -> None:
        run = tracked.run
        tracked.record(decisions, self.clock.now)
        for row in decisions.responses:
            self._respond(row.task_id, final_response(row, run.facts))
        for row in decisions.dispatched.values():
            assert row.agent is not None
            self.agents.dispatch(row.agent, parse_request(task_request(run, row)), self._receive)
        for agent, task_id, attempt, _ in decisions.stopped:
            self.agents.stop(agent, task_id, attempt)

    def _receive(self, response: TaskResponse) -> None:
        self._agent_health.judge(response)
        self.slots_changed()
        self._posted.append(received(response, response.result, response.error))

    def _ended(self, run: Run) -> None:
        for tracked in list(self.runs.values()):
            if tracked.run.facts.duplicate_of == run.root_task_id:
                self._end_duplicate(tracked)
        if run.facts.concurrency_key is not None:
            self._admit(run.facts.concurrency_key)
        self._respond(run.root_task_id, final_response(run.root, run.facts))

    def _end_duplicate(self, tracked: TrackedRun) -> None:
        assert tracked.run.facts.duplicate_of is not None
        root = self.runs[tracked.run.facts.duplicate_of].root
        if root.ended and not tracked.root.ended:
            status: Any = root.status.value
            self._posted.append(OriginalEnded(tracked.run.root_task_id, status, root.result, root.error))

    def _admit(self, key: str) -> None:
        """Let roots of a concurrency key run, as many as may."""
        bound, cancel_older = bound_of(self.library.newest(workflow_of(key)))
        roots = [
            OpenRoot(tracked.run.root_task_id, tracked.root.status is Status.WAITING, tracked.run.facts.priority)
            for tracked in self.runs.values()
            if tracked.run.facts.concurrency_key == key and not tracked.root.ended
        ]
        admitted, older = decide_concurrency(roots, bound=bound, cancel_older=cancel_older)
        self._posted += [CancelRequested(task_id, REPLACED) for task_id in older]
        for task_id in admitted:
            tracked = self.runs[task_id]
            tracked.table.admit()
            tracked.read_again(self.library)
            self._posted.append(Begin(task_id))

    # -- delegation ---------------------------------------------------------------------------------------------------

    async def _delegate(self, context: TaskContext, request: TaskRequest) -> Any:
        """What `ctx.run` does: send the request, and wait for its response."""
        outcome: asyncio.Future[TaskResponse] = asyncio.get_running_loop().create_future()
        self._delegations.setdefault(request.task_id, []).append(outcome)
        self._accept_delegated(parse_request(to_bytes(request)))
        self.agents.changed.set()
        response = await await_mesh(outcome)
        if response.usage is not None:
            used = response.usage
            context.report_usage(used.input_tokens, used.output_tokens, used.cost_usd)
        return result_of(response)

    def _accept_delegated(self, request: TaskRequest) -> None:
        """A child in the tree of the task that delegates it; a root of its own, where it is none; refused, where it can
        be neither."""
        delegated = delegation_of(request, self.library)
        tracked = self.runs.get(delegated.root_task_id) if delegated is not None else None
        if delegated is None or tracked is None:
            self._respond_if_ended(self.accept(request))
            return
        run = tracked.run
        self.apply(delegated)
        if request.task_id in run.rows and not run.root.ended:
            return
        try:
            known = known_child(delegated, run)
        except InvalidRequest as error:
            refusal = self._planner.refused(request, ErrorInfo.of(error), headers=None, now=self.clock.now)
            self._respond_if_ended(self.runs.get(request.task_id) or self._begin(request, *refusal))
            return
        if known is not None and known.ended:
            self._respond(known.task_id, final_response(known, run.facts))

    def _respond_if_ended(self, tracked: TrackedRun) -> None:
        if tracked.root.ended:
            self._respond(tracked.run.root_task_id, final_response(tracked.root, tracked.run.facts))

    def _respond(self, task_id: UUID, response: bytes) -> None:
        for outcome in self._delegations.pop(task_id, ()):
            if not outcome.done():
                outcome.set_result(TaskResponse.model_validate_json(response))
