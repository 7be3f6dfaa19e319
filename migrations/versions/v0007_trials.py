"""What orchestrators decide on after one of them died, and which roots they died on.

Revision ID: 0007
"""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

UP = (
    """create table trials (
       process_id uuid not null, root_task_id uuid not null, primary key (process_id, root_task_id))""",
    "comment on table trials is 'Roots that a process decides on just now, noted while it is careful.'",
    """create table trial_deaths (
       root_task_id uuid primary key, deaths integer not null, died_at timestamptz not null default now())""",
    """comment on table trial_deaths is
       'Roots that processes died on while they decided on them: two make one that no process decides on any more.'""",
    "alter table orchestrators add column left_at timestamptz",
    "comment on column orchestrators.left_at is 'When it ended cleanly; null: it is alive, or died.'",
)


def upgrade() -> None:
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    op.execute("alter table orchestrators drop column left_at")
    op.execute("drop table trial_deaths")
    op.execute("drop table trials")
