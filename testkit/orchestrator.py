"""Orchestrator: the one of a test's mesh: the engine's own planner, router and transitions around rows in memory."""

import asyncio
import contextlib
import random
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from orchestrator_agent.dispatch.agent_health import AgentHealth
from orchestrator_agent.dispatch.router import Pauses, Router
from orchestrator_agent.engine.advance import advance
from orchestrator_agent.engine.concurrency import Open, decide_concurrency
from orchestrator_agent.engine.decisions import Decisions, Rules
from orchestrator_agent.engine.events import (
    Begin,
    CancelRequested,
    DeadlinePassed,
    Due,
    Expired,
    OriginalEnded,
    RunEvent,
)
from orchestrator_agent.engine.state import Run, Status
from orchestrator_agent.intake.delegation import delegation_of
from orchestrator_agent.intake.planner import Planner
from orchestrator_agent.intake.replay import REPLAY, RETRY, Replayed, ReplayRequest, make_replay
from orchestrator_agent.maintenance.concurrency_keys import (
    REPLACED,
    bound_of,
    due_times,
    scheduled_request,
    workflow_of,
)
from orchestrator_agent.runtime.response_reader import received
from orchestrator_agent.runtime.wire import final_response, task_request
from orchestrator_agent.workflows.files import BUILTIN_FOLDER, load_folder
from orchestrator_agent.workflows.library import Library
from orchestrator_agent.workflows.plan import Plan
from pantheon.client.mesh import result_of
from pantheon.worker.context import TaskContext
from protocol.ids import new_id
from protocol.messages import DEFAULT_TIMEOUT_SECONDS, TaskRequest, TaskResponse, parse_request, to_bytes
from testkit.agents import Agents, Places
from testkit.clock import Clock, rest
from testkit.course import Course

# As the reconciler looks again for places at agents that nothing tells of (a circuit that half-opens).
LOOK_SECONDS = 2.0


class Orchestrator:
    """Does what has happened when it is told to (`step`), and posts what is due when the clock was moved (`fire`)."""

    def __init__(self, clock: Clock, rules: Rules, seed: int) -> None:
        self.clock = clock
        self.rules = rules
        self.library = Library(load_folder(BUILTIN_FOLDER))
        self.agents = Agents(clock, self._delegate)
        self._agent_health = AgentHealth(clock.seconds)
        self.router = Router(self.agents, self.library, self._agent_health, Pauses(), Places(self.agents))
        self._planner = Planner(self.library, self.router, rules, DEFAULT_TIMEOUT_SECONDS)
        self._chance = random.Random(seed)
        self.courses: dict[UUID, Course] = {}
        self._posted: list[RunEvent] = []
        self._delegations: dict[UUID, list[asyncio.Future[TaskResponse]]] = {}
        self._scheduled: dict[str, datetime] = {}
        self._looked_at = clock.now
        # Agents may have places that they had not before.
        self.look = False

    # -- tasks and workflows ------------------------------------------------------------------------------------------

    def add(self, plan: Plan) -> None:
        self.library.add(plan)
        if plan.schedule is not None:
            self._scheduled[plan.name] = self.clock.now

    def accept(self, request: TaskRequest, replayed: Replayed | None = None) -> Course:
        if (known := self.courses.get(request.task_id)) is not None:
            return known
        original = self._original(request)
        with self._drawn():
            if original is not None:
                run, decisions = self._planner.duplicate(request, original, headers=None, now=self.clock.now)
            else:
                run, decisions = self._planner.plan(request, headers=None, now=self.clock.now, replayed=replayed)
        course = self.courses[run.root_task_id] = Course(request, run)
        course.table.accept(run, decisions)
        run.version = 1
        self._deliver(course, decisions)
        if original is not None:
            self._end_duplicate(course)
        elif run.root.status is Status.WAITING and run.facts.concurrency_key is not None:
            self._take_turns(run.facts.concurrency_key)
        return course

    def _original(self, request: TaskRequest) -> UUID | None:
        if request.idempotency_key is None:
            return None
        key = (request.tenant, request.requester, request.idempotency_key)
        for course in self.courses.values():
            facts = course.run.facts
            if (facts.tenant, facts.requester, facts.idempotency_key) == key and facts.duplicate_of is None:
                return course.run.root_task_id
        return None

    def again(self, course: Course, *, from_step: str | None, keep: bool, given: Mapping[str, Any] | None) -> Course:
        """A `mesh.retry` (`keep`) or a `mesh.replay` of a task. Raises PantheonError."""
        changes = dict(given) if given else None
        wanted = ReplayRequest(course.run.root_task_id, retry=keep, from_step=from_step, input=changes)
        replayed = make_replay(wanted, list(course.table.records.values()), self.library)
        request = TaskRequest(task_id=new_id(), task_type=RETRY if keep else REPLAY)
        return self.accept(request, replayed)

    def restart(self) -> None:
        """The orchestrator dies, another one reads every task from its rows. Agents work on meanwhile."""
        for course in self.courses.values():
            course.read_again(self.library)

    # -- time ---------------------------------------------------------------------------------------------------------

    def next_moment(self) -> datetime | None:
        """The earliest time at which something is due; None where nothing ever is."""
        moments = [moment for course in self.courses.values() for moment in course.wakes()]
        if (wake := self.clock.next_wake()) is not None:
            moments.append(wake)
        looking = [row for course in self.courses.values() for row in course.looking()]
        if looking:
            moments.append(self._looked_at + timedelta(seconds=LOOK_SECONDS))
            moments += [row.expires_at for row in looking if row.expires_at is not None]
        moments += [due_times(self._plan(name), since, self.clock.now)[1] for name, since in self._scheduled.items()]
        return max(self.clock.now, min(moments)) if moments else None

    def _plan(self, name: str) -> Plan:
        plan = self.library.newest(name)
        assert plan is not None
        return plan

    def fire(self) -> None:
        """Post what is due, as the reconciler does."""
        now = self.clock.now
        for course in list(self.courses.values()):
            run = course.run
            root_task_id = run.root_task_id
            if run.root.ended:
                continue
            deadline = run.facts.deadline_at
            if deadline is not None and deadline <= now and run.root.status is not Status.COMPENSATING:
                self._posted.append(DeadlinePassed(root_task_id))
            for row in run.active():
                if row.status is Status.DISPATCHED and row.expires_at is not None and row.expires_at <= now:
                    self._agent_health.responded(row.agent or "", row.task_type, None, failed=True)
                    self._posted.append(Expired(root_task_id, row.task_id, row.attempt))
                elif row.status is Status.WAITING and row.run_after is not None and row.run_after <= now:
                    self._posted.append(Due(root_task_id, row.task_id))
        if now >= self._looked_at + timedelta(seconds=LOOK_SECONDS):
            self.look = True
        for name, since in list(self._scheduled.items()):
            plan = self._plan(name)
            assert plan.schedule is not None
            times, _ = due_times(plan, since, now)
            for time in times:
                self.accept(scheduled_request(plan, time))
            if times:
                self._scheduled[name] = times[-1]

    def step(self) -> bool:
        """Apply what has happened, look for agents, set agents to work; False where there was nothing to do."""
        run_events, self._posted = self._posted, []
        for run_event in run_events:
            self.happen(run_event)
        looked = self.look
        if looked:
            self.look, self._looked_at = False, self.clock.now
            for course in list(self.courses.values()):
                for row in course.looking():
                    self.happen(Due(course.run.root_task_id, row.task_id))
        return self.agents.begin() or bool(run_events) or looked

    # -- what happens -------------------------------------------------------------------------------------------------

    def happen(self, run_event: RunEvent) -> Decisions:
        """Apply one happening: the engine's transition, its writes, what it gives out."""
        course = self.courses[run_event.root_task_id]
        run = course.run
        with self._drawn():
            decisions = advance(run, [run_event], directory=self.router, rules=self.rules, now=self.clock.now)
        if not decisions.empty:
            course.table.apply(run, decisions)
        self._deliver(course, decisions)
        if run.root.ended and decisions.root_ended:
            self._ended(run)
        return decisions

    @contextlib.contextmanager
    def _drawn(self) -> Iterator[None]:
        """What the engine draws by chance, it draws from the mesh's seed."""
        before = random.getstate()
        random.setstate(self._chance.getstate())
        try:
            yield
        finally:
            self._chance.setstate(random.getstate())
            random.setstate(before)

    def _deliver(self, course: Course, decisions: Decisions) -> None:
        run = course.run
        course.note(decisions, self.clock.now)
        for row in decisions.answers:
            self._answer(row.task_id, final_response(row, run.facts))
        for row in decisions.dispatched.values():
            assert row.agent is not None
            self.agents.give(row.agent, parse_request(task_request(run, row)), self._answered)
        for agent, task_id, attempt, _ in decisions.stopped:
            self.agents.stop(agent, task_id, attempt)

    def _answered(self, response: TaskResponse) -> None:
        self._agent_health.judge(response)
        self.look = True
        self._posted.append(received(response, response.result, response.error))

    def _ended(self, run: Run) -> None:
        for course in list(self.courses.values()):
            if course.run.facts.duplicate_of == run.root_task_id:
                self._end_duplicate(course)
        if run.facts.concurrency_key is not None:
            self._take_turns(run.facts.concurrency_key)
        self._answer(run.root_task_id, final_response(run.root, run.facts))

    def _end_duplicate(self, course: Course) -> None:
        assert course.run.facts.duplicate_of is not None
        root = self.courses[course.run.facts.duplicate_of].root
        if root.ended and not course.root.ended:
            status: Any = root.status.value
            self._posted.append(OriginalEnded(course.run.root_task_id, status, root.result, root.error))

    def _take_turns(self, key: str) -> None:
        """Let in who is next of a concurrency key, as `ConcurrencyStore.admit` does in SQL."""
        bound, cancel_older = bound_of(self._plan(workflow_of(key)))
        roots = [
            Open(one.run.root_task_id, one.root.status is Status.WAITING, one.run.facts.priority)
            for one in self.courses.values()
            if one.run.facts.concurrency_key == key and not one.root.ended
        ]
        admitted, older = decide_concurrency(roots, bound=bound, cancel_older=cancel_older)
        self._posted += [CancelRequested(task_id, REPLACED) for task_id in older]
        for task_id in admitted:
            course = self.courses[task_id]
            course.table.admit()
            course.read_again(self.library)
            self._posted.append(Begin(task_id))

    async def _delegate(self, context: TaskContext, request: TaskRequest) -> Any:
        """What `ctx.run` does: a child in the tree of the task that gives it out, or, too late for that, a root."""
        answer: asyncio.Future[TaskResponse] = asyncio.get_running_loop().create_future()
        self._delegations.setdefault(request.task_id, []).append(answer)
        given = parse_request(to_bytes(request))
        if not self._delegated(given):
            course = self.accept(given)
            if course.root.ended:
                self._answer(given.task_id, final_response(course.root, course.run.facts))
        self.agents.changed.set()
        response = await rest(answer)
        if response.usage is not None:
            used = response.usage
            context.report_usage(used.input_tokens, used.output_tokens, used.cost_usd)
        return result_of(response)

    def _delegated(self, request: TaskRequest) -> bool:
        delegated = delegation_of(request, self.library)
        if delegated is None:
            return False
        course = self.courses.get(delegated.root_task_id)
        if course is None or course.run.root.ended:
            return False
        self.happen(delegated)
        return request.task_id in course.run.rows

    def _answer(self, task_id: UUID, response: bytes) -> None:
        for answer in self._delegations.pop(task_id, ()):
            if not answer.done():
                answer.set_result(TaskResponse.model_validate_json(response))
