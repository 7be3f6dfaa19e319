"""OperatorChanges: pauses, and workflows in the database, as people have changed them through any orchestrator."""

from orchestrator_agent.dispatch.router import Pauses
from orchestrator_agent.runtime.sweep_signal import SweepSignal
from orchestrator_agent.runtime.workflow_catalog import WorkflowCatalog
from orchestrator_agent.store.pauses import PauseStore


class OperatorChanges:
    def __init__(self, pauses: Pauses, pause_store: PauseStore, catalog: WorkflowCatalog, sweep: SweepSignal) -> None:
        self._pauses = pauses
        self._pause_store = pause_store
        self._catalog = catalog
        self._sweep = sweep

    async def learn(self) -> None:
        """At each sweep; at start before anything is taken, so that nothing is begun that is paused, and no workflow is
        unknown. Raises StoreError."""
        workflows, agents = await self._pause_store.names()
        if self._pauses.workflows - workflows or self._pauses.agents - agents:
            # What another process resumed may begin now.
            self._sweep.wake()
        self._pauses.workflows, self._pauses.agents = workflows, agents
        await self._catalog.learn_newest()
