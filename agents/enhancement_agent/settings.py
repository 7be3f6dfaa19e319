"""The enhancement agent's settings, read from the environment when the process starts."""

from pydantic_settings import SettingsConfigDict

from pantheon.language_model import LanguageModelSettings


class EnhancementSettings(LanguageModelSettings):
    """`LLM_…` variables as for the llm agent. Without LLM_MODEL, or when a rewrite fails, rules alone work."""

    model_config = SettingsConfigDict(env_prefix="LLM_")
