"""ReadyQueue: the rows that no agent has room for, ordered in Postgres when they join.

Rows that may go to the same agents are in one queue. Within it the higher priority goes first, and within a priority
requesters take rounds: start-time fair queueing (Goyal, Vin and Cheng, 1996). A row's position is a virtual time: that
of the row which is next, or one behind the last row with the same fairness key, whichever is later. So the first row of
a requester is beside the head of the queue, and 100,000 of another's are behind it, one a round.

Every row of a queue has an entry in the two indexes tasks_line (`queue, priority, position`) and tasks_line_flow
(`queue, flow, priority, position`), both partial by `position is not null`; all other rows have none.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from uuid import UUID

from orchestrator_agent.store.pool import NO_FLUSH, Database

# A row that is queued gains one level of priority in this time: none starves.
AGING_SECONDS = 60.0
# A row that an orchestrator claimed and did not dispatch may be claimed by another after this time.
CLAIM_SECONDS = 2.0
MAX_PRIORITY = 9


@dataclass(frozen=True, slots=True)
class QueueEntry:
    """A row that joins a queue."""

    queue: str
    priority: int
    fairness_key: int


@dataclass(frozen=True, slots=True)
class TakenRow:
    """A row at the head of its queue. `parked`: its task or its workflow is paused."""

    root_task_id: UUID
    task_id: UUID
    parked: bool


# Of queue, priority and fairness key: the position of the next row that joins. By tasks_line and tasks_line_flow, the
# first and the last entry of a range.
NEXT_POSITIONS = """
select greatest(
    coalesce((select min(t.position) from tasks t
              where t.queue = u.queue and t.priority = u.priority and t.position is not null), 0),
    coalesce((select max(t.position) + 1 from tasks t
              where t.queue = u.queue and t.flow = u.flow and t.priority = u.priority and t.position is not null), 0)
    ) as start
from unnest($1::text[], $2::smallint[], $3::bigint[]) with ordinality as u(queue, priority, flow, number)
order by u.number
"""

# Of each queue and priority, the rows at the head (by tasks_line); of these, those that are next. Between queues an
# equal distance from their heads counts as equal.
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
# Whether a row's task or workflow is paused, by the primary key. The root's id by another name: asked for one column by
# both, Postgres would walk over all roots (see `columns.MOVED_COLUMNS`).
_TAKEN = """
select n.root_task_id, n.task_id, r.status = 'paused'
       or (r.task_type = any($4::text[]) and r.status <> 'compensating') as parked
from (select *, root_task_id::text::uuid as root_again from {source}) n,
lateral (select * from tasks r where r.root_task_id = n.root_task_id and r.task_id = n.root_again limit 1) r
order by n.number
"""

# The next rows of some queues, for an orchestrator that is alone: $1 queues, $2 at most so many, $3 rows and $5 roots
# to leave out, $4 paused workflows.
TAKE = "with " + _HEADS + _TAKEN.format(source="picked")

# The same where there are several orchestrators: the rows that one has claimed, the others leave out. A row is checked
# again under its lock, by the primary key. Each by itself (the lateral's limit), and only then whether it is queued:
# with statistics from before the queue grew, Postgres would rather read all of it by the index of queued rows. A claim
# that a crash of Postgres takes back was over in a moment.
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
""" + _TAKEN.format(source="claimed")

# Takes rows out of their queues. By the primary key.
PARK = """
update tasks t set position = null
from unnest($1::uuid[], $2::uuid[]) as u(root_task_id, task_id)
where t.root_task_id = u.root_task_id and t.task_id = u.task_id and t.status = 'ready'
"""

# Puts rows that were taken out into their queues again. By the primary key.
REQUEUE = """
update tasks t set position = u.position
from unnest($1::uuid[], $2::uuid[], $3::bigint[]) as u(root_task_id, task_id, position)
where t.root_task_id = u.root_task_id and t.task_id = u.task_id and t.status = 'ready' and t.position is null
"""

# The queues that have rows. A walk over tasks_line from one queue to the next, not over its rows.
QUEUES = """
with recursive q as (
    (select t.queue from tasks t where t.position is not null order by t.queue limit 1)
    union all
    select (select t.queue from tasks t where t.position is not null and t.queue > q.queue order by t.queue limit 1)
    from q where q.queue is not null
)
select q.queue from q where q.queue is not null
"""

# Rows of some queues whose wait for an agent has not begun. By tasks_line.
UNSERVED = """
select t.root_task_id, t.task_id from tasks t
where t.queue = any($1::text[]) and t.position is not null and t.expires_at is null limit $2
"""

# How many rows some queues have, counted up to $2. By tasks_line.
LENGTHS = """
select q.queue, (select count(*) from (select 1 from tasks t
                 where t.queue = q.queue and t.position is not null limit $2) c) as rows
from unnest($1::text[]) as q(queue)
"""


class ReadyQueue:
    """Statements; each raises StoreError when Postgres is away."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def positions(self, entries: Sequence[QueueEntry]) -> list[int]:
        """The positions of these rows, which join in this order."""
        if not entries:
            return []
        kinds = list(dict.fromkeys(entries))
        records = await self._database.fetch(
            NEXT_POSITIONS,
            [entry.queue for entry in kinds],
            [entry.priority for entry in kinds],
            [entry.fairness_key for entry in kinds],
        )
        following = {kind: record["start"] for kind, record in zip(kinds, records, strict=True)}
        found = []
        for entry in entries:
            found.append(following[entry])
            following[entry] += 1
        return found

    async def take(
        self,
        queues: Sequence[str],
        count: int,
        *,
        left_out: Collection[UUID],
        paused: Collection[str],
        claim: bool,
        held_by_other: Collection[UUID] = (),
    ) -> list[TakenRow]:
        """The next rows of these queues, without those `left_out` and those of the roots `held_by_other`; `paused` are
        names of workflows."""
        statement = CLAIM if claim else TAKE
        records = await self._database.fetch(
            statement, list(queues), count, list(left_out), list(paused), list(held_by_other)
        )
        return [TakenRow(record["root_task_id"], record["task_id"], bool(record["parked"])) for record in records]

    async def park(self, rows: Sequence[TakenRow]) -> None:
        """Take rows out of their queues until what is paused is resumed."""
        await self._database.execute(PARK, [row.root_task_id for row in rows], [row.task_id for row in rows])

    async def requeue(self, rows: Sequence[tuple[UUID, UUID, QueueEntry]]) -> None:
        """Put rows that were parked into their queues again, behind the rows there."""
        positions = await self.positions([entry for _, _, entry in rows])
        await self._database.execute(REQUEUE, [row[0] for row in rows], [row[1] for row in rows], positions)

    async def queues(self) -> list[str]:
        """Names of the queues that have rows."""
        return [record["queue"] for record in await self._database.fetch(QUEUES)]

    async def lengths(self, queues: Sequence[str], limit: int) -> dict[str, int]:
        """How many rows each of these queues has, counted up to `limit`."""
        records = await self._database.fetch(LENGTHS, list(queues), limit)
        return {record["queue"]: record["rows"] for record in records}

    async def unserved(self, queues: Sequence[str], limit: int) -> list[tuple[UUID, UUID]]:
        """Rows of queues that no agent serves any more, and whose wait for an agent has not begun."""
        records = await self._database.fetch(UNSERVED, list(queues), limit)
        return [(record["root_task_id"], record["task_id"]) for record in records]
