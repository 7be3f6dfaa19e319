"""RepeatedRequests: requests whose task is known: announced again, or its response published again.

A requester sends a request again until it is announced, and asks for a response by sending the request again; one that
has lost its task's id sends another request with the same idempotency key.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import UUID

from orchestrator_agent.engine.events import Reattached
from orchestrator_agent.inbox import Inbox
from orchestrator_agent.intake.planner import Planner
from orchestrator_agent.runtime.duplicates import Duplicates
from orchestrator_agent.runtime.outbox import Outbox
from orchestrator_agent.runtime.republisher import Republisher
from orchestrator_agent.runtime.run_cache import RunCache
from orchestrator_agent.store.availability import retry_until_available
from orchestrator_agent.store.run_builder import bare_run
from orchestrator_agent.store.task_reader import TaskReader
from orchestrator_agent.store.tasks import TaskStore
from pantheon.bus import Delivery, stream_sequence, times_delivered
from protocol.messages import TaskRequest, now


class Repeated(NamedTuple):
    """A request that made no new task, and where its requester waits. `request` is None where it could not be read, or
    stood twice in one batch."""

    task_id: UUID
    reply_to: str | None
    request: TaskRequest | None = None
    delivery: Delivery | None = None


def _is_the_same_message(repeated: Repeated, record: Any) -> bool:
    if repeated.delivery is None or record["request_sequence"] is None:
        return False
    return bool(record["request_sequence"] == stream_sequence(repeated.delivery))


class RepeatedRequests:
    def __init__(
        self,
        store: TaskStore,
        reader: TaskReader,
        runs: RunCache,
        *,
        planner: Planner,
        outbox: Outbox,
        inbox: Inbox,
        duplicates: Duplicates,
        republisher: Republisher,
    ) -> None:
        self._store = store
        self._reader = reader
        self._runs = runs
        self._planner = planner
        self._outbox = outbox
        self._inbox = inbox
        self._duplicates = duplicates
        self._republisher = republisher

    async def respond(self, repeated: Sequence[Repeated]) -> None:
        """Announce them, or respond, once more; a task that is not known by its id is a duplicate by its key."""
        known = await retry_until_available(self._reader.roots, [each.task_id for each in repeated])
        for each in repeated:
            if (record := known.get(each.task_id)) is not None:
                if _is_the_same_message(each, record):
                    await self._take_again(each, record)
                else:
                    await self._respond_again(record, each.reply_to)
        for each in repeated:
            if each.task_id not in known and each.request is not None:
                await self._make_duplicate(each.request, each.delivery)

    async def republish(self, unconfirmed: Sequence[UUID]) -> None:
        """Known from before, or accepted by a try whose commit was not confirmed: then this process alone publishes the
        first attempts."""
        await self._republisher.republish_roots(unconfirmed)

    async def _take_again(self, repeated: Repeated, record: Any) -> None:
        """The message that made the task, once more: two orchestrators took it, or its ack was lost. Its requester asks
        for nothing; the process that accepted it announces it and responds, unless it died before it could announce.
        """
        assert repeated.delivery is not None
        if times_delivered(repeated.delivery) > 1:
            await self._outbox.announce(bare_run([record]))

    async def _respond_again(self, record: Any, reply_to: str | None) -> None:
        run = bare_run([record])
        await self._outbox.announce(run)
        if run.root.ended:
            run.facts.reply_to = reply_to or run.facts.reply_to
            await self._outbox.respond(run, again=True)
        elif reply_to is not None and reply_to != run.facts.reply_to:
            self._inbox.post(Reattached(run.root_task_id, reply_to))

    async def _make_duplicate(self, request: TaskRequest, delivery: Delivery | None) -> None:
        """A task of its own that ends as the first one with its idempotency key does."""
        if request.idempotency_key is None:
            return
        original = await retry_until_available(
            self._reader.first_of_key, request.tenant, request.requester, request.idempotency_key
        )
        if original is None:
            return
        headers = None if delivery is None else delivery.headers
        run, decisions = self._planner.duplicate(request, original, headers=headers, now=now())
        if run.root_task_id in await retry_until_available(self._store.accept, [(run, decisions)]):
            run.version = 1
            self._runs.put(run)
            await self._outbox.announce(run)
        await self._duplicates.end([run.root_task_id])
