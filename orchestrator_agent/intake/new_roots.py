"""NewRoots: what follows once new roots are committed: they are announced, their first attempts published."""

from collections.abc import Iterable
from typing import Protocol

from orchestrator_agent.engine.decisions import Decisions
from orchestrator_agent.engine.state import Run
from orchestrator_agent.intake.planner import OPERATIONS
from orchestrator_agent.runtime.outbox import Outbox
from orchestrator_agent.runtime.run_cache import RunCache
from orchestrator_agent.runtime.transitions import KeyAdmission


class RunsOperations(Protocol):
    """See `operations.runner.OperationRunner`."""

    def begin(self, run: Run) -> None:
        """Have the mesh's own operation done that a new root asks for."""


class NewRoots:
    def __init__(
        self, runs: RunCache, outbox: Outbox, *, operations: RunsOperations, concurrency_keys: KeyAdmission
    ) -> None:
        self._runs = runs
        self._outbox = outbox
        self._operations = operations
        self._concurrency_keys = concurrency_keys

    async def begin(self, committed: Iterable[tuple[Run, Decisions]]) -> None:
        """Begin new roots with what was decided on them."""
        keys: set[str] = set()
        for run, decisions in committed:
            if run.facts.concurrency_key is not None:
                keys.add(run.facts.concurrency_key)
            run.version = 1
            if not run.root.ended:
                if decisions.dispatched or run.root.task_type in OPERATIONS:
                    self._runs.put(run)
                else:
                    self._runs.put_resting(run)
                self._runs.weigh(run, (run.root, *decisions.made))
            await self._outbox.announce(run)
            await self._outbox.deliver(run, decisions)
            if not run.root.ended and run.root.task_type in OPERATIONS:
                self._operations.begin(run)
        for key in keys:
            self._concurrency_keys.ask(key)
