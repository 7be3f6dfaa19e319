"""The enhancement agent's settings, read from the environment when the process starts."""

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from pantheon.runtime.settings import EnvironmentSettings


class EnhancementSettings(EnvironmentSettings):
    """Which model helps, if any: LLM_MODEL (`openai:…`, `anthropic:…`), LLM_BASE_URL, LLM_API_KEY."""

    model_config = SettingsConfigDict(env_prefix="LLM_")

    model: str = ""
    base_url: str = ""
    api_key: SecretStr = SecretStr("")
    timeout_seconds: float = Field(default=120.0, gt=0)
