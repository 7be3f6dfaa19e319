"""Transitions: what happened to runs is decided, written in one transaction, and published."""

from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Any, Protocol
from uuid import UUID

import structlog

from orchestrator_agent.dispatch.router import Router
from orchestrator_agent.engine.advance import advance
from orchestrator_agent.engine.decisions import Decisions, Rules
from orchestrator_agent.engine.events import Broken, Delegated, RunEvent
from orchestrator_agent.engine.state import Run
from orchestrator_agent.runtime.duplicates import Duplicates
from orchestrator_agent.runtime.evaluations import LongEvaluation, apart_from_the_loop, bounded
from orchestrator_agent.runtime.outbox import Outbox
from orchestrator_agent.runtime.republisher import Republisher
from orchestrator_agent.runtime.run_cache import RunCache
from orchestrator_agent.store.availability import retry_until_available, retry_write
from orchestrator_agent.store.tasks import PoisonedBatch, TaskStore
from protocol.errors import ErrorCode
from protocol.messages import ErrorInfo, now

log = structlog.get_logger()

# What happened to some roots, by root, and the outcomes of it, by operation or delegated task.
Happened = dict[UUID, list[RunEvent]]
Outcomes = dict[UUID, Any]


class KeyAdmission(Protocol):
    """See `maintenance.concurrency_keys.ConcurrencyKeys`."""

    def ask(self, key: str) -> None:
        """Have the next roots of a concurrency key admitted."""


class Transitions:
    """The version in each root's row settles races: a process that lost one decides again on fresh rows."""

    def __init__(
        self,
        *,
        store: TaskStore,
        runs: RunCache,
        router: Router,
        rules: Rules,
        outbox: Outbox,
        republisher: Republisher,
        duplicates: Duplicates,
        concurrency_keys: KeyAdmission,
    ) -> None:
        self._store = store
        self._runs = runs
        self._router = router
        self._rules = rules
        self._outbox = outbox
        self._republisher = republisher
        self._duplicates = duplicates
        self._concurrency_keys = concurrency_keys
        self._random = Random()

    async def apply(self, happened: Happened, outcomes: Outcomes, *, long: list[UUID] | None = None) -> Happened:
        """Decide and write; returns what must be decided again because another process was faster.

        Roots whose expressions would keep the event loop are added to `long` and left undecided; without `long`, they
        are decided apart from the loop, and the whole batch waits for them.
        """
        batch, unmoved = await self._decide(happened, outcomes, long)
        outdated = await retry_until_available(self._runs.drop_outdated, unmoved) if unmoved else []
        lost: Happened = {root_task_id: happened[root_task_id] for root_task_id in outdated}
        if not batch:
            return lost
        try:
            written, doubtful = await retry_write(self._store.apply, batch)
        except PoisonedBatch as error:
            for run, _ in batch:
                self._runs.drop(run.root_task_id)
            refused = {run.root_task_id: happened[run.root_task_id] for run, _ in batch}
            return lost | await self._isolate(refused, error, outcomes)
        ended: list[UUID] = []
        for run, decisions in batch:
            if run.root_task_id not in written:
                self._runs.drop(run.root_task_id)
                lost[run.root_task_id] = happened[run.root_task_id]
                continue
            run.version += 1
            if run.root.ended:
                self._runs.drop(run.root_task_id)
                if run.facts.idempotency_key is not None:
                    ended.append(run.root_task_id)
                if run.facts.concurrency_key is not None:
                    self._concurrency_keys.ask(run.facts.concurrency_key)
            else:
                self._runs.weigh(run, (*decisions.made, *decisions.changed.values()))
            await self._outbox.deliver(run, decisions)
        if doubtful and (unconfirmed := [run.root_task_id for run, _ in batch if run.root_task_id not in written]):
            # Moved on by another process, or by the try whose commit was not confirmed: that one only this process
            # publishes.
            await self._republisher.republish_roots(unconfirmed)
        if ended:
            await self._duplicates.end_those_of(ended)
        return lost

    async def _decide(
        self, happened: Happened, outcomes: Outcomes, long: list[UUID] | None
    ) -> tuple[list[tuple[Run, Decisions]], list[Run]]:
        """The runs with what is decided on them, and those that nothing happened to."""
        runs, broken = await retry_until_available(self._runs.load, list(happened))
        decide = partial(advance, directory=self._router, rules=self._rules, now=now(), random=self._random)
        batch: list[tuple[Run, Decisions]] = []
        unmoved: list[Run] = []
        for root_task_id, run in runs.items():
            run_events = happened[root_task_id]
            if root_task_id in broken and not run.root.ended:
                run_events = [Broken(root_task_id, ErrorInfo.of(broken[root_task_id]))]
            try:
                with bounded():
                    decisions = decide(run, run_events)
            except LongEvaluation:
                # What was decided so far is thrown away with the run.
                self._runs.drop(root_task_id)
                if long is not None:
                    long.append(root_task_id)
                    continue
                run, decisions = await self._decide_apart(root_task_id, run_events, decide)
            except Exception as error:
                decisions = await self._give_up(run, error)
                run = self._runs.cached(root_task_id) or run
            outcomes.update(decisions.outcomes)
            for run_event in run_events:
                if isinstance(run_event, Delegated):
                    outcomes[run_event.task_id] = run_event.task_id in run.rows
            if decisions.empty:
                unmoved.append(run)
                # A child that has ended was delegated again: its response is published again.
                for row in decisions.responses:
                    await self._outbox.deliver(run, Decisions(responses=[row]))
            else:
                batch.append((run, decisions))
        return batch, unmoved

    async def _decide_apart(
        self, root_task_id: UUID, run_events: Sequence[RunEvent], decide: Callable[[Run, Sequence[RunEvent]], Decisions]
    ) -> tuple[Run, Decisions]:
        runs, _ = await retry_until_available(self._runs.load, [root_task_id])
        run = runs[root_task_id]
        try:
            return run, await apart_from_the_loop(partial(decide, run, run_events))
        except Exception as error:
            decisions = await self._give_up(run, error)
            return self._runs.cached(root_task_id) or run, decisions

    async def _give_up(self, run: Run, error: Exception) -> Decisions:
        """A transition raised: the run as the database has it ends with that error, rather than waiting for ever."""
        log.exception("advance.failed", task_id=str(run.root_task_id))
        self._runs.drop(run.root_task_id)
        runs, _ = await retry_until_available(self._runs.load, [run.root_task_id])
        message = f"the orchestrator could not go on with this task: {type(error).__name__}: {error}"
        reason = ErrorInfo(code=ErrorCode.INTERNAL_ERROR, message=message)
        fresh = runs[run.root_task_id]
        return advance(
            fresh,
            [Broken(run.root_task_id, reason)],
            directory=self._router,
            rules=self._rules,
            now=now(),
            random=self._random,
        )

    async def _isolate(self, happened: Happened, error: PoisonedBatch, outcomes: Outcomes) -> Happened:
        """Postgres refused a batch for something in it: one root at a time, the culprit fails alone."""
        if len(happened) > 1:
            lost: Happened = {}
            for root_task_id, run_events in happened.items():
                lost |= await self.apply({root_task_id: run_events}, outcomes)
            return lost
        (root_task_id, run_events) = next(iter(happened.items()))
        log.error("apply.poisoned", task_id=str(root_task_id), error=str(error))
        if any(isinstance(run_event, Broken) for run_event in run_events):
            return {}
        message = f"the database refused the outcome: {error}"
        return {root_task_id: [Broken(root_task_id, ErrorInfo(code=ErrorCode.INTERNAL_ERROR, message=message))]}
