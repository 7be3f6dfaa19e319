"""Postgres under every identity: root where only root may enter, uids without an account, data that changes hands."""

import asyncio
import os
import pwd
import signal
import stat
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from pantheon.stack import StackError
from pantheon.stack.processes.process import Command, ManagedProcess
from pantheon.stack.servers import PostgresServer, identity
from tests.waiting import PATIENCE_SECONDS, until

Launch = Callable[..., Awaitable[Any]]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="is about root; an ordinary user cannot become it")
_ACCOUNT = pwd.getpwnam("nobody").pw_uid


def refuse(monkeypatch: pytest.MonkeyPatch, *kinds: str) -> None:
    """Stand for a system that forbids these ways, as many containers forbid user namespaces."""
    possible = identity._is_possible

    async def is_possible(candidate: str) -> bool:
        return candidate.partition(":")[0] not in kinds and await possible(candidate)

    monkeypatch.setattr(identity, "_is_possible", is_possible)


async def put_and_count(server: PostgresServer) -> int:
    connection = await asyncpg.connect(server.url)
    await connection.execute("create table if not exists kept (n int)")
    await connection.execute("insert into kept values (1)")
    count = await connection.fetchval("select count(*) from kept")
    await connection.close()
    return int(count)


def owner_of(server: PostgresServer) -> set[int]:
    return {path.stat().st_uid for path in (server.data_folder, *server.data_folder.rglob("*"))}


@needs_root
@pytest.mark.parametrize(
    ("refused", "owner"),
    [
        # The usual machine: a namespace shows another uid, the files stay root's.
        ("user", 0),
        # The usual container: no namespaces, so it is another uid that passes file permissions.
        ("namespace", _ACCOUNT),
    ],
)
async def test_root_runs_postgres_below_a_folder_that_only_root_enters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str, owner: int
) -> None:
    private = tmp_path / "project"
    private.mkdir(mode=0o700)
    refuse(monkeypatch, refused)
    server = PostgresServer(private / "data" / "postgres")
    for times in (1, 2):
        async with server:
            assert await put_and_count(server) == times
            assert owner_of(server) == {owner}
            # Nothing was opened up to make it work.
            assert stat.S_IMODE(private.stat().st_mode) == 0o700


@needs_root
async def test_data_changes_hands_when_the_way_that_made_it_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = PostgresServer(tmp_path / "postgres")
    for times, (refused, owner) in enumerate([("user", 0), ("namespace", _ACCOUNT), ("user", 0)], start=1):
        with monkeypatch.context() as patch:
            refuse(patch, refused)
            async with server:
                assert await put_and_count(server) == times
                assert owner_of(server) == {owner}


@needs_root
async def test_root_that_may_do_neither_is_told_what_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, "user", "namespace")
    with pytest.raises(StackError, match=r"refuses to run as root.*; or run as an ordinary user"):
        await PostgresServer(tmp_path / "postgres").start()


@needs_root
async def test_postgres_gets_one_capability_and_no_groups(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = Command("show", ("cat", "/proc/self/status"), environment=dict(os.environ), identity=f"user:{_ACCOUNT}")
    running = await ManagedProcess.spawn(command, log)
    assert await running.wait() == 0
    status = dict(line.split(":", 1) for line in running.output().splitlines())
    assert status["Uid"].split() == [str(_ACCOUNT)] * 4
    assert status["Groups"].split() == []
    assert {int(status[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {0b10}


async def test_a_uid_without_an_account_runs_a_whole_stack(tmp_path: Path, launch: Launch) -> None:
    uid = next(uid for uid in range(54_321, 60_000) if not identity._has_account(uid))
    # Shown as that uid, not become it: the programs of this test run may lie where nobody else can reach them.
    running = await launch(tmp_path / "data", prefix=("unshare", "--user", f"--map-user={uid}", f"--map-group={uid}"))
    endpoints = await running.endpoints()
    connection = await asyncpg.connect(endpoints.database_url)
    assert await connection.fetchval("select 1") == 1
    await connection.close()
    assert await running.end(signal.SIGTERM) == 0


async def test_a_uid_without_an_account_and_without_namespaces_is_told_what_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 54_321)
    monkeypatch.setattr(identity, "_has_account", lambda uid: False)
    refuse(monkeypatch, "namespace")
    with pytest.raises(StackError, match=r"needs an account name for uid 54321: add one to /etc/passwd"):
        await identity.choose_identity(tmp_path)


async def test_an_ordinary_account_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: _ACCOUNT)
    assert await identity.choose_identity(tmp_path) == "keep"
    identity.own(tmp_path, "keep")


async def test_a_system_with_no_account_but_root_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(pwd, "getpwall", list)
    with pytest.raises(StackError, match="needs an account other than root"):
        await identity.choose_identity(tmp_path)


@pytest.mark.parametrize(
    ("free_bytes", "expected"),
    [(64 * 1024 * 1024, "mmap"), (512 * 1024 * 1024, "posix"), (None, "mmap")],
    ids=["a container's default", "a machine's", "none at all"],
)
async def test_parallel_queries_do_not_depend_on_a_roomy_shared_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_bytes: int | None, expected: str
) -> None:
    real = os.statvfs

    class Space:
        f_frsize = 1
        f_bavail = free_bytes

    def statvfs(path: str) -> object:
        if path != "/dev/shm":
            return real(path)
        if free_bytes is None:
            raise FileNotFoundError(path)
        return Space

    monkeypatch.setattr(os, "statvfs", statvfs)
    async with PostgresServer(tmp_path / "postgres") as server:
        connection = await asyncpg.connect(server.url)
        assert await connection.fetchval("show dynamic_shared_memory_type") == expected
        await connection.execute("set debug_parallel_query = on; set parallel_setup_cost = 0")
        assert await connection.fetchval("select count(*) from generate_series(1, 100000)") == 100_000
        await connection.close()


async def test_a_start_that_is_given_up_takes_its_probe_along(monkeypatch: pytest.MonkeyPatch) -> None:
    # What was left behind was reaped after the loop had closed, and asyncio said so beside the real error.
    started: list[asyncio.subprocess.Process] = []
    create = asyncio.create_subprocess_exec

    async def create_and_note(*arguments: Any, **options: Any) -> asyncio.subprocess.Process:
        started.append(await create(sys.executable, "-c", "import time; time.sleep(600)", **options))
        return started[0]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", create_and_note)
    probing = asyncio.create_task(identity._is_possible("keep"))
    await until(lambda: started, "the probe runs")
    probing.cancel()
    await asyncio.wait((probing,), timeout=PATIENCE_SECONDS)
    assert probing.cancelled()
    assert started[0].returncode == -signal.SIGKILL
