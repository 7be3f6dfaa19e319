"""Real servers on loopback: one with pages to link to, one that speaks the model vendors' APIs."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from agents.examination_agent.agent import reviewer
from agents.examination_agent.settings import settings
from tests.agents.http_server import Handler, HttpServer


@dataclass
class WebServer:
    """Pages by path: a status and headers. `asked` records method and path."""

    url: str = ""
    asked: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class ModelServer:
    """What the model will find, and what it was asked."""

    url: str = ""
    issues: list[dict[str, Any]] = field(default_factory=list)
    arguments: str | None = None
    status: int = 200
    delay_seconds: float = 0.0
    requests: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    def response(self, path: str, request: dict[str, Any]) -> dict[str, Any]:
        arguments = self.arguments if self.arguments is not None else json.dumps({"issues": self.issues})
        if path.endswith("/chat/completions"):
            name = request["tools"][0]["function"]["name"]
            call = {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}
            return {
                "id": "c1", "object": "chat.completion", "created": 1, "model": "gpt-4o-mini",
                "choices": [{"index": 0, "finish_reason": "tool_calls", "logprobs": None,
                             "message": {"role": "assistant", "content": None, "tool_calls": [call]}}],
                "usage": {"prompt_tokens": 900, "completion_tokens": 100, "total_tokens": 1000},
            }  # fmt: skip
        if path.endswith("/responses"):
            name = request["tools"][0]["name"]
            call = {"id": "fc_1", "type": "function_call", "call_id": "call_1", "name": name, "arguments": arguments,
                    "status": "completed"}  # fmt: skip
            return {
                "id": "r1", "object": "response", "created_at": 1, "model": "gpt-4o-mini", "status": "completed",
                "output": [call], "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
                "usage": {"input_tokens": 900, "output_tokens": 100, "total_tokens": 1000,
                          "input_tokens_details": {"cached_tokens": 0},
                          "output_tokens_details": {"reasoning_tokens": 0}},
            }  # fmt: skip
        return {
            "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-sonnet-5",
            # Asked by a JSON schema of its own (`output_config`), not by a tool.
            "content": [{"type": "text", "text": arguments}],
            "stop_reason": "end_turn", "stop_sequence": None, "usage": {"input_tokens": 900, "output_tokens": 100},
        }  # fmt: skip


class _Pages(Handler):
    state: WebServer

    def respond(self) -> None:
        path = self.path.partition("?")[0]
        self.state.asked.append((self.command, path))
        if path == "/slow":
            self.hang(60)
        if path == "/loop":
            self.response(302, headers={"Location": "/loop"})
        elif path == "/moved":
            self.response(301, headers={"Location": "/fine"})
        elif path == "/get-only":
            self.response(405 if self.command == "HEAD" else 200, b"page")
        elif path.startswith("/status/"):
            self.response(int(path.rpartition("/")[2]))
        else:
            self.response(200, b"page")


class _Model(Handler):
    state: ModelServer

    def respond(self) -> None:
        state = self.state
        request = json.loads(self.body())
        state.requests.append(request)
        state.paths.append(self.path)
        self.hang(state.delay_seconds)
        json_type = {"Content-Type": "application/json"}
        if state.status != 200:
            self.response(state.status, b'{"error": {"message": "no", "type": "x"}}', json_type)
        else:
            self.response(200, json.dumps(state.response(self.path.partition("?")[0], request)).encode(), json_type)


@pytest.fixture
def web_server() -> Iterator[WebServer]:
    state = WebServer()
    with HttpServer(type("Pages", (_Pages,), {"state": state})) as server:
        state.url = server.url
        yield state


@pytest.fixture
def model_server() -> Iterator[ModelServer]:
    state = ModelServer()
    with HttpServer(type("Model", (_Model,), {"state": state})) as server:
        state.url = server.url
        yield state


@pytest.fixture(autouse=True)
def clean_settings(clean_environment: None) -> Iterator[None]:
    """No test sees the settings of another."""
    settings.cache_clear()
    reviewer.cache_clear()
    yield
    settings.cache_clear()
    reviewer.cache_clear()
