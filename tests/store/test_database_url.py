"""Database URLs of libpq's kind, and Postgres behind PgBouncer, the real program."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

import migrations
from migrations.database_url import read_address
from orchestrator_agent.service import load_library, orchestrator
from orchestrator_agent.store.pool import SESSION_SETTINGS, Database
from orchestrator_agent.store.process_lock import ProcessLock
from pantheon import Mesh
from pantheon.process.agent_process import AgentProcess
from pantheon.runtime.settings import MeshSettings
from protocol.errors import StoreError
from protocol.ids import new_id
from tests.mesh.agents import registry_of, words_agent
from tests.servers import pick_own_free
from tests.waiting import until

URL = "postgresql://anna:secret@db:5432/mesh"


@pytest.mark.parametrize(
    ("query", "kept", "timeout"),
    [
        ("", "", 10),
        ("sslmode=require&sslrootcert=/ca.pem", "?sslmode=require&sslrootcert=%2Fca.pem", 10),
        ("connect_timeout=3", "", 3),
        ("connect_timeout=1", "", 2),
        ("connect_timeout=0", "", 86400),
        ("keepalives=1&keepalives_idle=30&tcp_user_timeout=9&channel_binding=prefer", "", 10),
        ("client_encoding=utf8&target_session_attrs=read-write", "?target_session_attrs=read-write", 10),
        ("options=-c%20search_path%3Dmesh", "?options=-c+search_path%3Dmesh", 10),
    ],
)
def test_what_libpq_takes_is_taken(query: str, kept: str, timeout: float) -> None:
    address = read_address(f"{URL}?{query}" if query else URL)
    assert (address.url, address.timeout) == (URL + kept, timeout)


def test_sqlalchemys_form_and_several_hosts_are_taken() -> None:
    url = "postgresql+asyncpg://anna@one:5432,two:5433/mesh?application_name=blog"
    address = read_address(url)
    assert address.url == "postgresql://anna@one:5432,two:5433/mesh"
    assert address.settings == {"application_name": "blog"}


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("channel_binding=require", "channel_binding=require is not possible with this client: .*sslmode=verify-full"),
        ("gssencmode=require", "gssencmode=require is not possible"),
        ("require_auth=scram-sha-256", "require_auth=scram-sha-256 is not possible"),
        ("client_encoding=latin1", "client_encoding=latin1 is not possible: it is always UTF8"),
        ("connect_timeout=soon", "connect_timeout=soon is no whole number"),
    ],
)
async def test_what_cannot_be_had_is_one_clear_line(query: str, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        await Database(f"{URL}?{query}").open(wait_seconds=0)


async def test_a_parameter_that_nothing_knows_is_named(database_url: str) -> None:
    with pytest.raises(StoreError, match=r"unrecognized configuration parameter \"sslmoed\" \(check DATABASE_URL\)"):
        await Database(f"{database_url}?sslmoed=require").open(wait_seconds=0)


async def test_the_settings_of_a_session_hold_beside_those_of_the_url(database_url: str) -> None:
    async with Database(f"{database_url}?application_name=blog&connect_timeout=5&keepalives=1") as database:
        assert await settings_of(database) == {**EXPECTED, "application_name": "blog"}


EXPECTED = {name: SESSION_SETTINGS[name] for name in ("application_name", "enable_seqscan", "jit", "timezone")}
SHOW = "select current_setting('{name}') as value"


async def settings_of(database: Database) -> dict[str, str]:
    return {name: (await database.fetch(SHOW.format(name=name)))[0]["value"] for name in EXPECTED}


@asynccontextmanager
async def pgbouncer(folder: Path, database_url: str, mode: str, *more: str) -> AsyncIterator[str]:
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        pytest.skip("there is no pgbouncer on this machine: `apt-get install pgbouncer`")
    parts = urlsplit(database_url)
    port = pick_own_free()
    users = folder / "users.txt"
    users.write_text(f'"{parts.username}" "{parts.password}"\n')
    settings = [
        f"[databases]\n* = host={parts.hostname} port={parts.port}",
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = plain",
        f"auth_file = {users}\npool_mode = {mode}\ndefault_pool_size = 15",
        *more,
    ]
    config = folder / "pgbouncer.ini"
    config.write_text("\n".join(settings) + "\n")
    for path in (config, users):
        path.chmod(0o644)
    for above in (folder, *folder.parents):
        if above.owner() == "root" and str(above).startswith("/tmp/"):
            above.chmod(0o755)
    # It refuses to run as root.
    user = "nobody" if os.geteuid() == 0 else None
    process = await asyncio.create_subprocess_exec(program, str(config), user=user, stderr=asyncio.subprocess.DEVNULL)
    url = f"postgresql://{parts.username}:{parts.password}@127.0.0.1:{port}{parts.path}"
    try:
        await until(lambda: accepts(url), "pgbouncer")
        yield url
    finally:
        process.kill()
        await process.wait()


async def accepts(url: str) -> bool:
    try:
        connection = await asyncpg.connect(url, timeout=2)
    except OSError:
        return False
    await connection.close()
    return True


IGNORED = ",".join(["search_path", *SESSION_SETTINGS, "idle_session_timeout"])


@pytest.mark.parametrize("more", ["", f"ignore_startup_parameters = {IGNORED}"], ids=["refusing", "ignoring"])
async def test_a_mesh_works_behind_a_pooler_that_leaves_sessions_alone(
    settings: MeshSettings, tmp_path: Path, more: str
) -> None:
    """PgBouncer refuses most settings with a request to connect, or is told to ignore them: they are set after it."""
    assert settings.database_url is not None
    async with pgbouncer(tmp_path, settings.database_url.get_secret_value(), "session", more) as url:
        assert await migrations.upgrade(url) == migrations.head()
        async with Database(url) as database:
            assert await settings_of(database) == EXPECTED
        there = settings.model_copy(update={"database_url": type(settings.database_url)(url)})
        async with orchestrator(there, load_library([])) as process, AgentProcess(words_agent(), there):
            await until(lambda: registry_of(process).serving("uppercase"), "the agent in the registry")
            async with Mesh(there.nats_url) as mesh:
                assert await mesh.run("uppercase", {"text": "pooled"}) == {"text": "POOLED"}


@pytest.mark.parametrize("mode", ["transaction", "statement"])
@pytest.mark.parametrize("more", ["", f"ignore_startup_parameters = {IGNORED}"], ids=["refusing", "ignoring"])
async def test_a_pooler_that_shares_sessions_is_refused_in_one_clear_line(
    database_url: str, tmp_path: Path, mode: str, more: str
) -> None:
    async with pgbouncer(tmp_path, database_url, mode, more) as url:
        with pytest.raises(StoreError, match="pool_mode=session"):
            await Database(url).open(wait_seconds=0)
        with pytest.raises(StoreError, match="pool_mode=session"):
            await ProcessLock(url, new_id(), "one").take()
