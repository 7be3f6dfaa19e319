"""Which message of the broker a root task was accepted from.

Revision ID: 0006
"""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

TABLES = ("tasks", "tasks_history")


def upgrade() -> None:
    for table in TABLES:
        op.execute(f"alter table {table} add column request_sequence bigint")
        op.execute(
            f"comment on column {table}.request_sequence is "
            "'The sequence in AGENT_TASKS of the request that made the root: another sequence is another request.'"
        )


def downgrade() -> None:
    for table in TABLES:
        op.execute(f"alter table {table} drop column request_sequence")
