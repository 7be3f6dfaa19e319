"""AgentConfig: what may be set from outside in one agent's process, and changed while it runs."""

from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator

from pantheon.runtime.settings import LogLevel
from protocol.discovery import REFRESH_SECONDS, AgentName, InstanceId


def _from(variable: str) -> dict[str, Any]:
    return {"env": variable}


class AgentConfig(BaseModel):
    """One agent's configuration; frozen, a change is a new one.

    Subclass it to add settings of one's own; or use `options`, which takes anything.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    # The identity of the process: set by its code, not by any layer, and never changed.
    fixed_keys: ClassVar[frozenset[str]] = frozenset({"name", "instance_id"})

    name: AgentName
    instance_id: InstanceId
    max_concurrency: int = Field(default=16, ge=1, le=100_000, json_schema_extra=_from("MAX_CONCURRENCY"))
    heartbeat_interval_seconds: float = Field(default=float(REFRESH_SECONDS), gt=0, le=60, allow_inf_nan=False)
    task_timeout_seconds: float = Field(
        default=300.0, gt=0, allow_inf_nan=False, json_schema_extra=_from("AGENT_TIMEOUT_SECONDS")
    )
    drain_grace_seconds: float = Field(
        default=25.0, ge=0, allow_inf_nan=False, json_schema_extra=_from("DRAIN_GRACE_SECONDS")
    )
    log_level: LogLevel = Field(default="info", json_schema_extra=_from("LOG_LEVEL"))
    options: dict[str, Any] = Field(default_factory=dict, json_schema_extra=_from("AGENT_OPTIONS"))

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower_case(cls, value: Any) -> Any:
        return value.strip().lower() if isinstance(value, str) else value

    @classmethod
    def variable_of(cls, key: str) -> str:
        """The environment variable of a field; its own name in capitals unless the field names another."""
        extra = cls.model_fields[key].json_schema_extra
        named = extra.get("env") if isinstance(extra, dict) else None
        return str(named) if named else key.upper()

    def option(self, key: str, default: Any = None) -> Any:
        """One of the free options."""
        return self.options.get(key, default)

    @classmethod
    def of(cls, name: str, instance_id: str, **values: Any) -> Self:
        """A configuration without layers, for tests and small programs."""
        return cls.model_validate({"name": name, "instance_id": instance_id, **values})
