"""Settings of models: none of the machine's own, and those that point an agent at a test's `model_server`."""

from typing import Protocol

import pytest


class ModelServer(Protocol):
    url: str


class UseModel(Protocol):
    """Have the agent under test ask this model, with these settings beside it (`TIMEOUT_SECONDS="1"`)."""

    def __call__(self, model: str, **variables: str) -> None: ...


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for prefix in ("LLM", "EXAMINATION"):
        for name in ("MODEL", "BASE_URL", "API_KEY", "MAX_RETRIES", "TIMEOUT_SECONDS", "TOTAL_TOKENS_LIMIT"):
            monkeypatch.delenv(f"{prefix}_{name}", raising=False)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_API_KEY", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def use_model(model_server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> UseModel:
    def configure(model: str, **variables: str) -> None:
        base = model_server.url + ("" if model.startswith("anthropic") else "/v1")
        values = {"MODEL": model, "BASE_URL": base, "API_KEY": "key-1", "MAX_RETRIES": "0", **variables}
        for name, value in values.items():
            monkeypatch.setenv(f"LLM_{name}", value)

    return configure
