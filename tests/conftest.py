"""Fixtures that every test may use: real servers, a database of its own for each test, a mesh in this process."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hypothesis
import pytest
import pytest_asyncio

import migrations
from pantheon.runtime.settings import MeshSettings
from pantheon.stack.servers import ConsulServer, NatsServer, PostgresServer
from tests.servers import Databases, consul_server, nats_server, pick_own_free, postgres_server

# How long an example takes is the machine's business, not the property's; the rest stays as the environment has it.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")

_MESH = ("NATS_URL", "DATABASE_URL", "REDIS_URL", "CONSUL_HTTP_ADDR", "CONSUL_HTTP_TOKEN", "LLM_MODEL")
_TERMINAL = ("TERM", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")


@pytest.fixture(autouse=True)
def _no_mesh_around(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mesh that the developer's shell points at is none of the tests' business, nor is the terminal around it."""
    for name in (*_MESH, *_TERMINAL):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session", autouse=True)
def _own_ports() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in ("server", "consul"):
            patch.setattr(f"pantheon.stack.servers.{module}.pick_free", pick_own_free)
        yield


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def postgres(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PostgresServer]:
    async with postgres_server(tmp_path_factory.mktemp("postgres")) as server:
        yield server


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def databases(postgres: PostgresServer) -> Databases:
    made = Databases(postgres)

    async def migrate(url: str) -> None:
        await migrations.upgrade(url)

    await made.prepare(migrate)
    return made


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def consul(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ConsulServer]:
    async with consul_server(tmp_path_factory.mktemp("consul")) as server:
        yield server


@pytest_asyncio.fixture
async def database_url(databases: Databases) -> AsyncIterator[str]:
    async with databases.fresh() as url:
        yield url


@pytest_asyncio.fixture
async def broker(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """A NATS server of the test's own: it may be killed, wiped and started again."""
    async with nats_server(tmp_path / "nats") as server:
        yield server


@pytest.fixture
def settings(broker: NatsServer, database_url: str) -> MeshSettings:
    return MeshSettings.load(
        nats_url=broker.url,
        database_url=database_url,
        # Longer than it takes an agent that has just started to be known, however busy the machine is.
        no_agent_wait_seconds=3.0,
        drain_grace_seconds=2.0,
        agent_timeout_seconds=60.0,
    )
