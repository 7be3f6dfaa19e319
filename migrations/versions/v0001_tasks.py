"""Tasks, workflow versions, orchestrator processes.

Revision ID: 0001
"""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TASKS = """
create table tasks (
    root_task_id     uuid not null,
    task_id          uuid not null,
    parent_task_id   uuid,
    tenant           text not null default 'default',
    requester        text,
    step             text,
    iteration        integer not null default 0,
    item             integer not null default -1,
    task_type        text not null,
    workflow_version text,
    pinned_agent     text,
    agent            text,
    instance_id      text,
    status           text not null,
    attempt          integer not null default 1,
    failures         integer not null default 0,
    priority         smallint not null default 5,
    session_id       text,
    idempotency_key  text,
    reply_to         text,
    payload          json,
    result           json,
    error            json,
    usage            json,
    metadata         json,
    traceparent      text,
    tracestate       text,
    timeout_seconds  double precision not null default 300,
    created_at       timestamptz not null default now(),
    dispatched_at    timestamptz,
    dispatched_by    uuid,
    deadline_at      timestamptz,
    expires_at       timestamptz,
    run_after        timestamptz,
    completed_at     timestamptz,
    answered_at      timestamptz,
    duplicate_of     uuid,
    replay_of        uuid,
    version          bigint not null default 0,
    primary key (root_task_id, task_id),
    constraint tasks_status check (status in
        ('ready', 'dispatched', 'running', 'waiting', 'paused', 'compensating',
         'completed', 'failed', 'cancelled', 'skipped'))
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05)
"""
# `json` and not `jsonb`: the text is kept to the byte (a final response is always the same bytes), and a payload with
# \u0000 in a string, which jsonb refuses, is stored like any other.

COMMENTS = """
comment on table tasks is
    'Root tasks and sub-tasks. A root has task_id = root_task_id; its version is the optimistic lock of its tree.';
comment on column tasks.status is
    'ready: waits for an agent. dispatched: an attempt is with an agent. running: a root or sub-workflow at work.
     waiting: a retry waits for run_after, a duplicate for its original. paused, compensating: as they say.
     completed, failed, cancelled, skipped: ended; nothing changes them.';
comment on column tasks.dispatched_by is
    'The orchestrator process that owes the publish of this attempt, or of this root''s final response.';
comment on column tasks.answered_at is 'When the broker acknowledged a root''s final response; null: it is owed.';
comment on column tasks.expires_at is
    'dispatched: when this attempt''s time is over. ready: when the wait for an agent is over.';
"""

INDEXES = """
-- Every root that is still owed something. What is at work is found through it, so steps' rows need no index of their
-- own on anything that changes, and their updates stay heap-only.
create index tasks_open on tasks (root_task_id) where task_id = root_task_id and answered_at is null;
create unique index tasks_idempotency on tasks (tenant, coalesce(requester, ''), idempotency_key)
    where idempotency_key is not null and duplicate_of is null;
create index tasks_duplicates on tasks (duplicate_of) where duplicate_of is not null and status = 'waiting';
create index tasks_roots_by_time on tasks (created_at desc) where task_id = root_task_id;
"""

WORKFLOWS = """
create table workflows (
    version    text primary key,
    name       text not null,
    definition json not null,
    created_at timestamptz not null default now()
);
comment on table workflows is
    'Every version of a workflow that a task was started on; version is a hash of the definition.';
"""

ORCHESTRATORS = """
create table orchestrators (
    process_id  uuid primary key,
    instance_id text not null,
    lock_key    bigint not null unique,
    started_at  timestamptz not null default now(),
    unpublished_since timestamptz
);
create table broker_streams (
    name          text primary key,
    created       text not null,
    last_sequence bigint not null
);
comment on table broker_streams is
    'Where the broker''s streams stood when last looked at: another creation time or a lower sequence is a lost store.';
comment on table orchestrators is
    'Orchestrator processes. A living one holds the advisory lock lock_key; who gets the lock may adopt its rows.';
"""


def upgrade() -> None:
    for statement in (TASKS, *COMMENTS.split(";\n"), *INDEXES.split(";\n"), *WORKFLOWS.split(";\n")):
        if statement.strip():
            op.execute(statement)
    for statement in ORCHESTRATORS.split(";\n"):
        if statement.strip():
            op.execute(statement)


def downgrade() -> None:
    op.execute("drop table tasks, workflows, orchestrators, broker_streams")
