"""InstanceRecord: what one running process publishes of itself (docs/protocol.md, Discovery)."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from protocol.names import AGENT_NAME, INSTANCE_ID, TASK_TYPE, null_means

TTL_SECONDS = 15
REFRESH_SECONDS = 5
DEREGISTER_AFTER_SECONDS = 60
KV_BUCKET = "agents"
CONSUL_TAG = "mesh-agent"
CONSUL_TASK_TAG_PREFIX = "task:"
# The key in `metadata` of how many of an instance's attempts wait for tasks that they delegated, and have no slot.
WAITING_KEY = "waiting"
# An instance holds some thousands at most: a longer number was not written by the kit.
WAITING_MAX_DIGITS = 5

AgentName = Annotated[str, Field(pattern=AGENT_NAME.pattern.replace(r"\Z", "$"), max_length=63)]
InstanceId = Annotated[str, Field(pattern=INSTANCE_ID.pattern.replace(r"\Z", "$"), max_length=64)]
TaskType = Annotated[str, Field(pattern=TASK_TYPE.pattern.replace(r"\Z", "$"), max_length=63)]


def _texts(metadata: Any) -> Any:
    # The contract leaves the values free, and Consul's are strings: an agent must not vanish for a number among them.
    if not isinstance(metadata, dict):
        return metadata
    return {
        key: value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), ensure_ascii=False)
        for key, value in metadata.items()
        if value is not None
    }


Metadata = Annotated[dict[str, str], BeforeValidator(_texts), WithJsonSchema({"type": "object"})]


class InstanceRecord(BaseModel):
    """One instance of an agent, as the registry shows it; JSON of this is the value of the NATS KV key.

    Values of `metadata` that are no strings are read as their JSON.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    protocol: Literal[1] = 1
    name: AgentName
    instance_id: InstanceId
    task_types: Annotated[tuple[TaskType, ...], null_means(())] = ()
    max_concurrency: Annotated[int, Field(ge=1), null_means(1)] = 1
    version: Annotated[str, null_means("0.0.0")] = "0.0.0"
    status: Annotated[Literal["ready", "draining"], null_means("ready")] = "ready"
    metadata: Annotated[Metadata, null_means({})] = Field(default_factory=dict)

    @property
    def waiting(self) -> int:
        """How many of its attempts have no slot; 0 where its metadata holds no such number."""
        text = self.metadata.get(WAITING_KEY, "")
        return int(text) if text.isascii() and text.isdigit() and len(text) <= WAITING_MAX_DIGITS else 0

    @property
    def key(self) -> str:
        """The key in the KV bucket: `<name>.<instance_id>`."""
        return f"{self.name}.{self.instance_id}"

    @property
    def consul_id(self) -> str:
        """The service ID in Consul: `<name>-<instance_id>`."""
        return f"{self.name}-{self.instance_id}"
