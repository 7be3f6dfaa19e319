"""What was committed although Postgres never said so: the answer of a commit is lost with its connection."""

import asyncio
import json
from collections.abc import AsyncIterator
from uuid import UUID

import pytest
import pytest_asyncio
from pydantic import SecretStr

from orchestrator_agent.service import load_library, orchestrator
from pantheon.process.agent_process import AgentProcess
from pantheon.runtime.settings import MeshSettings
from protocol.ids import new_id
from tests.mesh.agents import Seen, registry_of, rows, words_agent
from tests.mesh.conftest import PlainClient
from tests.mesh.cut_line import CutLine
from tests.waiting import until

TWO = {
    "steps": {
        "first": {"task": "echo", "with": {"n": 1}},
        "second": {"task": "uppercase", "with": {"text": "a"}, "needs": ["first"]},
    },
    "output": "${second}",
}


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest_asyncio.fixture
async def line(settings: MeshSettings) -> AsyncIterator[CutLine]:
    assert settings.database_url is not None
    async with CutLine(settings.database_url.get_secret_value()).listening() as line:
        yield line


@pytest_asyncio.fixture
async def behind_the_line(settings: MeshSettings, line: CutLine, seen: Seen) -> AsyncIterator[AgentProcess]:
    """An orchestrator that reaches Postgres by the line, and an agent that it knows."""
    far = settings.model_copy(update={"database_url": SecretStr(line.url)})
    async with orchestrator(far, load_library([])) as process, AgentProcess(words_agent(seen), settings):
        await until(lambda: registry_of(process).serving("uppercase"), "the agent in the registry")
        yield process


async def test_an_acceptance_whose_commit_was_not_heard_of_is_dispatched(
    settings: MeshSettings, line: CutLine, behind_the_line: AgentProcess, plain: PlainClient
) -> None:
    task_id = new_id()
    line.mute(task_id)
    await plain.send("execute_dag", TWO, task_id=str(task_id))
    await until(lambda: rows(settings, "select 1 from tasks"), "the commit")
    line.cut()
    answer = await plain.answer(str(task_id))
    assert answer["result"] == {"text": "A"}


@pytest.mark.parametrize("last", [False, True], ids=["the next step", "the final response"])
async def test_a_transition_whose_commit_was_not_heard_of_is_published(
    settings: MeshSettings, line: CutLine, behind_the_line: AgentProcess, plain: PlainClient, seen: Seen, last: bool
) -> None:
    held, step = ("uppercase", "second") if last else ("echo", "first")
    gate = seen.gates[held] = asyncio.Event()
    task_id = await plain.submit("execute_dag", TWO)
    await seen.until_called(held)
    line.mute(UUID(task_id))
    gate.set()
    await until(
        lambda: rows(settings, f"select 1 from tasks where step = '{step}' and status = 'completed'"), "the commit"
    )
    line.cut()
    answer = await plain.answer(task_id)
    assert answer["result"] == {"text": "A"}
    assert (seen.count("echo"), seen.count("uppercase")) == (1, 1)
    assert len(set(plain.responses[task_id])) == 1
    assert json.loads(plain.responses[task_id][0])["attempt"] == 1
