"""Registry: the instances of the mesh in memory, with sync reads, kept current by the follower of a discovery."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from types import TracebackType
from typing import Self

import structlog

from protocol.discovery import InstanceRecord

log = structlog.get_logger(__name__)

Key = tuple[str, str]
# The reason of a registry that has never been loaded.
NOT_LOADED = "not loaded yet"


def key_of(record: InstanceRecord) -> Key:
    """What identifies an instance: its agent's name and its own id."""
    return record.name, record.instance_id


class Registry:
    """A live view of the instances. Reads do no I/O and cost a dictionary look-up.

    When its source is lost the last known registry is kept, `stale` is true and `degraded_reason` gives the reason.
    `version` grows with every change, including of `stale`.
    """

    def __init__(self, on_close: Callable[[], Awaitable[None]] | None = None) -> None:
        self._on_close = on_close
        self._agents: dict[str, dict[str, InstanceRecord]] = {}
        # How many ready instances of each agent serve a task type; a name is absent where there is none.
        self._serving: dict[str, dict[str, int]] = {}
        self._sorted: dict[str, tuple[str, ...]] = {}
        self._listed: dict[str | None, tuple[InstanceRecord, ...]] = {}
        self._count = 0
        self._version = 0
        self._waiters: list[asyncio.Future[None]] = []
        self._callbacks: list[Callable[[], None]] = []
        self._seen_at: Callable[[Key], float | None] = lambda key: None
        self._lost_callbacks: list[Callable[[InstanceRecord], None]] = []
        self._callbacks_due = False
        self._degraded_reason: str | None = NOT_LOADED
        self._closed = False

    # Reading

    @property
    def version(self) -> int:
        return self._version

    @property
    def stale(self) -> bool:
        return self._degraded_reason is not None

    @property
    def degraded_reason(self) -> str | None:
        return self._degraded_reason

    def __len__(self) -> int:
        return self._count

    def serving(self, task_type: str) -> Sequence[str]:
        """Names of the agents with at least one ready instance that serves it, sorted."""
        known = self._sorted.get(task_type)
        if known is None:
            names = self._serving.get(task_type)
            if names is None:
                return ()
            known = self._sorted[task_type] = tuple(sorted(names))
        return known

    def task_types(self) -> frozenset[str]:
        """Every task type that a ready instance serves."""
        return frozenset(self._serving)

    def instances(self, agent: str | None = None) -> Sequence[InstanceRecord]:
        """All instances, or one agent's, draining ones too, in the order of their names and ids."""
        known = self._listed.get(agent)
        if known is None:
            names = [agent] if agent is not None else sorted(self._agents)
            known = tuple(record for name in names for _, record in sorted(self._agents.get(name, {}).items()))
            if known:
                self._listed[agent] = known
        return known

    def get(self, name: str, instance_id: str) -> InstanceRecord | None:
        """One instance's record, or None."""
        return self._agents.get(name, {}).get(instance_id)

    def seen_at(self, name: str, instance_id: str) -> float | None:
        """When an instance last renewed its registration, by `time.monotonic`; None where the source does not show."""
        return self._seen_at((name, instance_id))

    async def changed(self, after: int) -> int:
        """Wait until `version` is beyond `after`; returns it. Returns at once when it already is, or on close."""
        while self._version <= after and not self._closed:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            finally:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)
        return self._version

    def on_change(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back on the loop after changes, once for those that come together; returns the function that ends
        this."""
        self._callbacks.append(callback)

        def forget() -> None:
            if callback in self._callbacks:
                self._callbacks.remove(callback)

        return forget

    def on_lost(self, callback: Callable[[InstanceRecord], None]) -> Callable[[], None]:
        """Call back, at once, for each instance that leaves because it fell silent, not by its own doing; returns the
        function that ends this."""
        self._lost_callbacks.append(callback)
        return lambda: self._lost_callbacks.remove(callback)

    # Feeding: for followers, and for tests that need a registry without a source

    def apply(
        self,
        upserts: Iterable[InstanceRecord] = (),
        removals: Iterable[Key] = (),
        *,
        lost: Iterable[Key] = (),
    ) -> bool:
        """Apply one batch of changes; true when anything was different. `lost`: to be removed, because they fell
        silent."""
        different = False
        gone = [record for key in lost if (record := self.get(*key)) is not None]
        for record in gone:
            different |= self._drop(record.name, record.instance_id)
        for name, instance_id in removals:
            different |= self._drop(name, instance_id)
        for record in upserts:
            different |= self._put(record)
        if different:
            self._listed.pop(None, None)
            self._announce()
        for record in gone:
            for callback in list(self._lost_callbacks):
                callback(record)
        return different

    def show_renewals(self, seen_at: Callable[[Key], float | None]) -> None:
        """The source sees each renewal of a registration: `seen_at` is what `seen_at` asks."""
        self._seen_at = seen_at

    def mark_fresh(self) -> None:
        """The source responds, and the registry shows what it holds."""
        if self._degraded_reason is not None:
            self._degraded_reason = None
            self._announce()

    def mark_stale(self, reason: str) -> bool:
        """The source is lost; true when it was not before, so that the caller logs it once."""
        was_fresh = self._degraded_reason is None
        if self._degraded_reason != reason:
            self._degraded_reason = reason
            if was_fresh:
                self._announce()
        return was_fresh

    def _put(self, record: InstanceRecord) -> bool:
        by_id = self._agents.setdefault(record.name, {})
        old = by_id.get(record.instance_id)
        if old == record:
            return False
        if old is None:
            self._count += 1
        else:
            self._count_capabilities(old, -1)
        by_id[record.instance_id] = record
        self._listed.pop(record.name, None)
        self._count_capabilities(record, 1)
        return True

    def _drop(self, name: str, instance_id: str) -> bool:
        by_id = self._agents.get(name, {})
        old = by_id.pop(instance_id, None)
        if old is None:
            return False
        self._listed.pop(name, None)
        if not by_id:
            del self._agents[name]
        self._count -= 1
        self._count_capabilities(old, -1)
        return True

    def _count_capabilities(self, record: InstanceRecord, by: int) -> None:
        if record.status != "ready":
            return
        for task_type in set(record.task_types):
            names = self._serving.setdefault(task_type, {})
            count = names.get(record.name, 0) + by
            if count > 0:
                names[record.name] = count
            else:
                names.pop(record.name, None)
                if not names:
                    del self._serving[task_type]
            self._sorted.pop(task_type, None)

    def _announce(self) -> None:
        self._version += 1
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        if self._callbacks and not self._callbacks_due:
            self._callbacks_due = True
            asyncio.get_running_loop().call_soon(self._call_back)

    def _call_back(self) -> None:
        self._callbacks_due = False
        for callback in tuple(self._callbacks):
            try:
                callback()
            except Exception:
                log.exception("a callback of the registry failed", callback=repr(callback))

    # Ending

    async def close(self) -> None:
        """Stop following; what is known stays readable."""
        if self._closed:
            return
        self._closed = True
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        if self._on_close is not None:
            await self._on_close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
