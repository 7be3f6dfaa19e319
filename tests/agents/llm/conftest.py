"""A local HTTP server that speaks the model vendors' APIs, and settings that point the agent at it."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from agents.llm_agent.agent import language_model
from agents.llm_agent.settings import settings
from pantheon.text.sources import Source
from tests.agents.http_server import Handler, HttpServer

EXAMPLE = Path(__file__).parents[3] / "examples" / "blog"


@dataclass
class ModelServer:
    """What the server will respond with next, and what it was asked."""

    url: str = ""
    pieces: list[str] = field(default_factory=lambda: ["Hello", " world."])
    status: int = 200
    error: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    delay_seconds: float = 0.0
    fails_after: int | None = None
    """From this request on it fails with 500; None: it never does."""
    breaks_off: bool = False
    nonsense: bool = False
    model: str = "gpt-4o-mini"
    requests: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    asked: threading.Event = field(default_factory=threading.Event)

    def events(self, path: str) -> list[tuple[str, dict[str, Any]]]:
        if path.endswith("/chat/completions"):
            return self._chat()
        return self._responses() if path.endswith("/responses") else self._anthropic()

    def _chat(self) -> list[tuple[str, dict[str, Any]]]:
        base = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": self.model}
        chunks: list[dict[str, Any]] = [
            {**base, "choices": [{"index": 0, "delta": {"role": "assistant", "content": piece}, "finish_reason": None}]}
            for piece in self.pieces
        ]
        chunks.append({**base, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        usage = {"prompt_tokens": 1000, "completion_tokens": 500, "total_tokens": 1500}
        chunks.append({**base, "choices": [], "usage": usage})
        return [("", chunk) for chunk in chunks]

    def _responses(self) -> list[tuple[str, dict[str, Any]]]:
        text = "".join(self.pieces)
        response = {
            "id": "r1", "object": "response", "created_at": 1, "model": self.model, "status": "in_progress",
            "output": [], "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
        }  # fmt: skip
        part = {"type": "output_text", "text": "", "annotations": []}
        item = {"id": "m1", "type": "message", "role": "assistant", "status": "in_progress", "content": []}
        where = {"item_id": "m1", "output_index": 0, "content_index": 0}
        done_part = {**part, "text": text}
        done_item = {**item, "status": "completed", "content": [done_part]}
        usage = {
            "input_tokens": 1000, "output_tokens": 500, "total_tokens": 1500,
            "input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0},
        }  # fmt: skip
        events: list[dict[str, Any]] = [
            {"type": "response.created", "response": response},
            {"type": "response.output_item.added", "output_index": 0, "item": item},
            {"type": "response.content_part.added", **where, "part": part},
            *({"type": "response.output_text.delta", **where, "delta": piece, "logprobs": []} for piece in self.pieces),
            {"type": "response.output_text.done", **where, "text": text, "logprobs": []},
            {"type": "response.content_part.done", **where, "part": done_part},
            {"type": "response.output_item.done", "output_index": 0, "item": done_item},
            {
                "type": "response.completed",
                "response": {**response, "status": "completed", "output": [done_item], "usage": usage},
            },
        ]
        return [(event["type"], {**event, "sequence_number": number}) for number, event in enumerate(events)]

    def _anthropic(self) -> list[tuple[str, dict[str, Any]]]:
        message: dict[str, Any] = {
            "id": "msg_1", "type": "message", "role": "assistant", "model": self.model, "content": [],
            "stop_reason": None, "stop_sequence": None, "usage": {"input_tokens": 1000, "output_tokens": 1},
        }  # fmt: skip
        events: list[dict[str, Any]] = [
            {"type": "message_start", "message": message},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            *(
                {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}}
                for piece in self.pieces
            ),
            {"type": "content_block_stop", "index": 0},
            {
                "type": "message_delta",
                "delta": {"stop_reason": "end_turn", "stop_sequence": None},
                "usage": {"output_tokens": 500},
            },
            {"type": "message_stop"},
        ]
        return [(event["type"], event) for event in events]


class _Handler(Handler):
    state: ModelServer

    def respond(self) -> None:
        state = self.state
        state.requests.append(json.loads(self.body()))
        state.paths.append(self.path)
        state.keys.append(str(self.headers.get("x-api-key") or self.headers.get("Authorization")))
        state.asked.set()
        self.hang(state.delay_seconds)
        failed = state.fails_after is not None and len(state.requests) > state.fails_after
        if state.status != 200 or failed:
            status = 500 if failed else state.status
            self._send(status, json.dumps(state.error).encode(), "application/json")
        elif state.nonsense:
            self._send(200, b"<html>It works!</html>", "text/html")
        else:
            self._stream(state)

    def _send(self, status: int, body: bytes, media_type: str) -> None:
        self.response(status, body, {"Content-Type": media_type, **self.state.headers})

    def _stream(self, state: ModelServer) -> None:
        try:
            self._events(state)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _events(self, state: ModelServer) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        events = state.events(self.path)
        for position, (name, data) in enumerate(events):
            if state.breaks_off and position == len(events) // 2:
                return
            label = f"event: {name}\n" if name else ""
            self.wfile.write(f"{label}data: {json.dumps(data)}\n\n".encode())
            self.wfile.flush()
        if self.path.endswith("/chat/completions"):
            self.wfile.write(b"data: [DONE]\n\n")


@pytest.fixture
def model_server() -> Iterator[ModelServer]:
    state = ModelServer()
    with HttpServer(type("Model", (_Handler,), {"state": state})) as server:
        state.url = server.url
        yield state


@pytest.fixture(autouse=True)
def clean_settings(clean_environment: None) -> Iterator[None]:
    """No test sees the settings of another."""
    settings.cache_clear()
    language_model.cache_clear()
    yield
    settings.cache_clear()
    language_model.cache_clear()


@pytest.fixture(scope="session")
def example_request() -> dict[str, Any]:
    """The demo's request, its files read in."""
    request: dict[str, Any] = yaml.safe_load((EXAMPLE / "request.yaml").read_text())
    request["sources"] = [
        {"title": source["title"], "text": (EXAMPLE / source["file"]).read_text()} for source in request["sources"]
    ]
    request["guidelines"] = (EXAMPLE / request.pop("guidelines_file")).read_text()
    return request


@pytest.fixture
def example_sources(example_request: dict[str, Any]) -> list[Source]:
    return [Source.model_validate(source) for source in example_request["sources"]]
