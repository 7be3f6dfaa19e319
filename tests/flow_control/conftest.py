"""A mesh for flow control's tests: the contract's plain client, as the mesh's own tests have it, and a Valkey."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from pantheon.stack.servers import ValkeyServer
from tests.mesh.conftest import plain, slow_publishers
from tests.servers import valkey_server

__all__ = ["plain", "slow_publishers", "valkey"]


@pytest_asyncio.fixture
async def valkey(tmp_path: Path) -> AsyncIterator[ValkeyServer]:
    async with valkey_server(tmp_path / "valkey") as server:
        yield server
