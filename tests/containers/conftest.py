"""The mesh of docker/compose.yml, brought up once, and a client outside of it that knows nothing but the wire."""

from collections.abc import AsyncIterator, Iterator

import nats
import pytest
import pytest_asyncio

from tests.containers.engine import Project, docker, running, why_no_engine
from tests.mesh.conftest import PlainClient


@pytest.fixture(scope="session")
def engine() -> None:
    if reason := why_no_engine():
        pytest.fail(f"no container engine: {reason}")


@pytest.fixture(scope="session")
def kit_image(engine: None) -> str:
    docker("build", "--quiet", "--file", "docker/Dockerfile", "--target", "kit", "--tag", "pantheon/kit:0.1.0", ".")
    return "pantheon/kit:0.1.0"


@pytest.fixture(scope="session")
def project(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    with running(["compose.yml"], tmp_path_factory.mktemp("containers") / "secrets") as made:
        yield made


@pytest_asyncio.fixture
async def outside(project: Project) -> AsyncIterator[PlainClient]:
    connection = await nats.connect(project.nats_urls, max_reconnect_attempts=-1, reconnect_time_wait=0.5)
    client = PlainClient(connection)
    await client.listen()
    yield client
    await connection.close()
