"""Each embedded server by itself: its data and port over restarts, its death, and its errors."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import asyncpg
import nats
import pytest
import redis.asyncio

from pantheon.stack import PortTakenError, ProgramMissingError, ServerStartError, StackError, find_consul
from pantheon.stack.servers import ConsulServer, NatsServer, PostgresServer, Server, ValkeyServer
from pantheon.stack.servers.consul import _get as http_get
from pantheon.stack.servers.ports import is_free, pick_free
from tests.servers import consul_program
from tests.waiting import until

Put = Callable[[Server], Awaitable[None]]
Got = Callable[[Server], Awaitable[str]]


async def put_nats(server: Server) -> None:
    client = await nats.connect(server.url)
    stream = client.jetstream()
    await stream.add_stream(name="KEPT", subjects=["kept"])
    await stream.publish("kept", b"kept value")
    await client.close()


async def got_nats(server: Server) -> str:
    client = await nats.connect(server.url)
    message = await client.jetstream().get_last_msg("KEPT", "kept")
    await client.close()
    return (message.data or b"").decode()


async def put_postgres(server: Server) -> None:
    connection = await asyncpg.connect(server.url)
    await connection.execute("create table kept as select 'kept value' as value")
    await connection.close()


async def got_postgres(server: Server) -> str:
    connection = await asyncpg.connect(server.url)
    value = await connection.fetchval("select value from kept")
    await connection.close()
    return str(value)


async def put_valkey(server: Server) -> None:
    async with redis.asyncio.from_url(server.url) as client:
        await client.set("kept", "kept value")


async def got_valkey(server: Server) -> str:
    async with redis.asyncio.from_url(server.url, decode_responses=True) as client:
        return str(await client.get("kept"))


async def put_consul(server: Server) -> None:
    assert await consul_call(server, "PUT", "/v1/kv/kept", "kept value") == "true"


async def got_consul(server: Server) -> str:
    return await consul_call(server, "GET", "/v1/kv/kept?raw", "")


async def consul_call(server: Server, method: str, path: str, body: str) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    head = f"{method} {path} HTTP/1.1\r\nHost: consul\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write((head + body).encode())
    response = (await reader.read()).decode()
    writer.close()
    return response.partition("\r\n\r\n")[2].strip()


ACCESS: dict[str, tuple[Put, Got]] = {
    "nats": (put_nats, got_nats),
    "postgres": (put_postgres, got_postgres),
    "valkey": (put_valkey, got_valkey),
    "consul": (put_consul, got_consul),
}


async def make(name: str, folder: Path, port: int | None = None) -> Server:
    if name == "consul":
        return ConsulServer(folder, await consul_program(), port=port)
    simple: dict[str, type[NatsServer | PostgresServer | ValkeyServer]] = {
        "nats": NatsServer,
        "postgres": PostgresServer,
        "valkey": ValkeyServer,
    }
    return simple[name](folder, port=port)


@pytest.fixture(params=sorted(ACCESS))
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Server]:
    made = await make(request.param, tmp_path / "with space" / request.param)
    yield made
    await made.stop()


async def test_a_second_start_finds_data_and_port_again(server: Server) -> None:
    put, got = ACCESS[server.name]
    async with server:
        await put(server)
        url = server.url
    assert server.pid is None
    again = await make(server.name, server.folder)
    async with again:
        assert again.url == url
        assert await got(again) == "kept value"


async def test_a_killed_server_comes_back_on_its_port_with_its_data(server: Server) -> None:
    put, got = ACCESS[server.name]
    await server.start()
    await put(server)
    url, pid = server.url, server.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert await server.wait() == -signal.SIGKILL
    assert "SIGKILL" in server.ending()
    await server.start()
    assert server.url == url
    assert server.pid not in (None, pid)
    assert await got(server) == "kept value"


async def test_a_start_beside_a_taken_remembered_port_takes_another(server: Server) -> None:
    put, got = ACCESS[server.name]
    async with server:
        await put(server)
        port = server.port
    with socket.create_server(("127.0.0.1", port)):
        again = await make(server.name, server.folder)
        async with again:
            assert again.port != port
            assert await got(again) == "kept value"


async def test_a_port_lost_to_another_process_in_the_last_moment_is_replaced(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        lost = int(other.getsockname()[1])
        ports = [lost]
        monkeypatch.setattr("pantheon.stack.servers.server.pick_free", lambda: ports.pop() if ports else pick_free())
        await server.start()
        assert ports == []
        assert server.port != lost
        assert server.pid is not None


async def test_a_taken_port_that_was_asked_for_is_one_clear_line(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = int(other.getsockname()[1])
        asked = await make(server.name, server.folder, port)
        with pytest.raises(PortTakenError) as caught:
            await asked.start()
    assert str(caught.value).startswith(f"port {port} for {server.name} is already taken")
    assert "\n" not in str(caught.value)
    assert asked.pid is None


async def test_a_restart_insists_on_the_port_that_the_mesh_was_told(tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "nats")
    await server.start()
    port = server.port
    await server.stop()
    with socket.create_server(("127.0.0.1", port)), pytest.raises(ServerStartError, match=f"its port {port} is held"):
        await server.start()
    await server.start()
    assert server.port == port
    await server.stop()


async def test_a_server_is_stopped_by_its_context_even_when_its_body_fails(tmp_path: Path) -> None:
    server = ValkeyServer(tmp_path / "valkey")

    async def fail_inside() -> None:
        async with server:
            raise RuntimeError("the body failed")

    with pytest.raises(RuntimeError, match="the body failed"):
        await fail_inside()
    assert server.pid is None
    assert is_free(server.port)


async def test_a_server_that_was_not_started_says_so(tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "nats")
    assert server.ending() == "not started"
    for use in (server.wait, server.wait_ready):
        with pytest.raises(StackError, match="nats has not been started"):
            await use()
    with pytest.raises(StackError, match="nats has not been started"):
        assert server.url
    await server.stop()


async def test_a_server_that_dies_at_its_start_is_quoted(tmp_path: Path) -> None:
    async with PostgresServer(tmp_path / "postgres") as server:
        await server.stop()
        (server.data_folder / "PG_VERSION").write_text("9\n")
        with pytest.raises(ServerStartError) as caught:
            await server.start()
    assert "postgres did not start: exit status 1: FATAL: database files are incompatible" in str(caught.value)
    assert str(server.log) in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_a_server_that_stays_silent_is_ended_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ValkeyServer, "ready_seconds", 0.2)

    async def never(self: ValkeyServer, port: int) -> bool:
        return False

    monkeypatch.setattr(ValkeyServer, "_is_ready", never)
    server = ValkeyServer(tmp_path / "valkey")
    with pytest.raises(ServerStartError, match="valkey did not start: no answer within 0 s"):
        await server.start()
    assert server.pid is None


async def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StackError, match=r"cannot write the files of nats \(.*Not a directory\)"):
        await NatsServer(tmp_path / "file" / "nats").start()


async def test_a_lost_password_is_told(tmp_path: Path) -> None:
    async with PostgresServer(tmp_path / "postgres"):
        pass
    (tmp_path / "postgres" / "password").unlink()
    with pytest.raises(StackError, match="cannot read the database's password"):
        await PostgresServer(tmp_path / "postgres").start()


async def test_the_database_wants_its_password(tmp_path: Path) -> None:
    async with PostgresServer(tmp_path / "postgres") as server:
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(host="127.0.0.1", port=server.port, user="pantheon", password="guess")
        connection = await asyncpg.connect(server.url)
        shown = {
            name: await connection.fetchval(f"show {name}") for name in ("fsync", "max_connections", "shared_buffers")
        }
        await connection.close()
    assert shown == {"fsync": "on", "max_connections": "200", "shared_buffers": "256MB"}
    assert (tmp_path / "postgres" / "password").stat().st_mode & 0o777 == 0o600


async def test_an_interrupted_first_start_leaves_nothing_that_hinders_the_next(tmp_path: Path) -> None:
    server = PostgresServer(tmp_path / "postgres")
    starting = asyncio.create_task(server.start())
    await until((tmp_path / "postgres" / "data.new" / "PG_VERSION").exists, "initdb at work")
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert server.pid is None
    assert not server.data_folder.exists()
    async with server:
        await put_postgres(server)


async def test_a_stale_postmaster_file_of_a_reused_process_id_is_no_obstacle(tmp_path: Path) -> None:
    server = PostgresServer(tmp_path / "postgres")
    async with server:
        await put_postgres(server)
        lines = (server.data_folder / "postmaster.pid").read_text().splitlines()
    sleeper = await asyncio.create_subprocess_exec("sleep", "60")
    try:
        stale = "\n".join([str(sleeper.pid), *lines[1:]]) + "\n"
        (server.data_folder / "postmaster.pid").write_text(stale)
        async with server:
            assert await got_postgres(server) == "kept value"
        assert sleeper.returncode is None
    finally:
        sleeper.kill()
        await sleeper.wait()


async def test_a_stray_postgres_of_the_same_folder_is_ended_first(tmp_path: Path) -> None:
    stray = PostgresServer(tmp_path / "postgres")
    await stray.start()
    await put_postgres(stray)
    async with PostgresServer(tmp_path / "postgres") as server:
        assert await got_postgres(server) == "kept value"
        assert await stray.wait() == 0
    await stray.stop()


async def test_nats_takes_eight_megabytes_and_opens_monitoring_when_asked(tmp_path: Path) -> None:
    monitor_port = pick_free()
    async with NatsServer(tmp_path / "nats", monitor_port=monitor_port) as server:
        client = await nats.connect(server.url)
        assert client.max_payload == 8 * 1024 * 1024
        await client.close()
        facts = await asyncio.to_thread(http_get, f"http://127.0.0.1:{monitor_port}/varz")
    assert facts["server_name"] == server.server_name


def test_a_consul_is_found_by_path_by_folder_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_consul() is None
    with pytest.raises(ProgramMissingError, match="is no Consul program"):
        find_consul(tmp_path / "consul")
    program = tmp_path / "consul"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert find_consul() == find_consul(program) == find_consul(tmp_path) == program


async def test_a_program_that_is_no_consul_is_one_clear_line(tmp_path: Path) -> None:
    program = tmp_path / "consul"
    program.write_text("#!/bin/sh\necho something else\n")
    program.chmod(0o755)
    with pytest.raises(ProgramMissingError, match="does not answer as Consul"):
        await ConsulServer(tmp_path / "data", program).start()
    program.write_text("#!/bin/sh\necho no such thing >&2\nexit 3\n")
    with pytest.raises(StackError, match="consul version failed: exit status 3: no such thing"):
        await ConsulServer(tmp_path / "data", program).start()
