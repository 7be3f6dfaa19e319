"""The database schema, in steps (Alembic, SQL inside): `await upgrade(database_url)`."""

from migrations.upgrade import current, head, upgrade

__all__ = ["current", "head", "upgrade"]
