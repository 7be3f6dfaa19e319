"""The llm agent's settings, read from the environment when the process starts."""

from functools import cache

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from pantheon.runtime.settings import EnvironmentSettings


class LlmSettings(EnvironmentSettings):
    """`LLM_…` variables. Without LLM_MODEL the agent works offline, from the sources alone.

    LLM_MODEL is `<vendor>:<model>`, as in `openai:gpt-5`, `anthropic:claude-sonnet-5` or any other vendor that
    pydantic-ai knows. With LLM_BASE_URL, `openai:` uses the chat completions API, which OpenAI-compatible servers have;
    `openai-responses:` uses the responses API. The key is LLM_API_KEY, or the vendor's own
    variable (OPENAI_API_KEY, ANTHROPIC_API_KEY).
    """

    model_config = SettingsConfigDict(env_prefix="LLM_")

    model: str = ""
    base_url: str = ""
    api_key: SecretStr = SecretStr("")
    temperature: float | None = Field(default=None, ge=0, le=2)
    timeout_seconds: float = Field(default=120.0, gt=0)
    """Of an HTTP attempt: until the response begins, and between two pieces of a streamed response."""
    request_timeout_seconds: float = Field(default=600.0, gt=0)
    """Of a response as a whole, attempts and stream included."""
    max_retries: int = Field(default=1, ge=0, le=10)
    """HTTP attempts beyond the first; the mesh itself retries the task after that."""
    max_output_tokens: int | None = Field(default=None, ge=1)
    """Unset, it is made of the length that is asked for."""
    total_tokens_limit: int | None = Field(default=None, ge=1)
    """Of one task; a task that would need more fails with `budget_exceeded`."""
    cost_limit_usd: float | None = Field(default=None, gt=0)
    """Of one task, where the price of the model is known."""


@cache
def settings() -> LlmSettings:
    return LlmSettings.load()
