"""Real servers on loopback for the channels: SMTP, a webhook receiver and a small WordPress."""

import asyncio
import base64
import json
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import pytest
from aiosmtpd.smtp import SMTP, AuthResult, Envelope

from agents.communication_agent.settings import CommunicationSettings
from tests.agents.http_server import Handler, HttpServer
from tests.waiting import PATIENCE_SECONDS

Response = tuple[int, Any, dict[str, str]]
SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()


class Responding(HttpServer):
    """Runs `respond(method, path, headers, body)` behind HTTP/1.1 on a free port."""

    def __init__(self, respond: Callable[[str, str, dict[str, str], bytes], Response]) -> None:
        class Responder(Handler):
            def respond(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                status, response, extra = respond(self.command, self.path, headers, self.body())
                content = response if isinstance(response, bytes) else json.dumps(response).encode()
                self.response(status, content, {"content-type": "application/json", **extra})

        super().__init__(Responder)


class Receiver:
    """A webhook receiver that keeps what it got and responds with `status`."""

    def __init__(self) -> None:
        self.messages: list[tuple[dict[str, str], bytes]] = []
        self.status = 204
        self.headers: dict[str, str] = {}
        self.server = Responding(self._respond)
        self.url = f"{self.server.url}/hook"

    def _respond(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Response:
        self.messages.append((headers, body))
        return self.status, b"", self.headers


def _stored(slug: str) -> str:
    """As `sanitize_title` leaves it: other letters than Latin ones percent-encoded in lower case, 200 characters."""
    return quote(unquote(slug)).lower()[:200]


class WordPress:
    """As much of WordPress's REST API v2 as a publisher meets: posts, tags and media, with application passwords."""

    USER, PASSWORD = "editor", "abcd EFGH 1234 ijkl MNOP 5678"

    def __init__(self) -> None:
        self.posts: dict[int, dict[str, Any]] = {}
        self.tags: dict[int, dict[str, Any]] = {}
        self.media: dict[int, dict[str, Any]] = {}
        self.writes: list[str] = []
        self.fail_with: int | None = None
        self._next_id = 1
        self._lock = threading.Lock()
        self.server = Responding(self._respond)
        self.url = self.server.url

    def _respond(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Response:
        with self._lock:
            return self._response(method, path, headers, body)

    def _response(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Response:
        if self.fail_with:
            return self.fail_with, {"code": "internal", "message": "broken"}, {}
        parts = urlsplit(path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        expected = base64.b64encode(f"{self.USER}:{self.PASSWORD}".encode()).decode()
        if headers.get("authorization") != f"Basic {expected}":
            # WordPress responds to readers without rights so.
            return 401, {"code": "rest_cannot_create", "message": "Sorry", "data": {"status": 401}}, {}
        found = re.fullmatch(r"/wp-json/wp/v2/(posts|tags|media)(?:/(\d+))?", parts.path)
        if not found:
            return 404, {"code": "rest_no_route", "message": "No route", "data": {"status": 404}}, {}
        table: dict[int, dict[str, Any]] = getattr(self, found[1])
        if method == "GET":
            if found[2]:
                post = table.get(int(found[2]))
                return (200, post, {}) if post else (404, {"code": "rest_post_invalid_id"}, {})
            listed = [row for row in table.values() if row["slug"] == _stored(query.get("slug", ""))]
            if found[1] == "posts" and query.get("status") != "any":
                listed = [row for row in listed if row["status"] == "publish"]
            if found[1] == "posts":
                listed = [row for row in listed if row["status"] != "trash"]
            return 200, listed, {}
        self.writes.append(parts.path)
        if found[1] == "media":
            return self._upload(headers, body)
        sent = json.loads(body)
        if found[1] == "tags":
            for row in self.tags.values():
                if row["name"] == sent["name"]:
                    return 400, {"code": "term_exists", "data": {"status": 400, "term_id": row["id"]}}, {}
            return 201, self._add(self.tags, {"name": sent["name"], "slug": sent["slug"]}), {}
        if found[2]:
            row = self.posts[int(found[2])]
        else:
            slugs = {row["slug"] for row in self.posts.values()}
            slug = _stored(sent["slug"]) if _stored(sent["slug"]) not in slugs else f"{_stored(sent['slug'])}-2"
            row = self._add(self.posts, {"slug": slug, "link": f"{self.url}/{slug}/"})
        for name in ("title", "content", "excerpt"):
            row[name] = {"raw": sent[name], "rendered": sent[name]}
        row |= {name: sent[name] for name in ("status", "tags", "date_gmt") if name in sent}
        return 200 if found[2] else 201, row, {}

    def _upload(self, headers: dict[str, str], body: bytes) -> Response:
        name = re.findall(r'filename="([^"]+)"', headers["content-disposition"])[0]
        row = {"slug": name.rpartition(".")[0], "source_url": f"{self.url}/wp-content/{name}", "size": len(body)}
        return 201, self._add(self.media, row | {"mime_type": headers["content-type"]}), {}

    def _add(self, table: dict[int, dict[str, Any]], row: dict[str, Any]) -> dict[str, Any]:
        row["id"] = self._next_id
        table[self._next_id] = row
        self._next_id += 1
        return row


class Mailbox:
    """An SMTP server's handler: keeps messages, refuses whom it is told to."""

    def __init__(self) -> None:
        self.messages: list[Envelope] = []
        self.refused: dict[str, str] = {}
        self.response = "250 OK"

    async def handle_RCPT(self, server: Any, session: Any, envelope: Envelope, address: str, options: Any) -> str:  # noqa: N802
        if address in self.refused:
            return self.refused[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Envelope) -> str:  # noqa: N802
        if self.response.startswith("250"):
            self.messages.append(envelope)
        return self.response


class MailServer:
    """aiosmtpd on a free port of the running loop; takes the user `ada` with the password `p@ss:word`."""

    def __init__(self) -> None:
        self.box = Mailbox()
        self._server: asyncio.Server | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"smtp://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.get_running_loop().create_server(self._protocol, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def _protocol(self) -> SMTP:
        return SMTP(
            self.box,
            hostname="mail.example",
            auth_require_tls=False,
            authenticator=lambda server, session, envelope, mechanism, data: AuthResult(
                success=(data.login, data.password) == (b"ada", b"p@ss:word"), handled=False
            ),
        )

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.server.close()


@pytest.fixture
def wordpress() -> Iterator[WordPress]:
    made = WordPress()
    yield made
    made.server.close()


@pytest.fixture
async def mail_server() -> AsyncIterator[MailServer]:
    made = MailServer()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommunicationSettings:
    for name in CommunicationSettings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    return CommunicationSettings(
        site_dir=tmp_path / "site",
        site_url="https://blog.example/",
        site_title="A <Blog> & more",
        state_dir=tmp_path / "state",
        channel_timeout_seconds=PATIENCE_SECONDS,
    )
