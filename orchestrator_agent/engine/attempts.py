"""Attempts: rows that are given to agents, fail, and are tried again. The lowest layer of a transition."""

from collections import deque
from collections.abc import Callable
from datetime import datetime, timedelta
from random import Random

from orchestrator_agent.engine.decisions import DecisionBuilder, Directory, RouteRequest, Rules
from orchestrator_agent.engine.retry import decide_retry
from orchestrator_agent.engine.state import Role, Row, Run, Scope, Status
from protocol.errors import ErrorCode
from protocol.messages import ErrorInfo


class Attempts:
    """`step_failed` is what happens when there will be no other attempt; the layer above says."""

    def __init__(self, run: Run, directory: Directory, rules: Rules, now: datetime, random: Random) -> None:
        self.run = run
        self.directory = directory
        self.rules = rules
        self.now = now
        self.random = random
        self.ledger = DecisionBuilder(run, rules, now)
        self._to_do: deque[Callable[[], None]] = deque()
        self._doing = False

    def soon(self, act: Callable[[], None]) -> None:
        """Act now, or after what is acting: a queue and not recursion, because workflows and fan-outs that end at once
        may follow each other, or repeat, a thousand times."""
        self._to_do.append(act)
        if self._doing:
            return
        self._doing = True
        try:
            while self._to_do:
                self._to_do.popleft()()
        finally:
            self._doing = False

    def step_failed(self, row: Row, error: ErrorInfo) -> None:
        raise NotImplementedError

    def scope_failed(self, scope: Scope, error: ErrorInfo) -> None:
        raise NotImplementedError

    def within_budget(self, row: Row) -> bool:
        """Whether a row may go on; where the tree's budget is used up, the whole task ends, and the row with it.

        What undoes is not bounded.
        """
        root = self.run.scopes[self.run.root_task_id]
        if (error := self.budget_error()) is None or self.run.undoes(row):
            return True
        self.scope_failed(root, error)
        return False

    def budget_error(self) -> ErrorInfo | None:
        """What of the tree's budget is used up, if anything is."""
        budget = self.run.scopes[self.run.root_task_id].plan.budget
        if budget is None:
            return None
        usage = self.run.usage()
        tokens = usage.input_tokens + usage.output_tokens if usage is not None else 0
        cost = usage.cost_usd if usage is not None else 0.0
        tasks = len(self.run.rows) - 1
        if budget.tasks is not None and tasks > budget.tasks:
            # Signals are none. As long as all rows are within the bound, nobody counts thousands of them at each step.
            tasks = sum(1 for row in self.run.rows.values() if row.role is not Role.SIGNAL) - 1
        checks: list[tuple[str, float, float | None, bool]] = [
            ("tokens", tokens, budget.tokens, budget.tokens is not None and tokens >= budget.tokens),
            ("cost_usd", cost, budget.cost_usd, budget.cost_usd is not None and cost >= budget.cost_usd),
            ("tasks", tasks, budget.tasks, budget.tasks is not None and tasks > budget.tasks),
        ]
        for name, used, limit, exceeded in checks:
            if exceeded:
                return ErrorInfo(
                    code=ErrorCode.BUDGET_EXCEEDED,
                    message=f"the task's budget of {limit:g} {name} is used up ({used:g})",
                    details={"budget": name, "limit": limit, "used": used},
                )
        return None

    def wanted(self, row: Row) -> RouteRequest:
        return route_request_of(self.run, row)

    def place(self, row: Row) -> None:
        """Give a ready row to an agent, if there is a place for it now."""
        if not self.run.at_work:
            return
        wanted = self.wanted(row)
        placement = self.directory.place(wanted)
        if placement is None:
            self._wait(row, wanted)
            return
        row.become(Status.DISPATCHED)
        row.agent = placement.agent
        row.routing = placement.routing
        row.dispatched_at = self.now
        row.expires_at = self.now + timedelta(seconds=row.timeout_seconds)
        deadline = self.run.facts.deadline_at
        if deadline is not None and not self.run.undoes(row):
            row.expires_at = min(row.expires_at, deadline)
        self.ledger.decisions.wake_at.append(row.expires_at)
        self.ledger.change(row)
        self.ledger.decisions.dispatched[row.task_id] = row
        self.ledger.step_event("dispatched", row, agent=row.agent)

    def _wait(self, row: Row, wanted: RouteRequest) -> None:
        """Flow control: there is an end to the wait for an agent, but none to that for a place at one."""
        if row.expires_at is None:
            return
        if self.directory.served(wanted):
            row.expires_at = None
            self.ledger.change(row)
        else:
            self.ledger.decisions.wake_at.append(row.expires_at)

    def make_ready(self, row: Row) -> None:
        """Let a row that waited look for an agent; it has the whole wait for one again."""
        row.run_after = None
        row.become(Status.READY)
        row.expires_at = self.now + timedelta(seconds=self.rules.no_agent_wait_seconds)
        self.ledger.change(row)
        self.place_again(row)

    def place_again(self, row: Row) -> None:
        """Place a row that was ready before: meanwhile others may have used up the budget, or its own attempts."""
        if not self.run.at_work or self.within_budget(row):
            self.place(row)

    def attempt_failed(self, row: Row, error: ErrorInfo) -> None:
        row.failures += 1
        decision = decide_retry(
            self.run.retry_of(row),
            default_max_attempts=self.rules.default_max_attempts,
            failures=row.failures,
            error=error,
            random=self.random,
        )
        if decision.wait_seconds is None:
            self.step_failed(row, self.ledger.step_failed(row, error))
            return
        row.error = error
        row.attempt += 1
        row.become(Status.WAITING)
        row.run_after = self.now + timedelta(seconds=decision.wait_seconds)
        row.expires_at = None
        self.ledger.change(row)
        self.ledger.decisions.wake_at.append(row.run_after)
        self.ledger.step_event("retrying", row, error=error, wait_seconds=round(decision.wait_seconds, 3))

    def attempt_lost(self, row: Row) -> None:
        """Nothing can be known of an attempt: another one, which is no retry."""
        row.attempt += 1
        row.become(Status.WAITING)
        self.ledger.step_event("retrying", row, wait_seconds=0)
        self.make_ready(row)

    def no_place(self, row: Row) -> None:
        """Nobody may serve it any more: the wait for an agent begins, or is over."""
        if not self.run.at_work or (row.expires_at is not None and row.expires_at > self.now):
            return
        wanted = self.wanted(row)
        if self.directory.served(wanted):
            return
        if row.expires_at is not None:
            self.step_failed(row, self.ledger.no_agent(row, self.directory.wait_reasons(wanted)))
            return
        row.expires_at = self.now + timedelta(seconds=self.rules.no_agent_wait_seconds)
        self.ledger.change(row)
        self.ledger.decisions.wake_at.append(row.expires_at)


def route_request_of(run: Run, row: Row) -> RouteRequest:
    """What a ready row looks for."""
    facts = run.facts
    plan = run.step_plan(row)
    own = row.role is Role.STEP
    return RouteRequest(
        task_type=row.task_type,
        pinned_agent=row.pinned_agent,
        requires=plan.requires if own else None,
        sticky=row.sticky,
        avoid=row.agent if row.failures else None,
        tenant=facts.tenant,
        requester=facts.requester,
        # A task that undoes what it did begins nothing new, whatever is paused: nobody may want to wait for that.
        workflow=run.scopes[run.root_task_id].plan.name if run.root.status is not Status.COMPENSATING else None,
        task_id=row.task_id,
    )
