"""The handler: several channels at once, failures of some of them, and retries that double nothing."""

from collections.abc import Iterator

import pytest
from pydantic import SecretStr, ValidationError

from agents.communication_agent import agent as binding
from agents.communication_agent.models import PublishContent
from agents.communication_agent.publisher import NotPublished, publish
from agents.communication_agent.settings import CommunicationSettings
from agents.communication_agent.store import LockTimedOut, Records, locked
from pantheon import TaskFailure
from pantheon.worker.context import LocalTaskContext
from tests.agents.communication.conftest import SECRET, MailServer, Receiver
from tests.agents.communication.payloads import article, quiet


@pytest.fixture
def environment(
    settings: CommunicationSettings, receiver: Receiver, mail_server: MailServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    values = {
        "SITE_DIR": str(settings.site_dir),
        "STATE_DIR": str(settings.state_dir),
        "WEBHOOK_URL": receiver.url,
        "WEBHOOK_SECRET": SECRET,
        "SMTP_URL": mail_server.url,
        "EMAIL_FROM": "news@blog.example",
        "EMAIL_TO": "ann@x.example",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    binding._settings.cache_clear()
    yield
    binding._settings.cache_clear()


async def test_a_retry_after_a_partial_failure_completes_what_is_missing(
    environment: None, receiver: Receiver, mail_server: MailServer
) -> None:
    task = article("site", {"type": "webhook"}, "email")
    receiver.status = 503
    with pytest.raises(TaskFailure) as caught:
        await binding.publish_content(task, LocalTaskContext(task_type="publish_content"))
    failure = caught.value
    assert (failure.code, failure.retryable) == ("refused", True)
    assert [made["channel"] for made in failure.details["published"]] == ["site", "email"]
    assert failure.details["failed"][0]["channel"] == "webhook"
    receiver.status = 200
    ctx = LocalTaskContext(task_type="publish_content")
    made = await binding.publish_content(task, ctx)
    assert [publication.status for publication in made.publications] == ["unchanged", "created", "unchanged"]
    assert len(mail_server.box.messages) == 1
    assert len({headers["webhook-id"] for headers, _ in receiver.messages}) == 1
    assert ctx.progress_messages[-1].percent == 100
    assert SECRET not in made.model_dump_json() + repr(binding._settings())


async def test_an_unknown_channel_is_responseed_with_the_known_ones_before_anything_is_published(
    environment: None, settings: CommunicationSettings
) -> None:
    with pytest.raises(TaskFailure) as caught:
        await binding.publish_content(article("site", "telegraph"), LocalTaskContext())
    assert (caught.value.code, caught.value.retryable) == ("unknown_channel", False)
    assert "telegraph: the channels are site, webhook, email, wordpress" in caught.value.message
    assert not settings.site_dir.exists()


async def test_a_channel_without_its_settings_stops_all_before_anything_is_published(
    settings: CommunicationSettings,
) -> None:
    with pytest.raises(NotPublished) as caught:
        await publish(article("site", "webhook", "wordpress", "email"), settings, quiet)
    assert [channel for channel, _ in caught.value.failures] == ["webhook", "wordpress", "email"]
    assert (caught.value.code, caught.value.retryable) == ("channel_not_configured", False)
    assert not settings.site_dir.exists()


async def test_failures_of_different_kinds_are_one_failure(settings: CommunicationSettings, receiver: Receiver) -> None:
    receiver.status = 401
    mixed = settings.model_copy(
        update={
            "webhook_url": receiver.url,
            "webhook_secret": SecretStr(SECRET),
            "wordpress_url": "http://127.0.0.1:1",
            "wordpress_user": "u",
            "wordpress_app_password": SecretStr("p"),
        }
    )
    with pytest.raises(NotPublished) as caught:
        await publish(article("webhook", "wordpress"), mixed, quiet)
    assert (caught.value.code, caught.value.retryable) == ("publication_failed", True)


async def test_a_record_that_is_damaged_or_locked_is_said(settings: CommunicationSettings, receiver: Receiver) -> None:
    configured = settings.model_copy(update={"webhook_url": receiver.url, "webhook_secret": SecretStr(SECRET)})
    quick = configured.model_copy(update={"channel_timeout_seconds": 0.3})
    await publish(article("webhook"), configured, quiet)
    (record,) = (settings.state_dir / "webhook").glob("*.json")
    for content in ("{", "[]"):
        record.write_text(content)
        with pytest.raises(NotPublished) as caught:
            await publish(article("webhook"), quick, quiet)
        assert (caught.value.code, caught.value.retryable) == ("state_damaged", False)
    record.unlink()
    async with Records(settings.state_dir / "webhook", 1).take(f"slug:the-mesh-that-remembers\0{receiver.url}"):
        with pytest.raises(NotPublished) as caught:
            await publish(article("webhook"), quick, quiet)
        assert (caught.value.code, caught.value.retryable) == ("locked", True)
    with locked(settings.site_dir / ".publish.lock", 1):
        with pytest.raises(NotPublished) as caught:
            await publish(article("site"), quick, quiet)
        assert (caught.value.code, caught.value.retryable) == ("site_locked", True)
        with pytest.raises(LockTimedOut), locked(settings.site_dir / ".publish.lock", 0.05):
            pass


async def test_state_that_cannot_be_written_is_worth_another_attempt(
    settings: CommunicationSettings, receiver: Receiver
) -> None:
    settings.state_dir.write_text("a file")
    blocked = settings.model_copy(update={"webhook_url": receiver.url, "webhook_secret": SecretStr(SECRET)})
    with pytest.raises(NotPublished) as caught:
        await publish(article("webhook"), blocked, quiet)
    assert (caught.value.code, caught.value.retryable) == ("state_not_writable", True)


def test_a_bare_name_and_an_object_are_the_same_channel() -> None:
    assert article("site").channels == article({"type": "site"}).channels
    assert article({"type": "webhook", "url": "u", "key": "k"}).channels[0].options == {"url": "u"}


def test_files_that_are_no_base64_are_refused_on_arrival() -> None:
    with pytest.raises(ValidationError, match="not base64"):
        article("site", files=[{"filename": "x", "content_base64": "***"}])
    with pytest.raises(ValidationError):
        PublishContent.model_validate({"title": "", "markdown": "x", "channels": ["site"]})
