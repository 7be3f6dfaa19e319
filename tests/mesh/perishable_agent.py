"""An agent in a process of its own, for tests that end it: `python -m tests.mesh.perishable_agent NAME`."""

import asyncio
import os
import signal
import sys
import time
from typing import Any

from pantheon import Agent

agent = Agent(sys.argv[1], max_concurrency=int(os.environ.get("SLOTS", "2")))


@agent.task("work")
async def work(task: dict[str, Any]) -> dict[str, Any]:
    """Takes `seconds`, and with `block` its event loop stands still meanwhile; with `kill` the process ends without a
    word, as with a segmentation fault."""
    if task.get("block"):
        time.sleep(task["seconds"])  # noqa: ASYNC251 - this is the mistake
    else:
        await asyncio.sleep(task.get("seconds", 0))
    if task.get("kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    return {"by": agent.name}


if __name__ == "__main__":
    agent.run()
