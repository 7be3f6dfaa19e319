"""README's code, taken out of the page and run as a reader would, against a real mesh."""

import asyncio
import json
import re
import sys
from pathlib import Path

import nats
import pytest

from orchestrator_agent.workflows.files import read_workflow
from protocol.messages import TaskRequest
from tests.docs.conftest import REPOSITORY, DocumentedMesh, Running, block_with, blocks, finish, imported, python

pytestmark = pytest.mark.asyncio(loop_scope="session")

README = REPOSITORY / "README.md"
WAIT_SECONDS = 60.0


def saved(folder: Path, name: str, code: str) -> str:
    path = folder / name
    path.write_text(code, encoding="utf-8")
    return str(path)


@pytest.fixture
def agent_file(tmp_path: Path) -> str:
    return saved(tmp_path, "translation_agent.py", block_with(README, "python", "agent.run()"))


async def test_the_agent_of_the_readme_serves_the_client_of_the_readme(
    mesh: DocumentedMesh, running: Running, agent_file: str, tmp_path: Path
) -> None:
    client = saved(tmp_path, "client.py", block_with(README, "python", "async with Mesh()"))
    async with running(python(), agent_file):
        done = await finish([python(), client], mesh.environment, tmp_path)
    assert (done.code, done.output) == (0, "{'text': 'HELLO'}\n"), done.errors
    assert f"It prints `{done.output.strip()}`" in README.read_text(encoding="utf-8")


async def test_a_request_from_plain_nats_gets_a_response(
    mesh: DocumentedMesh, running: Running, agent_file: str, tmp_path: Path
) -> None:
    code = block_with(README, "python", "nats.connect(")
    assert imported(code) <= {*sys.stdlib_module_names, "nats"}
    plain = saved(tmp_path, "plain.py", code)
    async with running(python(), agent_file):
        done = await finish([python(), "-I", plain], mesh.environment, tmp_path)
    assert (done.code, done.output) == (0, "completed {'text': 'HELLO'} None\n"), done.errors
    assert f"It prints `{done.output.strip()}`" in README.read_text(encoding="utf-8")


async def test_the_nats_command_lines_body_is_a_request_that_is_done_and_found_again(
    mesh: DocumentedMesh, running: Running, agent_file: str
) -> None:
    commands = "".join(blocks(README, "sh"))
    subject, body = re.findall(r"nats publish (\S+) \\\n\s+'(.*)'", commands)[0]
    request = TaskRequest.model_validate_json(body)
    query, arguments = re.findall(r"nats request (\S+) '(.*)'", commands)[0]
    client = await nats.connect(mesh.nats_url)
    try:
        responses = await client.subscribe(re.findall(r"nats subscribe (\S+)", commands)[0])
        await client.flush()
        async with running(python(), agent_file):
            await client.publish(subject, body.encode())
            async with asyncio.timeout(WAIT_SECONDS):
                while True:
                    response = json.loads((await responses.next_msg(timeout=WAIT_SECONDS)).data)
                    if response["task_id"] == str(request.task_id):
                        break
        assert response["result"] == {"text": "HELLO"}
        tree = json.loads((await client.request(query, arguments.encode(), timeout=WAIT_SECONDS)).data)
        assert [task["status"] for task in tree["tasks"]] == ["completed", "completed"]
    finally:
        await client.close()


async def test_the_workflow_of_the_readme_runs(mesh: DocumentedMesh, running: Running, agent_file: str) -> None:
    text = block_with(README, "yaml", "name: shout_all")
    plan = read_workflow(text, source="shout_all.yaml")
    assert plan.definition is not None
    graph = {"steps": plan.definition["steps"], "output": plan.definition["output"]}
    async with running(python(), agent_file):
        result = await mesh.client.run(
            "execute_dag", {**graph, "input": {"texts": ["one", "two"]}}, wait_seconds=WAIT_SECONDS
        )
    assert result == {"texts": ["ONE", "TWO"]}
