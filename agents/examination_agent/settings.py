"""The examination agent's settings, read from the environment when the process starts."""

from functools import cache

from pydantic import AliasChoices, AliasGenerator, Field
from pydantic_settings import SettingsConfigDict

from pantheon.language_model import LanguageModelSettings


def _own_or_shared(name: str) -> AliasChoices:
    """A model setting: this agent's own variable, else the one that it shares with the agents that write."""
    return AliasChoices(f"EXAMINATION_{name.upper()}", f"LLM_{name.upper()}")


class ExaminationSettings(LanguageModelSettings):
    """`LLM_…` variables as for the llm agent, each overridden by `EXAMINATION_…`, so that another model may review.

    Without a model, the rules alone decide.
    """

    model_config = SettingsConfigDict(
        populate_by_name=True, alias_generator=AliasGenerator(validation_alias=_own_or_shared)
    )

    max_output_tokens: int | None = Field(default=8_000, ge=1)
    link_timeout_seconds: float = Field(default=8.0, gt=0, validation_alias="EXAMINATION_LINK_TIMEOUT_SECONDS")
    link_concurrency: int = Field(default=8, ge=1, validation_alias="EXAMINATION_LINK_CONCURRENCY")
    max_links: int = Field(default=200, ge=0, validation_alias="EXAMINATION_MAX_LINKS")
    """Of one article; links beyond it are not requested, and the summary states it."""


@cache
def settings() -> ExaminationSettings:
    return ExaminationSettings.load()
