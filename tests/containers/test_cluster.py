"""The mesh of docker/compose.cluster.yml: any one container is killed, frozen or cut off, and the work goes on without
it. Only Postgres's primary is waited for, until it is back or its standby is promoted."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import nats
import pytest
import pytest_asyncio

from tests.containers.engine import Project, docker, free_port, is_well, running
from tests.containers.test_compose import AGENTS, BLOG_POST
from tests.mesh.conftest import PlainClient
from tests.waiting import until

pytestmark = [
    pytest.mark.containers,
    pytest.mark.timeout(600),
    # The engine's proxy takes a connection for a server that is down, and ends it: nats-py drops a half-made writer.
    pytest.mark.filterwarnings("ignore:.*StreamWriter.__del__:pytest.PytestUnraisableExceptionWarning"),
]

SMALL = {**BLOG_POST, "formats": ["html"]}
STREAMS = ("AGENT_TASKS", "AGENT_RESPONSES", "MESH_EVENTS", "DEAD_LETTERS")
# An attempt that an agent held is delivered again after 30 s, a silent connection is given up after 30 s.
WITHIN_SECONDS = 240


@pytest.fixture(scope="module")
def cluster(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    ports = {f"NATS_LISTEN_{number}": f"127.0.0.1:{free_port()}" for number in (2, 3)}
    with running(["compose.cluster.yml"], tmp_path_factory.mktemp("cluster") / "secrets", **ports) as made:
        yield made


@pytest_asyncio.fixture
async def outside(cluster: Project) -> AsyncIterator[PlainClient]:
    connection = await nats.connect(
        cluster.nats_urls, max_reconnect_attempts=-1, reconnect_time_wait=0.5, ping_interval=5
    )
    client = PlainClient(connection)
    await client.listen()
    yield client
    await connection.close()


@asynccontextmanager
async def away(cluster: Project, container: str, how: str) -> AsyncIterator[None]:
    """A container that is killed, frozen or cut off from its networks, or from one, and after that is there again."""
    how, _, network = how.partition(" from ")
    networks = {
        name: settings
        for name, settings in json.loads(
            docker("inspect", "--format", "{{json .NetworkSettings.Networks}}", container)
        ).items()
        if network in ("", name.removeprefix(f"{cluster.name}_"))
    }
    if how == "kill":
        await asyncio.to_thread(docker, "kill", container)
    elif how == "pause":
        await asyncio.to_thread(docker, "pause", container)
    else:
        for name in networks:
            await asyncio.to_thread(docker, "network", "disconnect", name, container)
    try:
        yield
    finally:
        if how == "kill":
            await asyncio.to_thread(docker, "start", container)
        elif how == "pause":
            await asyncio.to_thread(docker, "unpause", container)
        else:
            for name, settings in networks.items():
                aliases = [part for alias in settings["Aliases"] or () for part in ("--alias", alias)]
                await asyncio.to_thread(docker, "network", "connect", *aliases, name, container)
        for member in {container, *cluster.containers("orchestrator_agent")}:
            await well(member)
        await all_healthy(cluster)


async def well(container: str) -> None:
    """It reaches what it needs, now: a cut that was short is in none of the engine's checks."""
    await until(lambda: asyncio.to_thread(is_well, container), f"{container} to be well", seconds=WITHIN_SECONDS)


async def lacking(container: str) -> None:
    async def found() -> bool:
        return not await asyncio.to_thread(is_well, container)

    await until(found, f"{container} to lack something", seconds=WITHIN_SECONDS)


async def all_healthy(cluster: Project) -> None:
    """A frozen container has failed its health checks, and is well again at the next one."""
    async with asyncio.timeout(WITHIN_SECONDS):
        while ill := [state for state in cluster.states() if state.state != "running" or state.health != "healthy"]:
            assert not [state for state in ill if state.state == "exited"], ill
            await asyncio.sleep(0.5)


async def complete(outside: PlainClient, ids: list[str]) -> None:
    await outside.collect("create_blog_post", SMALL, ids, within_seconds=WITHIN_SECONDS)
    responses = {task_id: json.loads(outside.responses[task_id][0]) for task_id in ids}
    assert not {task_id: response for task_id, response in responses.items() if response["status"] != "completed"}


async def stream_leader(outside: PlainClient) -> str:
    info = json.loads((await outside.connection.request("$JS.API.STREAM.INFO.AGENT_TASKS", timeout=10)).data)
    return str(info["cluster"]["leader"])


async def test_every_stream_is_on_all_three_servers(outside: PlainClient) -> None:
    for stream in STREAMS:
        info = json.loads((await outside.connection.request(f"$JS.API.STREAM.INFO.{stream}", timeout=10)).data)
        assert info["config"]["num_replicas"] == 3
        assert {info["cluster"]["leader"], *(replica["name"] for replica in info["cluster"]["replicas"])} == {
            "nats", "nats_2", "nats_3",
        }  # fmt: skip


@pytest.mark.parametrize("how", ["kill", "pause", "disconnect"])
@pytest.mark.parametrize(
    "victim",
    [
        "the streams' leader", "nats", "nats_2", "nats_3", "orchestrator_agent", *AGENTS,
        "valkey", "consul", "postgres_standby",
    ],
)  # fmt: skip
async def test_the_work_goes_on_without(victim: str, how: str, cluster: Project, outside: PlainClient) -> None:
    service = await stream_leader(outside) if victim == "the streams' leader" else victim
    before = [await outside.submit("create_blog_post", SMALL) for _ in range(3)]
    async with away(cluster, cluster.containers(service)[0], how):
        during = [await outside.submit("create_blog_post", SMALL, within_seconds=WITHIN_SECONDS) for _ in range(3)]
        await complete(outside, before + during)


@pytest.mark.parametrize("how", ["disconnect from mesh", "disconnect from data"])
async def test_the_work_goes_on_where_an_orchestrator_reaches_half_of_what_it_needs(
    how: str, cluster: Project, outside: PlainClient
) -> None:
    """It gets tasks and cannot write them, or holds the rows and cannot publish: the other one does both."""
    container = cluster.containers("orchestrator_agent")[0]
    await well(container)
    before = [await outside.submit("create_blog_post", SMALL) for _ in range(3)]
    async with away(cluster, container, how):
        during = [await outside.submit("create_blog_post", SMALL, within_seconds=WITHIN_SECONDS) for _ in range(3)]
        await complete(outside, before + during)
        # And cut it was.
        await lacking(container)


@pytest.mark.parametrize("how", ["kill", "pause", "disconnect"])
async def test_it_comes_back_with_the_primary(how: str, cluster: Project, outside: PlainClient) -> None:
    """Away for so long that every orchestrator has reported that it lacks the database."""
    before = [await outside.submit("create_blog_post", SMALL) for _ in range(3)]
    async with away(cluster, cluster.containers("postgres")[0], how):
        during = [await outside.send("create_blog_post", SMALL) for _ in range(3)]
        await until(
            lambda: "healthy" not in {state.health for state in cluster.states() if "orchestrator_agent" in state.name},
            "orchestrators that lack the database",
            seconds=WITHIN_SECONDS,
        )
    await complete(outside, before + during)


async def show(cluster: Project, task_id: str) -> str:
    shown = await asyncio.to_thread(
        cluster, "exec", "-T", "orchestrator_agent", "pantheon", "task", "show", task_id, "--json"
    )
    return str(json.loads(shown)["tasks"][0]["status"])


async def replies(cluster: Project, service: str, query: str, response: str) -> None:
    """Wait for a server's reply: it may have been started a moment ago."""
    command = ("exec", "-T", service, "psql", "--username=pantheon", "--no-align", "--tuples-only", "--command", query)
    await until(lambda: cluster(*command, check=False) == response, f"{service}: {response}", seconds=WITHIN_SECONDS)


async def test_a_promoted_standby_takes_over(cluster: Project, outside: PlainClient) -> None:
    """The last of these tests, because it changes who is who."""
    before = [await outside.submit("create_blog_post", SMALL) for _ in range(3)]
    await complete(outside, before)
    await asyncio.to_thread(docker, "kill", cluster.containers("postgres")[0])
    await asyncio.to_thread(cluster, "exec", "-T", "postgres_standby", "pg_ctl", "promote")
    after = [await outside.submit("create_blog_post", SMALL, within_seconds=WITHIN_SECONDS) for _ in range(3)]
    await complete(outside, after)
    assert await show(cluster, before[0]) == "completed"

    # The former primary does not come back beside it, not even while the new one is started again ...
    former = cluster.containers("postgres")[0]
    await asyncio.to_thread(docker, "start", former)
    await until(lambda: "has become the primary" in cluster("logs", "postgres"), "the refusal", seconds=WITHIN_SECONDS)
    await asyncio.to_thread(cluster, "restart", "postgres_standby")
    await replies(cluster, "postgres_standby", "select pg_is_in_recovery()", "f")

    # ... and follows it once its volume is gone.
    await asyncio.to_thread(cluster, "rm", "--stop", "--force", "postgres")
    await asyncio.to_thread(docker, "volume", "rm", f"{cluster.name}_postgres")
    await asyncio.to_thread(cluster, "up", "--wait")
    await replies(cluster, "postgres", "select pg_is_in_recovery()", "t")
    await replies(cluster, "postgres_standby", "select state from pg_stat_replication", "streaming")
    last = [await outside.submit("create_blog_post", SMALL, within_seconds=WITHIN_SECONDS) for _ in range(3)]
    await complete(outside, last)
    assert await show(cluster, before[0]) == "completed"
