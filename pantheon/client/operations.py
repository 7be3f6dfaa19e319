"""ClientOperations: how a client changes tasks of the mesh: cancel, pause, signal, retry and more (docs/protocol.md,
Operations).

Each operation is a task of the orchestrator, durable once it is accepted; what only reads is a query.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal, NotRequired, TypedDict
from uuid import UUID

from protocol.messages import TaskRequest


class Changed(TypedDict):
    """The result of `cancel`, and of `pause` and `resume` of a task; not `changed` where nothing was left to do."""

    task_id: str
    status: str
    changed: bool


class SignalTaken(TypedDict):
    """The result of a signal or an approval: `taken` by a step that waits for it, or kept for the step that will."""

    task_id: str
    signal: str
    taken: bool


class Paused(TypedDict):
    """What is paused: a task (`name` is its id), a workflow or an agent; since when, by which operation and whose; and
    how many ready tasks it holds up, counted up to 10,000."""

    kind: Literal["task", "workflow", "agent"]
    name: str
    waiting: int
    task_type: NotRequired[str]
    paused_at: NotRequired[str]
    paused_by: NotRequired[str]
    requester: NotRequired[str]


class PutWorkflow(TypedDict):
    """A workflow in the database; `version` is the hash of its definition."""

    workflow: str
    version: str


class ClientOperations(ABC):
    """The operations of a client that can submit a task, run one, and make a query."""

    @abstractmethod
    async def submit(
        self, task_type: str | TaskRequest, payload: Mapping[str, Any] | None = None, **options: Any
    ) -> UUID: ...

    @abstractmethod
    async def run(self, task_type: str, payload: Mapping[str, Any] | None = None, **options: Any) -> Any: ...

    @abstractmethod
    async def query(self, what: str, arguments: Mapping[str, Any] | None = None) -> dict[str, Any]: ...

    async def cancel(self, task_id: UUID, *, reason: str | None = None) -> Changed:
        """End a root task `cancelled`: its agents stop, its completed steps are compensated. Raises TaskFailed.

        Returns when that is committed; compensations may still run, `wait` returns when the task has ended.
        """
        result: Changed = await self.run("mesh.cancel", _payload(task_id=task_id, reason=reason))
        return result

    async def pause(
        self, task_id: UUID | None = None, *, workflow: str | None = None, agent: str | None = None
    ) -> dict[str, Any]:
        """Begin nothing new of a root task, of all tasks of a workflow, or at an agent; exactly one of the three.

        What agents have at work goes on. Raises TaskFailed.
        """
        result: dict[str, Any] = await self.run("mesh.pause", _payload(task_id=task_id, workflow=workflow, agent=agent))
        return result

    async def resume(
        self, task_id: UUID | None = None, *, workflow: str | None = None, agent: str | None = None
    ) -> dict[str, Any]:
        """The end of a `pause` of the same. Raises TaskFailed."""
        result: dict[str, Any] = await self.run(
            "mesh.resume", _payload(task_id=task_id, workflow=workflow, agent=agent)
        )
        return result

    async def pauses(self, *, limit: int | None = None) -> list[Paused]:
        """What is paused, the newest first, at most `limit` (50; 1000). Raises PantheonError."""
        found: list[Paused] = (await self.query("pauses", {} if limit is None else {"limit": limit}))["pauses"]
        return found

    async def signal(
        self,
        task_id: UUID,
        name: str,
        payload: Mapping[str, Any] | None = None,
        *,
        waiting_id: UUID | None = None,
    ) -> SignalTaken:
        """Send a root task a signal; it is kept until a step waits for it. Raises TaskFailed.

        `waiting_id`: for the step with that row id alone (the `task_id` of a row in `query("task", …)`, of an event
        `step.waiting`): refused (`invalid_request`) where it does not wait for it any more. The mesh knows the sender
        by this client's `requester`.
        """
        values = _payload(task_id=task_id, signal=name, waiting_id=waiting_id)
        result: SignalTaken = await self.run("mesh.signal", {**values, "payload": dict(payload or {})})
        return result

    async def approve(
        self,
        task_id: UUID,
        name: str,
        approved: bool = True,
        *,
        comment: str | None = None,
        waiting_id: UUID | None = None,
    ) -> SignalTaken:
        """Send a root task an approval, or a refusal with `approved=False`. Raises TaskFailed.

        The workflow decides what a refusal means: the step completes either way, with `approved` in its result.
        `waiting_id` as in `signal`: where a loop asks again and again, a second click then decides nothing that its
        giver has not seen.
        """
        payload = _payload(task_id=task_id, approval=name, comment=comment, waiting_id=waiting_id)
        result: SignalTaken = await self.run("mesh.approve", {**payload, "approved": approved})
        return result

    async def retry(self, task_id: UUID) -> UUID:
        """Run a failed or cancelled root task again from what did not complete; returns the new task's id.

        `wait` for that one's outcome. Where the old one cannot be retried, the new one ends `failed`,
        `invalid_request`.
        """
        return await self.submit("mesh.retry", {"task_id": str(task_id)})

    async def replay(
        self,
        task_id: UUID,
        *,
        from_step: str | None = None,
        input: Mapping[str, Any] | None = None,  # noqa: A002 - its name on the wire
    ) -> UUID:
        """Run a root task again, however it ended; returns the new task's id.

        `from_step` reuses what completed and does not depend on that step; `input` (a fork) is laid over the old one,
        top-level key by key. `wait` for the outcome; a step that is not there ends the new one `failed`,
        `invalid_request`.
        """
        payload: dict[str, Any] = {"task_id": str(task_id)}
        if from_step is not None:
            payload["from"] = from_step
        if input is not None:
            payload["input"] = dict(input)
        return await self.submit("mesh.replay", payload)

    async def redrive(
        self,
        letter_id: UUID | str | None = None,
        *,
        name: str | None = None,
        reason: str | None = None,
        everything: bool = False,
    ) -> list[str]:
        """Send dead letters again: one, those of an agent's `name`, those whose `reason` holds a text, or everything.

        Returns the ids of those that were sent; they are dead letters no more. Raises TaskFailed.
        """
        payload = _payload(id=letter_id, name=name, reason=reason)
        redriven: list[str] = []
        more = True
        while more:
            result = await self.run("mesh.redrive", {**payload, "all": True} if everything else payload)
            redriven += result["redriven"]
            # One result holds only so many.
            more = result.get("more", False)
        return redriven

    async def put_workflow(self, definition: Mapping[str, Any] | str) -> PutWorkflow:
        """Put a workflow into the database, as an object or as the text of a file: the newest version of its name.

        Running tasks stay on theirs. Raises TaskFailed: `invalid_workflow` with the mistake's line and column, or for a
        name that a file of the orchestrator's defines.
        """
        body = definition if isinstance(definition, str) else dict(definition)
        result: PutWorkflow = await self.run("mesh.put_workflow", {"definition": body})
        return result

    async def dead_letters(
        self,
        *,
        letter_id: UUID | str | None = None,
        name: str | None = None,
        reason: str | None = None,
        limit: int | None = None,
    ) -> list[dict[str, Any]]:
        """Dead letters, oldest first: of an agent's `name`, whose `reason` holds a text, at most `limit` (50; 1000).

        With `letter_id`, that one alone, with its body in `body_base64`. Raises PantheonError.
        """
        arguments = _payload(id=letter_id, name=name, reason=reason)
        if limit is not None:
            arguments["limit"] = limit
        found: list[dict[str, Any]] = (await self.query("dead_letters", arguments))["dead_letters"]
        return found


def _payload(**fields: object) -> dict[str, Any]:
    """A payload of the fields that are not None; ids as text."""
    return {name: str(value) for name, value in fields.items() if value is not None}
