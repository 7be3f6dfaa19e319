"""What the stack's tests share: a deadline instead of a sleep, toy agents, a stack in a process of its own."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import pytest

from pantheon.stack import AgentSpec, Endpoints
from tests.waiting import PATIENCE_SECONDS

REPOSITORY = Path(__file__).parent.parent.parent

# Says that it is up, and that it has drained, in files; ignores a first SIGTERM for as long as it is told to.
_TOY_AGENT = """
import os, pathlib, signal, sys, time
folder, drain_seconds = pathlib.Path(sys.argv[1]), float(sys.argv[2])
def drain(*_):
    time.sleep(drain_seconds)
    (folder / f"drained-{os.getpid()}").write_text(repr(time.time()))
    sys.exit(0)
signal.signal(signal.SIGTERM, drain)
(folder / f"env-{os.getpid()}").write_text("\\n".join(f"{k}={v}" for k, v in os.environ.items()))
while True:
    time.sleep(1)
"""

# A program around the library, as the command line is: prints events to stderr, the endpoints as a line of JSON.
_RUNNER = """
import asyncio, pathlib, sys
from pantheon.stack import AgentSpec, Stack, StackError, StackPlan, serve
data, agent, drain_seconds = pathlib.Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
agents = [AgentSpec("toy_agent", (sys.executable, "-c", agent, str(data.parent), str(drain_seconds)), 2)]
async def main():
    tell = lambda event: print(event, file=sys.stderr, flush=True)
    stack = Stack(data, StackPlan(orchestrators=0, agents=agents), on_event=tell)
    await serve(stack, on_ready=lambda endpoints: print(endpoints.model_dump_json(), flush=True))
try:
    asyncio.run(main())
except StackError as error:
    sys.exit(f"error: {error}")
"""


@pytest.fixture
def toy_agent(tmp_path: Path) -> Callable[..., AgentSpec]:
    def make(name: str = "toy_agent", instances: int = 1, drain_seconds: float = 0.0) -> AgentSpec:
        return AgentSpec(name, (sys.executable, "-c", _TOY_AGENT, str(tmp_path), str(drain_seconds)), instances)

    return make


class RunningStack:
    """A stack in a process of its own, as `pantheon up` is."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def endpoints(self) -> Endpoints:
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE_SECONDS):
            line = await self.process.stdout.readline()
        assert line, f"the stack ended: {await self.errors()}"
        return Endpoints.model_validate(json.loads(line))

    async def errors(self) -> str:
        assert self.process.stderr is not None
        async with asyncio.timeout(PATIENCE_SECONDS):
            return (await self.process.stderr.read()).decode()

    async def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self.process.wait()


class Launch(Protocol):
    """Starts a stack in a process of its own."""

    async def __call__(
        self,
        data: Path,
        *,
        drain_seconds: float = 0.0,
        prefix: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        cwd: Path = REPOSITORY,
    ) -> RunningStack:
        """Return it at once; `endpoints()` waits until it is up."""


@pytest.fixture
async def launch() -> AsyncIterator[Launch]:
    started: list[asyncio.subprocess.Process] = []

    async def start(
        data: Path,
        *,
        drain_seconds: float = 0.0,
        prefix: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        cwd: Path = REPOSITORY,
    ) -> RunningStack:
        process = await asyncio.create_subprocess_exec(
            *prefix,
            sys.executable,
            "-c",
            _RUNNER,
            str(data),
            _TOY_AGENT,
            str(drain_seconds),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), **(env or {})},
        )
        started.append(process)
        return RunningStack(process)

    yield start
    for process in started:
        if process.returncode is None:
            process.kill()
        # Reads what is left, so that the pipes' transports close before the loop does.
        await process.communicate()
