"""Publishes a post to its channels: all are checked before the first is touched, and each is published on its own."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from agents.communication_agent import mail, site, webhook, wordpress
from agents.communication_agent.channel import ChannelFailure, Post
from agents.communication_agent.models import Channel, Publication, PublishContent, PublishedContent
from agents.communication_agent.settings import CommunicationSettings
from agents.communication_agent.store import LockTimedOut, UnreadableRecord


class ChannelModule(Protocol):
    """What a channel is: a check that touches nothing, and the publication."""

    async def check(self, channel: Channel, post: Post, settings: CommunicationSettings) -> None: ...

    async def publish(self, channel: Channel, post: Post, settings: CommunicationSettings) -> Publication: ...


CHANNELS: dict[str, ChannelModule] = {"site": site, "webhook": webhook, "email": mail, "wordpress": wordpress}

Report = Callable[[float, str], Awaitable[None]]


class NotPublished(Exception):
    """A channel failed. `published` are the others: a retry leaves them as they are."""

    def __init__(self, failures: list[tuple[str, ChannelFailure]], published: list[Publication]) -> None:
        self.failures = failures
        self.published = published
        super().__init__("; ".join(f"{failure.message}" for _, failure in failures))

    @property
    def code(self) -> str:
        """The channel's own code when all failed for one reason."""
        codes = {failure.code for _, failure in self.failures}
        return codes.pop() if len(codes) == 1 else "publication_failed"

    @property
    def retryable(self) -> bool:
        """Whether another attempt could bring at least one more channel to its end."""
        return any(failure.retryable for _, failure in self.failures)

    @property
    def details(self) -> dict[str, Any]:
        """What was published and what was not."""
        return {
            "published": [publication.model_dump() for publication in self.published],
            "failed": [
                {"channel": channel, "code": failure.code, "message": failure.message, "retryable": failure.retryable}
                for channel, failure in self.failures
            ],
        }


async def publish(task: PublishContent, settings: CommunicationSettings, report: Report) -> PublishedContent:
    """Publishes to all channels at once; raises NotPublished when any failed.

    Unknown channels and missing settings are found before anything is published. A channel's failure stops no other
    one, and every channel is idempotent, so that a retry completes what is missing.
    """
    unknown = sorted({channel.type for channel in task.channels} - CHANNELS.keys())
    if unknown:
        message = f"unknown channel {', '.join(unknown)}: the channels are {', '.join(CHANNELS)}"
        raise NotPublished(
            [(name, ChannelFailure("unknown_channel", message, retryable=False)) for name in unknown[:1]], []
        )
    post = Post.of(task)
    await asyncio.to_thread(lambda: post.digest)  # Renders the article, which takes a while for long ones.
    failures = []
    for channel in task.channels:
        try:
            await CHANNELS[channel.type].check(channel, post, settings)
        except ChannelFailure as failure:
            failures.append((channel.type, failure))
    if failures:
        raise NotPublished(failures, [])
    done = 0

    async def publish_to(channel: Channel) -> Publication | ChannelFailure:
        nonlocal done
        try:
            made = await CHANNELS[channel.type].publish(channel, post, settings)
        except ChannelFailure as failure:
            return failure
        except LockTimedOut as error:
            return ChannelFailure("locked", f"{channel.type}: {error}", retryable=True)
        except UnreadableRecord as error:
            message = f"{channel.type}: a record under STATE_DIR is damaged: {error}"
            return ChannelFailure("state_damaged", message, retryable=False)
        except OSError as error:
            message = f"{channel.type}: cannot write under STATE_DIR: {error.strerror or type(error).__name__}"
            return ChannelFailure("state_not_writable", message, retryable=True)
        done += 1
        await report(10 + 85 * done / len(task.channels), f"{channel.type}: {made.status}")
        return made

    outcomes = await asyncio.gather(*(publish_to(channel) for channel in task.channels))
    published = [outcome for outcome in outcomes if isinstance(outcome, Publication)]
    failed = [
        (channel.type, outcome)
        for channel, outcome in zip(task.channels, outcomes, strict=True)
        if isinstance(outcome, ChannelFailure)
    ]
    if failed:
        raise NotPublished(failed, published)
    return PublishedContent(publications=published)
