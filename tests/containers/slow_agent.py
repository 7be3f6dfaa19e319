"""An agent whose one task takes SECONDS; WHO says which container did it."""

import asyncio
import os
from typing import Any

from pantheon import Agent, TaskContext

agent = Agent("slow_agent")


@agent.task("sleep_well")
async def sleep_well(task: dict[str, Any], ctx: TaskContext) -> dict[str, str]:
    await ctx.progress(10, os.environ["WHO"])
    await asyncio.sleep(float(os.environ["SECONDS"]))
    return {"who": os.environ["WHO"]}


if __name__ == "__main__":
    agent.run()
