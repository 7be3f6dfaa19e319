"""Line: the queue of rows that wait for a place, kept in Postgres and ordered when a row joins it.

Rows that may go to the same agents wait in one queue. Within it the higher priority goes first, and within a priority
requesters take turns: start-time fair queueing (Goyal, Vin and Cheng, 1996). A row's position is a virtual time: that
of whoever is next, or one behind its requester's own last row, whichever is later. So the first row of a requester
stands beside the head of the line, and 100,000 of another's stand behind it, one a turn.
"""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from uuid import UUID

from orchestrator_agent.engine.decisions import RouteRequest
from orchestrator_agent.store.pool import NO_FLUSH, Database
from protocol.messages import json_bytes

# A row that waits gains one level of priority in this time: none starves.
AGING_SECONDS = 60.0
# A row that an orchestrator took out of the line, and did not place, may be taken by another after this time.
CLAIM_SECONDS = 2.0
MAX_PRIORITY = 9


@dataclass(frozen=True, slots=True)
class Queue:
    """What a queue's rows have in common. `limited` is the requester, where a rate limit holds it back: others must
    not wait behind it."""

    task_type: str
    agent: str | None = None
    requires: str = ""
    limited: str = ""

    @property
    def name(self) -> str:
        pinned = f"@{self.agent}" if self.agent is not None else ""
        requires = f"#{self.requires}" if self.requires else ""
        limited = f"!{self.limited}" if self.limited else ""
        return f"{self.task_type}{pinned}{requires}{limited}"

    @classmethod
    def of(cls, name: str) -> "Queue":
        """The queue of that name: names of agents and task types hold none of the marks."""
        rest, _, limited = name.partition("!")
        rest, _, requires = rest.partition("#")
        task_type, _, agent = rest.partition("@")
        return cls(task_type, agent or None, requires, limited)


def queue_of(wanted: RouteRequest, limited: str = "") -> Queue:
    requires = ""
    if wanted.requires is not None:
        text = wanted.requires.model_dump_json(exclude_defaults=True)
        requires = hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
    return Queue(wanted.task_type, wanted.pinned_agent, requires, limited)


def requester_text(tenant: str, requester: str | None) -> str:
    """Who a requester is, for limits and lines: names repeat between tenants."""
    return json_bytes([tenant, requester or ""]).decode()


def flow_of(tenant: str, requester: str | None) -> int:
    text = requester_text(tenant, requester)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), signed=True)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A row that joins the line."""

    queue: str
    priority: int
    flow: int


@dataclass(frozen=True, slots=True)
class Taken:
    """A row at the head of the line. `parked`: its task or its workflow is paused."""

    root_task_id: UUID
    task_id: UUID
    parked: bool


STARTS = """
select greatest(
    coalesce((select min(t.position) from tasks t
              where t.queue = u.queue and t.priority = u.priority and t.position is not null), 0),
    coalesce((select max(t.position) + 1 from tasks t
              where t.queue = u.queue and t.flow = u.flow and t.priority = u.priority and t.position is not null), 0)
    ) as start
from unnest($1::text[], $2::smallint[], $3::bigint[]) with ordinality as u(queue, priority, flow, number)
order by u.number
"""

# Of each queue and priority, those at the head; of these, those that are next. Between queues an equal distance from
# their heads counts as equal.
_HEADS = f"""
heads as (
    select h.*, q.queue from unnest($1::text[]) as q(queue), generate_series(0, {MAX_PRIORITY}) as p,
    lateral (
        select t.root_task_id, t.task_id, t.priority, t.created_at, t.position,
               t.position - first_value(t.position) over (order by t.position) as distance
        from tasks t
        where t.queue = q.queue and t.priority = p and t.position is not null
          and (t.claimed_until is null or t.claimed_until < now()) and t.task_id <> all($3::uuid[])
          and t.root_task_id <> all($5::uuid[])
        order by t.position limit $2
    ) h
), picked as (
    select h.root_task_id, h.task_id,
           row_number() over (
               order by h.priority + floor(extract(epoch from now() - h.created_at) / {AGING_SECONDS}) desc,
                        h.distance, h.created_at) as number
    from heads h order by number limit $2
)"""
# The root's id by another name: asked for one column by both, Postgres would walk over all roots (see `store.tasks`).
_SHOWN = """
select n.root_task_id, n.task_id, r.status = 'paused'
       or (r.task_type = any($4::text[]) and r.status <> 'compensating') as parked
from (select *, root_task_id::text::uuid as root_again from {source}) n,
lateral (select * from tasks r where r.root_task_id = n.root_task_id and r.task_id = n.root_again limit 1) r
order by n.number
"""
TAKE = "with " + _HEADS + _SHOWN.format(source="picked")
# Several orchestrators: what one has taken, the others pass by. The row is looked at again under its lock. One by one
# (the lateral's limit), and asked for what waits only then: with statistics from before the line grew, Postgres would
# rather read all of it by the index of what waits. A claim that a crash of Postgres takes back was over in a moment.
CLAIM = f"""
with {_HEADS}, free as (
    select l.root_task_id, l.task_id, n.number from picked n, lateral (
        select t.root_task_id, t.task_id, t.position, t.claimed_until from tasks t
        where t.root_task_id = n.root_task_id and t.task_id = n.task_id limit 1 for no key update skip locked
    ) l
    where l.position is not null and (l.claimed_until is null or l.claimed_until < now())
), claimed as (
    update tasks t set claimed_until = now() + interval '{CLAIM_SECONDS} s'
    from free f where t.root_task_id = f.root_task_id and t.task_id = f.task_id and {NO_FLUSH}
    returning t.root_task_id, t.task_id, f.number
)
""" + _SHOWN.format(source="claimed")

PARK = """
update tasks t set position = null
from unnest($1::uuid[], $2::uuid[]) as u(root_task_id, task_id)
where t.root_task_id = u.root_task_id and t.task_id = u.task_id and t.status = 'ready'
"""

BACK = """
update tasks t set position = u.position
from unnest($1::uuid[], $2::uuid[], $3::bigint[]) as u(root_task_id, task_id, position)
where t.root_task_id = u.root_task_id and t.task_id = u.task_id and t.status = 'ready' and t.position is null
"""

# A walk over the index from one queue to the next, not over its rows.
QUEUES = """
with recursive q as (
    (select t.queue from tasks t where t.position is not null order by t.queue limit 1)
    union all
    select (select t.queue from tasks t where t.position is not null and t.queue > q.queue order by t.queue limit 1)
    from q where q.queue is not null
)
select q.queue from q where q.queue is not null
"""

UNSERVED = """
select t.root_task_id, t.task_id from tasks t
where t.queue = any($1::text[]) and t.position is not null and t.expires_at is null limit $2
"""


LENGTHS = """
select q.queue, (select count(*) from (select 1 from tasks t
                 where t.queue = q.queue and t.position is not null limit $2) c) as rows
from unnest($1::text[]) as q(queue)
"""


class ReadyQueue:
    """The statements. Each raises StoreError when Postgres is away."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def positions(self, waiting: Sequence[Waiting]) -> list[int]:
        """Where these rows stand, in the order in which they are given."""
        if not waiting:
            return []
        kinds = list(dict.fromkeys(waiting))
        records = await self._database.fetch(
            STARTS, [one.queue for one in kinds], [one.priority for one in kinds], [one.flow for one in kinds]
        )
        following = {kind: record["start"] for kind, record in zip(kinds, records, strict=True)}
        found = []
        for one in waiting:
            found.append(following[one])
            following[one] += 1
        return found

    async def take(
        self,
        queues: Sequence[str],
        count: int,
        *,
        passed: Collection[UUID],
        paused: Collection[str],
        claim: bool,
        held_by_other: Collection[UUID] = (),
    ) -> list[Taken]:
        """The next rows of these queues, without those in `passed` and those of the roots `held_by_other`; `paused` are
        names of workflows."""
        statement = CLAIM if claim else TAKE
        records = await self._database.fetch(
            statement, list(queues), count, list(passed), list(paused), list(held_by_other)
        )
        return [Taken(record["root_task_id"], record["task_id"], bool(record["parked"])) for record in records]

    async def park(self, rows: Sequence[Taken]) -> None:
        """Take rows out of the line until somebody resumes what is paused."""
        await self._database.execute(PARK, [row.root_task_id for row in rows], [row.task_id for row in rows])

    async def back(self, rows: Sequence[tuple[UUID, UUID, Waiting]]) -> None:
        """Put rows that were parked into the line again, behind who waits there."""
        positions = await self.positions([waiting for _, _, waiting in rows])
        await self._database.execute(BACK, [row[0] for row in rows], [row[1] for row in rows], positions)

    async def queues(self) -> list[str]:
        """Names of the queues in which rows wait."""
        return [record["queue"] for record in await self._database.fetch(QUEUES)]

    async def lengths(self, queues: Sequence[str], limit: int) -> dict[str, int]:
        """How many rows wait in each of these queues, counted up to `limit`."""
        records = await self._database.fetch(LENGTHS, list(queues), limit)
        return {record["queue"]: record["rows"] for record in records}

    async def unserved(self, queues: Sequence[str], limit: int) -> list[tuple[UUID, UUID]]:
        """Rows of queues that nobody serves any more, and whose wait for an agent has not begun."""
        records = await self._database.fetch(UNSERVED, list(queues), limit)
        return [(record["root_task_id"], record["task_id"]) for record in records]

    async def processes(self) -> list[UUID]:
        """The orchestrators that share the work, the oldest first."""
        records = await self._database.fetch("select process_id from orchestrators order by process_id")
        return [record["process_id"] for record in records]
