"""Channel `webhook`: posts a signed message, by the Standard Webhooks specification (standardwebhooks.com)."""

import base64
import hashlib
import hmac
import json
import time
from typing import Any
from urllib.parse import urlsplit

import httpx

from agents.communication_agent.channel import ChannelFailure, Post, key_of
from agents.communication_agent.models import Channel, Publication, Status
from agents.communication_agent.settings import CommunicationSettings
from agents.communication_agent.store import Records

EVENT_TYPE = "content.published"
_RETRYABLE_STATUS = frozenset((408, 409, 423, 425, 429))


def signature(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """`v1,<base64 HMAC-SHA256 of id.timestamp.body>`; raises ChannelFailure when the secret is no base64 key."""
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except ValueError:  # binascii.Error, and the error of text that is not ASCII.
        key = b""
    if not key:
        raise ChannelFailure(
            "channel_not_configured",
            "WEBHOOK_SECRET is not a Standard Webhooks secret: give whsec_ and 24 to 64 random bytes in base64",
            retryable=False,
        )
    signed = f"{message_id}.{timestamp}.".encode() + body
    return f"v1,{base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()}"


def message_id(key: str, url: str, digest: str) -> str:
    """The same for the same content under the same key at the same address: its receiver drops repetitions by it."""
    return f"msg_{hashlib.sha256(chr(0).join((key, url, digest)).encode()).hexdigest()[:32]}"


def _target(channel: Channel, settings: CommunicationSettings) -> str:
    """The address. One from the payload must be on an allowed host, or a requester could have any host called."""
    url = str(channel.options.get("url") or settings.webhook_url)
    if not url:
        raise ChannelFailure(
            "channel_not_configured", "webhook needs an address: the option url, or WEBHOOK_URL", retryable=False
        )
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        host, port, parts = "", None, urlsplit("")
    if parts.scheme not in ("http", "https") or not host or parts.username:
        raise ChannelFailure(
            "invalid_channel", "webhook: url must be http(s)://host/… without credentials", retryable=False
        )
    allowed = settings.allowed_webhook_hosts
    if url != settings.webhook_url and "*" not in allowed and host not in allowed and f"{host}:{port}" not in allowed:
        message = f"webhook: the host {host} is not allowed: add it to WEBHOOK_ALLOWED_HOSTS, or use WEBHOOK_URL"
        raise ChannelFailure("host_not_allowed", message, retryable=False)
    return url


async def check(channel: Channel, post: Post, settings: CommunicationSettings) -> None:
    """Raises ChannelFailure when the address or the secret is missing or wrong."""
    _target(channel, settings)
    if not settings.webhook_secret.get_secret_value():
        raise ChannelFailure(
            "channel_not_configured", "webhook messages are signed: set WEBHOOK_SECRET (whsec_…)", retryable=False
        )
    signature(settings.webhook_secret.get_secret_value(), "msg_", 0, b"")


async def publish(channel: Channel, post: Post, settings: CommunicationSettings) -> Publication:
    """Sends the article; any 2xx response is success.

    Delivery is at least once: a message is sent again when it is not known whether it arrived, and then carries the
    same `webhook-id`, by which the specification has receivers drop it. What is known to have been taken (STATE_DIR
    remembers it) is not sent again. Changed content is a new message with the same
    `data.key`, by which they update. Redirects are not followed: a response cannot lead to a host that is not allowed.
    """
    url, key = _target(channel, settings), key_of(channel, post)
    identifier = message_id(key, url, post.digest)
    records = Records(settings.state_dir / "webhook", settings.channel_timeout_seconds)
    name = f"{key}\0{url}"
    async with records.take(name):
        known = records.read(name)
        if known.get("id") == identifier:  # it was taken: not every receiver drops repetitions
            return Publication(channel="webhook", status="unchanged", url=_shown(url), id=identifier, key=key)
        body = json.dumps(_message(key, post), ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()
        timestamp = int(time.time())
        headers = {
            "content-type": "application/json",
            "user-agent": "pantheon-communication-agent",
            "webhook-id": identifier,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature(settings.webhook_secret.get_secret_value(), identifier, timestamp, body),
        }
        await _send(url, body, headers, settings.channel_timeout_seconds)
        status: Status = "updated" if known else "created"
        records.write(name, {"id": identifier})
    return Publication(channel="webhook", status=status, url=_shown(url), id=identifier, key=key)


def _shown(url: str) -> str:
    """The address without its query, which often carries a token."""
    return urlsplit(url)._replace(query="", fragment="").geturl()


def _message(key: str, post: Post) -> dict[str, Any]:
    """The body; its time is the article's own, so that a message sent again has the same bytes."""
    data = {
        "key": key,
        "title": post.title,
        "slug": post.slug,
        "summary": post.summary,
        "author": post.author,
        "tags": list(post.tags),
        "date": post.date,
        "markdown": post.markdown,
        "html": post.html,
        "files": [
            {
                "filename": file.filename,
                "media_type": file.media_type,
                "size_bytes": len(file.content),
                "sha256": file.sha256,
            }
            for file in post.files
        ],
    }
    return {"type": EVENT_TYPE, "data": data} | ({"timestamp": post.when.isoformat()} if post.when else {})


async def _send(url: str, body: bytes, headers: dict[str, str], timeout_seconds: float) -> None:
    try:
        async with httpx.AsyncClient(timeout=timeout_seconds, follow_redirects=False, trust_env=False) as client:
            response = await client.post(url, content=body, headers=headers)
    except httpx.HTTPError as error:
        message = f"webhook: {urlsplit(url).hostname} could not be reached ({type(error).__name__})"
        raise ChannelFailure("unreachable", message, retryable=True) from error
    if response.is_success:
        return
    status = response.status_code
    message = f"webhook: {urlsplit(url).hostname} answered {status} {response.reason_phrase}"
    if status in (401, 403):
        raise ChannelFailure("unauthorized", f"{message}: compare WEBHOOK_SECRET with the receiver's", retryable=False)
    raise ChannelFailure("refused", message, retryable=status >= 500 or status in _RETRYABLE_STATUS)
