"""TestMesh: a whole mesh in a test: the engine itself, agents that are functions, a clock that only a test moves."""

import asyncio
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Self
from uuid import UUID

from orchestrator_agent.engine.decisions import Rules
from orchestrator_agent.engine.events import RunEvent
from orchestrator_agent.engine.state import Status
from orchestrator_agent.intake.replay import ReplayRequest
from orchestrator_agent.workflows.compiler import compile_workflow
from orchestrator_agent.workflows.files import load_file, read_workflow
from pantheon.agent import Agent
from protocol.errors import PantheonError
from protocol.ids import new_id
from protocol.messages import TaskRequest, parse_request, to_bytes
from protocol.names import EXECUTE_DAG
from protocol.workflow import Workflow
from testkit.agents import Attempt, Call, Service
from testkit.clock import MESH_WAITS, START, Clock, moment_of
from testkit.explain import explain
from testkit.handlers import handler_of
from testkit.orchestrator import Orchestrator
from testkit.task import Stuck, Task
from testkit.tracked_run import TrackedRun

# A task that waits this long in the mesh's time for an agent, while nothing else happens, waits for ever.
STUCK_AFTER = timedelta(hours=1)
# Rounds of the event loop in which nothing happens before nothing will: a future's callbacks, then what awaited it.
IDLE_ROUNDS = 4


class TestMesh:
    """`mesh.agent(...)` adds an agent, `mesh.start(...)` starts a task; time moves by `skip`, or while a result is
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
        self._orchestrator = Orchestrator(self.clock, self.rules, seed)
        self.library = self._orchestrator.library
        self.router = self._orchestrator.router
        self._agents = self._orchestrator.agents
        self._stuck_seconds = patience_seconds
        self._driving = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Run the shutdown hooks of agents that have begun."""
        await self._agents.shut_down()

    # -- agents and workflows ------------------------------------------------------------------------------------------

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
        is how often each response arrives: 2 for a duplicate, 0 for none. `name` is `<task type>_agent` by default; a
        second call for the same task type and name replaces the first one.
        """
        if isinstance(what, Agent):
            self._agents.join(what, takes=takes, responses=answers)
        else:
            declared = {**({"model": model} if model else {}), **({"tags": ",".join(tags)} if tags else {})}
            service = Service(handler_of(what, {} if outcome is None else outcome), takes, answers)
            own = name or f"{what[:57]}_agent"
            self._agents.serve(own, what, service, {**declared, **(metadata or {})}, max_concurrency)
        self._orchestrator.slots_changed()

    def remove_agent(self, name: str) -> None:
        """An agent leaves, and does not respond to what it had at work. Raises KeyError."""
        self._agents.remove(name)

    def workflow(self, definition: str | Path | Mapping[str, Any], *, name: str | None = None) -> str:
        """Add a workflow: a file's path, its text, or an object of its shape; returns its name.

        Tasks that run stay on the version that they began with. Raises InvalidWorkflow.
        """
        if isinstance(definition, Path):
            plan = load_file(definition)
        elif isinstance(definition, str):
            plan = read_workflow(definition, source="workflow", default_name=name)
        else:
            workflow = Workflow.model_validate(dict(definition))
            plan = compile_workflow(workflow, name=name or workflow.name or "workflow", versioned=True)
        self._orchestrator.add(plan)
        return plan.name

    @property
    def now(self) -> datetime:
        return self.clock.now

    @property
    def tasks(self) -> list[Task]:
        """Every root task, in the order of their acceptance: those of schedules too."""
        return [Task(self, tracked) for tracked in self._orchestrator.runs.values()]

    def calls(self, task_type: str | None = None) -> list[Call]:
        """The attempts that agents have taken up, in order."""
        return [call for call in self._agents.calls if task_type in (None, call.task_type)]

    def assert_called(self, task_type: str, times: int | None = None) -> None:
        """An agent was asked for this, so often (None: at all), attempts that failed included."""
        found = len(self.calls(task_type))
        if (times is None and not found) or (times is not None and found != times):
            expected = "at least once" if times is None else f"{times} times"
            others = ", ".join(sorted({call.task_type for call in self.calls()})) or "nothing"
            raise AssertionError(f"'{task_type}' was asked for {found} times, not {expected}; asked for was {others}")

    # -- tasks ---------------------------------------------------------------------------------------------------------

    def start(self, task_type: str, payload: Mapping[str, Any] | None = None, **options: Any) -> Task:
        """A root task, accepted now; `options` are those of `pantheon.Mesh.request`, `requester` among them."""
        fields = {name: value for name, value in options.items() if value is not None}
        task_id = fields.pop("task_id", None) or new_id()
        request = TaskRequest(task_id=task_id, task_type=task_type, payload=dict(payload or {}), **fields)
        # Through bytes: what cannot be sent, and what arrives as something else, is found here too.
        return Task(self, self._orchestrator.accept(parse_request(to_bytes(request))))

    async def run(self, task_type: str, payload: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """Start a task and wait for its result. Raises TaskFailed, TaskCancelled, Stuck."""
        return await self.start(task_type, payload, **options).result()

    async def dag(self, steps: Mapping[str, Any], input: Mapping[str, Any] | None = None, **more: Any) -> Any:  # noqa: A002
        """Run an inline graph, `execute_dag`; `more` is what else its payload holds: `output`, `budget`, `timeout`."""
        return await self.run(EXECUTE_DAG, {"steps": dict(steps), "input": dict(input or {}), **more})

    def run_again(self, tracked: TrackedRun, request: ReplayRequest) -> Task:
        """A `mesh.retry` or a `mesh.replay` of a task. Raises PantheonError."""
        return Task(self, self._orchestrator.run_again(tracked, request))

    # -- time ----------------------------------------------------------------------------------------------------------

    async def settle(self) -> None:
        """Let everything happen that can without time passing."""
        async with self._driving:
            await self._settle()

    async def skip(self, duration: timedelta | float | str) -> None:
        """Let time pass, and what is due in it happen when it is: `90`, `"2h"`, a timedelta."""
        async with self._driving:
            end = moment_of(self.clock, duration)
            await self._settle()
            while (moment := self._orchestrator.next_moment()) is not None and moment <= end:
                await self._move(moment)
            await self._move(end)

    async def skip_to(self, moment: datetime) -> None:
        await self.skip(max(timedelta(0), moment - self.now))

    async def outage(self, duration: timedelta | float | str) -> None:
        """No orchestrator is there for so long: then another one reads the rows, and finds all that is overdue."""
        async with self._driving:
            await self._settle()
            self._orchestrator.restart()
            await self._move(moment_of(self.clock, duration))

    def restart(self) -> None:
        """The orchestrator dies, another one reads every task from its rows. Agents work on meanwhile."""
        self._orchestrator.restart()

    async def sleep(self, duration: float | str) -> None:
        """For an agent's function: be busy for so long, in the mesh's time. A test itself lets it pass."""
        if MESH_WAITS.get() is None:
            await self.skip(duration)
        else:
            await self.clock.sleep(duration)

    async def until_ended(self, tracked: TrackedRun, within: timedelta | float | str) -> None:
        """Let time pass until a task has ended. Raises Stuck where it never will, or not `within` this time."""
        async with self._driving:
            end = moment_of(self.clock, within)
            progressed, mark = self.clock.now, -1
            await self._settle()
            while not tracked.root.ended:
                if len(tracked.events) != mark:
                    progressed, mark = self.clock.now, len(tracked.events)
                moment = self._orchestrator.next_moment()
                timers = any(row.status is not Status.READY for row, _ in tracked.due_moments())
                own = timers or tracked.root.status is Status.WAITING
                working = any(row.status is Status.DISPATCHED for row in tracked.run.active())
                grace = timedelta(0) if not tracked.ready_rows() and not own and not working else STUCK_AFTER
                stuck = not own and not working and self.clock.now - progressed >= grace
                if moment is None or stuck or moment > end:
                    why = "will never end" if moment is None or stuck else f"has not ended within {within}"
                    raise Stuck(f"{Task(self, tracked)!r} {why}:\n{self.explain(tracked)}")
                await self._move(moment)

    async def _move(self, moment: datetime) -> None:
        self.clock.move_to(moment)
        # Responses that are sent at a moment come before the end of the time for them.
        await self._settle()
        await self._orchestrator.post_due()
        await self._settle()

    async def _settle(self) -> None:
        idle = 0
        while idle < IDLE_ROUNDS:
            if self._agents.crashed:
                raise self._agents.crashed.pop(0)
            if await self._orchestrator.step():
                idle = 0
                continue
            if busy := self._agents.busy():
                await self._wait_for(busy)
                idle = 0
                continue
            idle += 1
            await asyncio.sleep(0)

    async def _wait_for(self, busy: list[Attempt]) -> None:
        """Until an agent has responded, or waits for what only the mesh can bring."""
        self._agents.changed.clear()
        changed: asyncio.Future[Any] = asyncio.ensure_future(self._agents.changed.wait())
        works = [attempt.work for attempt in busy if attempt.work is not None]
        done, _ = await asyncio.wait(
            [changed, *works], timeout=self._stuck_seconds, return_when=asyncio.FIRST_COMPLETED
        )
        changed.cancel()
        if not done:
            raise Stuck(
                f"the agent of {busy[0]} has done nothing for {self._stuck_seconds:g} s of real time: let it "
                "answer, or wait in the mesh's time (`takes=`, `await mesh.sleep(...)`, NO_ANSWER)"
            )

    # -- operations on the whole mesh ----------------------------------------------------------------------------------

    def pause(self, *, agent: str | None = None, workflow: str | None = None) -> None:
        """As `mesh.pause` of an agent or of a workflow: it gets nothing new."""
        for kind, name in (("agent", agent), ("workflow", workflow)):
            if name is not None:
                self.router.pauses.add(kind, name)

    def resume(self, *, agent: str | None = None, workflow: str | None = None) -> None:
        for kind, name in (("agent", agent), ("workflow", workflow)):
            if name is not None:
                self.router.pauses.remove(kind, name)
        self._orchestrator.slots_changed()

    async def operate(self, tracked: TrackedRun, run_event: RunEvent, operation: UUID) -> dict[str, Any]:
        """The outcome of an operation. All that can happen before it happens before it, then what it brings about.

        Raises PantheonError for a refusal.
        """
        async with self._driving:
            await self._settle()
            outcome = self._orchestrator.apply(run_event).outcomes.get(operation)
            await self._settle()
        if isinstance(outcome, dict):
            return outcome
        refused = PantheonError(outcome.message if outcome is not None else f"{Task(self, tracked)!r} cannot be told")
        if outcome is not None:
            refused.code, refused.details = outcome.code, outcome.details or {}
        raise refused

    def explain(self, tracked: TrackedRun) -> str:
        lines = explain(tracked, self.router) or ["nothing is at work in it"]
        return "\n".join(f"  {line}" for line in lines)
