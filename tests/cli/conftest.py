"""What the command line's tests share: a mesh that `pantheon up` runs for the session, and commands as processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.processes import processes_of

REPOSITORY = Path(__file__).parent.parent.parent
START_SECONDS = 100.0
COMMAND_SECONDS = 100.0
POLL_SECONDS = 0.05

# Each in files of the test's own: a mesh with an agent and a workflow that a third party might have written.
AGENT = """
import asyncio
import base64
from pydantic import BaseModel
from pantheon import Agent, TaskContext, TaskFailure

class Text(BaseModel):
    text: str

class Texts(BaseModel):
    texts: list[str]
    year: str = ""

class Wait(BaseModel):
    seconds: float

agent = Agent("words_agent", version="1.2.3")

@agent.task("uppercase")
async def uppercase(task: Text) -> Text:
    return Text(text=task.text.upper())

@agent.task("join")
async def join(task: Texts) -> Text:
    return Text(text="+".join([*task.texts, task.year]))

@agent.task("slow")
async def slow(task: Wait, ctx: TaskContext) -> dict:
    await ctx.progress(40, "half way\\nor so")
    await asyncio.sleep(task.seconds)
    return {"slept": task.seconds}

@agent.task("flaky")
async def flaky(task: dict, ctx: TaskContext) -> dict:
    if ctx.attempt < 2:
        raise TaskFailure("not_yet", "not at the first attempt", retryable=True)
    return {"attempt": ctx.attempt}

@agent.task("boom")
async def boom(task: dict) -> dict:
    raise TaskFailure("bad_thing", "no way through")

@agent.task("keep")
async def keep(task: dict) -> dict:
    return task

@agent.task("file")
async def file(task: Text) -> dict:
    content = base64.b64encode(task.text.encode()).decode()
    return {"files": [{"filename": "../../escape.txt", "content_base64": content}], "note": "with a file"}
"""

WORKFLOW = """
name: shout_all
description: Joins texts, then shouts.
input:
  required: [texts]
  properties:
    texts: {type: array, items: {type: string}}
    year: {type: string, default: ""}
steps:
  joined: {task: join, with: {texts: "${input.texts}", year: "${input.year}"}}
  loud: {task: uppercase, with: {text: "${joined.text}"}}
output: {text: "${loud.text}"}
"""


@dataclass
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def last_error(self) -> str:
        lines = self.err.strip().splitlines()
        return lines[-1] if lines else ""


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "200", **(extra or {})}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pantheon", *arguments]


@dataclass
class Shell:
    """Runs `pantheon …` in a folder."""

    folder: Path
    env: dict[str, str] = field(default_factory=dict)

    def __call__(self, *arguments: str, stdin: str = "", env: Mapping[str, str] | None = None) -> Done:
        done = subprocess.run(
            command(*arguments),
            cwd=self.folder,
            env=environment({**self.env, **(env or {})}),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    def start(self, *arguments: str) -> "Running":
        outputs = tempfile.mkdtemp(prefix="pantheon-cli-tests-")
        out, err = Path(outputs) / "out", Path(outputs) / "err"
        with out.open("w") as to_out, err.open("w") as to_err:
            process = subprocess.Popen(
                command(*arguments), cwd=self.folder, env=environment(self.env), stdout=to_out, stderr=to_err
            )
        return Running(process, out, err)


@dataclass
class Running:
    """A command at work, its output in files."""

    process: "subprocess.Popen[bytes]"
    out: Path
    err: Path

    def wait_for(self, words: str, *, stream: str = "stderr") -> str:
        """What it has said so far, as soon as these words are in it."""
        source = self.err if stream == "stderr" else self.out
        end = time.monotonic() + START_SECONDS
        while words not in (text := source.read_text()):
            ended = self.process.poll() is not None and words not in source.read_text()
            assert not ended, f"it ended without '{words}' on {stream}: {text}{self.err.read_text()}"
            assert time.monotonic() < end, f"'{words}' never came on {stream}: {text}"
            time.sleep(POLL_SECONDS)
        return text

    def end(self, number: signal.Signals) -> Done:
        self.process.send_signal(number)
        self.process.wait(timeout=COMMAND_SECONDS)
        done = Done(self.process.returncode, self.out.read_text(), self.err.read_text())
        assert "Traceback" not in done.err, done.err
        return done

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        shutil.rmtree(self.out.parent)


@pytest.fixture(scope="session", autouse=True)
def _no_mesh_of_the_shell() -> Iterator[None]:
    """Session-scoped fixtures start processes before a test's own clean environment is in place."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("NATS_URL", "DATABASE_URL", "REDIS_URL", "CONSUL_HTTP_ADDR", "LLM_MODEL", "MAX_AGENTS"):
            patch.delenv(name, raising=False)
        yield


@dataclass(frozen=True)
class Mesh:
    """A mesh that `pantheon up` runs; `folder` is where it was started."""

    folder: Path
    endpoints: dict[str, Any]


@pytest.fixture(scope="session")
def running_mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    folder = tmp_path_factory.mktemp("mesh")
    (folder / "words.py").write_text(AGENT)
    (folder / "flows").mkdir()
    (folder / "flows" / "shout_all.yaml").write_text(WORKFLOW)
    shell = Shell(folder, env={"NO_AGENT_WAIT_SECONDS": "1"})
    up = shell.start("up", "--no-agents", "--agent", "words.py", "--workflows", "flows", "--json")
    try:
        # JSON of one object, indented: it is whole when its last brace stands alone on a line.
        text = up.wait_for("\n}\n", stream="stdout")
        yield Mesh(folder, json.loads(text))
        done = up.end(signal.SIGTERM)
    finally:
        up.kill()
    assert done.code == 0, done.err
    assert json.loads(done.out) == json.loads(text)
    assert not (folder / ".pantheon" / "endpoints.json").exists()
    assert processes_of(folder) == []


@pytest.fixture
def shell(running_mesh: Mesh) -> Shell:
    """Commands in the folder that the mesh was started from: they find it by themselves."""
    return Shell(running_mesh.folder)


@pytest.fixture
def other_shell(tmp_path: Path) -> Shell:
    """Commands in a folder without a mesh."""
    return Shell(tmp_path)
