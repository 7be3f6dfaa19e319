"""The agent's handler, without a model and with one behind a real HTTP server."""

import gc
import json
from collections.abc import Iterator
from typing import Any

import pytest

from agents.enhancement_agent import agent as binding
from agents.enhancement_agent.models import EnhanceContent
from agents.enhancement_agent.rewriter import unkept, unwrapped
from pantheon import TaskFailure
from pantheon.worker.context import LocalTaskContext
from tests.agents.http_server import Handler, HttpServer
from tests.waiting import until

DOCUMENT = "# A title\n\nWe recieve `code  here` and a [link](http://x.example) for 3 reasons [1].\n"


class ModelServer(HttpServer):
    """Speaks OpenAI's chat completions and Anthropic's messages; `answer` decides what is said."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.text = ""
        self.status = 200
        self.fails_after: int | None = None
        reported = self

        class Model(Handler):
            def respond(self) -> None:
                body = json.loads(self.body())
                reported.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                if reported.fails_after is not None and len(reported.requests) > reported.fails_after:
                    reported.status = 500
                content = json.dumps(reported.response(self.path, body)).encode()
                self.response(reported.status, content, {"content-type": "application/json"})

        super().__init__(Model)

    def response(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if self.status != 200:
            return {"error": {"message": "no", "type": "invalid_request_error", "code": "x"}}
        if path.endswith("/messages"):
            return {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "model": body["model"],
                "content": [{"type": "text", "text": self.text}],
                "stop_reason": "end_turn",
                "stop_sequence": None,
                "usage": {"input_tokens": 11, "output_tokens": 7},
            }
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1_700_000_000,
            "model": body["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": self.text}}],
            "usage": {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18},
        }


@pytest.fixture
def model_server() -> Iterator[ModelServer]:
    with ModelServer() as server:
        yield server


@pytest.fixture(autouse=True)
def _fresh_settings(clean_environment: None) -> Iterator[None]:
    binding._settings.cache_clear()
    yield
    binding._settings.cache_clear()


def _use(monkeypatch: pytest.MonkeyPatch, server: ModelServer, model: str = "openai:gpt-test") -> None:
    monkeypatch.setenv("LLM_MODEL", model)
    monkeypatch.setenv("LLM_BASE_URL", f"{server.url}/v1" if model.startswith("openai") else server.url)
    monkeypatch.setenv("LLM_API_KEY", "sk-secret")


async def test_without_a_model_rules_correct_the_text_and_say_so() -> None:
    ctx = LocalTaskContext(task_type="enhance_content")
    made = await binding.enhance(EnhanceContent(markdown=DOCUMENT), ctx)
    assert made.markdown == DOCUMENT.replace("recieve", "receive")
    assert made.offline
    assert made.model is None
    assert "LLM_MODEL" in made.note
    assert made.readability.before.words == made.readability.after.words > 0
    assert ctx.progress_messages[-1].percent == 100
    assert binding.agent.metadata == {"model": "none"}


async def test_an_empty_document_is_refused() -> None:
    with pytest.raises(TaskFailure) as caught:
        await binding.enhance(EnhanceContent(markdown=" \n"), LocalTaskContext())
    assert caught.value.code == "empty_document"
    assert not caught.value.retryable


async def test_a_models_response_that_keeps_everything_is_taken(
    monkeypatch: pytest.MonkeyPatch, model_server: ModelServer
) -> None:
    _use(monkeypatch, model_server)
    line = "We get `code  here` and, in order to help, a [link](http://x.example) for 3 reasons [1]."
    model_server.text = f"```markdown\n# A better title\n\n{line}\n```"
    ctx = LocalTaskContext(task_type="enhance_content")
    made = await binding.enhance(EnhanceContent(markdown=DOCUMENT, style="warm"), ctx)
    assert (
        made.markdown
        == "# A better title\n\nWe get `code  here` and, to help, a [link](http://x.example) for 3 reasons [1].\n"
    )
    assert (made.offline, made.model, made.note) == (False, "openai:gpt-test", "")
    assert [change.kind for change in made.changes] == ["model", "model", "style"]
    assert (ctx.usage.input_tokens, ctx.usage.output_tokens) == (11, 7)
    path, headers, body = model_server.requests[0]
    assert path == "/v1/chat/completions"
    assert headers["authorization"] == "Bearer sk-secret"
    assert body["model"] == "gpt-test"
    assert "warm" in json.dumps(body["messages"])


@pytest.mark.parametrize("status", [200, 401])
async def test_a_models_connection_ends_with_the_task(
    monkeypatch: pytest.MonkeyPatch, model_server: ModelServer, status: int
) -> None:
    """Each task left a client with an open connection behind, until the collector came by."""
    _use(monkeypatch, model_server)
    model_server.text, model_server.status = DOCUMENT, status
    gc.disable()
    try:
        await binding.enhance(EnhanceContent(markdown=DOCUMENT), LocalTaskContext())
        await until(lambda: model_server.connections == 0, "the end of the connection")
    finally:
        gc.enable()
    assert len(model_server.requests) == 1


async def test_a_response_that_loses_code_or_a_link_is_refused(
    monkeypatch: pytest.MonkeyPatch, model_server: ModelServer
) -> None:
    _use(monkeypatch, model_server)
    model_server.text = "# A title\n\nWe get `code` and a link for 3 reasons, which is nice to have [1].\n"
    ctx = LocalTaskContext()
    made = await binding.enhance(EnhanceContent(markdown=DOCUMENT), ctx)
    assert made.markdown == DOCUMENT.replace("recieve", "receive")
    assert made.offline
    assert "did not keep: code, links" in made.note
    assert ctx.usage.input_tokens == 11  # It was paid for all the same.


async def test_a_model_that_fails_does_not_fail_the_task(
    monkeypatch: pytest.MonkeyPatch, model_server: ModelServer
) -> None:
    _use(monkeypatch, model_server)
    model_server.status = 401
    made = await binding.enhance(EnhanceContent(markdown=DOCUMENT), LocalTaskContext())
    assert made.offline
    assert "could not be asked" in made.note
    assert "sk-secret" not in made.model_dump_json()


@pytest.mark.parametrize(("fails_after", "usage"), [(None, (22, 14)), (1, (11, 7))])
async def test_a_rewrite_that_fails_is_paid_for_all_the_same(
    monkeypatch: pytest.MonkeyPatch, model_server: ModelServer, fails_after: int | None, usage: tuple[int, int]
) -> None:
    # What a failed rewrite had cost was dropped with its error: no budget saw it.
    _use(monkeypatch, model_server)
    monkeypatch.setenv("LLM_MAX_RETRIES", "0")
    model_server.text, model_server.fails_after = "", fails_after
    ctx = LocalTaskContext()
    made = await binding.enhance(EnhanceContent(markdown=DOCUMENT), ctx)
    assert made.offline
    assert "could not be asked" in made.note
    assert len(model_server.requests) == 2
    assert (ctx.usage.input_tokens, ctx.usage.output_tokens) == usage


async def test_a_rewrite_keeps_its_budget_of_tokens(monkeypatch: pytest.MonkeyPatch, model_server: ModelServer) -> None:
    _use(monkeypatch, model_server)
    monkeypatch.setenv("LLM_TOTAL_TOKENS_LIMIT", "10")
    model_server.text = DOCUMENT.replace("We recieve", "We get")
    ctx = LocalTaskContext()
    made = await binding.enhance(EnhanceContent(markdown=DOCUMENT), ctx)
    assert made.markdown == DOCUMENT.replace("recieve", "receive")
    assert "openai:gpt-test: budget_exceeded" in made.note
    assert (ctx.usage.input_tokens, ctx.usage.output_tokens) == (11, 7)


async def test_anthropics_api_is_spoken_too(monkeypatch: pytest.MonkeyPatch, model_server: ModelServer) -> None:
    _use(monkeypatch, model_server, "anthropic:claude-test")
    model_server.text = DOCUMENT.replace("We recieve", "We get")
    made = await binding.enhance(EnhanceContent(markdown=DOCUMENT), LocalTaskContext())
    assert made.model == "anthropic:claude-test"
    assert made.markdown == DOCUMENT.replace("We recieve", "We get")
    assert model_server.requests[0][0] == "/v1/messages"


@pytest.mark.parametrize("model", ["nowhere:model", "groq:a-model"])  # unknown, and known without its library
async def test_a_vendor_that_cannot_be_had_leaves_the_rules(monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    monkeypatch.setenv("LLM_MODEL", model)
    made = await binding.enhance(EnhanceContent(markdown=DOCUMENT), LocalTaskContext())
    assert made.offline
    assert model in made.note


def test_a_response_far_too_short_is_refused() -> None:
    assert unkept("word " * 200, "word " * 20) == ["length"]


def test_a_document_that_is_one_fence_keeps_it() -> None:
    assert unwrapped("```\ncode\n```", "```\ncode\n```\n") == "```\ncode\n```\n"
