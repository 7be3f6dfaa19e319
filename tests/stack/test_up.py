"""The stack as a whole, in this process and in one of its own that is signalled and killed."""

import asyncio
import contextlib
import os
import random
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import nats
import pytest

from pantheon.stack import (
    AgentSpec,
    DataFolderBusyError,
    DataFolderError,
    Endpoints,
    EventKind,
    NoMeshError,
    PortTakenError,
    Stack,
    StackError,
    StackEvent,
    StackPlan,
    built_in_agents,
    find_newest,
    read_endpoints,
    serve,
)
from pantheon.stack.processes.process import process_birth
from tests.processes import processes_of
from tests.servers import consul_program
from tests.waiting import PATIENCE_SECONDS, until

ToyAgent = Callable[..., AgentSpec]
Launch = Callable[..., Awaitable[Any]]

# Servers alone: these tests are about the stack, not about what runs on it.
BARE = StackPlan(orchestrators=0, agents=[])


@pytest.fixture
def started_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the test's own to start stacks from: others start some from the repository at the same time."""
    folder = tmp_path / "started from"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


async def count_rows(database_url: str, statement: str) -> object:
    connection = await asyncpg.connect(database_url)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def remember(database_url: str) -> None:
    """Stands for migrations: safe to apply twice, and leaves a trace of each time."""
    connection = await asyncpg.connect(database_url)
    await connection.execute("create table if not exists starts (at timestamptz default now())")
    await connection.execute("insert into starts default values")
    await connection.close()


async def test_a_stack_runs_what_it_promises_and_leaves_nothing(
    tmp_path: Path, toy_agent: ToyAgent, started_from: Path
) -> None:
    events: list[StackEvent] = []
    settled: list[Endpoints] = []

    async def settle(endpoints: Endpoints) -> None:
        settled.append(endpoints)
        assert not (tmp_path / "data" / "endpoints.json").exists()

    stack = Stack(
        tmp_path / "data",
        StackPlan(
            orchestrators=0,
            agents=[toy_agent(instances=2), toy_agent("other_agent")],
            consul=await consul_program(),
            environment={**os.environ, "NATS_URL": "nats://another.example:4222"},
        ),
        migrate=remember,
        settled=settle,
        on_event=events.append,
    )
    with pytest.raises(StackError, match="the stack is not running"):
        assert stack.endpoints
    with pytest.raises(StackError, match="the stack is not running"):
        assert stack.failure
    async with stack:
        endpoints = stack.endpoints
        assert read_endpoints(tmp_path / "data") == endpoints == find_newest(started_from)
        assert settled == [endpoints.model_copy(update={"started_at": settled[0].started_at})]
        servers = {"nats", "postgres", "valkey", "consul"}
        assert set(endpoints.processes) == servers | {"toy_agent", "other_agent"}
        assert len(endpoints.processes["toy_agent"]) == 2
        assert await count_rows(endpoints.database_url, "select count(*) from starts") == 1
        for pid in (*endpoints.processes["toy_agent"], *endpoints.processes["other_agent"]):
            seen = tmp_path / f"env-{pid}"
            await until(lambda seen=seen: seen.exists() and seen.read_text(), "the agent is up")  # type: ignore[misc]
            variables = dict(line.split("=", 1) for line in seen.read_text().splitlines() if "=" in line)
            assert endpoints.environment().items() <= variables.items()
    assert processes_of(tmp_path) == []
    assert not (tmp_path / "data" / "endpoints.json").exists()
    with pytest.raises(NoMeshError):
        read_endpoints(tmp_path / "data")
    stopped = [event.name for event in events if event.kind is EventKind.STOPPED]
    assert set(stopped[:3]) == {"toy_agent", "other_agent"}
    assert set(stopped[3:]) == servers


async def test_a_second_start_goes_on_with_the_data_of_the_first(tmp_path: Path) -> None:
    urls = []
    for times in (1, 2):
        async with Stack(tmp_path / "data", BARE, migrate=remember) as stack:
            assert await count_rows(stack.endpoints.database_url, "select count(*) from starts") == times
            urls.append(stack.endpoints.environment())
    assert urls[0] == urls[1]


async def test_killed_servers_come_back_where_they_were_and_the_file_follows(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with Stack(data, BARE, migrate=remember) as stack:
        before = stack.endpoints
        client = await nats.connect(before.nats_url)
        await client.jetstream().add_stream(name="KEPT", subjects=["kept"])
        await client.jetstream().publish("kept", b"kept value")
        await client.close()
        killed = [pid for pids in before.processes.values() for pid in pids]
        for pid in killed:
            os.kill(pid, signal.SIGKILL)

        def all_new() -> bool:
            pids = [pid for pids in read_endpoints(data).processes.values() for pid in pids]
            return len(pids) == len(killed) and not set(pids) & set(killed)

        await until(all_new, "new processes in endpoints.json")
        after = read_endpoints(data)
        assert after.environment() == before.environment()
        assert after.started_at == before.started_at
        assert await count_rows(after.database_url, "select count(*) from starts") == 1
        client = await nats.connect(after.nats_url)
        assert (await client.jetstream().get_last_msg("KEPT", "kept")).data == b"kept value"
        await client.close()


async def test_two_stacks_run_side_by_side_and_a_third_on_the_same_folder_does_not(
    tmp_path: Path, started_from: Path
) -> None:
    first = Stack(tmp_path / "first", BARE)
    second = Stack(tmp_path / "second", BARE)
    async with first, second:
        assert not set(first.endpoints.environment().values()) & set(second.endpoints.environment().values())
        assert find_newest(started_from) == second.endpoints
        with pytest.raises(DataFolderBusyError, match=rf"pid {os.getpid()}"):
            await Stack(tmp_path / "first", BARE).start()
        # The refused one has taken nothing away.
        assert read_endpoints(tmp_path / "first") == first.endpoints


async def test_a_start_that_fails_ends_what_it_had_begun(tmp_path: Path) -> None:
    async with Stack(tmp_path / "first", BARE) as first:
        taken = int(first.endpoints.redis_url.rpartition(":")[2].partition("/")[0])
        second = Stack(tmp_path / "second", StackPlan(orchestrators=0, agents=[], ports={"valkey": taken}))
        with pytest.raises(PortTakenError, match=f"port {taken} for valkey is already taken"):
            await second.start()
        assert processes_of(tmp_path / "second") == []

    async def fail(database_url: str) -> None:
        raise StackError("the schema is newer than this program")

    with pytest.raises(StackError, match="the schema is newer"):
        await Stack(tmp_path / "second", BARE, migrate=fail).start()
    assert processes_of(tmp_path) == []

    async def refuse(database_url: str) -> None:
        raise ConnectionRefusedError("nobody is there")

    with pytest.raises(ConnectionRefusedError):
        await Stack(tmp_path / "second", BARE, migrate=refuse).start()
    async with Stack(tmp_path / "second", BARE):
        pass


async def test_a_folder_that_cannot_be_written_inside_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "data" / "endpoints.json").mkdir(parents=True)
    with pytest.raises(DataFolderError, match=r"cannot use .*/endpoints\.json: Is a directory: check space") as caught:
        await Stack(tmp_path / "data", BARE).start()
    assert "\n" not in str(caught.value)


async def test_a_stack_that_does_not_settle_goes_on_and_says_so(tmp_path: Path) -> None:
    events: list[StackEvent] = []

    async def never(endpoints: Endpoints) -> None:
        await asyncio.Event().wait()

    async with Stack(tmp_path / "data", BARE, settled=never, on_event=events.append, settle_seconds=0.1) as stack:
        assert stack.endpoints.is_alive()
    assert any("not all parts answered" in event.message for event in events)


async def test_supervision_survives_the_loss_of_its_folder(tmp_path: Path, toy_agent: ToyAgent) -> None:
    events: list[StackEvent] = []
    async with Stack(
        tmp_path / "data", StackPlan(orchestrators=0, agents=[toy_agent()]), on_event=events.append
    ) as stack:
        [pid] = stack.endpoints.processes["toy_agent"]
        (tmp_path / "data" / "processes.json").unlink()
        (tmp_path / "data" / "processes.json").mkdir()
        os.kill(pid, signal.SIGKILL)
        await until(lambda: any(event.kind is EventKind.RESTARTED for event in events), "the restart")
        assert any("cannot keep" in event.message for event in events)
        (tmp_path / "data" / "processes.json").rmdir()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_signal_ends_everything_after_the_agents_drained(
    tmp_path: Path, launch: Launch, number: signal.Signals
) -> None:
    running = await launch(tmp_path / "data", drain_seconds=0.3)
    endpoints = await running.endpoints()
    agents = endpoints.processes["toy_agent"]
    await until(lambda: all((tmp_path / f"env-{pid}").exists() for pid in agents), "the agents are up")
    assert await running.end(number) == 0
    assert processes_of(tmp_path) == []
    assert all((tmp_path / f"drained-{pid}").exists() for pid in agents)
    assert not (tmp_path / "data" / "endpoints.json").exists()
    assert "Traceback" not in await running.errors()


async def test_a_second_signal_hurries(tmp_path: Path, launch: Launch) -> None:
    running = await launch(tmp_path / "data", drain_seconds=600.0)
    endpoints = await running.endpoints()
    agents = endpoints.processes["toy_agent"]
    await until(lambda: all((tmp_path / f"env-{pid}").exists() for pid in agents), "the agents are up")
    running.process.send_signal(signal.SIGINT)
    await until(lambda: not (tmp_path / "data" / "endpoints.json").exists(), "the end has begun")
    assert await running.end(signal.SIGINT) == 0
    assert processes_of(tmp_path) == []
    assert not any((tmp_path / f"drained-{pid}").exists() for pid in agents)


@pytest.mark.parametrize("part_of_start", [0.0, 0.15, 0.3, 0.5, 0.7, 0.9])
async def test_a_signal_in_the_middle_of_the_start_leaves_nothing(
    tmp_path: Path, launch: Launch, part_of_start: float
) -> None:
    running = await launch(tmp_path / "data")
    # The lock is the first thing that a start makes; from there to readiness takes about a second.
    await until((tmp_path / "data" / "lock").exists, "the start has begun")
    await asyncio.sleep(part_of_start * random.uniform(0.8, 1.2))
    assert await running.end(signal.SIGTERM) == 0
    assert "Traceback" not in await running.errors()
    assert processes_of(tmp_path) == []
    again = await launch(tmp_path / "data")
    await again.endpoints()
    assert await again.end(signal.SIGTERM) == 0


async def test_a_stop_that_the_start_swallowed_is_heard_all_the_same(tmp_path: Path) -> None:
    # A signal in the moment of readiness was lost in a library's close, and with it every later one.
    async def settled(endpoints: Endpoints) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    expected: list[Endpoints] = []
    stack = Stack(tmp_path / "data", BARE, settled=settled)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await serve(stack, on_ready=expected.append)
    assert expected == []
    assert processes_of(tmp_path) == []


async def test_nothing_survives_a_killed_supervisor_and_the_next_start_goes_on(tmp_path: Path, launch: Launch) -> None:
    running = await launch(tmp_path / "data")
    endpoints = await running.endpoints()
    await remember(endpoints.database_url)
    assert await running.end(signal.SIGKILL) == -signal.SIGKILL
    pids = [pid for pids in endpoints.processes.values() for pid in pids]
    await until(lambda: not any(process_birth(pid) for pid in pids), "the end of all children")
    await until(lambda: processes_of(tmp_path) == [], "the end of all others")
    with pytest.raises(NoMeshError, match="its process is gone"):
        read_endpoints(tmp_path / "data")
    again = await launch(tmp_path / "data")
    found = await again.endpoints()
    assert found.environment() == endpoints.environment()
    assert await count_rows(found.database_url, "select count(*) from starts") == 1
    assert await again.end(signal.SIGTERM) == 0


async def test_a_start_right_after_a_killed_supervisor_is_no_race(tmp_path: Path, launch: Launch) -> None:
    for _ in range(3):
        running = await launch(tmp_path / "data")
        await running.endpoints()
        await running.end(signal.SIGKILL)
    last = await launch(tmp_path / "data")
    await last.endpoints()
    assert await last.end(signal.SIGTERM) == 0
    assert processes_of(tmp_path) == []


async def test_a_busy_folder_is_one_line_from_another_process(tmp_path: Path, launch: Launch) -> None:
    running = await launch(tmp_path / "data")
    await running.endpoints()
    second = await launch(tmp_path / "data")
    assert await second.process.wait() == 1
    assert await second.errors() == (
        f"error: {tmp_path}/data is in use by a running `pantheon up` (pid {running.process.pid}): "
        "stop it, or choose another --data\n"
    )
    assert await running.end(signal.SIGTERM) == 0


def test_modules_are_named_by_their_last_part() -> None:
    spec = AgentSpec.of_module("agents.llm_agent", instances=2)
    assert spec == AgentSpec("llm_agent", (sys.executable, "-m", "agents.llm_agent"), 2)
    assert [spec.name for spec in built_in_agents()] == [
        "llm_agent",
        "enhancement_agent",
        "examination_agent",
        "drafting_agent",
        "communication_agent",
    ]
