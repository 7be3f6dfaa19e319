"""Configuration of agents: AgentConfig, and ConfigManager, which layers its values and follows them live."""

from nats.aio.client import Client

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


def make_live_source(settings: MeshSettings, client: Client, agent: str) -> Source:
    """Where an agent's live settings stand: Consul's KV store where there is a Consul, else the bucket `config`."""
    if settings.uses_consul:
        # Only a mesh with Consul pays for importing its client.
        from pantheon.config.consul_source import ConsulSource
        from pantheon.discovery.consul_api import ConsulAddress, ConsulApi

        return ConsulSource(ConsulApi(ConsulAddress.from_settings(settings)), agent)
    return NatsSource(client, agent)
