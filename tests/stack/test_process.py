"""Child processes: how they end, what is said about it, and how they are recognised later."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from pantheon.stack import StackError
from pantheon.stack.processes import launch, process
from pantheon.stack.processes.launch import IDENTITY_FAILED_STATUS, NOT_RUNNABLE_STATUS
from pantheon.stack.processes.process import (
    Command,
    ManagedProcess,
    end_process,
    is_same_process,
    last_meaningful_line,
    process_birth,
    run_to_end,
)
from tests.waiting import PATIENCE_SECONDS, until

Spawn = Callable[..., Awaitable[ManagedProcess]]

_STUBBORN = "trap '' TERM; echo ready; while :; do sleep 0.05; done"

_POSTGRES_LOG = """
2026-01-02 03:04:05.678 UTC [77] FATAL:  could not create lock file
2026-01-02 03:04:05.679 UTC [77] HINT:  Is another one running?
2026-01-02 03:04:05.680 UTC [77] LOG:  database system is shut down
"""


@pytest.fixture
async def spawn(tmp_path: Path) -> AsyncIterator[Spawn]:
    started: list[ManagedProcess] = []

    async def run(*arguments: str, identity: str = "keep") -> ManagedProcess:
        command = Command("part", arguments, environment=dict(os.environ), identity=identity)
        started.append(await ManagedProcess.spawn(command, tmp_path / "logs" / "part.log"))
        return started[-1]

    yield run
    for running in started:
        await running.stop([])


@pytest.mark.parametrize(
    ("log", "line"),
    [
        # The reason stands before the farewell.
        (
            _POSTGRES_LOG,
            "FATAL: could not create lock file",
        ),
        # NATS puts its process id first.
        (
            "[123] 2026/01/02 03:04:05.678901 [FTL] Can't start JetStream: no space\n",
            "[FTL] Can't start JetStream: no space",
        ),
        # A Python traceback ends with what matters.
        ("Traceback (most recent call last):\n  File 'x', line 1\nKeyError: 'topic'\n\n", "KeyError: 'topic'"),
        # Nothing tells of an error: the last line there is.
        ("starting\nlistening\n\n", "listening"),
        # An error long before the end explains nothing.
        ("error: old\n" + "fine\n" * 30, "fine"),
        # initdb's own words stand before those of the server that it runs; a full disk explains all that follows.
        (
            "making ... 2026-01-02 03:04:05.678 UTC [9] FATAL:  cannot extend: No space left on device\nPANIC: over\n",
            "FATAL: cannot extend: No space left on device",
        ),
        ("", ""),
    ],
)
def test_the_line_that_says_why_is_found(log: str, line: str) -> None:
    assert last_meaningful_line(log) == line


async def test_a_process_that_obeys_is_ended_by_the_first_signal(spawn: Spawn) -> None:
    running = await spawn("sleep", "60")
    await running.stop([(signal.SIGTERM, PATIENCE_SECONDS), (signal.SIGKILL, PATIENCE_SECONDS)])
    assert running.returncode == -signal.SIGTERM
    assert running.ending() == "killed by SIGTERM"
    running.send(signal.SIGTERM)


async def test_a_process_that_does_not_obey_is_killed_after_its_grace(spawn: Spawn) -> None:
    running = await spawn("sh", "-c", _STUBBORN)
    assert running.ending().startswith("still running")
    await until(lambda: "ready" in running.output(), "the trap is set")
    await running.stop([(signal.SIGTERM, 0.2)])
    assert running.returncode == -signal.SIGKILL


async def test_a_hurried_stop_does_not_wait_for_the_grace(spawn: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_HURRIED_SECONDS", 0.1)
    running = await spawn("sh", "-c", _STUBBORN)
    await until(lambda: "ready" in running.output(), "the trap is set")
    hurry = asyncio.Event()
    asyncio.get_running_loop().call_later(0.1, hurry.set)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await running.stop([(signal.SIGTERM, 10 * PATIENCE_SECONDS)], hurry)
    assert running.returncode == -signal.SIGKILL


async def test_what_a_process_had_started_ends_with_it(spawn: Spawn) -> None:
    running = await spawn("sh", "-c", "sleep 60 & echo $!; wait")
    await until(lambda: running.output().strip().isdigit(), "the child's process id")
    child = int(running.output())
    assert process_birth(child) is not None
    await running.stop([(signal.SIGTERM, PATIENCE_SECONDS)])
    await until(lambda: process_birth(child) is None, "the end of the child")


async def test_what_a_process_had_started_ends_with_it_when_it_dies_by_itself(spawn: Spawn) -> None:
    running = await spawn("sh", "-c", "sleep 60 & echo $!; exit 1")
    assert await running.wait() == 1
    child = int(running.output())
    await until(lambda: process_birth(child) is None, "the end of the child")
    assert await running.wait() == 1


async def test_a_program_that_cannot_be_run_says_which(spawn: Spawn, tmp_path: Path) -> None:
    running = await spawn(str(tmp_path / "missing"))
    assert await running.wait() == NOT_RUNNABLE_STATUS
    assert running.ending() == f"exit status 127: launch: cannot run {tmp_path}/missing: No such file or directory"


async def test_an_identity_that_cannot_be_taken_is_told(spawn: Spawn) -> None:
    running = await spawn("true", identity="somebody:1")
    assert await running.wait() == IDENTITY_FAILED_STATUS
    assert "unknown identity 'somebody:1'" in running.ending()


@pytest.mark.parametrize(
    ("parent_pid", "identity", "status"),
    [
        # A program that is not there.
        (os.getppid(), "keep", NOT_RUNNABLE_STATUS),
        # A parent that is not ours any more.
        (1 if os.getppid() != 1 else 2, "keep", NOT_RUNNABLE_STATUS),
        # A way that does not exist.
        (os.getppid(), "somebody:1", IDENTITY_FAILED_STATUS),
    ],
)
def test_the_launch_script_returns_only_where_it_fails(
    tmp_path: Path, parent_pid: int, identity: str, status: int
) -> None:
    # Death signal 0: none, as this runs in the test's own process.
    assert launch.main([str(parent_pid), "0", identity, str(tmp_path / "missing")]) == status


async def test_a_child_whose_parent_is_gone_already_does_not_begin(tmp_path: Path) -> None:
    arguments = Command("part", ("touch", str(tmp_path / "ran"))).launched()
    parent = arguments.index(str(os.getpid()))
    orphan = await asyncio.create_subprocess_exec(*arguments[:parent], "1", *arguments[parent + 1 :])
    assert await orphan.wait() == NOT_RUNNABLE_STATUS
    assert not (tmp_path / "ran").exists()


async def test_a_child_ends_with_its_parent(tmp_path: Path) -> None:
    script = """
import asyncio, pathlib, sys
from pantheon.stack.processes.process import Command, ManagedProcess
async def main():
    running = await ManagedProcess.spawn(Command("child", ("sleep", "60")), pathlib.Path(sys.argv[1]) / "log")
    print(running.pid, flush=True)
    await running.wait()
asyncio.run(main())
"""
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    child = int(await parent.stdout.readline())
    birth = process_birth(child)
    assert is_same_process(child, birth)
    parent.kill()
    await parent.communicate()
    await until(lambda: not is_same_process(child, birth), "the end of the child")


async def test_an_unwritable_log_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StackError, match="cannot write the log"):
        await ManagedProcess.spawn(Command("part", ("true",)), tmp_path / "file" / "part.log")


async def test_a_working_folder_that_is_missing_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="cannot start part: No such file or directory"):
        await ManagedProcess.spawn(Command("part", ("true",), folder=tmp_path / "missing"), tmp_path / "part.log")


async def test_a_log_that_grew_too_long_is_set_aside_at_the_next_start(
    spawn: Spawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_LOG_LIMIT_BYTES", 10)
    first = await spawn("echo", "longer than ten bytes")
    await first.wait()
    second = await spawn("echo", "short")
    await second.wait()
    assert second.output() == "short\n"
    assert (tmp_path / "logs" / "part.log.1").read_text() == "longer than ten bytes\n"
    (tmp_path / "logs" / "part.log").unlink()
    assert second.output() == ""
    assert second.ending() == "exit status 0"


async def test_each_run_is_quoted_from_its_own_part_of_the_log(spawn: Spawn) -> None:
    first = await spawn("sh", "-c", "echo first error; exit 3")
    assert await first.wait() == 3
    second = await spawn("sh", "-c", "exit 4")
    assert await second.wait() == 4
    assert first.ending() == "exit status 3: first error"
    assert second.ending() == "exit status 4"


async def test_a_command_that_fails_is_quoted_and_one_that_is_interrupted_is_ended(tmp_path: Path) -> None:
    log = tmp_path / "log"
    await run_to_end(Command("reader", ("grep", "-q", "fed")), log, feed="fed\n")
    with pytest.raises(StackError, match=r"reader failed: exit status 2: grep: .*missing.*\(log: "):
        await run_to_end(Command("reader", ("grep", "x", str(tmp_path / "missing"))), log)
    task = asyncio.create_task(run_to_end(Command("shell", ("sh", "-c", "echo $$ >&2; exec sleep 60")), log))
    await until(lambda: log.read_text().splitlines()[-1:][0].isdigit(), "the command runs")
    pid = int(log.read_text().splitlines()[-1])
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert process_birth(pid) is None


async def test_a_command_that_cannot_be_started_says_why(tmp_path: Path) -> None:
    """One that ends by itself had no word for that: an OSError, and its traceback."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StackError, match="cannot write the log"):
        await run_to_end(Command("reader", ("true",)), tmp_path / "file" / "log")
    with pytest.raises(StackError, match="cannot start reader: No such file"):
        await run_to_end(Command("reader", ("true",), folder=tmp_path / "missing"), tmp_path / "log")


async def test_a_process_id_alone_is_no_proof() -> None:
    sleeper = await asyncio.create_subprocess_exec("sleep", "60")
    birth = process_birth(sleeper.pid)
    assert is_same_process(sleeper.pid, birth)
    assert not is_same_process(sleeper.pid, "another boot:1")
    assert not is_same_process(sleeper.pid, None)
    assert await end_process(sleeper.pid, "another boot:1", [(signal.SIGTERM, 1.0)])
    assert sleeper.returncode is None
    assert await end_process(sleeper.pid, birth, [(signal.SIGTERM, PATIENCE_SECONDS)])
    assert await sleeper.wait() == -signal.SIGTERM
    assert process_birth(sleeper.pid) is None


async def test_a_stubborn_leftover_is_killed(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as out:
        stubborn = await asyncio.create_subprocess_exec("sh", "-c", _STUBBORN, stdout=out)
    await until(lambda: (tmp_path / "out").read_text(), "the trap is set")
    assert await end_process(stubborn.pid, process_birth(stubborn.pid), [(signal.SIGTERM, 0.1)])
    assert await stubborn.wait() == -signal.SIGKILL
