"""RunCache: the trees that this process has in memory, and the reading of those it has not."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any
from uuid import UUID

import structlog

from orchestrator_agent.dispatch.active_processes import ActiveProcesses
from orchestrator_agent.engine.state import Row, Run, Status
from orchestrator_agent.runtime.root_ownership import RootOwnership
from orchestrator_agent.runtime.workflow_catalog import WorkflowCatalog
from orchestrator_agent.store.run_builder import bare_run, needs_workflow, root_of, run_of
from orchestrator_agent.store.task_reader import UNKNOWN, TaskReader
from protocol.errors import PantheonError
from protocol.large import INLINE_MAX_BYTES

log = structlog.get_logger()

# A run at rest costs some kilobytes and its results; a run that was dropped is read again when something happens to it.
CACHED_RUNS = 20_000
# Of these so many at most of which nothing is at work: a hundred thousand that wait for an agent would fill the rest.
RESTING_RUNS = 5_000
# Of payloads and results that are large, in bytes of JSON; as values they take some times as much.
CACHED_LARGE_BYTES = 128 * 1024 * 1024
# One such statement costs a few milliseconds.
FORGET_RUNS = 1000
FORGET_ROUNDS = 10
# To read and build a tree takes a tenth of a millisecond a row. Of one this large, several processes that take its
# responses alternately would do little else: those are left to the process that has it in memory (`responses`).
MANY_ROWS = 500
# Of so many such roots it is known that they are large, also when their trees are not in memory.
KNOWN_LARGE_ROOTS = 1000

# Any process that finds a slot for such a row, or that its time has come, moves its run on.
_WAITS = frozenset({Status.READY, Status.WAITING, Status.PAUSED})


class RunCache:
    """A cache that need not be right: the version in the root's row decides at every write.

    `active` says whether other processes work on the same runs, `ownership` whether the responses of a root come to
    this one of them.
    """

    def __init__(
        self,
        reader: TaskReader,
        catalog: WorkflowCatalog,
        *,
        process_id: UUID,
        active: ActiveProcesses,
        ownership: RootOwnership,
    ) -> None:
        self._active = active
        self._ownership = ownership
        self._process_id = process_id
        self._reader = reader
        self.catalog = catalog
        self._runs: OrderedDict[UUID, Run] = OrderedDict()
        # Runs that hold something large, and how much.
        self._large: OrderedDict[UUID, int] = OrderedDict()
        self._many_rows: OrderedDict[UUID, None] = OrderedDict()
        self._resting: OrderedDict[UUID, None] = OrderedDict()

    @property
    def shared(self) -> bool:
        """Whether other processes may have published workflows, and moved on runs, that this one does not know of."""
        return self._active.shared

    def __len__(self) -> int:
        return len(self._runs)

    def has_many_rows(self, root_task_id: UUID) -> bool:
        """Whether its tree is known to be large; also one that was dropped."""
        return root_task_id in self._many_rows

    async def held_by_other(self, root_task_ids: Iterable[UUID] | None = None) -> list[UUID]:
        """Of these roots (None: of all), those of large trees that another process has in memory as they are now, so
        that whatever can wait a moment is better left to it. Raises StoreError."""
        asked = self._many_rows if root_task_ids is None else root_task_ids
        many = [root_task_id for root_task_id in asked if root_task_id in self._many_rows]
        if not many or not self._active.shared:
            return []
        found = await self._reader.last_writers(many)
        others = []
        for root_task_id in many:
            if root_task_id not in found:
                self._many_rows.pop(root_task_id, None)
                continue
            version, writer = found[root_task_id]
            known = self._runs.get(root_task_id)
            newest = known is not None and known.version == version
            if not newest and writer not in (None, self._process_id):
                others.append(root_task_id)
        return others

    def _count(self, run: Run) -> None:
        if len(run.rows) >= MANY_ROWS:
            self._many_rows[run.root_task_id] = None
            self._many_rows.move_to_end(run.root_task_id)
            if len(self._many_rows) > KNOWN_LARGE_ROOTS:
                self._many_rows.popitem(last=False)

    def put(self, run: Run) -> None:
        self._count(run)
        self._runs[run.root_task_id] = run
        self._runs.move_to_end(run.root_task_id)
        if len(self._runs) > CACHED_RUNS:
            self._runs.popitem(last=False)

    def put_resting(self, run: Run) -> None:
        """Put a run of which nothing is at work: it waits for an agent, and may wait for long."""
        self.put(run)
        self._resting[run.root_task_id] = None
        if len(self._resting) > RESTING_RUNS:
            self.drop(next(iter(self._resting)))

    def drop(self, root_task_id: UUID) -> None:
        self._runs.pop(root_task_id, None)
        if self._resting:
            self._resting.pop(root_task_id, None)
        if self._large:
            self._large.pop(root_task_id, None)

    async def forget_ended(self) -> int:
        """Drop runs that another process has ended, of which this one gets no message; returns how many. It checks some
        of them, those unchecked for longest. Raises StoreError."""
        forgotten = 0
        for _ in range(FORGET_ROUNDS):
            asked = list(islice(self._runs, FORGET_RUNS))
            if not asked:
                break
            still_open = await self._reader.still_open(asked)
            for root_task_id in asked:
                if root_task_id not in still_open:
                    self.drop(root_task_id)
                elif root_task_id in self._runs:
                    self._runs.move_to_end(root_task_id)
            ended = len(asked) - len(still_open)
            forgotten += ended
            # Where half of them have ended there are more such.
            if ended < FORGET_RUNS // 2:
                break
        return forgotten

    def weigh(self, run: Run, rows: Iterable[Row]) -> None:
        """Note the size of rows that a run got, or that changed; beyond the bound, the runs that nothing happened to
        for longest are dropped."""
        self._count(run)
        if not any(_bytes_of(row) > INLINE_MAX_BYTES for row in rows) or run.root_task_id not in self._runs:
            return
        self._large[run.root_task_id] = sum(_bytes_of(row) for row in run.rows.values())
        self._large.move_to_end(run.root_task_id)
        while sum(self._large.values()) > CACHED_LARGE_BYTES:
            self.drop(next(iter(self._large)))

    def cached(self, root_task_id: UUID) -> Run | None:
        return self._runs.get(root_task_id)

    async def load(self, root_task_ids: Sequence[UUID]) -> tuple[dict[UUID, Run], dict[UUID, PantheonError]]:
        """The runs of these roots that have not ended, and why some could not be built whole. Ids that are no open root
        of ours are in neither. Raises StoreError."""
        found = {root: run for root in root_task_ids if (run := self._runs.get(root)) is not None}
        if self._resting:
            # Something happens to these.
            for root in root_task_ids:
                self._resting.pop(root, None)
        unsure = {root: UNKNOWN for root in root_task_ids if root not in found}
        if self._active.shared:
            # The process that takes the response of a step decides on the next one: what is in memory here is often not
            # the newest. To ask first is cheaper than to decide, to lose at the write, and to decide again; but not
            # where no other process receives what happens to it.
            unsure |= {root: run.version for root, run in found.items() if not self._only_here(run)}
        broken: dict[UUID, PantheonError] = {}
        if unsure:
            for root_task_id, records in (await self._reader.newer_trees(unsure)).items():
                try:
                    found[root_task_id] = await self.build(records)
                except PantheonError as error:
                    broken[root_task_id] = error
                    found[root_task_id] = bare_run(records)
                self.put(found[root_task_id])
        return found, broken

    async def drop_outdated(self, runs: Sequence[Run]) -> list[UUID]:
        """Drop those of these runs that another process has moved on; returns their roots. Raises StoreError."""
        versions = await self._reader.versions([run.root_task_id for run in runs])
        outdated = [run.root_task_id for run in runs if versions.get(run.root_task_id) != run.version]
        for root_task_id in outdated:
            self.drop(root_task_id)
        return outdated

    def _only_here(self, run: Run) -> bool:
        """Whether no other process will have moved a run on since this one did, if all goes well."""
        root = run.root_task_id
        # A large tree goes its own way: see `held_by_other`.
        if not self._ownership.owns(root) or root in self._many_rows:
            return False
        return not any(row.status in _WAITS for row in run.rows.values())

    async def build(self, records: Sequence[Mapping[str, Any]]) -> Run:
        """A run from all rows of its root. Raises InvalidWorkflow, StoreError."""
        if needs_workflow(root_of(records)):
            await self.catalog.learn({record["workflow_version"] for record in records} - {None})
        return run_of(records, self.catalog.library)


def _bytes_of(row: Row) -> int:
    return len(row.payload or b"") + len(row.result or b"")
