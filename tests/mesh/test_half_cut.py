"""An orchestrator that reaches half of what it needs, beside one that reaches all: the work goes on."""

import json

import pytest
from pydantic import SecretStr

from orchestrator_agent.maintenance.adoption import AdoptionTimes
from orchestrator_agent.message_loops import HoldTimes
from orchestrator_agent.parts import Tuning
from orchestrator_agent.service import load_library, orchestrator
from pantheon.bus import PublishRetries
from pantheon.process.agent_process import AgentProcess
from pantheon.runtime.settings import MeshSettings
from tests.mesh.agents import Seen, registry_of, rows, words_agent
from tests.mesh.conftest import PlainClient
from tests.mesh.cut_line import CutLine
from tests.waiting import until


@pytest.fixture
def seen() -> Seen:
    return Seen()


async def test_what_an_orchestrator_without_postgres_holds_is_left_to_another(
    settings: MeshSettings, plain: PlainClient, seen: Seen
) -> None:
    """It said again and again that it was at work on what it had taken, and nobody else got it."""
    tuning = Tuning(holding=HoldTimes(hold_seconds=0.2, stuck_seconds=1.0))
    assert settings.database_url is not None
    async with CutLine(settings.database_url.get_secret_value()).listening() as line:
        far = settings.model_copy(update={"database_url": SecretStr(line.url)})
        async with (
            orchestrator(far, load_library([]), tuning=tuning) as cut_off,
            orchestrator(settings, load_library([]), tuning=tuning) as near,
            AgentProcess(words_agent(seen), settings),
        ):
            for process in (cut_off, near):
                await until(lambda it=process: registry_of(it).serving("uppercase"), "the agent")  # type: ignore[misc]
            line.refuse()
            # Some of them, and of their answers, go to each.
            ids = [await plain.send("uppercase", {"text": "a"}) for _ in range(20)]
            await plain.until(lambda: set(ids) <= set(plain.responses))
            await line.restore()
            # What it could not write then changes nothing any more, and it takes part again.
            ids += [await plain.send("uppercase", {"text": "a"}) for _ in range(20)]
            await plain.until(lambda: set(ids) <= set(plain.responses))
            assert all(json.loads(plain.responses[one][0])["result"] == {"text": "A"} for one in ids)
            assert all(len(set(plain.responses[one])) == 1 for one in ids)


async def test_what_an_orchestrator_without_the_broker_decided_is_published_by_another(
    settings: MeshSettings, plain: PlainClient, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lives and keeps its rows, and what it dispatched waited for the end of the attempt's time."""
    monkeypatch.setattr("pantheon.bus.publisher.DEFAULT_RETRIES", PublishRetries(ack_timeout_seconds=1.0))
    tuning = Tuning(adoption=AdoptionTimes(help_after_seconds=0.5))
    async with CutLine(settings.nats_url).listening() as line, AgentProcess(words_agent(seen), settings):
        far = settings.model_copy(update={"nats_url": line.url})
        async with orchestrator(far, load_library([]), tuning=tuning) as cut_off:
            await until(lambda: registry_of(cut_off).serving("uppercase"), "the agent")
            work = {"needs": ["nap"], "task": "uppercase", "with": {"text": "a"}}
            task_id = await plain.submit("execute_dag", {"steps": {"nap": {"sleep": 1}, "work": work}})
            line.refuse()
            await until(lambda: rows(settings, "select 1 from tasks where status = 'dispatched'"), "the dispatch")
            async with orchestrator(settings, load_library([]), tuning=tuning):
                assert (await plain.answer(task_id))["result"]["work"] == {"text": "A"}
            assert seen.count("uppercase") == 1
            await line.restore()
            await until(lambda: cut_off.bus.connected, "the broker")
            assert (await plain.ask("uppercase", {"text": "b"}))["result"] == {"text": "B"}
