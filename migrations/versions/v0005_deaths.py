"""How many processes of agents died while they worked on a task.

Revision ID: 0005
"""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

TABLES = ("tasks", "tasks_history")


def upgrade() -> None:
    for table in TABLES:
        op.execute(f"alter table {table} add column deaths integer not null default 0")
        op.execute(
            f"comment on column {table}.deaths is "
            "'Processes of agents that died while they worked on it: too many make it poison.'"
        )


def downgrade() -> None:
    for table in TABLES:
        op.execute(f"alter table {table} drop column deaths")
