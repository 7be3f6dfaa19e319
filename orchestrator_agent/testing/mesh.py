"""TestMesh: a whole mesh in a test: the engine itself, agents that are functions, a clock that only a test moves."""

import asyncio
import contextlib
import json
import random
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Self
from uuid import UUID

from orchestrator_agent.engine.advance import advance
from orchestrator_agent.engine.decisions import Decisions, Rules
from orchestrator_agent.engine.events import (
    Answered,
    Begin,
    CancelRequested,
    DeadlinePassed,
    Delegated,
    Due,
    Expired,
    Happening,
    OriginalEnded,
)
from orchestrator_agent.engine.state import Run, Status
from orchestrator_agent.engine.turn import Open, decide_turns
from orchestrator_agent.intake import Planner, Replayed
from orchestrator_agent.routing import Pauses, Router
from orchestrator_agent.standing import Standings
from orchestrator_agent.testing.agents import Agents, Call, Places, Service, handler_of
from orchestrator_agent.testing.clock import RESTING, START, Clock, moment_of, rest
from orchestrator_agent.testing.course import Course, explain
from orchestrator_agent.testing.task import Stuck, Task
from orchestrator_agent.turns import REPLACED, bound_of, due_times, scheduled_request, workflow_of
from orchestrator_agent.wire import final_response, task_request
from orchestrator_agent.workflows.compiler import compile_workflow
from orchestrator_agent.workflows.files import BUILTIN_FOLDER, load_file, load_folder, read_workflow
from orchestrator_agent.workflows.library import Library
from orchestrator_agent.workflows.plan import Plan
from pantheon.agent import Agent
from pantheon.client import result_of
from pantheon.context import TaskContext
from protocol.errors import PantheonError
from protocol.ids import new_id
from protocol.messages import DEFAULT_TIMEOUT_SECONDS, TaskRequest, TaskResponse, parse_request, to_bytes
from protocol.names import EXECUTE_DAG
from protocol.workflow import Workflow

# As the reconciler looks again for places at agents that nothing tells of (a circuit that half-opens).
LOOK_SECONDS = 2.0
# Whoever waits this long in the mesh's time for an agent, while nothing else happens, waits for ever.
STUCK_AFTER = timedelta(hours=1)
# Turns of the loop in which nothing happens before nothing will: a future's callbacks, then who waited for it.
QUIET_TURNS = 4


class TestMesh:
    """`mesh.agent(...)` says who is there, `mesh.start(...)` a task; time moves by `skip`, or while a result is
    awaited and nothing else can happen.

    `start` is when the clock begins; `seed` draws what chance decides (jitter of retries, the choice among equal
    agents); `no_agent_wait_seconds` and `max_attempts` are the mesh's settings. `patience_seconds` of real time is how
    long an agent's function may take that waits for something outside of the mesh.
    """

    __test__ = False

    def __init__(
        self,
        *,
        start: datetime = START,
        seed: int = 0,
        no_agent_wait_seconds: float = 30.0,
        max_attempts: int = 4,
        patience_seconds: float = 10.0,
    ) -> None:
        self.clock = Clock(start)
        self.rules = Rules(default_max_attempts=max_attempts, no_agent_wait_seconds=no_agent_wait_seconds)
        self.library = Library(load_folder(BUILTIN_FOLDER))
        self._agents = Agents(self.clock, self._delegate)
        self._standings = Standings(self.clock.seconds)
        self.router = Router(self._agents, self.library, self._standings, Pauses(), Places(self._agents))
        self._planner = Planner(self.library, self.router, self.rules, DEFAULT_TIMEOUT_SECONDS)
        self._patience_seconds = patience_seconds
        self._chance = random.Random(seed)
        self._courses: dict[UUID, Course] = {}
        self._happenings: list[Happening] = []
        self._delegations: dict[UUID, list[asyncio.Future[TaskResponse]]] = {}
        self._scheduled: dict[str, datetime] = {}
        self._looked_at = self.clock.now
        self._look = False
        self._driving = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Run the shutdown hooks of agents that have begun."""
        await self._agents.shut_down()

    # -- who and what is there ----------------------------------------------------------------------------------------

    def agent(
        self,
        what: str | Agent,
        outcome: Any = None,
        *,
        name: str | None = None,
        takes: float | str = 0,
        answers: int = 1,
        model: str | None = None,
        tags: tuple[str, ...] = (),
        metadata: Mapping[str, str] | None = None,
        max_concurrency: int = 10,
    ) -> None:
        """An agent serves a task type with a function, or an Agent all of its own.

        `outcome` is a function of nothing, of the payload, or of payload and context (plain or async); an exception, to
        be raised; NO_ANSWER; or the result itself. `takes` is how long each attempt lasts in the mesh's time. `answers`
        is how often each answer arrives: 2 for a duplicate, 0 for none. `name` is `<task type>_agent` by default; a
        second call for the same task type and name takes the first one's place.
        """
        if isinstance(what, Agent):
            self._agents.join(what, takes=takes, answers=answers)
        else:
            told = {**({"model": model} if model else {}), **({"tags": ",".join(tags)} if tags else {})}
            service = Service(handler_of(what, {} if outcome is None else outcome), takes, answers)
            own = name or f"{what[:57]}_agent"
            self._agents.serve(own, what, service, {**told, **(metadata or {})}, max_concurrency)
        self._look = True

    def remove_agent(self, name: str) -> None:
        """An agent leaves; what it had at work is not answered. Raises KeyError."""
        self._agents.remove(name)

    def workflow(self, definition: str | Path | Mapping[str, Any], *, name: str | None = None) -> str:
        """Put in a workflow: a file's path, its text, or an object of its shape; returns its name.

        Tasks that run stay on the version that they began with. Raises InvalidWorkflow.
        """
        if isinstance(definition, Path):
            plan = load_file(definition)
        elif isinstance(definition, str):
            plan = read_workflow(definition, source="workflow", default_name=name)
        else:
            given = Workflow.model_validate(dict(definition))
            plan = compile_workflow(given, name=name or given.name or "workflow", versioned=True)
        self.library.add(plan)
        if plan.schedule is not None:
            self._scheduled[plan.name] = self.clock.now
        return plan.name

    @property
    def now(self) -> datetime:
        return self.clock.now

    @property
    def tasks(self) -> list[Task]:
        """Every root task, in the order of their acceptance: those of schedules too."""
        return [Task(self, course) for course in self._courses.values()]

    def calls(self, task_type: str | None = None) -> list[Call]:
        """The attempts that agents have taken up, in order."""
        return [call for call in self._agents.calls if task_type in (None, call.task_type)]

    def assert_called(self, task_type: str, times: int | None = None) -> None:
        """An agent was asked for this, so often (None: at all), attempts that failed included."""
        found = len(self.calls(task_type))
        if (times is None and not found) or (times is not None and found != times):
            wanted = "at least once" if times is None else f"{times} times"
            others = ", ".join(sorted({call.task_type for call in self.calls()})) or "nothing"
            raise AssertionError(f"'{task_type}' was asked for {found} times, not {wanted}; asked for was {others}")

    # -- tasks --------------------------------------------------------------------------------------------------------

    def start(self, task_type: str, payload: Mapping[str, Any] | None = None, **options: Any) -> Task:
        """A root task, accepted now; `options` are those of `pantheon.Mesh.request`, `requester` among them."""
        given = {name: value for name, value in options.items() if value is not None}
        request = TaskRequest(
            task_id=given.pop("task_id", None) or new_id(), task_type=task_type, payload=dict(payload or {}), **given
        )
        # Through bytes: what cannot be sent, and what arrives as something else, is found here too.
        return Task(self, self._accept(parse_request(to_bytes(request))))

    async def run(self, task_type: str, payload: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """Start a task and wait for its result. Raises TaskFailed, TaskCancelled, Stuck."""
        return await self.start(task_type, payload, **options).result()

    async def dag(self, steps: Mapping[str, Any], input: Mapping[str, Any] | None = None, **more: Any) -> Any:  # noqa: A002
        """Run an inline graph, `execute_dag`; `more` is what else its payload holds: `output`, `budget`, `timeout`."""
        return await self.run(EXECUTE_DAG, {"steps": dict(steps), "input": dict(input or {}), **more})

    def _accept(self, request: TaskRequest, replayed: Replayed | None = None) -> Course:
        if (known := self._courses.get(request.task_id)) is not None:
            return known
        original = self._original(request)
        with self._drawn():
            if original is not None:
                run, decisions = self._planner.duplicate(request, original, headers=None, now=self.now)
            else:
                run, decisions = self._planner.plan(request, headers=None, now=self.now, replayed=replayed)
        course = self._courses[run.root_task_id] = Course(request, run)
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
        for course in self._courses.values():
            facts = course.run.facts
            if (facts.tenant, facts.requester, facts.idempotency_key) == key and facts.duplicate_of is None:
                return course.run.root_task_id
        return None

    def again(self, course: Course, *, from_step: str | None, keep: bool, given: Mapping[str, Any] | None) -> Task:
        """A `mesh.retry` (`keep`) or a `mesh.replay` of a task. Raises PantheonError."""
        root = course.table.root
        if keep and root["status"] not in (Status.FAILED, Status.CANCELLED):
            raise PantheonError(f"the task is {root['status']}: only a failed or cancelled one can be retried")
        payload = json.loads(root["payload"] or "{}")
        if given and root["task_type"] == EXECUTE_DAG:
            payload["input"] = {**(payload.get("input") or {}), **given}
        else:
            payload |= given or {}
        request = TaskRequest(task_id=new_id(), task_type="mesh.retry" if keep else "mesh.replay")
        steps = [row for row in course.table.rows() if row.parent_task_id == course.run.root_task_id]
        replayed = Replayed(
            task_id=course.run.root_task_id,
            task_type=root["task_type"],
            payload=payload,
            plan=course.table.plan(self.library),
            workflow_version=root["workflow_version"],
            steps=steps,
            from_step=from_step,
            timeout_seconds=root["timeout_seconds"],
            keep_completed=keep,
        )
        return Task(self, self._accept(request, replayed))

    # -- time ---------------------------------------------------------------------------------------------------------

    async def settle(self) -> None:
        """Let everything happen that can without time passing."""
        async with self._driving:
            await self._settle()

    async def skip(self, duration: timedelta | float | str) -> None:
        """Let time pass, and what is due in it happen when it is: `90`, `"2h"`, a timedelta."""
        async with self._driving:
            end = moment_of(self.clock, duration)
            await self._settle()
            while (moment := self._next_moment()) is not None and moment <= end:
                await self._move(moment)
            await self._move(end)

    async def skip_to(self, moment: datetime) -> None:
        await self.skip(max(timedelta(0), moment - self.now))

    async def outage(self, duration: timedelta | float | str) -> None:
        """No orchestrator is there for so long: then another one reads the rows, and finds all that is overdue."""
        async with self._driving:
            await self._settle()
            self.restart()
            await self._move(moment_of(self.clock, duration))

    def restart(self) -> None:
        """The orchestrator dies, another one reads every task from its rows. Agents work on meanwhile."""
        for course in self._courses.values():
            course.read_again(self.library)

    async def sleep(self, duration: float | str) -> None:
        """For an agent's function: be busy for so long, in the mesh's time. A test itself lets it pass."""
        if RESTING.get() is None:
            await self.skip(duration)
        else:
            await self.clock.sleep(duration)

    async def until_ended(self, course: Course, within: timedelta | float | str) -> None:
        """Let time pass until a task has ended. Raises Stuck where it never will, or not `within` this time."""
        async with self._driving:
            end = moment_of(self.clock, within)
            progressed, mark = self.clock.now, -1
            await self._settle()
            while not course.root.ended:
                if len(course.said) != mark:
                    progressed, mark = self.clock.now, len(course.said)
                moment = self._next_moment()
                own = any(True for _ in course.wakes()) or course.root.status is Status.WAITING
                working = any(row.status is Status.DISPATCHED for row in course.run.active())
                patience = timedelta(0) if not course.looking() and not own and not working else STUCK_AFTER
                stuck = not own and not working and self.clock.now - progressed >= patience
                if moment is None or stuck or moment > end:
                    why = "will never end" if moment is None or stuck else f"has not ended within {within}"
                    raise Stuck(f"{Task(self, course)!r} {why}:\n{self.explain(course)}")
                await self._move(moment)

    async def _move(self, moment: datetime) -> None:
        self.clock.move_to(moment)
        # Answers that are given at a moment come before the end of the time for them.
        await self._settle()
        self._fire()
        await self._settle()

    def _next_moment(self) -> datetime | None:
        moments = [moment for course in self._courses.values() for moment in course.wakes()]
        if (wake := self.clock.next_wake()) is not None:
            moments.append(wake)
        looking = [row for course in self._courses.values() for row in course.looking()]
        if looking:
            moments.append(self._looked_at + timedelta(seconds=LOOK_SECONDS))
            moments += [row.expires_at for row in looking if row.expires_at is not None]
        moments += [due_times(self._plan(name), since, self.now)[1] for name, since in self._scheduled.items()]
        return max(self.now, min(moments)) if moments else None

    def _plan(self, name: str) -> Plan:
        plan = self.library.newest(name)
        assert plan is not None
        return plan

    def _fire(self) -> None:
        """Post what is due, as the reconciler does."""
        now = self.clock.now
        for course in list(self._courses.values()):
            run = course.run
            root_task_id = run.root_task_id
            if run.root.ended:
                continue
            deadline = run.facts.deadline_at
            if deadline is not None and deadline <= now and run.root.status is not Status.COMPENSATING:
                self._happenings.append(DeadlinePassed(root_task_id))
            for row in run.active():
                if row.status is Status.DISPATCHED and row.expires_at is not None and row.expires_at <= now:
                    self._standings.answered(row.agent or "", row.task_type, None, failed=True)
                    self._happenings.append(Expired(root_task_id, row.task_id, row.attempt))
                elif row.status is Status.WAITING and row.run_after is not None and row.run_after <= now:
                    self._happenings.append(Due(root_task_id, row.task_id))
        if now >= self._looked_at + timedelta(seconds=LOOK_SECONDS):
            self._look = True
        for name, since in list(self._scheduled.items()):
            plan = self._plan(name)
            assert plan.schedule is not None
            times, _ = due_times(plan, since, now)
            for time in times:
                self._start_scheduled(plan, time)
            if times:
                self._scheduled[name] = times[-1]

    def _start_scheduled(self, plan: Plan, time: datetime) -> None:
        self._accept(scheduled_request(plan, time))

    async def _settle(self) -> None:
        quiet = 0
        while quiet < QUIET_TURNS:
            if self._agents.crashed:
                raise self._agents.crashed.pop(0)
            if self._step():
                quiet = 0
                continue
            if busy := self._agents.busy():
                await self._wait_for(busy)
                quiet = 0
                continue
            quiet += 1
            await asyncio.sleep(0)

    def _step(self) -> bool:
        """Apply what has happened, look for agents, set agents to work; False where there was nothing to do."""
        happenings, self._happenings = self._happenings, []
        for happening in happenings:
            self.happen(happening)
        looked = self._look
        if looked:
            self._look, self._looked_at = False, self.clock.now
            for course in list(self._courses.values()):
                for row in course.looking():
                    self.happen(Due(course.run.root_task_id, row.task_id))
        return self._agents.begin() or bool(happenings) or looked

    async def _wait_for(self, busy: list[Any]) -> None:
        """Until an agent has answered, or waits for what only the mesh can bring."""
        self._agents.changed.clear()
        waiting: list[asyncio.Future[Any]] = [asyncio.ensure_future(self._agents.changed.wait())]
        waiting += [one.work for one in busy]
        done, _ = await asyncio.wait(waiting, timeout=self._patience_seconds, return_when=asyncio.FIRST_COMPLETED)
        waiting[0].cancel()
        if not done:
            raise Stuck(
                f"the agent of {busy[0].shown} has done nothing for {self._patience_seconds:g} s of real time: let it "
                "answer, or wait in the mesh's time (`takes=`, `await mesh.sleep(...)`, NO_ANSWER)"
            )

    # -- what happens -------------------------------------------------------------------------------------------------

    def happen(self, happening: Happening) -> Decisions:
        """Apply one happening: the engine's transition, its writes, what it gives out."""
        course = self._courses[happening.root_task_id]
        run = course.run
        was_waiting = run.root.status is Status.WAITING
        with self._drawn():
            decisions = advance(run, [happening], directory=self.router, rules=self.rules, now=self.clock.now)
        if not decisions.empty:
            course.table.apply(run, decisions)
        self._deliver(course, decisions)
        if run.root.ended and decisions.root_ended:
            self._ended(run, was_waiting=was_waiting)
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
            self._agents.give(row.agent, parse_request(task_request(run, row)), self._answered)
        for agent, task_id, attempt, _ in decisions.stopped:
            self._agents.stop(agent, task_id, attempt)

    def _answered(self, response: TaskResponse) -> None:
        self._standings.judge(response)
        self._look = True
        self._happenings.append(
            Answered(
                root_task_id=response.root_task_id,
                task_id=response.task_id,
                attempt=response.attempt,
                status=response.status,
                result=response.result,
                error=response.error,
                usage=response.usage,
                instance_id=response.instance_id,
            )
        )

    def _ended(self, run: Run, *, was_waiting: bool) -> None:
        for course in list(self._courses.values()):
            if course.run.facts.duplicate_of == run.root_task_id:
                self._end_duplicate(course)
        if run.facts.concurrency_key is not None:
            self._take_turns(run.facts.concurrency_key)
        self._answer(run.root_task_id, final_response(run.root, run.facts))

    def _end_duplicate(self, course: Course) -> None:
        assert course.run.facts.duplicate_of is not None
        root = self._courses[course.run.facts.duplicate_of].root
        if root.ended and not course.root.ended:
            status: Any = root.status.value
            self._happenings.append(OriginalEnded(course.run.root_task_id, status, root.result, root.error))

    def _take_turns(self, key: str) -> None:
        """Let in who is next of a concurrency key, as `Reader.admit` does in SQL."""
        bound, cancel_older = bound_of(self._plan(workflow_of(key)))
        roots = [
            Open(one.run.root_task_id, one.root.status is Status.WAITING, one.run.facts.priority)
            for one in self._courses.values()
            if one.run.facts.concurrency_key == key and not one.root.ended
        ]
        admitted, older = decide_turns(roots, bound=bound, cancel_older=cancel_older)
        self._happenings += [CancelRequested(task_id, REPLACED) for task_id in older]
        for task_id in admitted:
            course = self._courses[task_id]
            course.table.admit()
            course.read_again(self.library)
            self._happenings.append(Begin(task_id))

    async def _delegate(self, context: TaskContext, request: TaskRequest) -> Any:
        """What `ctx.run` does: a child in the tree of the task that gives it out, or, too late for that, a root."""
        answer: asyncio.Future[TaskResponse] = asyncio.get_running_loop().create_future()
        self._delegations.setdefault(request.task_id, []).append(answer)
        given = parse_request(to_bytes(request))
        if not self._delegated(given):
            course = self._accept(given)
            if course.root.ended:
                self._answer(given.task_id, final_response(course.root, course.run.facts))
        self._agents.changed.set()
        response = await rest(answer)
        if response.usage is not None:
            used = response.usage
            context.report_usage(used.input_tokens, used.output_tokens, used.cost_usd)
        return result_of(response)

    def _delegated(self, request: TaskRequest) -> bool:
        root, parent = request.root_task_id, request.parent_task_id
        if root not in self._courses or parent is None or self._courses[root].root.ended:
            return False
        try:
            plan = self.library.newest(request.task_type) or self.library.single(request.task_type)
            payload = request.payload
            if request.task_type == EXECUTE_DAG:
                plan, payload = self.library.inline(request.payload)
        except PantheonError:
            return False
        named = "timeout_seconds" in request.model_fields_set
        timeout = request.timeout_seconds if named else None
        self.happen(Delegated(root, parent, request.task_id, request.task_type, payload, plan, timeout_seconds=timeout))
        return request.task_id in self._courses[root].run.rows

    def _answer(self, task_id: UUID, response: bytes) -> None:
        for answer in self._delegations.pop(task_id, ()):
            if not answer.done():
                answer.set_result(TaskResponse.model_validate_json(response))

    # -- operations on the whole mesh ---------------------------------------------------------------------------------

    def pause(self, *, agent: str | None = None, workflow: str | None = None) -> None:
        """As `mesh.pause` of an agent or of a workflow: it gets nothing new."""
        for kind, name in (("agent", agent), ("workflow", workflow)):
            if name is not None:
                self.router.pauses.add(kind, name)

    def resume(self, *, agent: str | None = None, workflow: str | None = None) -> None:
        for kind, name in (("agent", agent), ("workflow", workflow)):
            if name is not None:
                self.router.pauses.remove(kind, name)
        self._look = True

    async def operate(self, course: Course, happening: Happening, operation: UUID) -> dict[str, Any]:
        """What an operation is told. All that can happen before it happens before it, then what it brings about.

        Raises PantheonError for a refusal.
        """
        async with self._driving:
            await self._settle()
            outcome = self.happen(happening).outcomes.get(operation)
            await self._settle()
        if isinstance(outcome, dict):
            return outcome
        refused = PantheonError(outcome.message if outcome is not None else f"{Task(self, course)!r} cannot be told")
        if outcome is not None:
            refused.code, refused.details = outcome.code, outcome.details or {}
        raise refused

    def explain(self, course: Course) -> str:
        lines = explain(course, self.router) or ["nothing is at work in it"]
        return "\n".join(f"  {line}" for line in lines)
