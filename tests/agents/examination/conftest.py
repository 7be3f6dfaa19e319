"""Real servers on loopback: one with pages to link to, one that speaks the model vendors' APIs."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from agents.examination_agent.agent import reviewer
from agents.examination_agent.settings import settings


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

    def answer(self, path: str, request: dict[str, Any]) -> dict[str, Any]:
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


class _Quiet(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Keep the test's output clean."""

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class _Pages(_Quiet):
    state: WebServer

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def _serve(self) -> None:
        path = self.path.partition("?")[0]
        self.state.asked.append((self.command, path))
        try:
            if path == "/slow":
                time.sleep(4)
            if path == "/loop":
                self.answer(302, headers={"Location": "/loop"})
            elif path == "/moved":
                self.answer(301, headers={"Location": "/fine"})
            elif path == "/get-only":
                self.answer(405 if self.command == "HEAD" else 200, b"page")
            elif path.startswith("/status/"):
                self.answer(int(path.rpartition("/")[2]))
            else:
                self.answer(200, b"page")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True


class _Model(_Quiet):
    state: ModelServer

    def do_POST(self) -> None:
        state = self.state
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        state.requests.append(request)
        state.paths.append(self.path)
        if state.delay_seconds:
            time.sleep(state.delay_seconds)
        json_type = {"Content-Type": "application/json"}
        try:
            if state.status != 200:
                self.answer(state.status, b'{"error": {"message": "no", "type": "x"}}', json_type)
            else:
                self.answer(200, json.dumps(state.answer(self.path.partition("?")[0], request)).encode(), json_type)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True


def _serve(handler: type[_Quiet]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join(5)


@pytest.fixture
def web_server() -> Iterator[WebServer]:
    state = WebServer()
    for url in _serve(type("Pages", (_Pages,), {"state": state})):
        state.url = url
        yield state


@pytest.fixture
def model_server() -> Iterator[ModelServer]:
    state = ModelServer()
    for url in _serve(type("Model", (_Model,), {"state": state})):
        state.url = url
        yield state


@pytest.fixture(autouse=True)
def clean_settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test sees the settings of another, nor those of the machine."""
    for prefix in ("LLM", "EXAMINATION"):
        for name in ("MODEL", "BASE_URL", "API_KEY", "MAX_RETRIES", "TIMEOUT_SECONDS", "TOTAL_TOKENS_LIMIT"):
            monkeypatch.delenv(f"{prefix}_{name}", raising=False)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_API_KEY", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    settings.cache_clear()
    reviewer.cache_clear()
    yield
    settings.cache_clear()
    reviewer.cache_clear()


@pytest.fixture
def use_model(model_server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> Any:
    def configure(model: str, **variables: str) -> None:
        base = model_server.url + ("" if model.startswith("anthropic") else "/v1")
        values = {"MODEL": model, "BASE_URL": base, "API_KEY": "key-1", "MAX_RETRIES": "0", **variables}
        for name, value in values.items():
            monkeypatch.setenv(f"LLM_{name}", value)

    return configure
