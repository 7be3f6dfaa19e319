"""Channel `webhook`: signed by Standard Webhooks, the same id for the same message, only to allowed hosts."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from agents.communication_agent.publisher import NotPublished, publish
from agents.communication_agent.settings import CommunicationSettings
from agents.communication_agent.webhook import signature
from tests.agents.communication.conftest import SECRET, Receiver
from tests.agents.communication.payloads import article, quiet


@pytest.fixture
def configured(settings: CommunicationSettings, receiver: Receiver) -> CommunicationSettings:
    return settings.model_copy(update={"webhook_url": receiver.url, "webhook_secret": SecretStr(SECRET)})


async def _publish(settings: CommunicationSettings, channel: Any = "webhook", **fields: Any) -> Any:
    return (await publish(article(channel, **fields), settings, quiet)).publications[0]


def _verified(headers: dict[str, str], body: bytes) -> dict[str, Any]:
    """What a receiver does by the specification, written without our code."""
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 60
    signed = b".".join((headers["webhook-id"].encode(), headers["webhook-timestamp"].encode(), body))
    expected = hmac.digest(base64.b64decode(SECRET.removeprefix("whsec_")), signed, hashlib.sha256)
    assert headers["webhook-signature"] == "v1," + base64.b64encode(expected).decode()
    message: dict[str, Any] = json.loads(body)
    return message


def test_the_signature_is_that_of_the_specifications_example() -> None:
    # From the specification's reference implementations' tests.
    made = signature(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
    )
    assert made == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


async def test_the_message_is_signed_and_carries_the_article(
    configured: CommunicationSettings, receiver: Receiver
) -> None:
    made = await _publish(configured, date="2026-11-20")
    message = _verified(*receiver.messages[0])
    assert message["type"] == "content.published"
    assert message["data"]["title"] == "The Mesh That Remembers"
    assert message["data"]["key"] == made.key == "slug:the-mesh-that-remembers"
    assert message["data"]["files"][0]["sha256"] == hashlib.sha256(b"%PDF-1.7 x").hexdigest()
    assert message["timestamp"].startswith("2026-11-20")
    assert (made.status, made.id) == ("created", receiver.messages[0][0]["webhook-id"])


async def test_what_was_taken_is_not_sent_again_and_a_change_keeps_the_key(
    configured: CommunicationSettings, receiver: Receiver
) -> None:
    first, *again = await asyncio.gather(*(_publish(configured) for _ in range(5)))
    assert sorted(each.status for each in (first, *again)) == ["created", *["unchanged"] * 4]
    changed = await _publish(configured, summary="Another")
    assert changed.status == "updated"
    ids = [headers["webhook-id"] for headers, _ in receiver.messages]
    assert ids == [first.id, changed.id]
    assert first.id != changed.id
    assert {json.loads(body)["data"]["key"] for _, body in receiver.messages} == {first.key}


async def test_what_may_have_been_taken_is_sent_again_under_the_same_id(
    configured: CommunicationSettings, receiver: Receiver, tmp_path: Path
) -> None:
    """A publisher that died between the receiver's response and its record knows nothing of either."""
    first = await _publish(configured)
    await _publish(configured.model_copy(update={"state_dir": tmp_path / "forgotten"}))
    ids = [headers["webhook-id"] for headers, _ in receiver.messages]
    assert ids == [first.id, first.id]
    assert receiver.messages[0][1] == receiver.messages[1][1]
    assert {json.loads(body)["data"]["key"] for _, body in receiver.messages} == {first.key}


@pytest.mark.parametrize(
    ("status", "retryable", "code"),
    [
        (500, True, "refused"),
        (429, True, "refused"),
        (404, False, "refused"),
        (401, False, "unauthorized"),
        (302, False, "refused"),
    ],
)
async def test_a_response_decides_whether_trying_again_can_help(
    configured: CommunicationSettings, receiver: Receiver, status: int, retryable: bool, code: str
) -> None:
    receiver.status = status
    receiver.headers = {"location": "http://169.254.169.254/"} if status == 302 else {}
    with pytest.raises(NotPublished) as caught:
        await _publish(configured)
    assert (caught.value.retryable, caught.value.code) == (retryable, code)
    assert str(status) in str(caught.value)
    assert SECRET not in str(caught.value)


async def test_a_receiver_that_is_not_there_is_worth_another_attempt(
    configured: CommunicationSettings, receiver: Receiver
) -> None:
    receiver.server.close()
    with pytest.raises(NotPublished) as caught:
        await _publish(configured)
    assert (caught.value.code, caught.value.retryable) == ("unreachable", True)
    receiver.server = type(receiver)().server


async def test_an_address_from_the_payload_must_be_allowed(
    configured: CommunicationSettings, receiver: Receiver
) -> None:
    channel = {"type": "webhook", "url": f"{receiver.url}/other?token=t0ken"}
    with pytest.raises(NotPublished) as caught:
        await _publish(configured, channel)
    assert (caught.value.code, receiver.messages) == ("host_not_allowed", [])
    assert "WEBHOOK_ALLOWED_HOSTS" in str(caught.value)
    for allowed in ("127.0.0.1", f"a.example, 127.0.0.1:{receiver.server.port}", "*"):
        keyed = channel | {"key": allowed}
        made = await _publish(configured.model_copy(update={"webhook_allowed_hosts": allowed}), keyed)
        assert made.url == f"{receiver.url}/other"  # Without its token.
    assert len(receiver.messages) == 3


@pytest.mark.parametrize(
    "url", ["ftp://127.0.0.1/x", "http://", "http://user:pw@127.0.0.1/", "http://[::1", "/relative"]
)
async def test_what_is_no_plain_address_is_refused(configured: CommunicationSettings, url: str) -> None:
    with pytest.raises(NotPublished) as caught:
        await _publish(configured.model_copy(update={"webhook_allowed_hosts": "*"}), {"type": "webhook", "url": url})
    assert (caught.value.code, caught.value.retryable) == ("invalid_channel", False)


@pytest.mark.parametrize("secret", ["", "whsec_", "not base64!", "whsec_\u00fc"])
async def test_without_a_proper_secret_nothing_is_sent(
    configured: CommunicationSettings, receiver: Receiver, secret: str
) -> None:
    with pytest.raises(NotPublished) as caught:
        await _publish(configured.model_copy(update={"webhook_secret": SecretStr(secret)}))
    assert caught.value.code == "channel_not_configured"
    assert "WEBHOOK_SECRET" in str(caught.value)
    assert receiver.messages == []
