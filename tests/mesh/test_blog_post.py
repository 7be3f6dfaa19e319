"""The main job: `create_blog_post` and `research_brief` by the five agents that come with the mesh, offline."""

import asyncio
import base64
import contextlib
import importlib
import io
import json
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml

from pantheon import Mesh, TaskFailed
from pantheon.process.agent_process import AgentProcess
from pantheon.runtime.settings import MeshSettings
from tests.mesh.agents import rows

AGENTS = ("llm_agent", "enhancement_agent", "examination_agent", "drafting_agent", "communication_agent")
BLOG = Path(__file__).parent.parent.parent / "examples" / "blog"


@pytest.fixture
def request_payload() -> dict[str, Any]:
    request: dict[str, Any] = yaml.safe_load((BLOG / "request.yaml").read_text())
    request["guidelines"] = (BLOG / request.pop("guidelines_file")).read_text()
    request["sources"] = [
        {"title": one["title"], "text": (BLOG / one["file"]).read_text()} for one in request["sources"]
    ]
    return request


@pytest_asyncio.fixture
async def five_agents(
    orchestrated: AgentProcess, settings: MeshSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Path]:
    """All five in this process; returns the folder of the site that communication_agent keeps."""
    monkeypatch.setenv("SITE_DIR", str(tmp_path / "site"))
    monkeypatch.setenv("STATE_DIR", str(tmp_path / "state"))
    async with contextlib.AsyncExitStack() as stack:
        for name in AGENTS:
            agent = importlib.import_module(f"agents.{name}.agent").agent
            await stack.enter_async_context(AgentProcess(agent, settings))
        yield tmp_path / "site"


async def test_a_topic_and_sources_become_a_finished_and_published_article(
    five_agents: Path, mesh: Mesh, request_payload: dict[str, Any], settings: MeshSettings
) -> None:
    result = await mesh.run("create_blog_post", request_payload, wait_seconds=100)
    assert result["verdict"] == "approve"
    assert result["offline"] is True
    assert result["markdown"].startswith("# ")
    assert 600 < len(result["markdown"].split()) < 1300
    files = {one["format"]: base64.b64decode(one["content_base64"]) for one in result["files"]}
    assert files["pdf"].startswith(b"%PDF-")
    assert "word/document.xml" in zipfile.ZipFile(io.BytesIO(files["docx"])).namelist()
    assert zipfile.ZipFile(io.BytesIO(files["epub"])).read("mimetype") == b"application/epub+zip"
    assert b"</html>" in files["html"]
    assert [one["channel"] for one in result["publications"]] == ["site"]
    assert (five_agents / "index.html").exists()
    assert (five_agents / "feed.xml").exists()
    found = await rows(settings, "select step, agent from tasks where agent is not null order by created_at")
    assert [(row["step"], row["agent"]) for row in found[:3]] == [
        ("generate", "llm_agent"),
        ("enhance", "enhancement_agent"),
        ("review", "examination_agent"),
    ]
    again = await mesh.run("create_blog_post", request_payload, wait_seconds=100)
    assert again["publications"][0]["status"] in ("updated", "unchanged")
    assert len(list(await asyncio.to_thread(lambda: list(five_agents.glob("posts/*/index.html"))))) == 1


async def test_a_review_that_says_revise_goes_back_at_most_twice(
    five_agents: Path, mesh: Mesh, settings: MeshSettings
) -> None:
    """A paragraph cannot make 2,000 words: every review says so, and after two revisions it goes on."""
    text = (
        "Tea is a drink made of leaves and hot water. The leaves come from one evergreen shrub that grows in many "
        "warm countries. Green tea is dried soon after it is picked. Black tea is left to oxidise before it is dried. "
        "A pot of black tea is ready after four minutes. Most people who drink tea add nothing to it at all."
    )
    payload = {"topic": "Tea", "sources": [text], "length_words": 2000, "formats": ["html"]}
    result = await mesh.run("create_blog_post", payload, wait_seconds=100)
    reviews = await rows(settings, "select result from tasks where step = 'review' order by created_at")
    verdicts = [json.loads(row["result"])["verdict"] for row in reviews]
    assert len(verdicts) == 3
    assert verdicts[:-1] == ["revise", "revise"]
    assert result["verdict"] == verdicts[-1]
    if result["verdict"] == "reject":
        assert result["files"] == []
    else:
        assert result["files"]


async def test_a_single_source_is_enough(five_agents: Path, mesh: Mesh) -> None:
    text = (
        "Tea is a drink made of leaves and hot water. The leaves come from one evergreen shrub that grows in many "
        "warm countries. Green tea is dried soon after it is picked."
    )
    result = await mesh.run("create_blog_post", {"topic": "Tea", "source": text, "length_words": 50}, wait_seconds=100)
    assert "evergreen shrub" in result["markdown"]


async def test_without_sources_and_model_the_error_says_what_would_help(five_agents: Path, mesh: Mesh) -> None:
    with pytest.raises(TaskFailed) as failed:
        await mesh.run("create_blog_post", {"topic": "Nothing"}, wait_seconds=60)
    assert "sources" in failed.value.message
    assert "LLM_MODEL" in failed.value.message
    assert failed.value.response.error.details["code"] == "nothing_to_write_from"


async def test_a_payload_without_topic_is_refused_by_name(orchestrated: AgentProcess, mesh: Mesh) -> None:
    with pytest.raises(TaskFailed, match="topic") as failed:
        await mesh.run("create_blog_post", {"sources": ["x"]})
    assert failed.value.code == "invalid_request"


async def test_a_brief_draws_several_sources_together(
    five_agents: Path, mesh: Mesh, request_payload: dict[str, Any], settings: MeshSettings
) -> None:
    payload = {"topic": request_payload["topic"], "sources": request_payload["sources"], "length_words": 400}
    titles = [one["title"] for one in payload["sources"]]
    payload["sources"][0]["url"] = "https://example.com/first"
    payload["sources"][-1] = f"# {titles[-1]}\n\n{payload['sources'][-1]['text']}"
    result = await mesh.run("research_brief", payload, wait_seconds=100)
    # A source that is a text alone is called what its heading says; addresses reach the list of sources.
    assert [note["title"] for note in result["notes"]] == titles
    assert f"[{titles[0]}](https://example.com/first)" in result["markdown"]
    assert all(note["text"] for note in result["notes"])
    assert result["markdown"].startswith("# ")
    assert result["files"][0]["format"] == "html"
    counted = await rows(settings, "select count(*) from tasks where step = 'summarize' and status = 'completed'")
    assert counted[0]["count"] == len(payload["sources"])
