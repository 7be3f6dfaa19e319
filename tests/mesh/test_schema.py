"""An orchestrator and the database's schema: it needs its own or a newer one, and says what to do about another."""

import pytest

import migrations
from orchestrator_agent.service import load_library, orchestrator
from orchestrator_agent.store.pool import Database
from orchestrator_agent.store.schema import SCHEMA
from pantheon.runtime.settings import MeshSettings
from protocol.errors import SettingsError


def test_the_version_that_is_asked_for_is_the_newest() -> None:
    assert migrations.head() == SCHEMA


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("drop table alembic_version", "has no schema yet: run 'pantheon migrate'"),
        ("update alembic_version set version_num = '0003'", f"has schema 0003, and this version needs {SCHEMA}"),
    ],
)
async def test_another_schema_is_refused_in_one_line(settings: MeshSettings, statement: str, message: str) -> None:
    await execute(settings, statement)
    with pytest.raises(SettingsError, match=message) as refused:
        async with orchestrator(settings, load_library([])):
            pass
    assert "\n" not in str(refused.value)


async def test_a_newer_schema_is_that_of_a_rolling_upgrade(settings: MeshSettings) -> None:
    await execute(settings, "update alembic_version set version_num = '9999'")
    async with orchestrator(settings, load_library([])) as process:
        assert process.worker.active == 0


async def execute(settings: MeshSettings, statement: str) -> None:
    assert settings.database_url is not None
    async with Database(settings.database_url.get_secret_value()) as database:
        await database.execute(statement)
