"""FlowSettings: rate limits and how long tasks are kept, from the orchestrator's environment."""

import json
import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, PositiveFloat, field_validator
from pydantic_settings import NoDecode

from pantheon.runtime.settings import EnvironmentSettings

_RATE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*/\s*(s|m|h)(?:\s+burst\s+(\d+))?\s*\Z")
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600}
_ALLOWED = '{"agents": {"llm_agent": "10/s"}, "requesters": {"alice": "100/m burst 20", "*": "50/s"}}'


@dataclass(frozen=True)
class RateLimit:
    """Tokens come at a rate; up to `burst` of them are kept until they are needed."""

    per_second: float
    burst: int


def read_rate(text: str) -> RateLimit:
    """A rate such as `10/s`, `100/m`, `5/h burst 20`; the burst is else what comes in a second, at least 1.

    Raises ValueError.
    """
    found = _RATE.match(text) if isinstance(text, str) else None
    if found is None or float(found[1]) <= 0:
        raise ValueError(
            f"{text!r} is no rate: write 10/s, 100/m or 5/h, and after it 'burst 20' where more may go at once"
        )
    per_second = float(found[1]) / _UNIT_SECONDS[found[2]]
    burst = int(found[3]) if found[3] else max(1, round(per_second))
    return RateLimit(per_second, max(1, burst))


class FlowSettings(EnvironmentSettings):
    rate_limits: Annotated[dict[str, dict[str, RateLimit]], NoDecode] = Field(
        default_factory=dict,
        json_schema_extra={"allowed": f"JSON such as {_ALLOWED}"},
        description="tasks a second, minute or hour: of agents, for requesters (`tenant/name`, `name`, or `*`: each)",
    )
    history_after_seconds: PositiveFloat = Field(
        default=3600.0,
        allow_inf_nan=False,
        json_schema_extra={"allowed": "a number of seconds above 0"},
        description="how long after their answer tasks stay beside those at work",
    )
    retention_days: PositiveFloat = Field(
        default=30.0,
        allow_inf_nan=False,
        json_schema_extra={"allowed": "a number of days above 0"},
        description="how long ended tasks, their ids and their idempotency keys are kept",
    )

    @field_validator("rate_limits", mode="before")
    @classmethod
    def _read_limits(cls, value: Any) -> Any:
        read = json.loads(value) if isinstance(value, str) else value
        if not isinstance(read, dict) or not set(read) <= {"agents", "requesters"}:
            raise ValueError("it has 'agents' and 'requesters', each an object of rates by name")
        limits: dict[str, dict[str, RateLimit]] = {}
        for kind, rates in read.items():
            if not isinstance(rates, dict):
                raise ValueError(f"'{kind}' must be an object of rates by name")
            limits[kind] = {
                name: rate if isinstance(rate, RateLimit) else read_rate(rate) for name, rate in rates.items()
            }
        return limits
