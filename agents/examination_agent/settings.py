"""The examination agent's settings, read from the environment when the process starts."""

from functools import cache

from pydantic import AliasChoices, Field, SecretStr
from pydantic_settings import SettingsConfigDict

from pantheon.runtime.settings import EnvironmentSettings


def _both(name: str) -> AliasChoices:
    """A model setting: this agent's own, else the one that it shares with the agents that write."""
    return AliasChoices(f"EXAMINATION_{name}", f"LLM_{name}")


class ExaminationSettings(EnvironmentSettings):
    """`LLM_…` variables as for the llm agent, each overridden by `EXAMINATION_…`, so that another model may review.

    Without a model, the rules alone decide.
    """

    model_config = SettingsConfigDict(populate_by_name=True)

    model: str = Field(default="", validation_alias=_both("MODEL"))
    base_url: str = Field(default="", validation_alias=_both("BASE_URL"))
    api_key: SecretStr = Field(default=SecretStr(""), validation_alias=_both("API_KEY"))
    timeout_seconds: float = Field(default=120.0, gt=0, validation_alias=_both("TIMEOUT_SECONDS"))
    """Of one HTTP attempt."""
    request_timeout_seconds: float = Field(default=600.0, gt=0, validation_alias=_both("REQUEST_TIMEOUT_SECONDS"))
    """Of one answer as a whole, attempts included."""
    max_retries: int = Field(default=1, ge=0, le=10, validation_alias=_both("MAX_RETRIES"))
    max_output_tokens: int = Field(default=8_000, ge=1, validation_alias=_both("MAX_OUTPUT_TOKENS"))
    total_tokens_limit: int | None = Field(default=None, ge=1, validation_alias=_both("TOTAL_TOKENS_LIMIT"))
    cost_limit_usd: float | None = Field(default=None, gt=0, validation_alias=_both("COST_LIMIT_USD"))
    link_timeout_seconds: float = Field(default=8.0, gt=0, validation_alias="EXAMINATION_LINK_TIMEOUT_SECONDS")
    link_concurrency: int = Field(default=8, ge=1, validation_alias="EXAMINATION_LINK_CONCURRENCY")
    max_links: int = Field(default=200, ge=0, validation_alias="EXAMINATION_MAX_LINKS")
    """Of one article; links beyond it are not requested, and the summary states it."""


@cache
def settings() -> ExaminationSettings:
    return ExaminationSettings.load()
