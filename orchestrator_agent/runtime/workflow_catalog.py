"""WorkflowCatalog: the workflows that this process knows, kept in step with the versions in the database."""

from collections.abc import Iterable

import structlog

from orchestrator_agent.store.workflows import WorkflowStore
from orchestrator_agent.workflows.library import Library
from orchestrator_agent.workflows.plan import Plan
from protocol.errors import InvalidWorkflow

log = structlog.get_logger()


class WorkflowCatalog:
    """`library` is what plans are looked up in; each method adds to it, and raises StoreError when Postgres is away."""

    def __init__(self, library: Library, store: WorkflowStore) -> None:
        self.library = library
        self._store = store

    async def learn(self, versions: Iterable[str]) -> None:
        """Have these versions of workflows in the library. Raises InvalidWorkflow."""
        for version in versions:
            if not self.library.has_version(version):
                kept = await self._store.definition(version)
                if kept is None:
                    raise InvalidWorkflow(f"the workflow's version {version} is not in the database")
                self.library.remember(version, *kept)

    async def learn_newest(self) -> None:
        """Have the newest version of each workflow in the database in the library, for new tasks."""
        for name, version in (await self._store.newest_versions()).items():
            known = self.library.newest(name)
            if self.library.from_file(name) or (known is not None and known.version == version):
                continue
            try:
                await self.learn({version})
            except InvalidWorkflow as error:
                # From a newer orchestrator, for example. Everything else goes on.
                log.error("workflow.unreadable", workflow=name, version=version, error=error.message)
                continue
            self.library.add(self.library.version(version))

    async def publish(self, plan: Plan) -> None:
        """Make a workflow the newest of its name, for all orchestrators."""
        assert plan.version is not None
        assert plan.definition is not None
        await self._store.save(plan.version, plan.name, plan.definition)
        await self._store.publish(plan.version)
        self.library.add(plan)
