"""Agents that the mesh's tests work with, and an orchestrator as a process of its own that can be killed."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg
from pydantic import BaseModel

from orchestrator_agent.service import OrchestratorWorker
from pantheon import Agent, TaskContext, TaskFailure
from pantheon.discovery import Registry
from pantheon.process.agent_process import AgentProcess
from pantheon.runtime.settings import MeshSettings
from tests.waiting import PATIENCE_SECONDS


class Text(BaseModel):
    text: str


class Repeat(BaseModel):
    text: str
    times: int


@dataclass
class Seen:
    """What an agent was asked: each attempt that reached a handler, and gates that hold handlers back."""

    calls: list[tuple[str, dict[str, Any], int]] = field(default_factory=list)
    gates: dict[str, asyncio.Event] = field(default_factory=dict)
    arrived: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def note(self, task_type: str, payload: dict[str, Any], context: TaskContext) -> None:
        async with self.arrived:
            self.calls.append((task_type, payload, context.attempt))
            self.arrived.notify_all()
        gate = self.gates.get(task_type)
        if gate is not None:
            await gate.wait()

    async def until_called(self, task_type: str, count: int = 1, *, within_seconds: float = PATIENCE_SECONDS) -> None:
        async with asyncio.timeout(within_seconds), self.arrived:
            await self.arrived.wait_for(lambda: self.count(task_type) >= count)

    def count(self, task_type: str) -> int:
        return sum(1 for name, _, _ in self.calls if name == task_type)


def words_agent(seen: Seen | None = None, *, name: str = "words_agent", max_concurrency: int = 20) -> Agent:
    """uppercase, repeat (PROTOCOL.md's example), and task types that fail in every way."""
    seen = seen or Seen()
    agent = Agent(name, max_concurrency=max_concurrency)

    @agent.task("uppercase")
    async def uppercase(task: Text, ctx: TaskContext) -> Text:
        await seen.note("uppercase", {"text": task.text}, ctx)
        return Text(text=task.text.upper())

    @agent.task("repeat")
    async def repeat(task: Repeat, ctx: TaskContext) -> Text:
        await seen.note("repeat", task.model_dump(), ctx)
        return Text(text=task.text * task.times)

    @agent.task("echo")
    async def echo(task: dict[str, Any], ctx: TaskContext) -> dict[str, Any]:
        await seen.note("echo", task, ctx)
        return task

    @agent.task("flaky")
    async def flaky(task: dict[str, Any], ctx: TaskContext) -> dict[str, Any]:
        await seen.note("flaky", task, ctx)
        if ctx.attempt <= task.get("failures", 2):
            raise TaskFailure("not_yet", f"attempt {ctx.attempt} fails", retryable=True)
        return {"attempt": ctx.attempt, "key": ctx.idempotency_key}

    @agent.task("refuse")
    async def refuse(task: dict[str, Any], ctx: TaskContext) -> dict[str, Any]:
        await seen.note("refuse", task, ctx)
        raise TaskFailure("no_way", "this is refused", details={"why": "because"})

    @agent.task("sleep")
    async def sleep(task: dict[str, Any], ctx: TaskContext) -> dict[str, Any]:
        await seen.note("sleep", task, ctx)
        await ctx.progress(50, "half way")
        await asyncio.sleep(task["seconds"])
        return {"slept": task["seconds"]}

    return agent


def registry_of(process: AgentProcess) -> Registry:
    """The registry that an orchestrator of this process goes by: another one may know of an agent before it."""
    assert isinstance(process.worker, OrchestratorWorker)
    return process.worker.parts.connections.registry


class OrchestratorProcess:
    """`python -m orchestrator_agent`, started, killed and started again by a test."""

    def __init__(self, settings: MeshSettings, **environment: str) -> None:
        assert settings.database_url is not None
        self._environment = {
            **os.environ,
            "NATS_URL": settings.nats_url,
            "DATABASE_URL": settings.database_url.get_secret_value(),
            # Agents of these tests start beside it, and may be registered a while after the first task.
            "NO_AGENT_WAIT_SECONDS": "30",
            "LOG_FORMAT": "console",
            **({"CONSUL_HTTP_ADDR": settings.consul_http_addr} if settings.consul_http_addr else {}),
            **environment,
        }
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "orchestrator_agent", env=self._environment
        )

    async def end(self, how: signal.Signals = signal.SIGKILL) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        if process.returncode is None:
            process.send_signal(how)
        return await process.wait()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid


@asynccontextmanager
async def orchestrator_process(settings: MeshSettings, **environment: str) -> AsyncIterator[OrchestratorProcess]:
    made = OrchestratorProcess(settings, **environment)
    await made.start()
    try:
        yield made
    finally:
        await made.end()


async def rows(settings: MeshSettings, query: str, *arguments: Any) -> list[asyncpg.Record]:
    """Ask the test's database."""
    assert settings.database_url is not None
    connection = await asyncpg.connect(settings.database_url.get_secret_value())
    try:
        found: list[asyncpg.Record] = await connection.fetch(query, *arguments)
        return found
    finally:
        await connection.close()
