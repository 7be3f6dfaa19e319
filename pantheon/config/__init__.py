"""Configuration of agents: AgentConfig, and ConfigManager, which layers its values and follows them live.

What it is responsible for: how one agent's process works, as far as that may be set from outside. (Where a process
finds its servers is `pantheon.runtime.settings`: read once, from the environment alone.)

Layers, each over the one before: the agent's defaults, a file, the environment, and a KV store (Consul's, or the NATS
bucket `config`). Files and stores are followed while the process runs; `current` changes as a whole, and `on_change`
and `changes` report which keys.

Invariants:

- An AgentConfig is frozen: an attempt keeps the one that it began with.
- What is wrong at the start, in the file or the environment, is a SettingsError of one line. What is wrong later, or in
  a store, is refused with a warning, and the old value stays: a typing mistake must not stop an agent.
- A store that is away changes nothing: the last known values stay, and no start waits for it beyond a moment.
- Every value knows its origin (`explain`).

`layers` are pure functions; `sources` follow files and stores; `manager` puts them together. Who may call it: `worker`
(for AgentConfig), `process` and `cli` of the kit, and the orchestrator. It imports `pantheon.discovery` (for the
clients of its stores), `pantheon.bus`, `pantheon.runtime` and `protocol`.
"""

from pantheon.bus import NatsClient
from pantheon.config.agent_config import AgentConfig
from pantheon.config.layers import Origin
from pantheon.config.manager import ConfigChange, ConfigManager
from pantheon.config.sources import FileSource, NatsSource, Source
from pantheon.runtime.settings import MeshSettings

__all__ = [
    "AgentConfig",
    "ConfigChange",
    "ConfigManager",
    "FileSource",
    "NatsSource",
    "Origin",
    "Source",
    "make_live_source",
]


def make_live_source(settings: MeshSettings, client: NatsClient, agent: str) -> Source:
    """Where an agent's live settings are: Consul's KV store where there is a Consul, else the bucket `config`."""
    if settings.uses_consul:
        # Only a mesh with Consul pays for importing its client.
        from pantheon.config.consul_source import ConsulSource
        from pantheon.discovery.consul_api import ConsulAddress, ConsulApi

        return ConsulSource(ConsulApi(ConsulAddress.from_settings(settings)), agent)
    return NatsSource(client, agent)
