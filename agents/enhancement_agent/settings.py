"""The enhancement agent's settings, read from the environment when the process starts."""

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from pantheon.runtime.settings import EnvironmentSettings


class EnhancementSettings(EnvironmentSettings):
    """Which model helps, if any, and within which limits: `LLM_…` variables as for the llm agent."""

    model_config = SettingsConfigDict(env_prefix="LLM_")

    model: str = ""
    base_url: str = ""
    api_key: SecretStr = SecretStr("")
    timeout_seconds: float = Field(default=120.0, gt=0)
    """Of an HTTP attempt."""
    request_timeout_seconds: float = Field(default=600.0, gt=0)
    """Of a response as a whole, attempts included."""
    max_retries: int = Field(default=1, ge=0, le=10)
    """HTTP attempts beyond the first."""
    max_output_tokens: int | None = Field(default=None, ge=1)
    """Unset, it follows from the document's length."""
    total_tokens_limit: int | None = Field(default=None, ge=1)
    """Of one task; a rewrite that would need more is dropped, and rules alone correct the text."""
    cost_limit_usd: float | None = Field(default=None, gt=0)
    """Of one task, where the price of the model is known."""
