"""A process outlives what its handlers raise, and ends within its grace whatever they hold on to."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.kit.conftest import Rig
from tests.waiting import PATIENCE_SECONDS, until

AGENT = """
import asyncio, sys, threading, time
from pantheon import Agent, TaskContext

agent = Agent("test_agent", max_concurrency=20)

@agent.task("neighbour")
async def neighbour(ctx: TaskContext):
    open("begun", "a").write("neighbour ")
    while not __import__("os").path.exists("go_on"):
        await asyncio.sleep(0.02)
    return {"ok": True}

async def leave():
    await asyncio.sleep(0.01)
    sys.exit(3)

@agent.task("exit_in_child")
async def exit_in_child():
    await asyncio.gather(leave(), asyncio.sleep(0.02))

@agent.task("exit_in_group")
async def exit_in_group():
    async with asyncio.TaskGroup() as group:
        group.create_task(leave())

@agent.task("interrupt_in_child")
async def interrupt_in_child():
    async def interrupt():
        raise KeyboardInterrupt
    await asyncio.create_task(interrupt())

@agent.task("exit_in_callback")
async def exit_in_callback():
    asyncio.get_running_loop().call_later(0.01, sys.exit, 4)
    await asyncio.sleep(0.05)
    return {"ok": True}

@agent.task("swallow")
async def swallow():
    open("begun", "a").write("swallow ")
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass

@agent.task("executor")
async def executor():
    open("begun", "a").write("executor ")
    await asyncio.to_thread(time.sleep, 600)

@agent.task("thread")
def thread():
    threading.Thread(target=time.sleep, args=(600,)).start()
    open("begun", "a").write("thread ")
    time.sleep(600)

@agent.on_shutdown
async def close():
    open("begun", "a").write("closed ")
    sys.exit(9)

agent.run()
"""


class Process:
    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self.process = process
        self.folder = folder

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    async def begun(self, word: str) -> None:
        file = self.folder / "begun"
        await until(lambda: file.exists() and word in file.read_text(), f"'{word}'")


@asynccontextmanager
async def running(rig: Rig, folder: Path) -> AsyncIterator[Process]:
    (folder / "an_agent.py").write_text(AGENT)
    environ = {**os.environ, "NATS_URL": rig.bus.url, "DRAIN_GRACE_SECONDS": "0.2", "LOG_FORMAT": "json"}
    with (folder / "log").open("w") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "an_agent.py", cwd=folder, env=environ, stderr=log, stdout=log
        )
    try:
        yield Process(process, folder)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_an_exit_in_a_handler_leaves_the_process_and_its_neighbours_alone(rig: Rig, tmp_path: Path) -> None:
    """asyncio lets a SystemExit of any task out of the loop: the process ended, and all that it had at work with it."""
    async with running(rig, tmp_path) as process:
        neighbours = [await rig.send("test_agent", "neighbour") for _ in range(3)]
        await process.begun("neighbour neighbour neighbour")
        for task_type, words in (
            ("exit_in_child", "SystemExit: 3"),
            ("exit_in_group", "SystemExit: 3"),
            ("interrupt_in_child", "KeyboardInterrupt"),
        ):
            response = await rig.run("test_agent", task_type)
            assert response.error is not None
            assert (response.error.code, response.error.retryable) == ("internal_error", True)
            assert words in response.error.message
        assert (await rig.run("test_agent", "exit_in_callback")).result == {"ok": True}
        (tmp_path / "go_on").touch()
        for task_id in neighbours:
            assert (await rig.response(task_id)).result == {"ok": True}
        assert process.process.returncode is None
        lines = [json.loads(line) for line in process.log.splitlines()]
        assert [line["task_type"] for line in lines if line["event"] == "task.raised"] == [
            "exit_in_child",
            "exit_in_group",
            "interrupt_in_child",
        ]
        assert (tmp_path / "begun").read_text().split() == ["neighbour"] * 3
        process.process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.process.wait(), PATIENCE_SECONDS) == 0


@pytest.mark.parametrize("task_type", ["swallow", "executor", "thread"])
async def test_a_process_ends_at_its_grace_whatever_its_handlers_hold(rig: Rig, tmp_path: Path, task_type: str) -> None:
    """It waited without end for a task that swallowed its cancellation, and for threads."""
    async with running(rig, tmp_path) as process:
        task_id = await rig.send("test_agent", task_type)
        await process.begun(task_type)
        process.process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.process.wait(), PATIENCE_SECONDS) == 0
        assert "closed" in (tmp_path / "begun").read_text()
        assert ("task.not_ended" in process.log) is (task_type == "swallow")
        assert rig.responses_to(task_id) == []
    # The task is in the queue again, for the next instance.
    assert await rig.queued() == 1
    (tmp_path / "again").mkdir()
    async with running(rig, tmp_path / "again") as another:
        await another.begun(task_type)
