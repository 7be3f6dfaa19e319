"""Positions in the ready queue; updates of steps' rows that stay heap-only; the history.

Revision ID: 0003
"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# All null for a row that is never queued, so that such a row has no entry in the indexes below.
COLUMNS = """
alter table tasks
    add column queue         text,
    add column flow          bigint,
    add column position      bigint,
    add column claimed_until timestamptz
"""

# A column that an index's predicate names counts as indexed: with `status` in one, no update of a row's status could
# be heap-only, and each wrote an entry into the primary key. So an index is partial by a column that does not change
# while a row goes its usual way from insert to end.
INDEXES = (
    "create index tasks_line on tasks (queue, priority, position) where position is not null",
    "create index tasks_line_flow on tasks (queue, flow, priority, position) where position is not null",
    "drop index tasks_duplicates",
    "create index tasks_duplicates on tasks (duplicate_of) where duplicate_of is not null",
    "drop index tasks_concurrency",
    "create index tasks_concurrency on tasks (concurrency_key, created_at) where concurrency_key is not null",
    "update tasks set concurrency_key = null where concurrency_key is not null and completed_at is not null",
)

# A column that is added to `tasks` and that a task's history needs is added here too. Months are made when they are
# needed, and dropped, by the orchestrator.
HISTORY = (
    "create table tasks_history (like tasks including defaults, ended_on date not null) partition by range (ended_on)",
    "alter table tasks_history drop column queue, drop column flow, drop column position, drop column claimed_until",
    "create index tasks_history_tree on tasks_history (root_task_id, task_id)",
    """create index tasks_history_idempotency on tasks_history (tenant, coalesce(requester, ''), idempotency_key)
       where idempotency_key is not null and duplicate_of is null""",
    "create index tasks_history_roots_by_time on tasks_history (created_at desc) where task_id = root_task_id",
)

COMMENTS = (
    "comment on table tasks_history is 'Trees of tasks that ended and were answered, by the month of the answer.'",
    "comment on column tasks.queue is 'Which line a ready row waits in: rows of one line may go to the same agents.'",
    "comment on column tasks.flow is 'Whose share of the line it takes: a hash of tenant and requester.'",
    "comment on column tasks.position is 'Its place in the line, in virtual time; null: it is in none.'",
    "comment on column tasks.claimed_until is 'Until then an orchestrator has taken it out of the line to place it.'",
    "comment on column tasks.concurrency_key is 'Roots of one key run only so many at once; null when one has ended.'",
)


def upgrade() -> None:
    for statement in (COLUMNS, *INDEXES, *HISTORY, *COMMENTS):
        op.execute(statement)


def downgrade() -> None:
    op.execute("drop table tasks_history")
    op.execute("drop index tasks_line, tasks_line_flow, tasks_duplicates, tasks_concurrency")
    op.execute(
        "create index tasks_duplicates on tasks (duplicate_of) where duplicate_of is not null and status = 'waiting'"
    )
    op.execute(
        "create index tasks_concurrency on tasks (concurrency_key, created_at) "
        "where concurrency_key is not null and status in ('waiting', 'running', 'paused', 'compensating')"
    )
    op.execute("alter table tasks drop column queue, drop column flow, drop column position, drop column claimed_until")
