"""A Consul and a NATS server: the discovery tests' own."""

from tests.discovery.conftest import client, consul_program, nats_server, own_consul_server

__all__ = ["client", "consul_program", "nats_server", "own_consul_server"]
