"""docs/agents.md: its agent, its tests and its client, run as they stand on the page; nothing of the kit is missing."""

import re
from pathlib import Path

import pytest

from pantheon import Agent, TaskContext
from pantheon.client.mesh import Mesh
from tests.docs.conftest import REPOSITORY, DocumentedMesh, Running, block_with, finish, python

pytestmark = pytest.mark.asyncio(loop_scope="session")

PAGE = REPOSITORY / "docs" / "agents.md"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "greeting_agent.py").write_text(block_with(PAGE, "python", "agent.run()"), encoding="utf-8")
    return tmp_path


async def test_the_pages_tests_of_its_handler_pass(mesh: DocumentedMesh, folder: Path) -> None:
    (folder / "test_greeting_agent.py").write_text(block_with(PAGE, "python", "LocalTaskContext("), encoding="utf-8")
    command = [python(), "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder), "-c", "/dev/null"]
    done = await finish([*command, str(folder)], mesh.environment, folder)
    assert done.code == 0, done.output
    assert "2 passed" in done.output


async def test_the_pages_client_gets_what_its_agent_makes(mesh: DocumentedMesh, running: Running, folder: Path) -> None:
    code = "import asyncio\n" + block_with(PAGE, "python", "mesh.progress(") + "\nasyncio.run(call())\n"
    (folder / "call.py").write_text(code, encoding="utf-8")
    async with running(python(), str(folder / "greeting_agent.py")):
        done = await finish([python(), str(folder / "call.py")], mesh.environment, folder)
    assert done.code == 0, done.errors
    lines = done.output.splitlines()
    assert lines[0] == "['Hello, Ada!']"
    assert lines[-2:] == ["completed", "step_failed no_name"]


async def test_the_pages_operations_do_what_they_say(mesh: DocumentedMesh, running: Running, folder: Path) -> None:
    code = "import asyncio\n" + block_with(PAGE, "python", "mesh.approve(") + "\nasyncio.run(release())\n"
    (folder / "release.py").write_text(code, encoding="utf-8")
    async with running(python(), str(folder / "greeting_agent.py")):
        done = await finish([python(), str(folder / "release.py")], mesh.environment, folder)
    assert (done.code, done.output) == (0, "['Hello, anna!']\n['Hello, anna!']\n"), done.errors


async def test_the_page_names_every_operation_of_the_client() -> None:
    rows = re.findall(r"^\| `([a-z_]+)\(", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(rows) | {"resume"} >= {
        *("cancel", "pause", "resume", "signal", "approve", "retry", "replay", "redrive", "put_workflow"),
        "dead_letters",
    }
    assert all(hasattr(Mesh, name) for name in rows if name not in dir(TaskContext))


async def test_the_page_names_every_hook_and_every_member_of_the_context() -> None:
    text = PAGE.read_text(encoding="utf-8")
    hooks = {name for name in dir(Agent) if name.startswith("on_") or name.endswith("_task")}
    assert len(hooks) == 6
    for name in hooks:
        assert f"| `{name}` |" in text
    named = set(re.findall(r"`(?:await )?([a-z_]+)[`(]", text))
    members = {name for name in vars(TaskContext) if not name.startswith("_")} | {
        "request",
        "usage",
        "cancelled",
        "log",
    }
    assert members <= named
    assert {name for name in ("submit", "run", "wait", "watch", "query") if hasattr(Mesh, name)} <= named
