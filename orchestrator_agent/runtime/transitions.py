"""Transitions: what happened to runs is decided, written in one transaction, and made known."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from uuid import UUID

import structlog

from orchestrator_agent.dispatch.router import Router
from orchestrator_agent.engine.advance import advance
from orchestrator_agent.engine.decisions import Decisions, Rules
from orchestrator_agent.engine.events import Broken, Delegated, RunEvent
from orchestrator_agent.engine.state import Run
from orchestrator_agent.intake.acceptance import Acceptance
from orchestrator_agent.runtime.outbox import Outbox
from orchestrator_agent.runtime.republisher import Republisher
from orchestrator_agent.runtime.run_cache import RunCache
from orchestrator_agent.store.availability import retry_until_available, retry_write
from orchestrator_agent.store.reads import Reader
from orchestrator_agent.store.tasks import PoisonedBatch, TaskStore
from orchestrator_agent.workflows.evaluation import LongEvaluation, apart_from_the_loop, bounded
from protocol.errors import ErrorCode
from protocol.messages import ErrorInfo, now

log = structlog.get_logger()


class Transitions:
    """The version in each root's row settles races: whoever lost one decides again on fresh rows."""

    def __init__(
        self,
        *,
        store: TaskStore,
        reader: Reader,
        runs: RunCache,
        router: Router,
        rules: Rules,
        outbox: Outbox,
        republisher: Republisher,
        acceptance: Acceptance,
    ) -> None:
        self._store = store
        self._reader = reader
        self._runs = runs
        self._router = router
        self._rules = rules
        self._outbox = outbox
        self._republisher = republisher
        self._acceptance = acceptance

    async def apply(
        self, happened: dict[UUID, list[RunEvent]], outcomes: dict[UUID, Any], *, long: list[UUID] | None = None
    ) -> dict[UUID, list[RunEvent]]:
        """Decide and write; returns what must be decided again because another process was faster.

        Roots whose expressions would keep the event loop are added to `long` and left undecided; without `long`, they
        are decided apart from the loop, and the whole batch waits for them.
        """
        runs, broken = await retry_until_available(self._runs.load, list(happened))
        decide = partial(advance, directory=self._router, rules=self._rules, now=now())
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
            for one in run_events:
                if isinstance(one, Delegated):
                    outcomes[one.task_id] = one.task_id in run.rows
            if decisions.empty:
                unmoved.append(run)
                # Asked for again: an answer that was given is given once more.
                for row in decisions.answers:
                    await self._outbox.deliver(run, Decisions(answers=[row]))
            else:
                batch.append((run, decisions))
        behind = await self._behind(unmoved)
        lost: dict[UUID, list[RunEvent]] = {root_task_id: happened[root_task_id] for root_task_id in behind}
        if not batch:
            return lost
        try:
            written, doubtful = await retry_write(self._store.apply, batch)
        except PoisonedBatch as error:
            for run, _ in batch:
                self._runs.drop(run.root_task_id)
            return lost | await self._isolate(
                {run.root_task_id: happened[run.root_task_id] for run, _ in batch}, error, outcomes
            )
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
                    self._acceptance.on_turn(run.facts.concurrency_key)
            else:
                self._runs.weigh(run, (*decisions.made, *decisions.changed.values()))
            await self._outbox.deliver(run, decisions)
        if doubtful and (broker_was_down := [run.root_task_id for run, _ in batch if run.root_task_id not in written]):
            # Moved on by another process, or by the try whose answer was lost: then nobody else publishes it.
            await self._republisher.of_roots(broker_was_down)
        if ended:
            await self._acceptance.end_duplicates(await retry_until_available(self._reader.duplicates_waiting, ended))
        return lost

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

    async def _behind(self, runs: Sequence[Run]) -> list[UUID]:
        """Of runs that nothing happened to: those which another process has moved on, so that it may have."""
        if not runs:
            return []
        versions = await retry_until_available(self._reader.versions, [run.root_task_id for run in runs])
        behind = [run.root_task_id for run in runs if versions.get(run.root_task_id) != run.version]
        for root_task_id in behind:
            self._runs.drop(root_task_id)
        return behind

    async def _give_up(self, run: Run, error: Exception) -> Decisions:
        """A transition raised: the run as the database has it ends, saying so, rather than waiting for ever."""
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
        )

    async def _isolate(
        self, happened: dict[UUID, list[RunEvent]], error: PoisonedBatch, outcomes: dict[UUID, Any]
    ) -> dict[UUID, list[RunEvent]]:
        """Postgres refused a batch for something in it: one root at a time, the culprit fails alone."""
        if len(happened) > 1:
            lost: dict[UUID, list[RunEvent]] = {}
            for root_task_id, run_events in happened.items():
                lost |= await self.apply({root_task_id: run_events}, outcomes)
            return lost
        (root_task_id, run_events) = next(iter(happened.items()))
        log.error("apply.poisoned", task_id=str(root_task_id), error=str(error))
        if any(isinstance(one, Broken) for one in run_events):
            return {}
        message = f"the database refused the outcome: {error}"
        return {root_task_id: [Broken(root_task_id, ErrorInfo(code=ErrorCode.INTERNAL_ERROR, message=message))]}
