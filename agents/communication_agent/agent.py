"""The communication agent's binding to the mesh."""

from functools import cache

from agents.communication_agent.models import PublishContent, PublishedContent
from agents.communication_agent.publisher import CHANNELS, NotPublished, publish
from agents.communication_agent.settings import CommunicationSettings
from pantheon import Agent, TaskContext, TaskFailure

agent = Agent(
    "communication_agent",
    version="1.0.0",
    description=f"Publishes articles to {', '.join(CHANNELS)}; publishing again updates, never doubles.",
    metadata={"channels": ",".join(CHANNELS)},
)


@cache
def _settings() -> CommunicationSettings:
    return CommunicationSettings.load()


@agent.on_startup
async def _read_settings() -> None:
    _settings()


@agent.task("publish_content")
async def publish_content(task: PublishContent, ctx: TaskContext) -> PublishedContent:
    """Publish an article to its channels; every channel is idempotent, so that an attempt may be repeated."""
    await ctx.progress(5, f"publishing to {', '.join(channel.type for channel in task.channels)}")
    try:
        made = await publish(task, _settings(), ctx.progress)
    except NotPublished as error:
        raise TaskFailure(error.code, str(error), retryable=error.retryable, details=error.details) from error
    await ctx.progress(100, "published")
    return made
