"""The llm agent's settings, read from the environment when the process starts."""

from functools import cache

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from pantheon.language_model import LanguageModelSettings


class LlmSettings(LanguageModelSettings):
    """`LLM_…` variables. Without LLM_MODEL the agent works offline, from the sources alone."""

    model_config = SettingsConfigDict(env_prefix="LLM_")

    temperature: float | None = Field(default=None, ge=0, le=2)


@cache
def settings() -> LlmSettings:
    return LlmSettings.load()
