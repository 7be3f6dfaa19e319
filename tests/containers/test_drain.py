"""`docker stop` of an agent at work: the task is finished, or returned for another instance; it is never lost."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from nats.aio.msg import Msg

from tests.containers.engine import Project, docker
from tests.containers.test_compose import BLOG_POST
from tests.mesh.conftest import PlainClient

pytestmark = [pytest.mark.containers, pytest.mark.timeout(600)]

SLOW_AGENT = Path(__file__).parent / "slow_agent.py"


@contextmanager
def slow_agent(project: Project, image: str, who: str, seconds: float) -> Iterator[str]:
    """A container with the kit's own defaults: 7 s to drain, of the 10 s that `docker stop` grants."""
    container = docker(
        "run", "--detach", "--read-only", "--tmpfs", "/tmp", "--network", f"{project.name}_mesh",
        "--env", "NATS_URL=nats://nats:4222", "--env", "NATS_USER=pantheon",
        "--env", "NATS_PASSWORD_FILE=/run/secrets/nats_password", "--env", "CONSUL_HTTP_ADDR=consul:8500",
        "--env", f"WHO={who}", "--env", f"SECONDS={seconds}",
        "--volume", f"{project.secrets / 'nats_password'}:/run/secrets/nats_password:ro",
        "--volume", f"{SLOW_AGENT}:/app/slow_agent.py:ro",
        image, "python", "/app/slow_agent.py",
    )  # fmt: skip
    try:
        yield container
    finally:
        docker("rm", "--force", container)


def exit_code(container: str) -> str:
    return docker("inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", container)


class Seen:
    """What happens to the attempts: which instance began one, and which acks the broker got."""

    def __init__(self, client: PlainClient) -> None:
        self._client = client
        self.began: asyncio.Queue[str] = asyncio.Queue()
        self.acks: list[bytes] = []

    async def listen(self) -> None:
        await self._client.connection.subscribe("agent.slow_agent.progress.*", cb=self._on_progress)
        await self._client.connection.subscribe("$JS.ACK.AGENT_TASKS.slow_agent.>", cb=self._on_ack)
        await self._client.connection.flush()

    async def _on_progress(self, message: Msg) -> None:
        self.began.put_nowait(json.loads(message.data)["message"])

    async def _on_ack(self, message: Msg) -> None:
        self.acks.append(message.data)


async def test_what_ends_within_the_grace_is_finished(project: Project, outside: PlainClient, kit_image: str) -> None:
    seen = Seen(outside)
    await seen.listen()
    with slow_agent(project, kit_image, "the only one", 4) as container:
        task_id = await outside.submit("sleep_well")
        assert await asyncio.wait_for(seen.began.get(), 60) == "the only one"
        await asyncio.to_thread(docker, "stop", container)
        response = await outside.response(task_id)
        assert (response["status"], response["result"]) == ("completed", {"who": "the only one"})
        assert exit_code(container) == "exited 0"
        assert not [ack for ack in seen.acks if ack.startswith(b"-NAK")]


async def test_what_does_not_is_returned_at_once(project: Project, outside: PlainClient, kit_image: str) -> None:
    """Not left to the broker's 30 s: the first container says so itself, and its attempt is not counted as failed."""
    seen = Seen(outside)
    await seen.listen()
    with slow_agent(project, kit_image, "the first", 3600) as first:
        task_id = await outside.submit("sleep_well")
        assert await asyncio.wait_for(seen.began.get(), 60) == "the first"
        await asyncio.to_thread(docker, "stop", first)
        assert exit_code(first) == "exited 0"
        assert [ack for ack in seen.acks if ack.startswith(b"-NAK")]
    with slow_agent(project, kit_image, "the second", 0):
        response = await outside.response(task_id, 90)
    assert (response["status"], response["result"]) == ("completed", {"who": "the second"})
    shown = json.loads(
        await asyncio.to_thread(
            project, "exec", "-T", "orchestrator_agent", "pantheon", "task", "show", task_id, "--json"
        )
    )
    (step,) = [row for row in shown["tasks"] if row.get("agent") == "slow_agent"]
    assert (step["attempt"], step["failures"]) == (1, 0)


async def test_an_agent_of_the_mesh_stops_cleanly_in_the_midst_of_work(project: Project, outside: PlainClient) -> None:
    ids = [await outside.submit("create_blog_post", BLOG_POST) for _ in range(4)]
    await outside.until(
        lambda: any(
            event["channel"] == "mesh.event.step.dispatched" and event["data"]["agent"] == "drafting_agent"
            for event in outside.events
        ),
        within_seconds=60,
    )
    (container,) = project.containers("drafting_agent")
    await asyncio.to_thread(docker, "stop", container)
    assert exit_code(container) == "exited 0"
    await asyncio.to_thread(docker, "start", container)
    await outside.collect("create_blog_post", BLOG_POST, ids, within_seconds=200)
    assert {json.loads(outside.responses[task_id][0])["status"] for task_id in ids} == {"completed"}
    await asyncio.to_thread(project, "up", "--wait", "--no-recreate")
