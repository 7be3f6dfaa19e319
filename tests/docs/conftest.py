"""A whole mesh in this process for the documentation's code to run against, and what takes code out of a page."""

import ast
import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from orchestrator_agent.service import load_library, orchestrator
from pantheon.client.mesh import Mesh
from pantheon.runtime.settings import MeshSettings
from tests.servers import Databases, nats_server

REPOSITORY = Path(__file__).parents[2]
ENDING_SECONDS = 60.0
# The addresses of other meshes of this machine must not reach the processes that a test starts.
_MESH_VARIABLES = ("NATS_URL", "DATABASE_URL", "REDIS_URL", "CONSUL_HTTP_ADDR", "INSTANCE_ID", "MAX_CONCURRENCY")


@dataclass(frozen=True)
class DocumentedMesh:
    """Where the mesh is, and a client of it."""

    nats_url: str
    database_url: str
    client: Mesh

    @property
    def environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if name not in _MESH_VARIABLES}
        return {**inherited, "NATS_URL": self.nats_url, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}


# A module's, not the session's: while tests of other folders run, its connections would not be served.
@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def mesh(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[DocumentedMesh]:
    """NATS, Postgres and an orchestrator with the built-in workflows; no agents."""
    async with nats_server(tmp_path_factory.mktemp("nats")) as broker, databases.fresh() as database_url:
        settings = MeshSettings.load(nats_url=broker.url, database_url=database_url)
        async with orchestrator(settings, load_library([])), Mesh(broker.url) as client:
            yield DocumentedMesh(broker.url, database_url, client)


@dataclass(frozen=True)
class Finished:
    code: int
    output: str
    errors: str


Running = Callable[..., AbstractAsyncContextManager[asyncio.subprocess.Process]]


@pytest.fixture
def running(mesh: DocumentedMesh, tmp_path: Path) -> Running:
    """A program beside the test, ended with SIGTERM; its log is shown when the test fails."""

    @asynccontextmanager
    async def run(*command: str, cwd: Path | None = None) -> AsyncIterator[asyncio.subprocess.Process]:
        log = tmp_path / "program.log"
        with log.open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                *command, env=mesh.environment, cwd=cwd or tmp_path, stdout=file, stderr=file
            )
        try:
            yield process
            assert process.returncode is None, f"the program ended by itself:\n{log.read_text()}"
        except BaseException:
            print(log.read_text())
            raise
        finally:
            if process.returncode is None:
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), ENDING_SECONDS)
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()

    return run


async def finish(
    command: Sequence[str], environment: dict[str, str], cwd: Path, *, wait_seconds: float = 100
) -> Finished:
    """Run a program to its end."""
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, cwd=cwd, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        output, errors = await asyncio.wait_for(process.communicate(), wait_seconds)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Finished(process.returncode or 0, output.decode(), errors.decode())


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language in a Markdown page, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def block_with(page: Path, language: str, mark: str) -> str:
    """The one block of a language that contains a mark."""
    found = [block for block in blocks(page, language) if mark in block]
    assert len(found) == 1, f"{page}: {len(found)} blocks of {language} contain {mark!r}"
    return found[0]


def imported(code: str) -> set[str]:
    """The top-level names of the modules that a piece of code imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return {name.partition(".")[0] for name in names}


def python() -> str:
    return sys.executable
