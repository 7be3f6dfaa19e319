"""The drafting agent's settings, read from the environment when the process starts."""

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from pantheon.runtime.settings import EnvironmentSettings


class DraftingSettings(EnvironmentSettings):
    """EXPORT_TIMEOUT_SECONDS bounds one conversion, EXPORT_CONCURRENCY how many run at once in this process."""

    model_config = SettingsConfigDict(env_prefix="EXPORT_")

    timeout_seconds: float = Field(default=120.0, gt=0)
    concurrency: int = Field(default=2, ge=1, le=64)
