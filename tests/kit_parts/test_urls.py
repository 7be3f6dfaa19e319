"""URLs: taken apart with their credentials decoded, and shown without any secret, in whatever message they stand."""

import asyncio
import contextlib
import json
from pathlib import Path
from urllib.parse import quote

import pytest

from pantheon import Mesh
from pantheon.runtime.settings import MeshSettings
from pantheon.runtime.urls import nats_servers, redact
from pantheon.stack.servers.ports import pick_free
from pantheon.stack.servers.programs import find_nats_server
from protocol.errors import BusError, SettingsError
from tests.waiting import until

PASSWORD = "p@ss/w#1,2:3"


@pytest.mark.parametrize(
    ("text", "urls", "options"),
    [
        ("nats://127.0.0.1:4222", ("nats://127.0.0.1:4222",), {}),
        ("nats://h1,h2:4222", ("nats://h1", "nats://h2:4222"), {}),
        (f"nats://app:{quote(PASSWORD, safe='')}@h:1", ("nats://h:1",), {"user": "app", "password": PASSWORD}),
        ("nats://me%40corp:secret@h", ("nats://h",), {"user": "me@corp", "password": "secret"}),
        ("nats://t0ken@h", ("nats://h",), {"token": "t0ken"}),
        ("tls://a:b@h1:1, tls://a:b@h2:2", ("tls://h1:1", "tls://h2:2"), {"user": "a", "password": "b"}),
        ("nats://a:b@h1,h2", ("nats://h1", "nats://h2"), {"user": "a", "password": "b"}),
        ("wss://h:443/path", ("wss://h:443/path",), {}),
        ("nats://[::1]:4222", ("nats://[::1]:4222",), {}),
    ],
)
def test_servers_and_their_credentials(text: str, urls: tuple[str, ...], options: dict[str, str]) -> None:
    servers = nats_servers(text)
    assert (servers.urls, servers.options) == (urls, options)


@pytest.mark.parametrize(
    "text",
    ["nats://app:p@ss,word@h:1", "nats://app:p@ss/w#1@h:1", "nats://app:p,word@h:1", "nats://a:b@h1,nats://a:c@h2"],
)
def test_what_is_refused_shows_nothing_of_a_password(text: str) -> None:
    with pytest.raises(ValueError, match=r"server 1 of|different credentials") as raised:
        nats_servers(text)
    assert not {"ss", "word", "w#1", "p,"} & set(str(raised.value).replace("'", " ").split())
    with pytest.raises(SettingsError) as refused:
        MeshSettings.load(nats_url=text)
    assert "word" not in str(refused.value).replace("password", "").replace("NATS_PASSWORD", "")
    assert "w#1" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at nats://app:p@ss,word@h:1 now", "at nats://***@h:1 now"),
        ("nats://a:b@h1,nats://c:d@h2", "nats://***@h1,nats://***@h2"),
        ("postgresql://u:p@h/db?sslpassword=abc&x=1", "postgresql://***@h/db?sslpassword=***&x=1"),
        ("host=h password=geheim user=u", "host=h password=*** user=u"),
        ("redis://:pw@h:1/0", "redis://***@h:1/0"),
        ("'https://user:tok@hook/x?token=abc'", "'https://***@hook/x?token=***'"),
        ("smtp://me:pw@mail:587", "smtp://***@mail:587"),
        ("app:pw@host:1", "***@host:1"),
        ("mail to me@corp.example", "mail to me@corp.example"),
        ("nats://h1:1,nats://h2:2", "nats://h1:1,nats://h2:2"),
    ],
)
def test_secrets_are_not_shown(text: str, shown: str) -> None:
    assert redact(text) == shown


async def test_a_server_takes_the_decoded_password_of_a_url(tmp_path: Path) -> None:
    """The server was sent the password as it stood in the URL, percent signs and all."""
    port = pick_free()
    users = [{"user": "app", "password": PASSWORD}]
    (tmp_path / "nats.conf").write_text(
        json.dumps({"host": "127.0.0.1", "port": port, "authorization": {"users": users}})
    )
    server = await asyncio.create_subprocess_exec(
        str(find_nats_server()), "-c", str(tmp_path / "nats.conf"), stderr=asyncio.subprocess.DEVNULL
    )

    async def listens() -> bool:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return True
        return False

    try:
        await until(listens, "the server")
        async with Mesh(f"nats://app:{quote(PASSWORD, safe='')}@127.0.0.1:{port}", connect_seconds=5):
            pass
        with pytest.raises(BusError, match="no NATS server") as raised:
            async with Mesh(f"nats://app:wr%40ng@127.0.0.1:{port}", connect_seconds=1):
                pass
        assert "wr" not in str(raised.value)
    finally:
        server.terminate()
        await server.wait()
