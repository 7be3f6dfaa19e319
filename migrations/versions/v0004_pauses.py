"""Pauses of tasks beside those of workflows and agents, and the requester of each.

Revision ID: 0004
"""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

UP = (
    "alter table pauses add column requester text",
    "alter table pauses drop constraint pauses_kind_check",
    "alter table pauses add constraint pauses_kind_check check (kind in ('workflow', 'agent', 'task'))",
    """comment on table pauses is
       'What people have paused. Whether a task is, its own row says: here is only since when, and by whom.'""",
    "comment on column pauses.paused_by is 'The operation (mesh.pause) that paused it; requester is who sent that.'",
)


def upgrade() -> None:
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    op.execute("delete from pauses where kind = 'task'")
    op.execute("alter table pauses drop constraint pauses_kind_check")
    op.execute("alter table pauses add constraint pauses_kind_check check (kind in ('workflow', 'agent'))")
    op.execute("alter table pauses drop column requester")
