"""The agent of the benchmark: returns its payload, made with the kit as any agent is."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from pantheon import Agent

# Far more than the chains of a round keep at one agent: the queue must not be what is measured.
MAX_CONCURRENCY = 4000


class Anything(BaseModel):
    model_config = ConfigDict(extra="allow")
    k: Any = None


agent = Agent("echo_agent", description="Returns its payload.", max_concurrency=MAX_CONCURRENCY)


@agent.task("echo")
async def echo(task: Anything) -> Anything:
    return task


if __name__ == "__main__":
    agent.run()
