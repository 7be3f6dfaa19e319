"""Channel `wordpress`: posts through the REST API version 2, with an application password."""

import html
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import httpx

from agents.communication_agent.channel import ChannelFailure, Post, is_explicit, key_of, slug_of
from agents.communication_agent.models import Channel, Publication, PublishedFile, Status
from agents.communication_agent.settings import CommunicationSettings
from agents.communication_agent.store import Records

POST_STATUSES = ("publish", "draft", "pending", "private", "future")
_MAX_STORED_SLUG_CHARACTERS = 190
"""WordPress has room for 200, and needs some of it for `-2`."""
_RETRYABLE_STATUS = frozenset((408, 425, 429))


def _base(settings: CommunicationSettings) -> str:
    base = settings.wordpress_url.rstrip("/")
    if urlsplit(base).scheme not in ("http", "https"):
        raise ChannelFailure("channel_not_configured", "wordpress needs WORDPRESS_URL (https://…)", retryable=False)
    return base if base.endswith("/wp-json") else f"{base}/wp-json"


async def check(channel: Channel, post: Post, settings: CommunicationSettings) -> None:
    """Raises ChannelFailure when the site or its credentials are missing or an option is wrong."""
    _base(settings)
    if not settings.wordpress_user or not settings.wordpress_app_password.get_secret_value():
        message = "wordpress needs WORDPRESS_USER and WORDPRESS_APP_PASSWORD (an application password of that user)"
        raise ChannelFailure("channel_not_configured", message, retryable=False)
    _status(channel)


def _status(channel: Channel) -> str:
    status = str(channel.options.get("status", "publish"))
    if status not in POST_STATUSES:
        message = f"wordpress: status {status!r} is none of {', '.join(POST_STATUSES)}"
        raise ChannelFailure("invalid_channel", message, retryable=False)
    return status


async def publish(channel: Channel, post: Post, settings: CommunicationSettings) -> Publication:
    """Updates the post that this key made, else the post with this slug; creates one when there is none.

    Options: `status` (default publish), `upload_files` (default true: attached files go to the media library and
    are linked below the text). Nothing is sent when the post already holds just this.
    """
    key = key_of(channel, post)
    credentials = (settings.wordpress_user, settings.wordpress_app_password.get_secret_value())
    records = Records(settings.state_dir / "wordpress", settings.channel_timeout_seconds)
    name = f"{key}\0{_base(settings)}"
    async with (
        records.take(name),
        httpx.AsyncClient(
            base_url=_base(settings) + "/",
            auth=credentials,
            timeout=settings.channel_timeout_seconds,
            follow_redirects=False,
            trust_env=False,
        ) as client,
    ):
        api = _Api(client)
        slug = _wordpress_slug(post.slug)

        def is_mine(post_id: int) -> bool:
            owner = records.read(_owner_name(post_id, settings)).get("key", key)
            return bool(owner == key or not is_explicit(owner) or not is_explicit(key))

        known = await _find(api, records.read(name).get("post_id"), slug, is_mine)
        fields: dict[str, Any] = {
            "title": post.title,
            "content": post.html + await _downloads(api, channel, post),
            "excerpt": post.summary,
            "status": _status(channel),
            "tags": sorted([await _tag(api, tag) for tag in post.tags]),
        }
        if post.when:
            fields["date_gmt"] = post.when.strftime("%Y-%m-%dT%H:%M:%S")
        status: Status
        if known is None:
            made = await api.request("POST", "wp/v2/posts", json={**fields, "slug": slug})
            status = "created"
        elif _holds(known, fields):
            made, status = known, "unchanged"
        else:
            made, status = await api.request("POST", f"wp/v2/posts/{known['id']}", json=fields), "updated"
        if not isinstance(made, dict) or "id" not in made:
            raise ChannelFailure("refused", "wordpress responded with something that is no post", retryable=False)
        records.write(name, {"post_id": made["id"]})
        if is_explicit(key):
            records.write(_owner_name(made["id"], settings), {"key": key})
    return Publication(channel="wordpress", status=status, url=made.get("link"), id=str(made["id"]), key=key)


def _owner_name(post_id: int, settings: CommunicationSettings) -> str:
    return f"post {post_id}\0{_base(settings)}"


def _wordpress_slug(slug: str) -> str:
    """The part of a slug that WordPress keeps: it stores letters beyond Latin percent-encoded, and cuts them."""
    while len(quote(slug)) > _MAX_STORED_SLUG_CHARACTERS:
        slug = slug[:-1].rstrip("-")
    return slug


async def _find(api: "_Api", post_id: Any, slug: str, is_mine: Callable[[int], bool]) -> dict[str, Any] | None:
    if isinstance(post_id, int):
        found = await api.request("GET", f"wp/v2/posts/{post_id}", params={"context": "edit"}, missing_is_none=True)
        if isinstance(found, dict) and found.get("status") != "trash":
            return found
    listed = await api.request("GET", "wp/v2/posts", params={"slug": slug, "status": "any", "context": "edit"})
    return next((post for post in listed or [] if unquote(str(post.get("slug"))) == slug and is_mine(post["id"])), None)


def _holds(known: dict[str, Any], fields: dict[str, Any]) -> bool:
    """Whether the post already is what it should be, by the raw values that `context=edit` shows."""
    for name, value in fields.items():
        current = known.get(name)
        if isinstance(current, dict):
            current = current.get("raw")
        if name == "tags":
            current = sorted(current or [])
        if isinstance(value, str):
            value, current = html.unescape(value).strip(), html.unescape(str(current or "")).strip()
        if current != value:
            return False
    return True


async def _tag(api: "_Api", name: str) -> int:
    """The id of a tag, made when it does not exist."""
    slug = slug_of(name)
    slug = _wordpress_slug(slug)
    listed = await api.request("GET", "wp/v2/tags", params={"slug": slug})
    if listed:
        return int(listed[0]["id"])
    made = await api.request("POST", "wp/v2/tags", json={"name": name, "slug": slug}, existing_is_id=True)
    return made if isinstance(made, int) else int(made["id"])


async def _downloads(api: "_Api", channel: Channel, post: Post) -> str:
    """Uploads the files, each once by its digest, and returns the list of links below the text."""
    if not post.files or not channel.options.get("upload_files", True):
        return ""
    links = []
    for file in post.files:
        address = await _medium(api, post, file)
        links.append(f'<li><a href="{html.escape(address)}">{html.escape(file.filename)}</a></li>')
    return f'<ul class="downloads">{"".join(links)}</ul>\n'


async def _medium(api: "_Api", post: Post, file: PublishedFile) -> str:
    stem, _, end = file.filename.rpartition(".")
    end = re.sub(r"[^A-Za-z0-9]+", "", end)
    slug = slug_of(f"{post.slug[:40]} {stem[:20] or end} {file.sha256[:12]}")
    if not slug.isascii():
        slug = f"file-{file.sha256[:24]}"  # it is a file's name in a header, where only ASCII is safe
    listed = await api.request("GET", "wp/v2/media", params={"slug": slug})
    if listed:
        return str(listed[0]["source_url"])
    name = f"{slug}.{end}" if stem else slug
    made = await api.request(
        "POST",
        "wp/v2/media",
        content=file.content,
        headers={"content-type": file.kind, "content-disposition": f'attachment; filename="{name}"'},
    )
    return str(made["source_url"])


class _Api:
    """Requests whose failures are channel failures."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def request(
        self, method: str, path: str, *, missing_is_none: bool = False, existing_is_id: bool = False, **content: Any
    ) -> Any:
        try:
            response = await self._client.request(method, path, **content)
        except httpx.HTTPError as error:
            message = f"wordpress: {self._client.base_url.host} could not be reached ({type(error).__name__})"
            raise ChannelFailure("unreachable", message, retryable=True) from error
        if response.status_code == 404 and missing_is_none:
            return None
        try:
            body = response.json()
        except ValueError:
            body = None
        if response.is_success and body is not None:
            return body
        reason = str(body.get("code", "")) if isinstance(body, dict) else ""
        if existing_is_id and reason == "term_exists" and isinstance(body, dict):
            return int(body["data"]["term_id"])
        status = response.status_code
        message = f"wordpress: {method} {path} was answered {status} {reason}".rstrip()
        if status in (401, 403):
            hint = "check WORDPRESS_USER, WORDPRESS_APP_PASSWORD and that this user may publish"
            raise ChannelFailure("unauthorized", f"{message}: {hint}", retryable=False)
        raise ChannelFailure("refused", message, retryable=status >= 500 or status in _RETRYABLE_STATUS)
