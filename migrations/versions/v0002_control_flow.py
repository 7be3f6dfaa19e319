"""Roles of rows, stickiness, routing decisions, concurrency keys, pauses, schedules.

Revision ID: 0002
"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

COLUMNS = """
alter table tasks
    add column role            text not null default '',
    add column sticky          text,
    add column routing         json,
    add column concurrency_key text,
    add constraint tasks_role check (role in ('', 'fallback', 'compensation', 'signal', 'delegated'))
"""

INDEXES = """
create index tasks_concurrency on tasks (concurrency_key, created_at)
    where concurrency_key is not null and status in ('waiting', 'running', 'paused', 'compensating')
"""

PAUSES = """
create table pauses (
    kind      text not null check (kind in ('workflow', 'agent')),
    name      text not null,
    paused_by uuid not null,
    paused_at timestamptz not null default now(),
    primary key (kind, name)
)
"""

SCHEDULES = """
create table schedules (
    workflow   text primary key,
    fired_at   timestamptz not null,
    definition text not null
)
"""

WORKFLOWS = "alter table workflows add column published_at timestamptz"

COMMENTS = (
    "comment on column tasks.role is 'What a row of a tree is there for: a step (empty), or what the word says.'",
    "comment on column tasks.concurrency_key is 'Roots of one key run only so many at once, the others wait.'",
    "comment on table schedules is 'The last time of the clock that each scheduled workflow was started for.'",
)


def upgrade() -> None:
    for statement in (COLUMNS, INDEXES, PAUSES, SCHEDULES, WORKFLOWS, *COMMENTS):
        op.execute(statement)


def downgrade() -> None:
    op.execute("alter table workflows drop column published_at")
    op.execute("drop table schedules, pauses")
    op.execute("drop index tasks_concurrency")
    op.execute(
        "alter table tasks drop column role, drop column sticky, drop column routing, drop column concurrency_key"
    )
