"""A mesh for flow control's tests: the contract's plain client, as the mesh's own tests have it."""

from collections.abc import AsyncIterator

import nats
import pytest_asyncio

from pantheon.settings import MeshSettings
from tests.mesh.conftest import PlainClient


@pytest_asyncio.fixture
async def plain(settings: MeshSettings) -> AsyncIterator[PlainClient]:
    connection = await nats.connect(settings.nats_url)
    client = PlainClient(connection)
    await client.listen()
    yield client
    await connection.close()
