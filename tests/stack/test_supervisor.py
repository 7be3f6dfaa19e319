"""Supervision: what dies comes back, with backoff and said so; what is stopped ends in order."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from pantheon.stack import EventKind, StackError, StackEvent
from pantheon.stack.processes import supervisor
from pantheon.stack.processes.parts import MeshProcess, Stage
from pantheon.stack.processes.process import ManagedProcess
from pantheon.stack.processes.supervisor import Supervisor
from tests.waiting import PATIENCE_SECONDS, until

MakeProcess = Callable[..., MeshProcess]


@pytest.fixture
def events() -> list[StackEvent]:
    return []


@pytest.fixture
async def supervising(events: list[StackEvent]) -> AsyncIterator[Supervisor]:
    made = Supervisor(on_event=events.append, on_change=lambda processes: None)
    yield made
    await made.stop(asyncio.Event())


@pytest.fixture
def mesh_process(tmp_path: Path) -> MakeProcess:
    def make(name: str, *arguments: str, drain_seconds: float = 10.0) -> MeshProcess:
        return MeshProcess(
            name, arguments or ("sleep", "60"), dict(os.environ), tmp_path / f"{name}.log", drain_seconds
        )

    return make


def kinds(events: list[StackEvent]) -> list[EventKind]:
    return [event.kind for event in events]


async def test_a_killed_part_is_started_again_and_said_so(
    supervising: Supervisor, mesh_process: MakeProcess, events: list[StackEvent]
) -> None:
    part = mesh_process("llm_agent")
    await supervising.start(part, Stage.AGENTS)
    first = part.pid
    assert first is not None
    assert supervising.processes().ready == {"llm_agent": [first]}
    os.kill(first, signal.SIGKILL)
    await until(lambda: EventKind.RESTARTED in kinds(events), "the restart")
    assert kinds(events) == [EventKind.STARTED, EventKind.DIED, EventKind.RESTARTED]
    assert str(events[1]) == "llm_agent: died (killed by SIGKILL); starting it again in 0.1 s"
    assert supervising.processes().ready == {"llm_agent": [part.pid]}
    assert part.pid not in (None, first)


async def test_a_part_that_keeps_dying_is_started_ever_more_slowly(
    supervising: Supervisor,
    mesh_process: MakeProcess,
    events: list[StackEvent],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervisor, "_MAX_BACKOFF_SECONDS", 0.4)
    await supervising.start(mesh_process("bad_agent", "sh", "-c", "echo no such model >&2; exit 7"), Stage.AGENTS)
    await until(lambda: kinds(events).count(EventKind.DIED) == 4, "four deaths")
    deaths = [event.message for event in events if event.kind is EventKind.DIED]
    assert deaths == [
        f"died (exit status 7: no such model); starting it again in {seconds} s" for seconds in (0.1, 0.2, 0.4, 0.4)
    ]


async def test_a_part_that_was_up_for_a_while_starts_again_at_once(
    supervising: Supervisor,
    mesh_process: MakeProcess,
    events: list[StackEvent],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervisor, "_PROVEN_SECONDS", 0.0)
    await supervising.start(mesh_process("short_agent", "true"), Stage.AGENTS)
    await until(lambda: kinds(events).count(EventKind.DIED) == 4, "four deaths")
    assert all("again in 0.1 s" in event.message for event in events if event.kind is EventKind.DIED)


async def test_a_restart_that_fails_is_tried_again(
    supervising: Supervisor,
    mesh_process: MakeProcess,
    events: list[StackEvent],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    part = mesh_process("llm_agent")
    await supervising.start(part, Stage.AGENTS)
    spawn = ManagedProcess.spawn
    failures = [StackError("no process to be had"), OSError("nor now")]

    async def spawn_at_last(*arguments: object) -> ManagedProcess:
        if failures:
            raise failures.pop(0)
        return await spawn(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(ManagedProcess, "spawn", spawn_at_last)
    assert part.pid is not None
    os.kill(part.pid, signal.SIGKILL)
    await until(lambda: EventKind.RESTARTED in kinds(events), "the restart")
    assert kinds(events).count(EventKind.RESTART_FAILED) == 2
    assert "could not be started again: no process to be had" in events[2].message


async def test_a_first_start_that_fails_is_raised(
    supervising: Supervisor, mesh_process: MakeProcess, tmp_path: Path
) -> None:
    (tmp_path / "llm_agent.log").mkdir()
    with pytest.raises(StackError, match="cannot write the log"):
        await supervising.start(mesh_process("llm_agent"), Stage.AGENTS)


async def test_a_watcher_that_fails_by_itself_is_loud(
    mesh_process: MakeProcess, events: list[StackEvent], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(event: StackEvent) -> None:
        if event.kind is EventKind.DIED:
            raise RuntimeError("the screen is gone")

    supervising = Supervisor(on_event=broken, on_change=lambda processes: None)
    await supervising.start(mesh_process("short_agent", "true"), Stage.AGENTS)
    async with asyncio.timeout(PATIENCE_SECONDS):
        with pytest.raises(RuntimeError, match="the screen is gone"):
            await asyncio.shield(supervising.failure)
    await supervising.stop(asyncio.Event())


async def test_agents_end_before_orchestrators_and_these_before_servers(
    supervising: Supervisor, mesh_process: MakeProcess, events: list[StackEvent]
) -> None:
    await supervising.start(mesh_process("nats"), Stage.SERVERS)
    await supervising.start(mesh_process("orchestrator_agent"), Stage.ORCHESTRATORS)
    # Slow to drain, so that a wrong order would show.
    slow = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), sys.exit(0)))"
    for name in ("llm_agent", "drafting_agent"):
        script = f"{slow}; print('ready', flush=True); time.sleep(60)"
        await supervising.start(mesh_process(name, sys.executable, "-c", script), Stage.AGENTS)
    await supervising.stop(asyncio.Event())
    stopped = [event.name for event in events if event.kind is EventKind.STOPPED]
    assert sorted(stopped[:2]) == ["drafting_agent", "llm_agent"]
    assert stopped[2:] == ["orchestrator_agent", "nats"]
    assert supervising.processes().ready == {}


async def test_a_mesh_process_that_was_not_started_says_so(mesh_process: MakeProcess) -> None:
    part = mesh_process("llm_agent")
    assert part.pid is None
    assert part.ending() == "not started"
    with pytest.raises(StackError, match="llm_agent has not been started"):
        await part.wait()
    await part.stop()
